"""What a training leaves in its folder: every file is what it claims to be, and a run that was cut off ends as if it had not been."""

import csv
import json
import math
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image, ImageSequence

import diffnb.apps.runs as runs
from diffnb import GenerativeModel
from diffnb.apps import FILES, STATE, Recipe, app, begin_run, read_settings, resume_run
from diffnb.core import to_unit
from diffnb.denoise import BaseDenoiser, Gaussian
from diffnb.noise import EDM, VP, FlowMatching
from diffnb.parallel import run_together
from diffnb.samplers import DPMSolverPP2M, Heun
from diffnb.training import denoising_frames, reconstruct, time_of_noise_ratio, visible, write_gif

SMALL = {"widths": (16,), "blocks": 1, "attention_levels": (), "unshuffle": 4}
RECIPE = Recipe("packaged", classes=("Trouser", "Bag"), limit=90, network=SMALL, epochs=4, batch_size=16)
RECIPE = RECIPE.changed(lr=4e-3, warmup=4, metric="kernel", metric_every=1, metric_images=24, ema=0.8)


class Watch(Callback):
    """Keep the averaged weights of every epoch."""

    order = 90

    def __init__(self):
        self.averages = []

    def after_epoch(self):
        self.averages.append(self.learn.ema.state())


class Cut(Callback):
    """End everything after a step, as a signal would."""

    order = 200

    def __init__(self, step):
        self.step = step

    def after_step(self):
        if self.learn.ema.steps >= self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run from beginning to end: folder, model, averaged weights by epoch."""
    out, watch = tmp_path_factory.mktemp("runs") / "whole", Watch()
    model = begin_run(RECIPE, out, progress=False, device="cpu", save_every=4, callbacks=[watch])
    return out, model, watch.averages


def rows(path, without=()):
    with open(path) as file:
        return [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]


def pixels(image):
    """A picture as bytes (height, width, 3)."""
    return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)


def weights(path):
    """The weights of a model file."""
    return GenerativeModel.load(path, "cpu", verbose=False).denoiser().network.state_dict()


def equal(state, other):
    return set(state) == set(other) and all(torch.equal(state[key], other[key]) for key in state)


def test_history_is_the_record(whole):
    out, model, _ = whole
    record, history = json.loads((out / "record.json").read_text()), rows(out / "history.csv")
    assert record == model.record == GenerativeModel.load(out / "model.safetensors", verbose=False).record
    for key in ("train_loss", "valid_loss"):
        assert [float(row[key]) for row in history] == record[key]
    assert [int(row["epoch"]) for row in history] == [1, 2, 3, 4]
    assert [int(row["step"]) for row in history] == [5, 10, 15, 20] and int(history[-1]["images"]) == record["images_seen"] == 4 * 80
    assert Image.open(out / "history.png").size[0] > 600 and Image.open(out / "levels.png").format == "PNG"


def test_checkpoints_are_of_the_epochs_that_they_name(whole):
    out, model, averages = whole
    history = rows(out / "history.csv")
    scores = [float(row["kernel[fashion-classifier]"]) for row in history]
    losses = [float(row["valid_loss"]) for row in history]
    best = {"best_loss": losses.index(min(losses)), "best_metric": scores.index(min(scores)), "last": 3, "model": 3}
    for name, epoch in best.items():
        assert equal(weights(out / f"{name}.safetensors"), averages[epoch]), name
    assert equal(model.denoiser().network.state_dict(), averages[-1])


def test_pictures_are_those_of_the_model(whole):
    out, model, _ = whole
    frames = [pixels(frame) for frame in ImageSequence.Iterator(Image.open(out / "denoising.gif"))]
    assert len(frames) == 24
    labels = {"label": torch.arange(12) % 2}
    expected = denoising_frames(model.denoiser(), DPMSolverPP2M(), (12, 1, 28, 28), n_steps=24, condition=labels)
    for frame, picture in zip(frames, expected):
        assert (frame[::2, ::2].int() - picture.int()).abs().max() <= 1
    assert frames[0][:, :200].float().std() > 80  # it begins as noise
    samples = pixels(Image.open(out / "samples.png"))
    assert samples.shape == (5 * 30 - 2, 2 * 30 - 2, 3)
    model.sampler = DPMSolverPP2M()
    made = model.generate(2, n_steps=12, seed=0, class_labels=["Trouser", "Bag"])
    assert (samples[:28, :28, 0] / 255 - made[0, 0]).abs().max() < 2 / 255 and (samples[:28, 30:58, 0] / 255 - made[1, 0]).abs().max() < 2 / 255
    assert sorted(path.name for path in (out / "samples").iterdir()) == [f"epoch_00{i}.png" for i in (1, 2, 3, 4)]


def test_the_folder_says_what_is_in_it_and_how_to_go_on(whole):
    out, _, _ = whole
    written, about = {path.name for path in out.iterdir()}, (out / "README.md").read_text()
    assert written == {*FILES, "README.md", "noised.png", "reconstruction.png", "samples.png", "denoising.gif"}
    assert all(f"- `{name}`: " in about for name in written - {"README.md"}) and f"diffnb train --resume {out}" in about
    assert read_settings(out)["recipe"] == RECIPE


def test_a_run_of_latents_keeps_its_codec_and_goes_on_with_it(no_figures, tmp_path, capsys):
    """Cut off and gone on with, it is the run that was not: the codec is fitted again to the same images, and is the same."""
    recipe = RECIPE.changed(network="tiny", codec="pca:6", flip=True, epochs=2, metric_images=12)
    model = begin_run(recipe, tmp_path / "whole", progress=False, device="cpu", save_every=4)
    assert (model.shape, model.trained.latent_shape, model.codec.config["channels"]) == ((1, 28, 28), (6, 7, 7), 6)
    drawn = pixels(Image.open(tmp_path / "whole" / "samples.png"))
    made = model.generate(2, 12, seed=0, class_labels=["Trouser", "Bag"])
    assert drawn.shape == (5 * 30 - 2, 2 * 30 - 2, 3) and (drawn[:28, 30:58, 0] / 255 - made[1, 0]).abs().max() < 2 / 255
    with pytest.raises(KeyboardInterrupt):
        begin_run(recipe, tmp_path / "cut", progress=False, device="cpu", save_every=4, callbacks=[Cut(7)])
    capsys.readouterr()
    resumed = resume_run(tmp_path / "cut", progress=False, device="cpu", save_every=4)
    assert "names their codec: pca:6" in capsys.readouterr().err
    assert equal(resumed.codec.state_dict(), model.codec.state_dict())
    for name in ("model", "last", "best_loss", "best_metric"):
        files = [GenerativeModel.load(tmp_path / folder / f"{name}.safetensors", "cpu", verbose=False) for folder in ("whole", "cut")]
        assert equal(*(one.denoiser().network.state_dict() for one in files)) and equal(*(one.codec.state_dict() for one in files)), name
    again = begin_run(recipe.changed(codec=str(tmp_path / "whole" / "model.safetensors"), epochs=1), tmp_path / "again", progress=False, device="cpu")
    assert equal(again.codec.state_dict(), model.codec.state_dict())  # the codec of a model file, as it is


@pytest.mark.parametrize("step", [7, pytest.param(10, marks=pytest.mark.slow)])  # within an epoch; at the end of an epoch
def test_a_run_that_is_cut_off_ends_as_if_it_had_not_been(whole, no_figures, tmp_path, step):
    out, model, _ = whole
    with pytest.raises(KeyboardInterrupt):
        begin_run(RECIPE, tmp_path, progress=False, device="cpu", save_every=4, callbacks=[Cut(step)])
    assert (tmp_path / STATE).exists() and json.loads((tmp_path / "record.json").read_text())["stopped"] == "interrupted"
    assert GenerativeModel.load(tmp_path / "model.safetensors", verbose=False).record["steps"] == step
    resume_run(tmp_path, progress=False, device="cpu", save_every=4)
    for name in ("model", "last", "best_loss", "best_metric"):
        assert equal(weights(out / f"{name}.safetensors"), weights(tmp_path / f"{name}.safetensors")), name
    assert rows(tmp_path / "history.csv", ["seconds"]) == rows(out / "history.csv", ["seconds"])
    assert (tmp_path / "levels.csv").read_text() == (out / "levels.csv").read_text()
    record, whole_record = (json.loads((folder / "record.json").read_text()) for folder in (tmp_path, out))
    assert {k: v for k, v in record.items() if k != "seconds"} == {k: v for k, v in whole_record.items() if k != "seconds"}


def test_what_is_asked_for_besides_is_there_too(tmp_path, monkeypatch):
    from diffnb.training import average_of_length, snapshots

    asked = []
    monkeypatch.setattr(runs, "log_callbacks", lambda *given: asked.append(given) or [])
    recipe = RECIPE.changed(metric=None, limit=40, epochs=4, snapshots=(0.05, 0.1), snapshot_every=2, sample_every=3, log_to="tensorboard")
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        begin_run(recipe, out, progress=False, device="cpu", save_every=2, callbacks=[Cut(3)])
    resume_run(out, progress=False, device="cpu", save_every=2, log_to="tensorboard")  # asked for again: a folder cannot
    assert [given[:2] for given in asked] == [("tensorboard", out)] * 2 and asked[0][2]["data"] == "packaged"
    assert [path.name for path in sorted((out / "samples").iterdir())] == ["epoch_003.png", "epoch_004.png"]
    found = snapshots(out / "snapshots")
    assert {(one.step, one.sigma_rel) for one in found} == {(step, length) for step in (2, 4, 6, 8) for length in (0.05, 0.1)}
    stored, made = weights(out / "last.safetensors"), average_of_length(out / "snapshots", 0.07)
    assert set(stored) == set(made) and not equal(stored, made)
    assert "`snapshots`: averages of some lengths" in (out / "README.md").read_text() and read_settings(out)["recipe"] == recipe
    for wrong in ({"snapshot_every": 0}, {"sample_every": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be a whole number of at least 1, got 0"):
            recipe.changed(**wrong)


def test_two_processes_leave_the_run_of_one_with_batches_twice_as_large(tmp_path, no_pictures, capfd):
    lines = {
        name: f"train packaged --limit 60 --epochs 1 --network tiny --precision float32 --batch-size {size} --out {tmp_path / name}"
        for name, size in (("one", 18), ("two", 9))
    }
    assert not app(lines["one"].split(), standalone_mode=False)
    capfd.readouterr()
    assert run_together(partial(app, standalone_mode=False), 2, args=[lines["two"].split()]) == [None, None]
    out, err = capfd.readouterr()
    assert err.count("after an interruption") == out.count("go on by: diffnb train --resume") == 1  # one of them speaks
    one, two = ({path.name for path in (tmp_path / name).iterdir()} for name in lines)
    assert one == two
    one, two = (json.loads((tmp_path / name / "record.json").read_text()) for name in lines)
    assert (one["steps"], one["images_seen"], one["batch_size"]) == (two["steps"], two["images_seen"], two["batch_size"]) == (3, 54, 18)
    assert two["valid_loss"] == pytest.approx(one["valid_loss"], rel=1e-4)
    one, two = (weights(tmp_path / name / "last.safetensors") for name in lines)
    assert max((one[key] - two[key]).abs().max() for key in one) < 2e-3  # twice the learning rate: AdamW makes a sign of a gradient of zero


def test_what_would_lose_a_training_is_refused(whole, tmp_path, capsys):
    out, _, _ = whole
    before = (out / STATE).read_bytes()
    for line, words in (
        (f"train packaged --out {out}", "holds a training already"),
        (f"train --resume {out} --lr 0.1 --flip", "leave out --flip, --lr"),
        (f"train packaged --resume {out}", "leave out DATA, --recipe and --out"),
        (f"train --resume {tmp_path}", "no training to go on with"),
        (f"train --out {tmp_path / 'x'}", "give DATA"),
        (f"train --recipe flower --out {tmp_path / 'x'}", "did you mean 'flowers'"),
        (f"train packaged --limit 40 --batch-size 64 --out {tmp_path / 'x'}", "batch_size=64 is more than the 36 images"),
    ):
        assert app(line.split(), standalone_mode=False) == 2
        *before_it, last = capsys.readouterr().err.splitlines()
        assert words in last and all(" images, " in one for one in before_it), (line, before_it, last)
    assert (out / STATE).read_bytes() == before
    (tmp_path / "settings.json").write_text('{"recipe": {"data": "mnist", "training": {"speed": 3}}}')
    with pytest.raises(ValueError, match="cannot be read as the settings of a run"):
        resume_run(tmp_path)


# the pictures, against what is known exactly


class OnePixel(BaseDenoiser):
    """The exact denoiser of Gaussian pixels."""

    def __init__(self, sde, s):
        self.sde, self.exact = sde, Gaussian(torch.zeros(1), torch.tensor([[s**2]])).denoiser(sde)

    def x0(self, x, t, condition):
        return self.exact.x0(x.flatten(1), t, condition).view_as(x)


@pytest.mark.parametrize("sde", [EDM(), VP(), FlowMatching()], ids=repr)
@pytest.mark.parametrize("ratio", [0.05, 0.3])
def test_reconstruction_starts_from_the_level_that_it_names(sde, ratio):
    s, data = 0.2, Gaussian(torch.zeros(1), torch.tensor([[0.04]])).sample(20_000, dtype=torch.float64).view(-1, 1, 1, 1)
    back = reconstruct(OnePixel(sde, s), Heun(), to_unit(data), ratio, n_steps=40)
    rho = s / math.hypot(s, ratio)
    # (2 s^2 (1 - rho))^1/2 and (s^2 (1 - rho^2))^1/2, in units of the screen
    assert back.error().square().mean().sqrt().item() == pytest.approx(math.sqrt(2 * s**2 * (1 - rho)) / 2, rel=0.02)
    assert back.error("predicted").square().mean().sqrt().item() == pytest.approx(math.sqrt(s**2 * (1 - rho**2)) / 2, rel=0.02)


def test_noisy_images_look_alike_under_all_processes():
    x0, epsilon = torch.randn(2, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sde in (EDM(), VP(), FlowMatching()):
        for ratio in (0.1, 1.0, 10.0):
            t = time_of_noise_ratio(sde, ratio)
            assert (visible(sde.perturb(x0, t, epsilon), sde, t) - to_unit((x0 + ratio * epsilon) / math.hypot(1, ratio))).abs().max() < 1e-6


def test_a_gif_has_its_frames_and_their_times(tmp_path):
    gray = [torch.randint(0, 256, (9, 7, 1), generator=torch.Generator().manual_seed(i), dtype=torch.uint8).expand(9, 7, 3) for i in range(5)]
    write_gif(gray, tmp_path / "a.gif", seconds=1.0, hold=2.0, scale=3)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["loop"]) == (5, (21, 27), 0)
        times = []
        for frame, expected in zip(ImageSequence.Iterator(gif), gray):
            assert torch.equal(pixels(frame)[::3, ::3], expected)
            times.append(frame.info["duration"])
    assert times == [200, 200, 200, 200, 2000]
    with pytest.raises(ValueError, match="at least one frame"):
        write_gif([], tmp_path / "b.gif")
