"""Say which code a page shows, by one rule for all pages, and write it into the notebooks as directives; --check only says what differs.

Exported code that defines something is shown beside its equation (`#| exports`); imports are plumbing (`#| export`), and so is all exported code on
the pages of a few sections of the sidebar. Other imports and the code of tests and of figures are folded under a line that says what they are; what a
cell prints or draws stays. A misuse that is shown with its error is no test. On the pages for beginners nothing is folded.
"""

import argparse
import ast
import json
import re
import sys
from pathlib import Path

import yaml

NBS = Path(__file__).resolve().parent.parent / "nbs"
PLUMBING = ("The model object", "Command line", "Internals")  # sections of the sidebar whose pages argue in words and hide their code
OPEN = ("Start", "Tutorials")  # sections on whose pages all code is to be read
IMPORTS = (ast.Import, ast.ImportFrom, ast.If)  # an `if TYPE_CHECKING:` imports, too
FIGURE_LINES = 3  # a call that draws is an example, and is shown


def pages_of(sections) -> set[str]:
    """List the pages of some sections of the sidebar."""

    def below(item):
        if isinstance(item, str):
            return [item]
        return [page for one in item["contents"] for page in below(one)] if "contents" in item else [item["href"]]

    contents = yaml.safe_load((NBS / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return {page for item in contents if item["section"] in sections for page in below(item)}


def parsed(source: str) -> list[ast.stmt]:
    """Read the statements of a cell; none of what is not Python."""
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []


def tests(statements) -> bool:
    """Whether a cell asserts something, by `assert` or by one of fastcore's test functions."""
    nodes = [node for statement in statements for node in ast.walk(statement)]
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    return any(isinstance(node, ast.Assert) for node in nodes) or any(re.match(r"test_(?!fail)\w+$", name) for name in calls)


def draws(cell) -> bool:
    """Whether a cell shows a picture, made by more than a call."""
    lines = [line for line in "".join(cell["source"]).splitlines() if not line.startswith("#|")]
    return len(lines) > FIGURE_LINES and any("image/png" in output.get("data", {}) for output in cell["outputs"])


def source_of(cell, shown: bool, folded: bool) -> str:
    """Return the source of a cell with the directives that it should have."""
    source = "".join(cell["source"])
    statements = parsed(source)
    if re.match(r"#\| exports?$", source.partition("\n")[0]):
        defines = shown and not all(isinstance(statement, IMPORTS) for statement in statements)
        return re.sub(r"^#\| exports?$", "#| exports" if defines else "#| export", source, count=1, flags=re.MULTILINE)
    if not folded or re.search(r"^#\| ?(hide|default_exp|code-fold|echo)|^show_doc", source, re.MULTILINE):
        return source
    imports = statements and all(isinstance(statement, IMPORTS[:2]) for statement in statements)
    what = "Imports" if imports else "Code of the figure" if draws(cell) else "Test" if tests(statements) else None
    return f'#| code-fold: true\n#| code-summary: "{what}"\n{source}' if what else source


def main() -> int:
    """Write the directives, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page does not show what it should")
    check, wrong = parser.parse_args().check, []
    plumbing, unfolded = pages_of(PLUMBING), pages_of(OPEN)
    for path in sorted(NBS.rglob("*.ipynb")):
        notebook, name, changed = json.loads(path.read_text(encoding="utf-8")), path.relative_to(NBS).as_posix(), 0
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                source = source_of(cell, name not in plumbing, name not in unfolded)
                changed += source != "".join(cell["source"])
                cell["source"] = source.splitlines(keepends=True)
        if changed:
            wrong.append(f"{name}: {changed} cells")
        if changed and not check:
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print("\n".join(wrong))
    if wrong and check:
        print("these cells are not shown as they should be; run `python .ci/shown.py`")
    return 1 if wrong and check else 0


if __name__ == "__main__":
    sys.exit(main())
