"""Make the pages of the site as nbdev makes them, without Quarto, and check them.

While nbdev makes a page it runs the exported cells of its notebook, the cells that import, and those that show a symbol's documentation. One worker
process makes many pages, one after another, and what one page leaves behind can change another. The pages are therefore made twice, in clean copies
of the project: in one process from first to last, and in another from last to first, so that of any two pages each is made before the other. Both
times they must be the same, without an error or a warning. Then addresses, links, anchors and names in backticks are looked up in the pages as a
reader would follow them.
"""

import argparse
import ast
import builtins
import contextlib
import fnmatch
import functools
import html
import importlib.util
import inspect
import io
import json
import multiprocessing
import operator
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import yaml
from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parent.parent
ORDERS = ("forward", "backward")
# what pages import, imported once for all processes that make them; nothing of this project, for each process has a copy of its own
PRELOADED = ["torch._dynamo", "torchvision.datasets", "fastai.learner", "matplotlib.pyplot", "scipy.integrate", "nbdev.serve", "execnb.shell"]
FOREIGN = ("torch", "torch.nn", "torch.nn.parallel", "torch.utils.data", "torchvision.datasets", "fastai.learner")  # whose names prose may use
ADDED = {"draw/index.html"}  # pages that .github/workflows/docs.yml puts on the site, and that are no notebooks
OF_OTHERS = {"tutorials/coming_from.ipynb"}  # pages that speak of the names of other libraries
MARKDOWN = MarkdownIt("commonmark").enable("table")
MATHS = re.compile(r"\$\$.*?\$\$|(?<![\\$])\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)", re.DOTALL)
TITLE_LINE = re.compile(r"# |> |- \S.*:|$")  # the lines of a title cell of which nbdev makes something
NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*(\(\))?")
NO_NAME = "looks like a public name, and is none"
FILE = re.compile(r"(?<![\w./])(?:nbs|benchmarks|tests|diffnb)/[\w/]+\.\w+")


# making the pages


def copy_project(folder: Path):
    """Copy what git knows or would add, so that nothing left by an earlier run hides a fault; the package's metadata are made from setup.py."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        source, target = ROOT / name, folder / name
        if source.exists():  # a file that was removed and not yet committed is still listed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    code = "from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel('.')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)


def make_page(job) -> list[str]:
    """Make one page as nbdev's worker does; return what went wrong, one line each."""
    from nbdev import serve_drv

    said = io.StringIO()
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        warnings.simplefilter("always")
        for category in (DeprecationWarning, FutureWarning):  # what libraries have to say to each other
            warnings.simplefilter("ignore", category)
        try:
            serve_drv.main(job)
        except Exception as error:
            os.environ.pop("IN_TEST", None)  # nbdev's worker leaves it behind when it fails
            return [f"page making fails: {type(error).__name__}: {str(error).strip()}"]
    return [f"warning: {w.message}" for w in warned] + (
        [f"prints while its page is made: {said.getvalue().strip()}"] if said.getvalue().strip() else []
    )


def make_in_order(order: str, notebooks: Path, found: list, _, jobs, **__):
    """Stand in for nbdev's `parallel`: this process makes the pages in the order asked for."""
    for job in sorted(jobs, reverse=order == "backward"):
        found.extend((str(job[0].relative_to(notebooks)), fault) for fault in make_page(job))


def make_pages(project: Path, order: str) -> list[tuple[str, str]]:
    """Do what `nbdev-docs` does before it calls Quarto; return (file, fault) pairs. It needs a process of its own: it changes the working folder."""
    os.chdir(project)
    os.environ.update(PYTHONPATH=str(project), PYTHONWARNINGS="ignore::FutureWarning", OMP_NUM_THREADS="1")
    sys.path.insert(0, str(project))  # the copy's package, and its metadata, before any that is installed
    import nbdev.config
    import nbdev.doclinks
    from fastcore import nbio
    from nbdev import processors, quarto, serve

    nbdev.config._load_toml = functools.cache(nbdev.config._load_toml)  # read for every cell otherwise
    processors.get_config = functools.cache(processors.get_config)  # looked for in every cell otherwise
    nbio.ast = SimpleNamespace(parse=functools.cache(ast.parse))  # done by several processors otherwise
    quarto.refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    quarto.nbdev_sidebar.__wrapped__()
    found = []
    serve.parallel = partial(make_in_order, order, project / "nbs", found)
    serve.proc_nbs(force=True)
    return found


