"""The check of the pages' texts finds what it is for."""

import base64
import importlib.util
import io
from pathlib import Path

import pytest
from PIL import Image

PATH = Path(__file__).resolve().parent.parent / ".ci" / "texts.py"
SPEC = importlib.util.spec_from_file_location("texts_check", PATH)
texts = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(texts)

PICTURE = [{"output_type": "display_data", "data": {"image/png": "", "text/plain": "<Figure>"}}]
WIDE = "name  first  second" + " " * 100 + "third\n"


def pages(*cells):
    """A site of one page, of (kind, source, outputs) cells."""
    return {"page.ipynb": [{"cell_type": kind, "source": source, "outputs": outputs} for kind, source, outputs in cells]}


@pytest.mark.parametrize(
    "check, cell, fault",
    [
        ("figures", ("code", "plot()", PICTURE), "without `#| fig-alt"),
        ("figures", ("code", '#| fig-alt: "A line."\nplot()', PICTURE), None),
        ("figures", ("code", "#| fig-alt:\nplot()", PICTURE), "without `#| fig-alt"),
        ("figures", ("markdown", "![](images/a.png)", []), "a picture without a text"),
        ("figures", ("markdown", "![A line.](images/a.png)", []), None),
        ("formulas", ("markdown", r"$\frac{a}{b}$ and $$\mathbb E\,[x]$$", []), None),
        ("formulas", ("markdown", r"$\frac{a$", []), "not a formula"),
        ("formulas", ("markdown", r"$$\begin{aligned} a &= b$$", []), "not a formula"),
        ("formulas", ("markdown", r"$c_{\rm in}$", []), "not a formula"),
        ("formulas", ("markdown", r"`$\frac{a$`", []), None),
        ("formulas", ("markdown", "$$a = b\\Bigl[c\n= d \\Bigm| e\\Bigr]$$", []), "not a formula"),  # of two lines
        ("spelling", ("markdown", "The recieved colour", []), "recieved"),  # codespell:ignore
        ("spelling", ("code", "# a comment with an adress", []), "adress"),  # codespell:ignore
        ("code", ("markdown", "```python\nx = (1\n```", []), "does not compile"),
        ("code", ("markdown", "```python\nx = 1\n```", []), None),
        ("code", ("markdown", "```sh\nmake (1\n```", []), None),
        ("imports", ("code", "import math\n\nprint(math.pi)", []), "'import math' imports and does something else"),
        ("imports", ("code", "from math import pi\nimport sys", []), None),
        ("imports", ("code", "def late():\n    import math", []), None),
        ("imports", ("code", "%pip install x\nimport x", []), None),
        ("imports", ("markdown", "```python\nimport math\nprint(math.pi)\n```", []), None),
        ("outputs", ("code", "show()", [{"output_type": "stream", "text": WIDE * 3}]), "prints a table of 124"),
        ("outputs", ("code", "show()", [{"output_type": "stream", "text": WIDE}] * 3), "prints a table of 124"),
        ("outputs", ("code", "show()", [{"output_type": "stream", "text": WIDE}]), None),  # one row is no table
        ("outputs", ("code", "show()", [{"output_type": "stream", "text": "/home/me/lib/site-packages/a.py:1: Warning"}]), "of one machine"),
        (
            "outputs",
            ("code", "plot()", [{"output_type": "execute_result", "data": {"text/plain": "<Figure size 2x3 with 4 Axes>"}}]),
            "tells nothing",
        ),
        ("outputs", ("code", "plot()", [{"output_type": "execute_result", "data": {"text/plain": "(None, None)"}}]), "tells nothing"),
        ("outputs", ("code", "f()", [{"output_type": "stream", "text": "/tmp/ipykernel_28853/39.py:2: UserWarning: far"}]), "tells nothing"),
        ("outputs", ("code", "f()", [{"output_type": "stream", "text": "findfont: Font family ['STIXGeneral'] not found."}]), "tells nothing"),
        ("outputs", ("code", "f()", [{"output_type": "stream", "text": "a figure <b> of None (None of it)"}]), None),
        ("outputs", ("code", "show()", [{"output_type": "stream", "text": "a sentence of many words " * 10}]), None),  # it wraps
    ],
)
def test_fault(check, cell, fault):
    """Each fault is found, and what is right is not reported."""
    found = getattr(texts, f"check_{check}")(pages(cell))
    assert (fault is None and found == []) or (fault and fault in found[0][1]), found


@pytest.mark.parametrize(
    "opaque, dots, fault",
    [
        (0, 192, None),
        (0, 320, None),
        (0, 160, "has 160 dots an inch"),
        (255, 192, "has a ground of its own"),
        (255, 80, "has 80 dots an inch, fewer than 190 and has a ground of its own"),
        (255, None, None),  # a picture, and no figure of Matplotlib
    ],
)
def test_looks(monkeypatch, opaque, dots, fault):
    """A figure is seen by its dots and its corners, and excused by name."""
    written = io.BytesIO()
    Image.new("RGBA", (4, 3), (255, 255, 255, opaque)).save(written, "png", **({} if dots is None else {"dpi": (dots, dots)}))
    shown = [{"output_type": "display_data", "data": {"image/png": base64.b64encode(written.getvalue()).decode()}}]
    site = {"page.ipynb": [{"cell_type": "code", "source": "plot()", "outputs": shown, "id": "abc"}]}
    found = texts.check_looks(site)
    assert (fault is None and found == []) or (fault and fault in found[0][1]), found
    monkeypatch.setitem(texts.OTHER_LOOKS, ("page.ipynb", "abc"), "a reason")
    assert texts.check_looks(site) == []
