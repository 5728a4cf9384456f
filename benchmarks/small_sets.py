"""Which settings make the most of a few hundred images and a few minutes? Three small sets, each setting with the same processor time.

    python benchmarks/small_sets.py --root DIR --rows batch-128 batch-32 batch-16 batch-8 [--seconds 30]
    python benchmarks/small_sets.py --root DIR --steps 500 [--seeds 0 1] [--images 400] [--network micro] [--sets fashion flowers cifar]
    python benchmarks/small_sets.py --show

DIR holds flowers64 (photos in class folders) and cifar10; the packaged part of Fashion-MNIST stands for drawings in grey. Of each set as many
images as asked for are trained on, and 400 others are kept aside. The batch comes first: what a step costs is measured, and as many steps are made
as fit into the time, so that small batches have many steps and large ones few. Then, at a batch of 16 and with the same number of steps, one setting
at a time is changed: the length of the average of the weights, dropout, the steps of warm-up, the rate, and whether images are mirrored at random.
None of these changes much what a step costs. Averages of other lengths are kept of the same training: the default has a window of a tenth of it, and
the lengths of power-law profiles are relative to it, too.

The network "micro" is a quarter of "tiny": in half a minute of one processor it makes as many steps as "small" in some ten minutes of two.

The number is the squared error on the images kept aside, at fixed times and noise, of the averaged weights; beside it that on the images trained
on: the gap is what was learned by heart. Rows are written to benchmarks/results/small_sets.json as soon as they are done; one that is there is not
made again. With --show, the differences to the defaults are printed, beside the difference that another seed makes.
"""

import argparse
import itertools
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from fastai.callback.core import Callback

import diffnb
from diffnb.data import image_loaders, image_set
from diffnb.networks import UNet, network_settings
from diffnb.noise import EDM, Karras
from diffnb.training import Average, CosineRate, PowerLaw, Rate, data_scale, diffusion_learner, ema_profile, fit

RESULT = Path(__file__).parent / "results" / "small_sets.json"
SETS = {"fashion": {"data": "packaged"}, "flowers": {"data": "flowers64", "size": 32}, "cifar": {"data": "cifar10", "size": 32}}
MICRO = dict(widths=(16, 32), blocks=1, attention_levels=(), unshuffle=2, embedding_width=32, groups=8)


@dataclass(frozen=True)
class SlowStart(Rate):
    """The cosine, with a warm-up over a part of the training that need not be the default's hundredth."""

    part: float

    def __call__(self, step, progress):
        """Rise to the cosine."""
        return min(1.0, progress / self.part) * CosineRate()(step, progress)


ROWS = {f"batch-{n}": {"batch_size": n} for n in (128, 64, 32, 16, 8)} | {
    "defaults": {},
    "flip": {"flip": True},
    "dropout-0.1": {"dropout": 0.1},
    "no-warm-up": {"warmup": 0},
    "warm-up-twentieth": {"warmup": 0, "rate": SlowStart(0.05)},
    "lr-0.002": {"lr": 2e-3},
}
AVERAGES = {"no average": 0.0, "power law 0.05": PowerLaw(0.05), "power law 0.1": PowerLaw(0.1), "power law 0.2": PowerLaw(0.2)}


def images_of(name, n, root):
    """Images to train on, and images kept aside."""
    how = dict(SETS[name])
    data = how.pop("data")
    data = str(Path(root) / data) if data == "flowers64" else data
    images = image_set(data, root=root, limit=n + 400, verbose=False, **how)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.select(order[:n]), images.select(order[n:])


class Averages(Callback):
    """Averages of other lengths, of the same training."""

    run_valid = False

    def before_fit(self):
        """Begin with the weights as they are."""
        self.kept = {name: Average(list(self.model.parameters()), ema_profile(profile)) for name, profile in AVERAGES.items()}

    def after_step(self):
        """Move them."""
        for average in self.kept.values():
            average.update(list(self.model.parameters()), len(self.xb[0]))


