"""Which code a page shows: one rule for every kind of cell."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parent.parent / ".ci" / "shown.py"
SPEC = importlib.util.spec_from_file_location("shown", PATH)
shown = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(shown)

PICTURE = [{"data": {"image/png": ""}}]
PLOT = "fig, ax = plt.subplots()\nax.plot(x)\nax.plot(y)\nax.legend();"


def folded(what, source):
    """A cell under a line that says what it is."""
    return f'#| code-fold: true\n#| code-summary: "{what}"\n{source}'


@pytest.mark.parametrize(
    "source, outputs, where, expected",
    [
        ("#| export\ndef f(x): ...", [], (True, True), "#| exports\ndef f(x): ..."),
        ("#| exports\ndef f(x): ...", [], (False, True), "#| export\ndef f(x): ..."),
        ("#| exports\nimport torch", [], (True, True), "#| export\nimport torch"),
        ("#| export\nif TYPE_CHECKING:\n    import a", [], (True, True), "#| export\nif TYPE_CHECKING:\n    import a"),
        ("#| export\nTABLE = {}", [], (True, True), "#| exports\nTABLE = {}"),
        ("assert f(1) == 2", [], (True, True), folded("Test", "assert f(1) == 2")),
        ("test_close(a, b)", [], (True, True), folded("Test", "test_close(a, b)")),
        ("test_fail(f, contains='no')", [], (True, True), "test_fail(f, contains='no')"),  # a misuse, shown with its error
        ("import torch\nfrom a import b", [], (True, True), folded("Imports", "import torch\nfrom a import b")),
        (PLOT, PICTURE, (True, True), folded("Code of the figure", PLOT)),
        (PLOT + "\nassert True", PICTURE, (True, True), folded("Code of the figure", PLOT + "\nassert True")),
        ("show(images)", PICTURE, (True, True), "show(images)"),  # a call is an example
        (PLOT, PICTURE, (True, False), PLOT),  # on the pages for beginners all code is to be read
        ("#| hide\nassert True", [], (True, True), "#| hide\nassert True"),
        ("%%bash\nls", [], (True, True), "%%bash\nls"),
        ("show_doc(C.f)", [], (True, True), "show_doc(C.f)"),
    ],
)
def test_source(source, outputs, where, expected):
    """The directives that a cell should have, and the same when they are there."""
    assert shown.source_of({"source": source, "outputs": outputs}, *where) == expected
    assert shown.source_of({"source": expected, "outputs": outputs}, *where) == expected


def test_sections():
    """The sections that the rule names are in the sidebar."""
    assert all(shown.pages_of((section,)) for section in (*shown.PLUMBING, *shown.OPEN))
