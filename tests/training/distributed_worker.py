"""What several processes run in tests/training/test_distributed.py:  torchrun --nproc-per-node 2 distributed_worker.py OUT [die | short]"""

import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

import torch

warnings.filterwarnings("ignore")

from fastai.callback.core import Callback  # noqa: E402

from diffnb.data import ImageSet, image_loaders  # noqa: E402
from diffnb.networks import UNet  # noqa: E402
from diffnb.noise import EDM  # noqa: E402
from diffnb.parallel import launched, rank, world_size  # noqa: E402
from diffnb.samplers import Heun  # noqa: E402
from diffnb.training import MetricCallback, ResumeCallback, ScaledOptimizer, ScheduleCallback, diffusion_learner, fit, together  # noqa: E402

IMAGES = ImageSet(torch.randint(256, (83, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(83) % 3)
VALID = IMAGES.select(torch.arange(13))
BATCH = 8  # of all processes together; 10 steps an epoch


def network():
    """A small U-Net with classes and attention, nothing zero."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet(1, widths=(8, 16), blocks=1, attention_levels=(1,), num_classes=3, groups=4, head_width=8, zero_init=False)


def loaders(world):
    """The same batches for any number of processes."""
    return image_loaders(IMAGES, VALID, batch_size=BATCH // world, flip=True, seed=3, device="cpu")


class FirstGradient(Callback):
    """Keep the gradient of the first step, before it is clipped, and the rows it came from."""

    order = 44

    def before_fit(self):
        self.first = self.rows = None

    def before_step(self):
        if self.first is None:
            self.first = torch.cat([p.grad.flatten() for p in self.learn.model.parameters()])
            self.rows = self.learn.xb[0].clone()


def flat(network):
    """All weights."""
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def colour(images):
    """Features of images."""
    return torch.cat([images.mean((2, 3)), images.square().mean((2, 3)), images.flatten(1)[:, :5]], 1)


def train(optimizer, lr, world, **settings):
    """Two epochs, 20 steps, at a fixed rate."""
    metric = MetricCallback("kernel", every=1, n=21, extractor=colour, sampler=Heun(), n_steps=3, batch_size=5)
    first = FirstGradient()
    learn = diffusion_learner(loaders(world), network(), EDM(), progress=False, label_dropout=0.3, callbacks=[metric, first], **settings)
    learn.opt_func = partial(ScaledOptimizer, opt=optimizer)
    with together(learn):
        learn.fit(2, lr=lr, wd=0)
    return {
        "weights": flat(learn.model),
        "average": torch.cat([t.flatten() for t in learn.ema.averages]),
        "losses": [list(row[:2]) for row in learn.recorder.values],
        "scores": [row["value"] for row in metric.scores],
        "gradient": first.first,
        "rows": first.rows,
        "images": learn.diffusion.images_seen,
        "steps": learn.ema.steps,
        "names": sorted(learn.ema.state()),
    }


class DieAt(Callback):
    """Kill this process before a step, if it has the rank."""

    order = 43

    def __init__(self, who, step):
        self.who, self.step = who, step

    def before_step(self):
        if rank() == self.who and self.learn.ema.steps == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def resumable(folder, world, resume=False, callbacks=()):
    """Train by `fit`, with the whole state on disk after every fourth step."""
    checkpoint = ResumeCallback(Path(folder) / "training.safetensors", every=4, resume=resume)
    trained = network()
    result = fit(loaders(world), trained, EDM(), epochs=2, lr=1e-2, warmup=4, progress=False, callbacks=[*callbacks, checkpoint])
    return flat(trained), result.record["valid_loss"], result.record["images_seen"]


class UnequalClock(ScheduleCallback):
    """A clock that runs faster in some processes."""

    @property
    def seconds(self):
        """Two more seconds a step in process 1 than in process 0."""
        return self.steps * (1.0 + 2.0 * rank())


def main(out, mode="train"):
    """Run under torchrun or accelerate launch."""
    world = launched()[1]
    if mode == "short":
        torch.save((*resumable(out, world), world_size()), Path(out) / f"rank{rank()}.pt")
        return
    if mode == "die":
        resumable(out, world, callbacks=[DieAt(1, 13)])
        return
    found = {"sgd": train(torch.optim.SGD, 0.05, world), "adamw": train(torch.optim.AdamW, 1e-3, world)}
    assert world_size() == world
    torch.save(found, Path(out) / f"rank{rank()}.pt")


def launched_main(*arguments):
    """The same in a fork of a process that tests, which has none of that one's threads and none of the launcher's answers to signals."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main(*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
