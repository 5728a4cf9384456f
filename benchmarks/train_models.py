"""Train the models that come with diffnb, or beside it, on a CPU: each through `diffnb.training.fit`, in one go.

    python benchmarks/train_models.py NAME --data ROOT --work DIR --minutes 75 --out FILE [--seed 0] [--from FILE]

NAME is one of the keys of RECIPES below. ROOT is laid out as torchvision does (CIFAR-10 and flowers64 as folders of images, see `diffnb.data`).
DIR gets last.safetensors and best.safetensors (averaged weights, after every epoch) and record.json; FILE is the model file, in half precision.
The decay of the learning rate is laid over the time given. A run that was killed starts anew; --from goes on with the averaged weights of a model
file that such a run has made, as a second run with a warm-up and a decay of its own. The model file then holds the records of both.
"""

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffnb.data import image_loaders, image_set
from diffnb.model import GenerativeModel, Labels, Trained, to_file
from diffnb.networks import UNet, network_settings
from diffnb.noise import EDM, Karras
from diffnb.samplers import DPMSolverPP2M
from diffnb.training import CheckpointCallback, LogNormal, data_scale, fit


@dataclass(frozen=True)
class Recipe:
    """How one model is trained."""

    data: str  # a known data set, or a folder under ROOT
    changes: dict = field(default_factory=dict)  # settings of the network that differ from those of "small"
    flip: bool = False  # whether images are mirrored
    mean: float = -1.0  # of log sigma in training
    size: int | None = None  # side to which images are resized
    split: bool = True  # whether the set has a test split
    label_dropout: float = 0.1  # probability of hiding a label
    batch_size: int = 32  # small: a CPU is no slower for it, and so few images want many steps
    lr: float = 5e-4  # AdamW's, after warm-up
    ema: float = 0.999  # decay of the average, a step


# 64 x 64: folding 2 x 2 pixels, not 4 x 4, at a narrow first level; 48 channels folded into 64 leave grain on the samples
FINE = {"widths": (32, 96, 192), "blocks": 1, "attention_levels": (2,), "unshuffle": 2}

RECIPES = {
    "fashion_mnist": Recipe("fashion_mnist"),
    "mnist": Recipe("mnist"),
    "cifar10": Recipe("cifar10", flip=True, mean=-1.2),
    "flowers64": Recipe("flowers64", FINE, flip=True, mean=-0.4, split=False, lr=1e-3, ema=0.998),
}


def image_sets(recipe, root):
    """Training images, and images to validate on."""
    if recipe.split:
        train, valid = (image_set(recipe.data, split=split, root=root, size=recipe.size) for split in ("train", "test"))
        return train, valid.select(torch.arange(1000))
    return image_set(root / recipe.data, size=recipe.size).split(0.2, seed=0)


def make_network(recipe, images):
    """The network, with the same first weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(**network_settings("small", images.shape, images.num_classes) | recipe.changes)


def train(args, recipe):
    """Train for the time given; return the model."""
    images, valid = image_sets(recipe, args.data)
    network, records = make_network(recipe, images), ()
    if args.start:
        before = GenerativeModel.load(args.start, "cpu", verbose=False).trained
        network.load_state_dict(before.network.state_dict())
        records = before.records
    sde, parametrization = EDM(), Karras(sigma_data=data_scale(images))

    def keep(name, state):
        save_file(state, args.work / f"{name}.part")
        os.replace(args.work / f"{name}.part", args.work / f"{name}.safetensors")

    result = fit(
        image_loaders(images, valid, batch_size=recipe.batch_size, flip=recipe.flip, seed=args.seed, device="cpu"),
        network,
        sde,
        parametrization,
        epochs=100_000,
        lr=recipe.lr,
        times=LogNormal(recipe.mean, 1.3),
        label_dropout=recipe.label_dropout,
        ema=recipe.ema,
        compile=True,
        seed=args.seed,
        time_limit=args.minutes * 60,
        callbacks=[CheckpointCallback(keep)],
    )
    network.load_state_dict(result.ema_state)
    (args.work / "record.json").write_text(json.dumps(result.record, indent=1))
    labels = Labels.of(images)
    return Trained(network, sde, parametrization, images.shape, labels, (*records, result.record))


def main():
    """Train and write the model file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", type=Path, dest="start", help="model file to go on from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    trained = train(args, RECIPES[args.name])
    to_file(args.out, trained, trained.sde, DPMSolverPP2M(), torch.float16)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, {sum(r['images_seen'] for r in trained.records):,} images seen")


if __name__ == "__main__":
    main()