def content(path: Path):
    """Read a made page without what nbdev makes anew each time: identifiers of the cells that it adds, and the times at which cells ran."""
    if path.suffix != ".ipynb":
        return path.read_bytes()
    page = json.loads(path.read_text(encoding="utf-8"))
    for cell in page["cells"]:
        cell.pop("id", None)
        cell["metadata"].pop("execution", None)
    return page


def check_order(reference: Path, other: Path) -> list[tuple[str, str]]:
    """The pages do not depend on the order in which they are made."""
    here, there = ({p.relative_to(base) for p in base.rglob("*") if p.is_file()} for base in (reference, other))
    wrong = sorted(here ^ there) + [p for p in sorted(here & there) if content(reference / p) != content(other / p)]
    return [(str(p), "is another page when pages are made from last to first than from first to last") for p in wrong]


# reading the pages


def without_maths(text: str) -> str:
    """Leave out formulas, where brackets and underscores mean something else, but not from code."""
    parts = re.split(r"(^```.*?^```|`[^`\n]+`)", text, flags=re.DOTALL | re.MULTILINE)
    # a formula may hold no code, so that the pieces between code are looked at one by one
    return "".join(part if i % 2 else MATHS.sub("x", part) for i, part in enumerate(parts))


def heading_id(text: str) -> str:
    """Give a heading the identifier that pandoc gives it."""
    kept = re.sub(r"[^\w\s.-]", "", html.unescape(text).lower())
    return re.sub(r"^[\W\d_]+", "", re.sub(r"\s+", "-", kept.strip())) or "section"


def flat(tokens):
    """Go through the tokens of parsed Markdown with those inside lines."""
    for token in tokens:
        yield token
        yield from flat(token.children or ())


class Page:
    """What a made page holds: its links, its anchors, its code words, and the source links of what it documents."""

    def __init__(self, path: Path, name: str):
        self.name, self.links, self.words, self.broken, self.ids = name, [], [], [], Counter()
        notebook = json.loads(path.read_text(encoding="utf-8"))
        self.cells = notebook["cells"]
        for cell in self.cells:
            if cell["cell_type"] == "markdown":
                self.read("".join(cell["source"]))
            for label in re.findall(r"^#\|\s*label:\s*(\S+)", "".join(cell["source"]), re.MULTILINE):
                self.ids[label] += 1
            for output in cell.get("outputs", ()):
                self.read("".join(output.get("data", {}).get("text/markdown", "")))
        front = next((c for c in self.cells if c["cell_type"] == "raw"), {"source": ""})
        self.front = yaml.safe_load("".join(front["source"]).strip().strip("-")) or {}
        self.read(str(self.front.get("description", "")), linked=True)  # nbdev makes no links in it

    def read(self, text: str, linked: bool = False):
        """Take links, headings and code words out of a piece of Markdown."""
        tokens = MARKDOWN.parse(without_maths(text))
        for token, following in zip(tokens, [*tokens[1:], None]):
            if token.type == "heading_open":
                self.add_heading(following)
        inside = int(linked)
        for token in flat(tokens):
            if token.type in ("link_open", "link_close"):
                inside += 1 if token.type == "link_open" else -1
            if token.type in ("link_open", "image"):
                self.links.append(token.attrs.get("href") or token.attrs.get("src") or "")
            elif token.type == "code_inline":
                self.words.append((token.content, bool(inside)))
            elif token.type == "text" and "](" in token.content:
                self.broken.append(token.content)
            elif token.type in ("html_inline", "html_block"):
                self.links.extend(re.findall(r"(?:href|src)=[\"']([^\"']+)", token.content))
                self.ids.update(re.findall(r"(?:id|name)=[\"']([^\"']+)", token.content))

    def add_heading(self, line):
        """Give a heading its identifier, as pandoc does: one said by the author, or one made of the text, numbered if it is taken."""
        text = "".join(t.content for t in line.children if t.type in ("text", "code_inline", "softbreak"))
        said = re.search(r"\{[^}]*#([\w.-]+)[^}]*\}\s*$", text)
        name = said.group(1) if said else heading_id(re.sub(r"\{[^}]*\}\s*$", "", text))
        number = self.ids[name]
        self.ids[name] += 1
        if number and not said:
            self.ids[f"{name}-{number}"] += 1


