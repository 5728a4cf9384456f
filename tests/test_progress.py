"""One kind of bar: it moves in a terminal, is an element of the page in a notebook, and a line now and then elsewhere."""

import io
import sys

import IPython.display
import pytest
import torch
from PIL import Image

import diffnb.printing as printing
from diffnb import GenerativeModel
from diffnb.data import image_set
from diffnb.printing import progress_bar


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def notebook(monkeypatch):
    """What a notebook would show: each thing that was displayed, and what came into its place."""
    shown = []

    class Place:
        def __init__(self, what):
            self.history = [what.data]
            shown.append(self.history)

        def update(self, what):
            self.history.append(what.data)

    monkeypatch.setattr(printing, "in_notebook", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda what, display_id: Place(what))
    return shown


def moved(total, **settings):
    """A bar that has moved to its end, as fast as it may."""
    bar = progress_bar(total, "step", "working", **settings)
    bar.delay, bar.mininterval, bar.miniters = 0, 0, 1
    with bar:
        for _ in range(4):
            bar.update(1)


def test_a_terminal_has_a_bar_that_goes_away(monkeypatch):
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    moved(4)
    assert "working:  50%|" in screen.getvalue() and screen.getvalue().endswith("\r")


@pytest.mark.parametrize("total", [4, None])
def test_a_file_has_lines_and_nothing_that_steers(monkeypatch, total):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    moved(total)
    said = file.getvalue()
    assert said.count("working") == said.count("\n") >= 4 and "\r" not in said and "\x1b" not in said


@pytest.mark.parametrize("total", [4, None])
def test_a_notebook_has_an_element_that_goes_away(notebook, capsys, total):
    moved(total)
    (history,) = notebook
    assert history[-1] == "" and any("working" in one for one in history)
    assert total is None or any('<progress value="2" max="4">' in one for one in history)
    assert capsys.readouterr() == ("", "")


def test_what_is_over_before_is_not_shown(monkeypatch, notebook):
    with progress_bar(4, "step", "working", show=False) as bar:
        bar.update(1)
    assert notebook == []
    monkeypatch.setattr(printing, "in_notebook", lambda: False)
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    with progress_bar(4, "step", "working") as bar:
        bar.update(4)
    assert file.getvalue() == ""


def folder(path):
    for i in range(6):
        Image.new("L", (8, 8), 40 * i).save(path / f"{i}.png")
    return path


WAITS = {  # each with the words that its bar has
    "a folder": (lambda path, model: image_set(folder(path), verbose=True), "reading"),
    "a data set": (lambda path, model: image_set([torch.rand(1, 8, 8) for _ in range(4)], verbose=True), "reading list"),
    "a loader": (lambda path, model: image_set(torch.utils.data.DataLoader(torch.rand(8, 1, 8, 8), 2), verbose=True), "reading DataLoader"),
    "generate": (lambda path, model: model.generate(1, n_steps=2, seed=0), "sampling"),
    "imputation": (
        lambda path, model: model.imputation(torch.rand(28, 28), torch.ones(28, 28), n_steps=2, seed=0, method="replacement"),
        "restoring",
    ),
    "train": (lambda path, model: GenerativeModel(network="tiny", device="cpu").train(torch.rand(8, 1, 8, 8), epochs=1), "training"),
    "score": (lambda path, model: model.score("packaged", n=4, metrics=["kernel"], n_steps=1), "looking at"),
}


@pytest.mark.parametrize("wait", WAITS)
def test_every_long_wait_says_what_it_is(notebook, monkeypatch, tmp_path, wait):
    seen = []

    def watched(total, unit, what, show=True, delay=0.0):
        seen.extend([what] * show)
        return progress_bar(total, unit, what, False)

    for module in list(sys.modules.values()):
        if getattr(module, "progress_bar", None) is progress_bar and module.__name__ != __name__ and module is not printing:
            monkeypatch.setattr(module, "progress_bar", watched)
    model = GenerativeModel.pretrained("fashion_mnist", "cpu")
    import diffnb.training.plans as plans

    monkeypatch.setattr(plans, "progress_bar", watched)
    WAITS[wait][0](tmp_path, model)
    assert any(what.startswith(WAITS[wait][1]) for what in seen), seen
