"""A training that is killed (SIGKILL, no chance to clean up) goes on to the same losses and weights, bit for bit, wherever it was killed."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch._dynamo  # noqa: F401  (optimizers import it at their first step: once here is faster than in every fork)
from fastai.callback.core import Callback
from torch import nn

import diffnb.training.checkpoints
from diffnb.data import ImageSet, image_loaders
from diffnb.noise import EDM, Karras
from diffnb.training import (
    CheckpointCallback,
    EarlyStopCallback,
    HistoryCallback,
    LevelLossCallback,
    PostHocCallback,
    ResumeCallback,
    fit,
    load_state,
    save_state,
)

STEPS_AN_EPOCH, EPOCHS = 3, 2


def train(folder, kill_at=None, resume="if there", **settings):
    """Train a small network on images; die at the given event. Returns what a complete training leaves behind."""

    class Dropping(nn.Module):
        """Convolutions in channels-last order, labels, and dropout, which draws from the global generator."""

        condition_names, num_classes = ("label",), 3

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
            self.level, self.label, self.dropout = nn.Linear(1, 8), nn.Embedding(4, 8), nn.Dropout(0.2)

        def forward(self, x, half_log_snr, label):
            shift = self.level(half_log_snr[:, None]) + self.label(label + 1)
            return self.last(self.dropout(torch.tanh(self.first(x) + shift[:, :, None, None])))

    class Kill(Callback):
        """Die at the n-th time that something happens, counted from the start of this process."""

        order = 300

        def __init__(self, event, n):
            self.event, self.left = event, n

        def _count(self, event):
            if event == self.event:
                self.left -= 1
                if self.left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def after_batch(self):
            self._count("step" if self.training else "validation batch")

        def after_epoch(self):
            self._count("epoch")

    steps = []

    class Curve(Callback):
        order, run_valid = 60, False

        def after_batch(self):
            steps.append((self.epoch, self.iter, self.learn.loss.item()))

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (11 * STEPS_AN_EPOCH, 1, 6, 6), generator=generator, dtype=torch.uint8)
    data = ImageSet(images, torch.arange(len(images)) % 3)
    loaders = image_loaders(data, data.select(torch.arange(20)), batch_size=11, flip=True, device="cpu")
    torch.manual_seed(0)
    network, kept = Dropping(), []
    callbacks = [
        Curve(),
        CheckpointCallback(lambda name, state: save_state(folder / f"{name}.safetensors", state)),
        CheckpointCallback(lambda name, state: kept.append(name), "valid_loss", False, best="worst", last=None),
        EarlyStopCallback(100),
        HistoryCallback(folder / "history", draw_every=1e9),
        LevelLossCallback(3, folder / "history"),
        PostHocCallback(folder / "ema", every=4),
        ResumeCallback(folder / "training.safetensors", every=settings.pop("every", 1), resume=resume),
    ]
    callbacks[4].draw = callbacks[5].after_fit = lambda: None  # figures take longer than this training
    if kill_at is not None:
        event, n = kill_at
        callbacks.append(Kill(event, n))
        if event == "writing":  # the file is half written
            write, left = os.fsync, [n]

            def fsync(descriptor):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                write(descriptor)

            diffnb.training.checkpoints.os.fsync = fsync
    result = fit(loaders, network, EDM(), Karras(0.5), epochs=EPOCHS, lr=0.05, progress=False, callbacks=callbacks, **settings)
    record = {k: v for k, v in result.record.items() if k != "seconds"}
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in callbacks[4].rows]
    weights = {k: v.tolist() for k, v in {**result.ema_state, **{f"raw {k}": v for k, v in network.state_dict().items()}}.items()}
    best = callbacks[1].best, callbacks[1].best_epoch, callbacks[2].best, callbacks[2].best_epoch, callbacks[3].waited
    return {"record": record, "weights": weights, "history": history, "best": best, "levels": callbacks[5].level_history, "steps": steps}


def child(folder, **settings):
    """Train in a child process; its result, or None if it was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process == 0:
        try:
            (folder / "result.json").write_text(json.dumps(train(folder, **settings)))
        except BaseException as error:
            (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
            os._exit(1)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    assert os.WEXITSTATUS(status) == 0, (folder / "error.txt").read_text()
    return json.loads((folder / "result.json").read_text())


def same(whole, resumed):
    """Check that two trainings are the same to the last bit, as far as the second one went through the steps."""
    differing = [k for k in whole if k != "steps" and whole[k] != resumed[k]]
    assert not differing, {k: (whole[k], resumed[k]) for k in differing if k != "weights"}
    losses = {(epoch, step): loss for epoch, step, loss in whole["steps"]}
    assert all(losses[epoch, step] == loss for epoch, step, loss in resumed["steps"])
    assert len(whole["steps"]) == STEPS_AN_EPOCH * EPOCHS


def numbers(tree):
    """A tree of tensors as plain numbers."""
    return {k: numbers(v) if isinstance(v, dict) else v.tolist() for k, v in tree.items()}


def main(folder):
    """All trainings, each in a fork of this process, which has imported everything and computed nothing."""
    torch.backends.mkldnn.enabled = False  # so that convolutions are products of matrices, which MKL_CBWR (below) is about
    folder, report = Path(folder), {}
    for name, settings in {
        "plain": {},
        "all": {"accumulate": 2, "weight": "uncertainty", "ema": "power-law", "rate": "inverse-sqrt", "quantiles": "shifted", "every": 2},
        "float16": {"precision": "float16", "every": 3},
    }.items():
        whole = child(folder / name / "whole", resume=False, **settings)
        n = STEPS_AN_EPOCH * EPOCHS
        kills = {"plain": [("step", i) for i in range(1, n + 1)], "all": [("step", 1), ("step", 4), ("step", n - 1)], "float16": [("step", 4)]}[name]
        if name == "plain":  # between the steps, and within a file
            kills += [("validation batch", 2), ("epoch", 1), ("epoch", EPOCHS), *(("writing", i) for i in (1, 5, 21))]
        for event, count in kills:
            at = folder / name / f"{event} {count}"
            assert child(at, kill_at=(event, count), **settings) is None
            leftovers = [path for path in at.rglob(".*.part")]
            resumed = child(at, **settings)
            same(whole, resumed)
            report[f"{name}: {event} {count}"] = {"steps again": len(resumed["steps"]), "leftovers": len(leftovers)}
            rows = [(folder / name / run / "history/levels.csv").read_text().count("\n") for run in ("whole", at.name)]
            assert rows[0] == rows[1] == 1 + 3 * EPOCHS
            files = ["last.safetensors", "best.safetensors", *(f"ema/{path.name}" for path in (folder / name / "whole" / "ema").iterdir())]
            assert {path.name for path in (at / "ema").glob("ema*")} == {path.name for path in (folder / name / "whole" / "ema").iterdir()}
            for path in files:
                assert numbers(load_state(at / path)) == numbers(load_state(folder / name / "whole" / path)), path
    # again and again: killed after every second step of each attempt
    at, attempts = folder / "plain" / "often", 0
    while (resumed := child(at, kill_at=("step", 3), every=1)) is None:
        attempts += 1
    same(json.loads((folder / "plain" / "whole" / "result.json").read_text()), resumed)
    report["often"] = attempts
    return report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    import subprocess

    folder = tmp_path_factory.mktemp("killed")
    # one thread, and a math library that rounds alike wherever memory happens to lie: then nothing is left that could differ
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE"}
    run = subprocess.run([sys.executable, "-W", "ignore", __file__, str(folder)], capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings run in forks of one process")
def test_training_goes_on_to_the_same_curve_after_a_kill_at_every_step(report):
    n = STEPS_AN_EPOCH * EPOCHS
    for step in range(1, n + 1):
        assert report[f"plain: step {step}"]["steps again"] == n - step  # nothing is trained twice, nothing left out
    assert report["often"] == n // 3  # each attempt gets three steps further


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings run in forks of one process")
def test_a_kill_while_validating_or_writing_leaves_a_whole_checkpoint(report):
    assert {name for name in report if "validation" in name or "epoch" in name or "writing" in name} == {
        "plain: validation batch 2",
        "plain: epoch 1",
        f"plain: epoch {EPOCHS}",
        *(f"plain: writing {i}" for i in (1, 5, 21)),
    }
    assert any(row["leftovers"] for name, row in report.items() if "writing" in name)  # it was killed in the middle of a file


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings run in forks of one process")
@pytest.mark.parametrize("name, steps", [("all", (1, 4, STEPS_AN_EPOCH * EPOCHS - 1)), ("float16", (4,))])
def test_accumulation_a_learned_weight_and_the_scaler_are_resumed_too(report, name, steps):
    assert {key for key in report if key.startswith(name)} == {f"{name}: step {i}" for i in steps}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
