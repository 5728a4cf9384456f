"""The house: a wing imports only from wings above it, nothing goes round in a circle, and nobody takes what is private to another module."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from wings import PACKAGE, ROOT, WINGS, arrows, called_imports, drawn, exported, imports, imports_in, length, modules, wing_of  # noqa: E402


def test_the_package_consists_of_the_wings():
    assert {wing_of(module) for module in modules()} == set(WINGS)


@pytest.mark.parametrize("module", modules())
def test_a_wing_imports_only_from_wings_above_it(module):
    floor = WINGS.index(wing_of(module))
    origins = {origin for origin, _ in imports(module) if origin != "diffnb"}
    assert [origin for origin in sorted(origins) if WINGS.index(wing_of(origin)) > floor] == []


@pytest.mark.parametrize(
    "text",
    [
        "from ..data import image_set",
        "import diffnb.data",
        'importlib.import_module("diffnb.data")',
        'def f():\n    return __import__("diffnb.data")',
    ],
)
def test_an_import_is_seen_in_whatever_way_it_is_made(text):
    assert {wing_of(origin) for origin, _ in imports_in(text, ["diffnb", "noise"])} == {"data"}


def test_names_of_modules_are_made_up_in_two_places():
    """By what hands on the names of wings or imports an extra, and by the worker of the jail, which imports what others have imported."""
    unseen = {module for module, path in modules().items() if None in called_imports(path.read_text(encoding="utf-8"))}
    assert unseen == {"diffnb.importing", "diffnb.files.worker"}


def test_no_module_imports_itself_through_others():
    waiting = {module: {origin for origin, _ in imports(module) if origin in modules()} for module in modules()}
    while free := [module for module, needs in waiting.items() if not needs]:
        waiting = {module: needs - set(free) for module, needs in waiting.items() if module not in free}
    assert waiting == {}


@pytest.mark.parametrize("module", sorted(modules()))
def test_nobody_takes_what_is_private_to_another_module(module):
    assert [(origin, name) for origin, name in sorted(imports(module)) if name.startswith("_") and not name.startswith("__")] == []


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_module_is_longer_than_a_reader_takes_in(module):
    assert length(module) <= 450


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_public_name_can_be_had_from_its_wing(module):
    wing = importlib.import_module(f"diffnb.{wing_of(module)}")
    for name in exported(module):
        assert getattr(wing, name) is getattr(importlib.import_module(module), name), name
        assert name in dir(wing)


def test_a_public_name_stands_for_one_thing_in_its_wing():
    seen = {}
    for module in modules():
        for name in exported(module):
            seen.setdefault((wing_of(module), name), []).append(module)
    assert {key: found for key, found in seen.items() if len(found) > 1} == {}


def test_the_stored_picture_shows_the_wings_as_they_are():
    """Its file says what it shows; `python benchmarks/wings.py` draws it anew."""
    with Image.open(ROOT / "nbs" / "images" / "wings.png") as picture:
        assert json.loads(picture.text["Description"]) == drawn()


def test_the_stored_table_of_the_wings_is_that_of_now():
    """Modules and imports exactly, names and lines, which change with every page, within a twentieth; `.ci/execute.py` runs the page again."""
    cells = json.loads((ROOT / "nbs" / "architecture.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = ["".join(out.get("data", {}).get("text/markdown", "")) for cell in cells if cell["cell_type"] == "code" for out in cell["outputs"]]
    rows = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| ([^|]+) \|$", "\n".join(shown), re.MULTILINE)
    stored = {wing: (int(n), below.split(", ")) for wing, n, _, _, below in rows}
    inside = {wing: [module for module in modules() if wing_of(module) == wing] for wing in WINGS}
    below = {wing: [other for other in reversed(WINGS) if (wing, other) in arrows()] or ["nothing"] for wing in WINGS}
    assert stored == {wing: (len(inside[wing]), below[wing]) for wing in WINGS}
    for wing, _, names, lines, _ in rows:
        now = sum(len(exported(module)) for module in inside[wing]), sum(map(length, inside[wing]))
        assert all(abs(int(then) - n) <= max(3, 0.05 * n) for then, n in zip((names, lines), now)), (wing, names, lines, now)


def test_the_page_of_all_names_has_every_wing():
    cells = json.loads((ROOT / "nbs" / "api.ipynb").read_text(encoding="utf-8"))["cells"]
    assert set(re.findall(r'^_table\("(\w+)"\)$', "\n".join("".join(cell["source"]) for cell in cells), re.M)) == set(WINGS)


def additions():
    """(module, home) for each module that adds names to a registry which another module, its home, defines."""
    found = set()
    for module, path in modules().items():
        homes = {name: origin for origin, name in imports(module)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            calls = [ast.unparse(call.func) for call in getattr(node, "decorator_list", ()) if isinstance(call, ast.Call)]
            names = {call.removesuffix(".register") for call in calls if call.endswith(".register")}
            found |= {(module, homes[name]) for name in names & homes.keys()}
    return sorted(found)


@pytest.mark.parametrize("module, home", additions())
def test_a_registry_has_all_its_names_whenever_it_can_be_had(module, home):
    # a wing that imports a module only when one of its names is asked for would know a metric or a sampler at one time and not at another
    init = ast.parse((PACKAGE / wing_of(home) / "__init__.py").read_text(encoding="utf-8"))
    at_once = [f"diffnb.{wing_of(home)}.{node.module}" for node in init.body if isinstance(node, ast.ImportFrom) and node.level == 1]
    assert module in at_once


def test_the_package_by_itself_imports_none_of_its_modules():
    program = "import diffnb, sys; print(*[m for m in sys.modules if m.startswith('diffnb.')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split() == []