def read_pages(made: Path) -> dict[str, Page]:
    """Read every made page; the keys are paths below the folder of notebooks."""
    names = sorted(str(p.relative_to(made)) for p in made.rglob("*.ipynb"))
    return {name: Page(made / name, name) for name in names}


def address(name: str) -> str:
    """Say where the site shows a notebook."""
    from nbdev.config import nbpath2html

    return nbpath2html(Path(name)).as_posix()


# what is asked of them


def check_addresses(pages) -> list[tuple[str, str]]:
    """No two pages have one address, even if the numbers of their folders are not counted."""
    taken = {}
    for name in pages:
        taken.setdefault(re.sub(r"(^|/)\d+[a-z0-9]*_", r"\1", address(name)), []).append(name)
    return [(names[0], f"has the address {place} of {', '.join(names[1:])}") for place, names in taken.items() if len(names) > 1]


def check_titles(project: Path, pages) -> list[tuple[str, str]]:
    """A title cell holds the title and one line of summary: nbdev makes the page's metadata of it, and drops whatever else it holds."""
    found = []
    for name in pages:
        cells = json.loads((project / "nbs" / name).read_text(encoding="utf-8"))["cells"]
        first = next(("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"), "")
        lost = [line for line in first.splitlines() if not TITLE_LINE.match(line)]
        if not first.startswith("# "):
            found.append((name, "its first Markdown cell is not a title (# ...)"))
        elif lost or sum(line.startswith("> ") for line in first.splitlines()) != 1:
            found.append(
                (name, f"the cell of the title must hold the title and one line of summary (> ...); the page loses {(lost or ['more'])[0]!r}")
            )
    return found


def check_links(project: Path, made: Path, pages, site: str, repository: str) -> list[tuple[str, str]]:
    """Every link into the site or the repository leads to a page, anchor, file or line that is there."""
    found, addresses = [], {address(name): name for name in pages}
    for name, page in pages.items():
        found += [(name, f"a link inside a link: {text!r}") for text in page.broken]
        for link in page.links:
            target, _, anchor = link.partition("#")
            if target.startswith(f"{site}/"):
                if target.removeprefix(f"{site}/") in ADDED and not anchor:
                    continue
                there = addresses.get(target.removeprefix(f"{site}/"))
            elif target.startswith(f"{repository}/"):
                found += check_source_link(project, name, target, anchor)
                continue
            elif re.match(r"[a-z]+:|//", target):
                continue
            else:
                path = os.path.normpath(Path(name).parent / unquote(target)) if target else name
                there = path if (made / path).exists() and not path.startswith("..") else None
            if not there:
                found.append((name, f"{link}: not a page or file of the site"))
            elif anchor and anchor not in getattr(pages.get(there), "ids", ()):
                found.append((name, f"{link}: no such heading there; a method has none (write `levels` of an `SDE`, not `SDE.levels`)"))
    return found


def check_source_link(project: Path, name: str, target: str, anchor: str) -> list[tuple[str, str]]:
    """A link to the repository leads to a file, and to a line of it."""
    path = re.sub(r"^.*?/(blob|tree)/[^/]+/", "", target)
    if not (project / path).is_file():
        return [(name, f"{target}: no such file in the repository")]
    lines = len((project / path).read_text(encoding="utf-8").splitlines())
    number = anchor.removeprefix("L")
    if anchor and not (number.isdigit() and 1 <= int(number) <= lines):
        return [(name, f"{target}#{anchor}: no such line")]
    return []


def check_documentation(pages, sources: dict[str, str]) -> list[tuple[str, str]]:
    """What a page documents has a link to its source, in the module that the page exports."""
    found = []
    for name, page in pages.items():
        for cell in page.cells:
            if not re.search(r"^show_doc", "".join(cell["source"]), re.MULTILINE):
                continue
            text = "".join("".join(o.get("data", {}).get("text/markdown", "")) for o in cell["outputs"])
            heading = re.search(r"^#+ (.*)", text, re.MULTILINE)
            what = heading.group(1) if heading else "".join(cell["source"]).strip().splitlines()[-1]
            source = re.search(r"^\[source\]\((\S+?)#", text, re.MULTILINE)
            if not heading:
                found.append((name, f"{what}: shows no documentation"))
            elif not source:
                found.append((name, f"{what}: has no link to its source"))
            elif name in sources and not source.group(1).endswith(f"/{sources[name]}"):
                found.append(
                    (name, f"{what}: the link to its source leads to {source.group(1)}, not to {sources[name]}: two modules export the name")
                )
    return found


