"""The filter of the site, nbs/pages.lua, read by pandoc: documentation of symbols is laid out, sorted, and says what is raised in a list."""

from pathlib import Path

import pytest

pypandoc = pytest.importorskip("pypandoc")
FILTER = Path(__file__).resolve().parent.parent / "nbs" / "pages.lua"
DOCUMENTED = """::: {{.cell}}

[source](https://example.org/blob/main/diffnb/files/container.py#L{line}){{target="_blank"}}

### {name}

```python
{signature}
```

*What it does, with --option.*

{sections}

:::
"""


def made(text):
    """What pandoc makes of a text with the filter, as Markdown."""
    shown = pypandoc.convert_text(text, "markdown", format="markdown", extra_args=["--lua-filter", str(FILTER), "--columns", "200"])
    return shown.replace("\xa0", " ")  # behind "al." is a space that does not break


@pytest.fixture(autouse=True)
def needs_pandoc():
    """Skip where the program is not installed."""
    try:
        pypandoc.get_pandoc_version()
    except OSError:
        pytest.skip("pandoc is not installed")


def documented(signature, name="f", line=1, sections=""):
    """The documentation of a symbol as nbdev writes it."""
    return DOCUMENTED.format(line=line, name=name, signature=signature, sections=sections)


SIGNATURE = """def Reader(
    text:str, # the text, or a:b = c
    limits:diffnb.files.errors.Limits=Limits(file_bytes=17179869184, header_bytes=8388608, tensors=8192, dimensions=8), # what is accepted
    read:collections.abc.Callable[[torch.Tensor], dict[str, __main__.Entry]] | None=None, # which function
    words:str='a: b = c, d', # a default that has signs
    other:NoneType=None, after_fit:NoneType=None, *args,
)->dict[str, diffnb.core.Registry]: # entries by name"""


def test_signature_is_python():
    """Types stand without their modules, with the spaces that Python has elsewhere; remarks and texts stay as they are."""
    shown = made(documented(SIGNATURE)).split("signature}\n")[1].split("\n```")[0]
    assert shown.splitlines() == [
        "class Reader(",
        "    text: str,  # the text, or a:b = c",
        "    limits: Limits = Limits(...),  # what is accepted",
        "    read: Callable[[Tensor], dict[str, Entry]] | None = None,  # which function",
        "    words: str = 'a: b = c, d',  # a default that has signs",
        "    other=None, *args,",
        ") -> dict[str, Registry]:  # entries by name",
    ]


def test_arguments_without_remarks():
    """They have a line each, unless all fit into a short one."""
    assert "\n    a: int,\n    b: str = 'x',\n    c" in made(documented(f"def f(\n    a:int, b:str='x', c:tuple={tuple(range(20))}\n):"))
    assert "\n    a: int, b: str = 'x'\n" in made(documented("def f(\n    a:int, b:str='x'\n):"))
    assert "\ndef f() -> int:  # a number\n" in made(documented("def f()->int: # a number"))


def test_sections_are_lists():
    """What is raised, and the works that are named, are items; a line that goes on belongs to its item."""
    raised = made(documented("def f():", sections="Raises:\n    ValueError: if it is not\n        as it should be.\n    TypeError: if it is none."))
    assert "*Raises*\n\n- `ValueError`: if it is not as it should be.\n- `TypeError`: if it is none.\n" in raised
    assert "[\\--option.]{.held}" in raised
    works = made(documented("def f():", sections="References:\n    Ho et al. (2020), a work.\n    Song et al. (2021), another."))
    assert "*References*\n\n- Ho et al. (2020), a work.\n- Song et al. (2021), another.\n" in works


def test_order_is_that_of_the_module():
    """Neighbours are sorted by their lines; those with a text between them are not."""
    one, two, three = (documented("def f():", name, line) for name, line in (("late", 30), ("early", 4), ("middle", 12)))
    names = [line[4:].split(" ")[0] for line in made(one + "\n" + two + "\n" + three).splitlines() if line.startswith("### ")]
    assert names == ["early", "middle", "late"]
    names = [line[4:].split(" ")[0] for line in made(one + "\ntext\n\n" + two).splitlines() if line.startswith("### ")]
    assert names == ["late", "early"]


def test_printed_table_scrolls_alone():
    """Sentences beside a printed table wrap, and its rows do not; a cell that is code is left alone."""
    sentence = "a sentence that is longer than a line of the page " * 4
    rows = "name    first  second\nlonger     1       2\nother      3       4"
    shown = made(f"::: {{.cell-output}}\n```\n{rows}\n\n{sentence}\n```\n:::\n\n```python\ndef f(\n    a:int, # code\n):\n```\n")
    assert "``` wrapped\n" + sentence.strip() in shown
    assert "    name    first  second\n    longer     1       2\n" in shown
    assert "def f(\n    a:int, # code\n):" in shown and "signature" not in shown


@pytest.mark.parametrize("asks", [True, False])
def test_a_cell_that_asks_for_it_has_its_code_folded_under_its_words(asks):
    """Others stay open, as nbdev has written them."""
    option = ' folded="the canvas"' if asks else ""
    shown = made(f'::: {{.cell{option}}}\n\n``` {{.python .cell-code code-fold="show" code-summary="Exported source"}}\nx = 1\n```\n\n:::\n')
    assert ('code-fold="true"' in shown) == asks and ('code-summary="Exported source: the canvas"' in shown) == asks
    assert "folded=" not in shown
