"""Read who imports whom in the package, and draw it: wings as floors, an arrow for each wing that another imports.

    python benchmarks/wings.py [--out nbs/images/wings.png]

prints a table of the wings (modules, exported lines, longest module) and draws the picture that the README shows. An exported line is one that is
neither empty nor made by nbdev. tests/test_wings.py reads the same imports and asserts that no arrow points
up and that the stored picture is current.
"""

import argparse
import ast
import json
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffnb"
# from the ground up: a wing imports only from wings before it
WINGS = "importing printing documents arguments pickles core parallel noise denoise samplers guidance".split()
WINGS += "likelihood data networks metrics training files model apps".split()


@cache
def modules() -> dict[str, Path]:  # dotted name -> file
    """List the modules of the package that notebooks export."""
    files = (path for path in PACKAGE.rglob("*.py") if not path.stem.startswith("_"))
    return {".".join(("diffnb", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in sorted(files)}


@cache
def exported(
    module: str,  # dotted name
) -> list[str]:  # its `__all__`
    """Read the public names of a module, without running it."""
    found = re.search(r"^__all__ = (\[.*?\])$", modules()[module].read_text(encoding="utf-8"), re.M | re.S)
    return ast.literal_eval(found[1])


def length(
    module: str,  # dotted name
) -> int:  # exported lines
    """Count the lines of a module that are neither empty nor made by nbdev."""
    text = modules()[module].read_text(encoding="utf-8")
    body = text[re.search(r"^__all__ = \[.*?\]$", text, re.M | re.S).end() :]
    return sum(bool(line.strip()) and not line.startswith("# %%") for line in body.splitlines())


def wing_of(
    module: str,  # dotted name
) -> str:  # one of `WINGS`
    """Name the wing in which a module stands."""
    return module.split(".")[1]


def _home(origin, name):
    """The module from which `from origin import name` reads: a wing hands on the names of its modules."""
    if (origin, name) == ("diffnb", "GenerativeModel"):
        return "diffnb.model.generative"
    if f"{origin}.{name}" in modules():
        return f"{origin}.{name}"
    return next((one for one in modules() if one.startswith(f"{origin}.") and name in exported(one)), origin)


@cache
def imports(
    module: str,  # dotted name
) -> set[tuple[str, str]]:  # (module, name) pairs; an empty name where the module itself is imported
    """Read what a module imports of the package, at its top and inside functions."""
    return imports_in(modules()[module].read_text(encoding="utf-8"), module.split(".")[:-1])


def imports_in(
    text: str,  # of a module
    package: list[str],  # in which it stands, such as ["diffnb", "noise"]
) -> set[tuple[str, str]]:  # (module, name) pairs
    """Read what a text imports of the package, by statements and by calls that name a module."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            if origin.split(".")[0] == "diffnb":
                found |= {(_home(origin, alias.name), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names if alias.name.split(".")[0] == "diffnb"}
    return found | {(name, "") for name in called_imports(text) if name and name.split(".")[0] == "diffnb"}


def called_imports(
    text: str,  # of a module
) -> list[str | None]:  # names of modules; None: one that the program makes up as it runs
    """Read what a text imports by calling a function."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            name = node.args[0] if node.args else None
            found.append(name.value if isinstance(name, ast.Constant) else None)
    return found


def arrows() -> set[tuple[str, str]]:  # (wing, wing that it imports)
    """Gather the imports between wings."""
    pairs = {(wing_of(module), wing_of(origin)) for module in modules() for origin, _ in imports(module) if origin != "diffnb"}
    return {(a, b) for a, b in pairs if a != b}


def drawn() -> dict:  # the modules of each wing, and the arrows between wings
    """Say what the picture shows; it is stored in the file, so that a test can tell whether it is that of now."""
    inside = {wing: [module.split(".")[-1] for module in modules() if wing_of(module) == wing] for wing in WINGS}
    return {"modules": inside, "arrows": [list(pair) for pair in sorted(arrows())]}


def draw(
    out: Path,  # a picture
) -> None:
    """Draw the wings as floors, the ground below, an arc for every import between two: blue where it leads down, red where it would lead up."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch

    figure = Figure(figsize=(8, 7), dpi=192, layout="constrained")  # shown on white and on dark grounds: no ground of its own, grey letters
    axes = figure.subplots()
    floors = {wing: i for i, wing in enumerate(WINGS)}
    shown = drawn()
    for wing, floor in floors.items():
        inside = shown["modules"][wing]
        axes.text(0.1, floor, wing, weight="bold", va="center", size=11, color="#7a828c")
        names = ", ".join(inside) if inside != [wing] else ""
        short = names if len(names) < 62 else f"{len(inside)} modules: {names[:46].rpartition(',')[0]}, ..."
        axes.text(1.75, floor, short, va="center", size=9, color="#7a828c")
    for a, b in shown["arrows"]:
        style = dict(arrowstyle="-|>", mutation_scale=6, lw=0.6, color="tab:blue" if floors[b] < floors[a] else "tab:red", alpha=0.7)
        axes.add_patch(FancyArrowPatch((0, floors[a]), (0, floors[b]), connectionstyle="arc3,rad=0.5", **style))
    axes.set(xlim=(-3.6, 6.5), ylim=(-0.7, len(WINGS) - 0.3))
    axes.axis("off")
    figure.savefig(out, transparent=True, metadata={"Description": json.dumps(shown)})


def main():
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "nbs" / "images" / "wings.png", help="where the picture goes")
    out = parser.parse_args().out
    print("| wing | modules | exported lines | longest |\n|---|---|---|---|")
    for wing in WINGS:
        lengths = {module.split(".", 2)[-1]: length(module) for module in modules() if wing_of(module) == wing}
        longest = max(lengths, key=lengths.get)
        print(f"| {wing} | {len(lengths)} | {sum(lengths.values())} | {longest}, {lengths[longest]} |")
    print(f"| all | {len(modules())} | {sum(map(length, modules()))} | |")
    draw(out)


if __name__ == "__main__":
    main()