def names_in(project: Path, name: str) -> set[str]:
    """Collect the words that the code of a notebook knows: what it imports, defines, takes as an argument, asks of an object, or has in a string."""
    known = set()
    for cell in json.loads((project / "nbs" / name).read_text(encoding="utf-8"))["cells"]:
        try:
            tree = ast.parse("".join(cell["source"])) if cell["cell_type"] == "code" else None
        except SyntaxError:
            continue  # a cell for the shell
        for node in ast.walk(tree) if tree else ():
            known.update(str(getattr(node, key)) for key in ("id", "attr", "arg", "name", "asname") if getattr(node, key, None))
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                known.update({node.value, *re.findall(r"\w+", node.value)})
    return known


def check_words(project: Path, pages, symbols, sources) -> list[tuple[str, str]]:
    """A public name in backticks is a link; what looks like one of ours is one; a file that is named is there."""
    found, foreign = [], {*dir(builtins), "NaN", "Infinity"}.union(*(dir(importlib.import_module(module)) for module in FOREIGN))
    for name, page in pages.items():
        known = names_in(project, name) | foreign
        for word, linked in page.words:
            found += [(name, f"`{word}`: no file {path}") for path in FILE.findall(word) if not (project / path).exists()]
            if NAME.fullmatch(word):
                fault = fault_of_name(word.removesuffix("()"), linked, symbols, known, sources.get(name))
                if fault and not (name in OF_OTHERS and fault == NO_NAME):
                    found.append((name, f"`{word}`: {fault}"))
    return found


def fault_of_name(name: str, linked: bool, symbols, known, own) -> str | None:
    """Say what is wrong with a name in backticks, if anything is."""
    owner, _, member = name.rpartition(".")
    if name in symbols:
        modules = symbols[name]
        if len(modules) > 1 and own != file_of(modules[0]):
            return f"a name of {' and of '.join(modules)}; the link leads to the first"
        return None if linked else "a public name that did not become a link"
    if linked or name in known:
        return None
    if name.startswith("diffnb."):
        return None if resolves(name) else "no such module or name"
    if owner in symbols:
        return None if is_member(symbols[owner][0], owner, member) else f"{owner} has no {member}"
    return NO_NAME if re.match(r"[A-Z]+\w*[a-z]", name) and name.split(".")[0] not in known else None


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    for module, rest in ((name, ""), name.rpartition(".")[::2]):
        with contextlib.suppress(ImportError):
            found = importlib.import_module(module)
            return not rest or hasattr(found, rest)
    return False


def is_member(module: str, owner: str, member: str) -> bool:
    """Whether a class has an attribute, or code of its own that sets one on its objects."""
    kind = operator.attrgetter(owner.removeprefix(f"{module}."))(importlib.import_module(module))
    ours = [c for c in getattr(kind, "__mro__", ()) if c.__module__.startswith("diffnb")]
    return hasattr(kind, member) or any(re.search(rf"\b{member}\b", inspect.getsource(c)) for c in ours)


def check_sidebar(made: Path, pages) -> list[tuple[str, str]]:
    """The sidebar leads to every page once, and to nothing else; the files that configure the site are there."""
    settings, found = yaml.safe_load((made / "_quarto.yml").read_text(encoding="utf-8")), []
    website = dict(settings.get("website", {}))
    for name in settings.get("metadata-files", ()):
        if not (made / name).exists():
            found.append((name, "named in _quarto.yml, and missing"))
            continue
        more = yaml.safe_load((made / name).read_text(encoding="utf-8")).get("website", {})
        website["sidebar"] = {**website.get("sidebar", {}), **more.get("sidebar", {})}
    reached = Counter()
    for entry in entries(website["sidebar"].get("contents", ())):
        names = fnmatch.filter(pages, entry)
        reached.update(names)
        if not names:
            found.append((entry, "stands in the sidebar, and is no page"))
    return found + [(name, f"stands {reached[name]} times in the sidebar") for name in pages if reached[name] != 1]


