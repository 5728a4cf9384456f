"""Train the Fashion-MNIST model that comes inside the package, on the 60,000 training images, on a CPU.

    python benchmarks/train_packaged_model.py --data ROOT --minutes 75 --work DIR [--init WEIGHTS]

ROOT is laid out as torchvision does. DIR gets weights.safetensors (averaged weights, after every epoch) and record.json. A run may
start from the averaged weights of an earlier one (`--init`). `package_model.py` makes the model file from DIR.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file, save_file

from diffnb.data import image_loaders, image_set
from diffnb.networks import build_network
from diffnb.parametrizations import Karras
from diffnb.sdes import EDM
from diffnb.training import LogNormal, fit


class SaveAverages(Callback):
    """Write the averaged weights after every epoch, so that a run that is cut short leaves something."""

    order = 66

    def __init__(self, path):
        self.path = path

    def after_epoch(self):
        """Write to a file beside, then rename."""
        temporary = self.path.with_suffix(".part")
        save_file(self.learn.ema.state(), temporary)
        os.replace(temporary, self.path)


def main():
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    train, valid = (image_set("fashion_mnist", split=split, root=args.data) for split in ("train", "test"))
    dls = image_loaders(train, valid.select(torch.arange(1000)), batch_size=128, seed=args.seed, device="cpu")
    torch.manual_seed(args.seed)
    network = build_network("small", train.shape, train.num_classes)
    if args.init:
        network.load_state_dict(load_file(args.init))
    result = fit(
        dls,
        network,
        EDM(),
        Karras(sigma_data=0.7),
        epochs=args.epochs,
        lr=1e-3,
        times=LogNormal(-1.0, 1.3),
        label_dropout=0.1,
        ema_decay=0.999,
        compile=True,
        seed=args.seed,
        time_limit=args.minutes * 60,
        callbacks=[SaveAverages(args.work / "weights.safetensors")],
    )
    save_file(result.ema_state, args.work / "weights.safetensors")
    (args.work / "record.json").write_text(json.dumps(result.record, indent=1))
    print(json.dumps(result.record))


if __name__ == "__main__":
    main()
