"""One kind of bar: it moves in a terminal, is an element of the page in a notebook, and a line now and then elsewhere."""

import io
import json
import re
import sys
import time

import IPython.display
import pytest
import torch
from PIL import Image

import diffnb.printing as printing
import diffnb.training.plans  # noqa: F401  (before a test pretends to be in a notebook, for it takes that name)
from diffnb import GenerativeModel
from diffnb.data import image_set
from diffnb.model import Trained
from diffnb.networks import UNet, first_weights
from diffnb.noise import EDM, Karras
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

    def watched(total, unit, what, show=True, delay=0.0, form=None):
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


@pytest.fixture
def uncalibrated(monkeypatch, tmp_path):
    """A model of colours that has to be calibrated, in the cache of nobody."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with first_weights(0):
        network = UNet(3, widths=(4,), blocks=1, attention_levels=(), groups=2)
    model = GenerativeModel.of(Trained(network, EDM(), Karras(), (3, 8, 8)), device="cpu")
    model.save(tmp_path / "model.safetensors")
    return model


def test_steps_are_counted_after_the_calibration_and_out_of_all(monkeypatch, uncalibrated):
    """Three pictures in chunks of two make two runs of three steps: six, known from the first on, and none of them has the calibration in it."""
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    bars, own = [], printing.progress_bar

    def every(total, unit, what, *rest, **settings):
        bar = own(total, unit, what, *rest, **settings)
        bar.mininterval = bar.miniters = 0
        bars.append((what, time.perf_counter()))
        return bar

    monkeypatch.setattr("diffnb.model.restoration.progress_bar", every)
    uncalibrated.colorize(torch.rand(3, 1, 8, 8), n_steps=3, seed=0, batch_size=2)
    said = screen.getvalue()
    assert [what.partition(",")[0] for what, _ in bars] == ["calibrating", "restoring"]
    assert all(f" {k}/6 [" in said for k in range(1, 7)) and "step]" not in said.split("restoring")[-1].replace("s/step]", "").replace("step/s]", "")
    assert "evaluation/s]" in said and said.index("restoring") > said.rindex("calibrating")


def test_a_command_counts_pictures_and_tells_their_time_alone(monkeypatch, uncalibrated, tmp_path, capsys):
    from diffnb.apps import app

    monkeypatch.chdir(tmp_path)
    for k in range(2):
        Image.new("L", (8, 8), 90 * k).save(f"{k}.png")
    waits = []
    calibrate = GenerativeModel.calibrate

    def slowly(self, *arguments, **settings):
        waits.append(settings.get("again", True))
        time.sleep(0.5 * settings.get("again", True))
        return calibrate(self, *arguments, **settings)

    monkeypatch.setattr(GenerativeModel, "calibrate", slowly)
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    line = "colorize 0.png 1.png --model model.safetensors --steps 4 --seed 0 --out out --json told.json"
    assert not app(line.split(), standalone_mode=False)
    told = json.loads((tmp_path / "told.json").read_text())
    assert waits == [False, True] and told["seconds_each"] < 0.25 and told["pictures"] == 2  # a calibration of half a second is none of it
    said = screen.getvalue()
    assert "of 2 pictures [" in said and "picture/s" not in said and not re.search(r"\d\.\d\d+ of", said)
