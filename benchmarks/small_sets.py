"""Which settings make the most of a few hundred images and a few minutes? Three small sets, each setting with the same processor time.

    python benchmarks/small_sets.py --root DIR [--images 400] [--seconds 30] [--network micro] [--sets fashion flowers cifar]

DIR holds flowers64 (photos in class folders) and cifar10; the packaged part of Fashion-MNIST stands for drawings in grey. Of each set as many
images as asked for are trained on, and 400 others are kept aside. The batch comes first: what a step costs is measured, and as many steps are made
as fit into the time, so that small batches have many steps and large ones few. Then, at a batch of 16, one setting at a time is changed: the length
of the average of the weights (a decay), dropout, the steps of warm-up, and whether images are mirrored at random.

The network "micro" is a quarter of "tiny": in half a minute of one processor it makes as many steps as "small" in some ten minutes of two.

The number is the squared error on the images kept aside, at fixed times and noise, of the averaged weights; beside it that on the images trained
on: the gap is what was learned by heart. Rows are written to benchmarks/results/small_sets.json as soon as they are done; one that is there is not
made again.
"""

import argparse
import json
import time
from pathlib import Path

import torch

import diffnb
from diffnb.data import image_loaders, image_set
from diffnb.networks import UNet, network_settings
from diffnb.noise import EDM, Karras
from diffnb.training import data_scale, diffusion_learner, fit

RESULT = Path(__file__).parent / "results" / "small_sets.json"
SETS = {"fashion": {"data": "packaged"}, "flowers": {"data": "flowers64", "size": 32}, "cifar": {"data": "cifar10", "size": 32}}
MICRO = dict(widths=(16, 32), blocks=1, attention_levels=(), unshuffle=2, embedding_width=32, groups=8)
ROWS = {f"batch {n}": {"batch_size": n} for n in (128, 64, 32, 16, 8)} | {
    "decay 0.99": {"ema": 0.99},
    "decay 0.9975": {"ema": 0.9975},
    "flip": {"flip": True},
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.2": {"dropout": 0.2},
    "no warm-up": {"warmup": 0},
    "lr 0.002": {"lr": 2e-3},
    "lr 0.0005": {"lr": 5e-4},
}


def images_of(name, n, root):
    """Images to train on, and images kept aside."""
    how = dict(SETS[name])
    data = how.pop("data")
    data = str(Path(root) / data) if data == "flowers64" else data
    images = image_set(data, root=root, limit=n + 400, verbose=False, **how)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images.select(order[:n]), images.select(order[n:])


def trained(images, aside, steps, network, batch_size=16, flip=False, dropout=0.0, **settings):
    """Train for so many steps; errors on both kinds of images, and processor seconds."""
    torch.manual_seed(0)
    scale = Karras(sigma_data=data_scale(images))
    size = {"channels": images.shape[0], "num_classes": images.num_classes, **MICRO}
    size = size if network == "micro" else network_settings(network, images.shape, images.num_classes)
    net = UNet(**size | {"dropout": dropout})
    make = {"batch_size": batch_size, "flip": flip, "device": "cpu"}
    few = image_loaders(images, aside.select(torch.arange(8)), **make)
    start = time.process_time()
    result = fit(few, net, EDM(), scale, epochs=max(1, round(steps / len(few.train))), progress=False, **settings)
    seconds = time.process_time() - start
    net.load_state_dict(result.ema_state)
    errors = {}
    for kind, some in (("train", images), ("aside", aside)):
        learn = diffusion_learner(image_loaders(images, some, batch_size=100, device="cpu"), net, EDM(), scale, progress=False)
        errors[kind] = round(float(learn.validate()[0]), 4)
    return {"steps": result.record["steps"], "seconds": round(seconds, 1), **errors}


def main():
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=".")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--network", default="micro")
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {"diffnb": diffnb.__version__, "rows": {}}
    for row in args.rows:
        for name in args.sets:
            key = f"{name}, {args.images} images, {args.network}, {args.seconds:g} s: {row}"
            if key in found["rows"]:
                continue
            images, aside = images_of(name, args.images, args.root)
            settings = ROWS[row]
            batch = settings.get("batch_size", 16)
            probe = trained(images, aside, max(12, 200 // batch), args.network, batch_size=min(batch, len(images)))
            steps = args.seconds * probe["steps"] / probe["seconds"]
            found["rows"][key] = trained(images, aside, steps, args.network, **settings)
            RESULT.write_text(json.dumps(found, indent=1) + "\n")
            print(key, found["rows"][key], flush=True)


if __name__ == "__main__":
    main()