def check_added(project: Path, made: Path, site: str) -> list[tuple[str, str]]:
    """The workflow puts every page of `ADDED` on the site, and the bar at the top leads to pages of the site that are there."""
    workflow = (project / ".github" / "workflows" / "docs.yml").read_text(encoding="utf-8")
    found = [(".github/workflows/docs.yml", f"does not make {name}") for name in sorted(ADDED) if f"_docs/{name.split('/')[0]}" not in workflow]
    navbar = yaml.safe_load((made / "_quarto.yml").read_text(encoding="utf-8"))["website"]["navbar"]
    for href in (item["href"] for item in navbar["left"]):
        name = href.removeprefix(f"{site}/")
        if not (made / name).is_file() and name not in ADDED:
            found.append(("_quarto.yml", f"{href}: not a page of the site"))
    return found


def check_repository(made: Path, repository: str) -> list[tuple[str, str]]:
    """The bar at the top of the site leads to the repository that pyproject.toml names."""
    navbar = yaml.safe_load((made / "_quarto.yml").read_text(encoding="utf-8"))["website"]["navbar"]
    wrong = [tool["href"] for tool in navbar["tools"] if tool["href"].rstrip("/") != repository.rstrip("/")]
    return [("_quarto.yml", f"{href}: pyproject.toml says {repository}") for href in wrong]


def entries(contents):
    """Collect the pages, or patterns of pages, of a sidebar."""
    for item in [contents] if isinstance(contents, str) else contents:
        if isinstance(item, str):
            yield item
        else:
            yield from filter(None, (item.get("href"), item.get("file")))
            yield from entries(item.get("contents", ()))


def check_pages(project: Path) -> list[tuple[str, str]]:
    """Look everything up in the pages of one copy. It imports the copy's package, so it needs a process of its own."""
    os.chdir(project)
    sys.path.insert(0, str(project))
    warnings.simplefilter("ignore", FutureWarning)  # what libraries have to say to each other when they are imported
    from nbdev.config import get_config

    config, made = get_config(), project / "_proc"
    site, repository = config.doc_host + config.doc_baseurl.rstrip("/"), config.git_url
    pages, symbols, sources = read_pages(made), public_symbols(), exported_to(project)
    return [
        *check_addresses(pages),
        *check_titles(project, pages),
        *check_sidebar(made, pages),
        *check_repository(made, repository),
        *check_added(project, made, site),
        *check_links(project, made, pages, site, repository),
        *check_documentation(pages, sources),
        *check_words(project, pages, symbols, sources),
    ]


def public_symbols() -> dict[str, list[str]]:
    """Map names, as they may be written in backticks, to the modules that define them; nbdev links to the first."""
    found = {}
    for module, names in importlib.import_module("diffnb._modidx").d["syms"].items():
        for name in names:
            found.setdefault(name.removeprefix(f"{module}."), []).append(module)
            found[name] = [module]
    return found


def file_of(module: str) -> str:
    """Say where the source of a module lies."""
    return f"{module.replace('.', '/')}.py"


def exported_to(project: Path) -> dict[str, str]:
    """Notebooks, to the file of the module that each exports."""
    found = {}
    for path in sorted((project / "nbs").rglob("*.ipynb")):
        module = re.search(r"#\| default_exp ([\w.]+)", path.read_text(encoding="utf-8"))
        if module:
            found[str(path.relative_to(project / "nbs"))] = file_of(f"diffnb.{module.group(1)}")
    return found


def main() -> int:
    """Make the pages in both orders, check them, and say what is wrong."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    start, context = time.monotonic(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, context.Pool(len(ORDERS), maxtasksperchild=1) as processes:
        projects = {order: Path(folder).resolve() / order for order in ORDERS}
        for project in projects.values():
            copy_project(project)
        made = [(order, processes.apply_async(make_pages, (project, order))) for order, project in projects.items()]
        found = [(name, f"{fault} ({order})") for order, result in made for name, fault in result.get()]
        found += check_order(*(project / "_proc" for project in projects.values()))
        found += processes.apply(check_pages, (projects["forward"],))
    for name, fault in found:
        print(f"{name}: {fault}")
    print(f"{len(found)} faults in the pages of the site, looked for in {time.monotonic() - start:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
