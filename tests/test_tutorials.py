"""What tutorials have: controls that work without Python, exercises with folded answers, and figures that say what they show."""

import json
import re
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).resolve().parent.parent / "nbs" / "tutorials").glob("*.ipynb"))


def cells(path, kind):
    """Cells of a kind, each with its source as one text."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell | {"source": "".join(cell["source"])} for cell in notebook["cells"] if cell["cell_type"] == kind]


WITH_CONTROL = [path for path in TUTORIALS if any("picture_slider(" in cell["source"] for cell in cells(path, "code"))]


def test_most_tutorials_have_a_control():
    """So that the list below is not empty by mistake."""
    assert len(WITH_CONTROL) > 5


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_exercises_have_folded_answers(path):
    """As many answers as questions, and the answers are closed until a reader opens them."""
    found = [cell["source"] for cell in cells(path, "markdown") if "## Exercises" in cell["source"]]
    assert len(found) == 1
    questions, answers = found[0].partition("## Exercises")[2].split('::: {.callout-note collapse="true" title="Answers"}')
    numbers = [re.findall(r"^(\d+)\. ", part, flags=re.MULTILINE) for part in (questions, answers)]
    assert len(numbers[0]) >= 3 and numbers[0] == numbers[1] and answers.rstrip().endswith(":::")


@pytest.mark.parametrize("path", WITH_CONTROL, ids=lambda path: path.stem)
def test_the_state_of_a_control_is_stored(path):
    """The slider of `picture_slider` is in the page, with the link that the browser follows."""
    state = json.loads(path.read_text(encoding="utf-8"))["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert {"SelectionSliderModel", "StackModel", "LinkModel"} <= {widget["model_name"] for widget in state.values()}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_figures_have_alternative_texts(path):
    """A cell whose output is a picture has one; the pictures of a control carry theirs inside."""
    drawn = [cell for cell in cells(path, "code") if any("image/png" in output.get("data", {}) for output in cell["outputs"])]
    assert [cell["source"] for cell in drawn if "#| fig-alt:" not in cell["source"]] == []


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_page_is_stored_as_it_ran(path):
    """Nothing failed, and every cell that prints or draws has been run."""
    outputs = [output for cell in cells(path, "code") for output in cell["outputs"]]
    assert outputs and all(output["output_type"] != "error" for output in outputs)