def trained(images, aside, steps, network, batch_size=16, flip=False, dropout=0.0, seed=0, **settings):
    """Train for so many steps; errors on both kinds of images, those of other averages on the images kept aside, and processor seconds."""
    torch.manual_seed(seed)
    scale = Karras(sigma_data=data_scale(images))
    size = {"channels": images.shape[0], "num_classes": images.num_classes, **MICRO}
    size = size if network == "micro" else network_settings(network, images.shape, images.num_classes)
    net = UNet(**size | {"dropout": dropout})
    make = {"batch_size": batch_size, "flip": flip, "device": "cpu", "seed": seed}
    few = image_loaders(images, aside.select(torch.arange(8)), **make)
    epochs, others = max(1, round(steps / len(few.train))), Averages()
    start = time.process_time()
    result = fit(few, net, EDM(), scale, epochs=epochs, progress=False, seed=seed, callbacks=[others], **settings)
    seconds = time.process_time() - start
    net.load_state_dict(result.ema_state)

    def error(some):
        learn = diffusion_learner(image_loaders(images, some, batch_size=100, device="cpu"), net, EDM(), scale, progress=False)
        return round(float(learn.validate()[0]), 4)

    row = {"steps": result.record["steps"], "seconds": round(seconds, 1), "train": error(images), "aside": error(aside)}
    for name, average in others.kept.items():
        with torch.no_grad():
            torch._foreach_copy_(list(net.parameters()), average.tensors)
        row[name] = error(aside)
    return row


def show(found, network, steps):
    """Print the error on images kept aside with the defaults, and by how many hundredths of it each setting changes it."""
    rows = {tuple(key.split(", ", 4)[i] for i in (0, 4)): row for key, row in found["rows"].items() if f", {network}, {steps} steps" in key}
    base = {name: rows[name, "seed 0: defaults"] for name in SETS}
    print(f"{'':24}" + "".join(f"{name:>10}" for name in SETS))
    print(f"{'defaults':24}" + "".join(f"{row['aside']:10.4f}" for row in base.values()))
    print(f"{'on images trained on':24}" + "".join(f"{row['train']:10.4f}" for row in base.values()))
    changes = {what: {name: row["aside"] for (name, which), row in rows.items() if which == what} for what in dict.fromkeys(what for _, what in rows)}
    changes |= {f"seed 0: {which}": {name: row[which] for name, row in base.items()} for which in AVERAGES}
    for what, errors in changes.items():
        cells = [f"{100 * (errors[name] / base[name]['aside'] - 1):+9.1f}%" if name in errors else " " * 10 for name in SETS]
        print(f"{what.removeprefix('seed 0: '):24}" + "".join(cells))


def main():
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=".")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--steps", type=int, help="the same steps for all, in place of the same seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--network", default="micro")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"diffnb": diffnb.__version__, "rows": {}}
    if args.show:
        return show(found, args.network, args.steps or 500)
    for row, seed, name in itertools.product(args.rows, args.seeds, args.sets):
        key = f"{name}, {args.images} images, {args.network}, {args.seconds:g} s: {row}"
        if args.steps:
            key = f"{name}, {args.images} images, {args.network}, {args.steps} steps, seed {seed}: {row}"
        if key in found["rows"]:
            continue
        images, aside = images_of(name, args.images, args.root)
        settings, steps = ROWS[row], args.steps
        if steps is None:
            batch = settings.get("batch_size", 16)
            probe = trained(images, aside, max(12, 200 // batch), args.network, batch_size=min(batch, len(images)))
            steps = args.seconds * probe["steps"] / probe["seconds"]
        found["rows"][key] = trained(images, aside, steps, args.network, seed=seed, **settings)
        RESULT.write_text(json.dumps(found, indent=1) + "\n")
        print(key, found["rows"][key], flush=True)


if __name__ == "__main__":
    main()
