"""Work is never lost: whatever ends a training, what was learned is kept, and a training that goes on ends as if nothing had been."""

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from commands import command
from fastai.callback.core import Callback

from diffnb import GenerativeModel
from diffnb.data import ImageSet, default_batch, image_loaders
from diffnb.networks import UNet
from diffnb.noise import EDM
from diffnb.training import (
    AgainCallback,
    ForecastCallback,
    HistoryCallback,
    LevelLossCallback,
    MetricCallback,
    NonFiniteLoss,
    ResumeCallback,
    ScheduleCallback,
    Signals,
    fit,
    forecast,
    load_state,
)

IMAGES = ImageSet(torch.randint(256, (44, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(44) % 3)
VALID = IMAGES.select(torch.arange(12))
STEPS = 4  # an epoch


class Interrupt(Callback):
    """Do something at the n-th time of an event, in training or in validation."""

    order = 0

    def __init__(self, event, n, action, training=True):
        self.event, self.left, self.action, self.in_training = event, n, action, training

    def __call__(self, event_name):
        inner = event_name.endswith(("batch", "pred", "loss", "step", "backward"))
        if event_name == self.event and (not inner or self.training == self.in_training):
            self.left -= 1
            if self.left == 0:
                self.action()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet(1, widths=(8, 8), blocks=1, attention_levels=(), num_classes=3, groups=4, dropout=0.2, zero_init=False)


def pixels(images):
    """Features of images."""
    return images.flatten(1)[:, :7]


def train(*callbacks, folder=None, resume="if there", fails=False, **settings):
    """Three epochs of four steps, with random numbers of every kind; weights, averages, record, rows."""
    history, levels, net, kept = HistoryCallback(), LevelLossCallback(3), network(), []
    metric = MetricCallback("kernel", every=1, n=6, extractor=pixels, n_steps=2)
    own = [history, levels, metric, *callbacks]
    if folder is not None:
        own.append(ResumeCallback(folder / "training.safetensors", resume=resume))
    loaders = image_loaders(IMAGES, VALID, batch_size=11, flip=True, device="cpu")
    settings = {"epochs": 3, "lr": 1e-2, "warmup": 3, "weight": "uncertainty", **settings}
    try:
        fit(loaders, net, EDM(), progress=False, callbacks=own, keep=kept.append, **settings)
    except BaseException as error:
        if fails:
            return error, kept
        raise
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]
    return {"raw": net.state_dict(), "average": kept[0].ema_state, "rows": rows, "levels": levels.level_history, "scores": metric.scores}, kept


def same(one, other):
    assert one["rows"] == other["rows"] and one["levels"] == other["levels"] and one["scores"] == other["scores"]
    for kind in ("raw", "average"):
        assert all(torch.equal(one[kind][key], other[kind][key]) for key in one[kind]), kind


@pytest.fixture(scope="module")
def whole():
    return train()[0]


def raising(error):
    def action():
        raise error

    return action


def sending(number):
    return lambda: os.kill(os.getpid(), number)


class OwnError(Exception):
    """An error of somebody else's."""


# what happens, the error that goes on, steps done then
ENDS = {
    "Ctrl-C in a step": (Interrupt("after_step", 6, sending(signal.SIGINT)), KeyboardInterrupt, 6),
    "Ctrl-C before a step": (Interrupt("before_batch", 6, sending(signal.SIGINT)), KeyboardInterrupt, 6),
    "SIGTERM": (Interrupt("after_backward", 3, sending(signal.SIGTERM)), KeyboardInterrupt, 3),
    "Ctrl-C while validating": (Interrupt("after_loss", 3, sending(signal.SIGINT), training=False), KeyboardInterrupt, 8),
    "Ctrl-C in the last step": (Interrupt("after_step", 12, sending(signal.SIGINT)), KeyboardInterrupt, 12),
    "an interrupt raised in a callback": (Interrupt("after_batch", 7, raising(KeyboardInterrupt())), KeyboardInterrupt, 7),
    "an error without words": (Interrupt("before_batch", 7, raising(OwnError())), OwnError, 6),
    "an error after noise was drawn": (Interrupt("after_pred", 6, raising(OwnError("no"))), OwnError, 5),
    "an error before the step": (Interrupt("before_step", 5, raising(OSError("disk"))), OSError, 4),
    "an error after the step, before the average moves": (Interrupt("after_step", 5, raising(OwnError("no"))), OwnError, 5),
    "an error between training and validation": (Interrupt("after_train", 2, raising(OwnError("no"))), OwnError, 8),
    "an error with averaged weights in": (Interrupt("before_validate", 1, raising(OwnError("no"))), OwnError, 4),
    "an error in validation": (Interrupt("after_loss", 3, raising(OwnError("no")), training=False), OwnError, 8),
    "an error at the end of an epoch": (Interrupt("after_epoch", 2, raising(ValueError("no"))), ValueError, 8),
    "an error at the beginning of one": (Interrupt("before_epoch", 3, raising(ValueError("no"))), ValueError, 8),
    "the end of the program": (Interrupt("after_step", 2, raising(SystemExit(3))), SystemExit, 2),
}


@pytest.mark.parametrize("name", ENDS)
def test_whatever_ends_a_training_it_is_kept_and_goes_on_as_if_nothing_had_been(name, whole, tmp_path, capsys):
    interrupt, error, steps = ENDS[name]
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    raised, kept = train(interrupt, folder=tmp_path, fails=True)
    assert type(raised) is error and (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(kept) == 1 and kept[0].record["stopped"] == "interrupted" and kept[0].record["steps"] == steps
    resumed, again = train(folder=tmp_path, resume=True)
    same(whole, resumed)
    assert again[0].record["stopped"] == "epochs" and again[0].record["steps"] == 3 * STEPS


def test_what_is_no_interruption_keeps_nothing(tmp_path):
    for interrupt, error in (
        (Interrupt("after_step", 2, raising(NonFiniteLoss("bad"))), NonFiniteLoss),
        (Interrupt("before_batch", 1, raising(OwnError("before any step"))), OwnError),
        (Interrupt("before_fit", 1, raising(OwnError("before training"))), OwnError),
    ):
        raised, kept = train(interrupt, folder=tmp_path, fails=True)
        assert type(raised) is error and kept == [] and not (tmp_path / "training.safetensors").exists()


def test_the_second_signal_ends_at_once_and_the_earlier_state_stays(tmp_path, whole):
    twice = Interrupt("after_pred", 7, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(2)])
    raised, kept = train(twice, folder=tmp_path, fails=True)
    assert type(raised) is KeyboardInterrupt and kept == [] and not (tmp_path / "training.safetensors").exists()


def test_handlers_of_a_program_and_threads_are_left_alone():
    def own(number, frame):
        pass

    before = signal.signal(signal.SIGTERM, own)
    try:
        with Signals() as signals:
            assert signal.getsignal(signal.SIGTERM) is own and list(signals.before) == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before)
    found = []

    def work():
        with Signals() as signals:
            found.append(dict(signals.before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [{}]


class Slow(Callback):
    """A clock for which each step takes a minute."""

    order, run_valid = -5, False

    def __init__(self, now):
        self.now = now

    def after_batch(self):
        self.now[0] += 60.0


def test_state_is_saved_by_time_and_when_a_better_model_is(tmp_path, monkeypatch):
    import diffnb.training.checkpoints as checkpoints

    now, written = [0.0], []
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(checkpoints, "save_state", lambda path, state: written.append((state["position"]["epoch"], state["position"]["batch"])))
    train(Slow(now), folder=tmp_path)
    assert written == [(0, 2), (0, 4), (1, 2), (1, 4), (2, 2), (2, 4), (3, 0)]  # every two minutes of work, and at the end
    written.clear()
    keep = checkpoints.CheckpointCallback(lambda name, state: None)
    train(Slow(now), keep, folder=tmp_path)
    better = [(epoch + 1, 0) for epoch in range(3) if epoch == 0 or epoch <= keep.best_epoch]
    assert set(better) <= set(written)


def test_a_time_limit_counts_this_start_and_makes_a_step_in_any_case(tmp_path):
    tiny = {"time_limit": 1e-6, "epochs": 50}
    steps = []
    for resume in ("if there", True, True):
        _, kept = train(folder=tmp_path, resume=resume, **tiny)
        assert kept[0].record["stopped"] == "time"
        steps.append(kept[0].record["steps"])
    assert steps == [1, 2, 3]
    schedule = ScheduleCallback(1e-3, time_limit=5)
    schedule.load_state_dict({"steps": 4, "seconds": 1000.0})
    schedule.has_stepped = True
    assert schedule.limit is None


SETTINGS = [{}, {"rate": "constant"}, {"ema": "power-law"}, {"accumulate": 2}, {"rate": "linear", "warmup": 6}]
SLOW_SPLITS = [pytest.param(settings, split, marks=pytest.mark.slow) for settings in SETTINGS[1:] for split in ((2, 1), (1, 2))]


@pytest.mark.parametrize(
    "settings, split", [*((settings, (1, 1, 1)) for settings in SETTINGS), *(({}, split) for split in ((2, 1), (1, 2))), *SLOW_SPLITS]
)
def test_several_trainings_are_one(split, settings):
    def pieces(epochs):
        seen, done, state = (0, 0), 0, None
        for n in epochs:
            again, kept = AgainCallback(seen, done, state), []
            torch.manual_seed(99)  # which nobody may notice
            net = network()
            loaders = image_loaders(IMAGES, VALID, batch_size=11, flip=True, device="cpu")
            how = {"lr": 1e-2, "warmup": 3, "of_epochs": (done, 3), **settings}
            fit(loaders, net, EDM(), epochs=n, progress=False, callbacks=[again], keep=kept.append, **how)
            seen = seen[0] + kept[0].record["steps"], seen[1] + kept[0].record["images_seen"]
            done, state = done + n, again.state
        return {**{f"raw {k}": v for k, v in net.state_dict().items()}, **kept[0].ema_state}

    one, other = pieces((3,)), pieces(split)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_split_has_a_seed_of_its_own():
    sets = [image_loaders(IMAGES, batch_size=4, seed=seed, device="cpu").valid.dataset.images for seed in (0, 1, 2)]
    assert torch.equal(sets[0], sets[1]) and torch.equal(sets[0], sets[2])
    assert not torch.equal(image_loaders(IMAGES, batch_size=4, split_seed=1, device="cpu").valid.dataset.images, sets[0])


@pytest.mark.parametrize("n, batch", [(1, 1), (9, 9), (40, 16), (400, 16), (800, 32), (1600, 64), (3200, 128), (60_000, 128)])
def test_the_batch_heeds_the_number_of_images(n, batch):
    assert default_batch(n) == batch


@pytest.mark.parametrize(
    "plan, words",
    [
        ({"planned": 300, "an_epoch": 3, "each": 1.0}, "300 steps (3 steps an epoch), in about 5.0 min. So few"),
        ({"planned": 300, "an_epoch": 3, "each": 1.0, "before": 700}, "300 more steps, 1,000 in all (3 steps an epoch), in about 5.0 min"),
        ({"planned": 2500, "an_epoch": 25, "each": 0.01}, "2,500 steps (25 steps an epoch), in about 25 s"),
        ({"planned": 2500, "an_epoch": 25, "each": 0.1, "limit": 50}, "about 500 steps within the time limit of 50 s"),
        ({"planned": 2500, "an_epoch": 25, "each": 0.1, "limit": 50}, "time_limit=200"),
        ({"planned": 2500, "an_epoch": 25, "each": 0.1, "limit": 500}, "2,500 steps (25 steps an epoch), in about 4.2 min"),
    ],
)
def test_training_says_how_long_it_takes_and_what_would_do(plan, words):
    said = forecast(epochs=100, **plan)
    assert words in said and ("So few" in said) == (plan["planned"] < 1000 and not plan.get("before") or plan.get("limit") == 50)


def test_a_training_that_goes_on_says_how_many_steps_are_left(tmp_path):
    """One that was ended by its steps, after an epoch; then a second training, which counts its own steps."""
    said = []

    def run(steps, **how):
        told = ForecastCallback(tell=said.append)
        return model.train(IMAGES, steps=steps, batch_size=4, callbacks=[told], **how)

    model = GenerativeModel("edm", "dpm-solver++2m", network="tiny", device="cpu", verbose=False)
    run(10, checkpoints=tmp_path)
    model = GenerativeModel("edm", "dpm-solver++2m", network="tiny", device="cpu", verbose=False)
    run(25, checkpoints=tmp_path, resume=True)
    run(12)
    GenerativeModel("edm", network="tiny", device="cpu", verbose=False).train(
        IMAGES, epochs=3, batch_size=22, callbacks=[ForecastCallback(tell=said.append)]
    )  # fewer steps an epoch than are timed
    assert said[3].startswith("3 steps (1 step an epoch)"), said[3]
    assert said[0].startswith("10 steps (10 steps an epoch)") and said[0].endswith("steps=2000")
    assert said[1].startswith("15 more steps, 25 in all (10 steps an epoch)") and said[1].endswith("steps=2000")
    assert said[2].startswith("12 more steps, 37 in all (10 steps an epoch)") and said[2].endswith("steps=1975")


class Constant(torch.nn.Module):
    """The smallest network."""

    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, half_log_snr):
        return self.value * x


def test_steps_of_each_of_several_trainings_that_share_a_rate():
    """Each makes the steps that it was asked for, the rate falls over the epochs of all, and there is one warm-up."""
    loaders = image_loaders(ImageSet(torch.zeros(40, 1, 2, 2, dtype=torch.uint8)), batch_size=8, valid_fraction=0.2, device="cpu")
    n, seen, done, state, rates = len(loaders.train), (0, 0), 0, None, []

    class Rates(Callback):
        order, run_valid = 71, False

        def after_step(self):
            rates.append(self.opt.hypers[-1]["lr"])

    for steps in (2 * n, n, n):
        again, how = AgainCallback(seen, done, state), {"lr": 0.5, "warmup": n, "rate": "linear", "steps": steps, "of_epochs": (done, 4)}
        record = fit(loaders, Constant(), EDM(), progress=False, callbacks=[again, Rates()], **how).record
        assert record["steps"] == steps
        seen, done, state = (seen[0] + steps, seen[1] + record["images_seen"]), done + steps // n, again.state
    falls = [1 - step / (4 * n) for step in range(4 * n)]
    assert rates == pytest.approx([0.5 * min(1, max((step + 1) / n, (1 - fall) / 0.01)) * fall for step, fall in enumerate(falls)])


@pytest.mark.parametrize("ended_by", [("steps", "steps"), ("time", "time"), ("interrupt", "interrupt"), ("steps", "interrupt")], ids=" ".join)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_training_by_steps_that_goes_on_ends_at_these_steps(tmp_path, ended_by, accumulate):
    """Wherever it ended before: a limit cuts an epoch short, so that more of them are needed. The rate falls over the steps, to zero."""
    images, an_epoch = torch.zeros(40, 1, 2, 2, dtype=torch.uint8), -(-10 // accumulate)

    class Ends(Callback):
        """End a start after so many steps in all."""

        order, run_valid = 71, False  # after the schedule

        def __init__(self, at, by):
            self.at, self.by, self.rates = at, by, {}

        def after_step(self):
            self.rates[self.schedule.steps] = self.opt.hypers[-1]["lr"]
            if self.schedule.steps == self.at and self.by == "time":
                self.schedule.time_limit = 1e-9
            if self.schedule.steps == self.at and self.by == "interrupt":
                raise KeyboardInterrupt

    def start(path, steps, at=None, by=None, **how):
        ends, kept = Ends(at, by), []
        loaders = image_loaders(ImageSet(images), ImageSet(images[:4]), batch_size=4, device="cpu")
        callbacks = [ends, ResumeCallback(path, resume="if there")]
        how = {"lr": 0.5, "warmup": 0, "rate": "linear", "accumulate": accumulate, "steps": steps, **how}
        with contextlib.suppress(KeyboardInterrupt):
            fit(loaders, Constant(), EDM(), progress=False, callbacks=callbacks, keep=kept.append, **how)
        return kept[0].record, ends.rates

    n = 2 * an_epoch + 3
    for at in (1, an_epoch, an_epoch + 1, n - 1):
        path = tmp_path / f"{at}.safetensors"
        for stop, by in dict(zip((at, (at + n) // 2), ended_by)).items():  # twice, but where there is one step left
            record, rates = start(path, stop if by == "steps" else n, stop, by)
            assert record["steps"] == stop
        record, rates = start(path, n)
        assert (record["steps"], record["stopped"], list(rates)) == (n, "steps", list(range(stop + 1, n + 1)))
        assert accumulate > 1 or rates == pytest.approx({step: 0.5 * (1 - (step - 1) / n) for step in rates})
    record, _ = start(path, n + 50, epochs=record["epochs"] + 1)  # epochs that are asked for stay a limit
    assert record["stopped"] == "epochs" and record["steps"] <= n + an_epoch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_terminal_gets_exit_code_130_and_a_line_that_says_how_to_go_on(tmp_path, number):
    line = f"train packaged --limit 20 --classes Bag,Trouser --network tiny --batch-size 4 --epochs 400 --out {tmp_path / 'run'}"
    training, start = command(*line.split()), time.monotonic()
    while not (tmp_path / "run" / "history.csv").exists() and not training.has_ended and time.monotonic() - start < 200:
        time.sleep(0.1)
    os.kill(training.pid, number)
    code, _, err = training.end()
    assert code == 130, err
    assert f"Go on by: diffnb train --resume {tmp_path / 'run'}" in err and "Traceback" not in err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["stopped"] == "interrupted" and GenerativeModel.load(tmp_path / "run" / "model.safetensors", verbose=False).record == record
    position = load_state(tmp_path / "run" / "training.safetensors")["position"]
    assert position["train_iter"] == record["steps"] and "`model.safetensors`" in Path(tmp_path / "run" / "README.md").read_text()
