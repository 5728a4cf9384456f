"""Train the Fashion-MNIST model that comes inside the package, on the 60,000 training images, on a CPU.

    python benchmarks/train_packaged_model.py --data ROOT --work DIR --minutes 75 --out diffnb/assets/fashion_mnist.safetensors

ROOT is laid out as torchvision does. DIR gets last.safetensors and best.safetensors (averaged weights, after every epoch) and records.json
(one record a run). A run starts from the last weights in DIR; with --minutes 0 the model file is made from them without training.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from diffnb.data import image_loaders, image_set
from diffnb.model import Labels, Trained, to_file
from diffnb.networks import build_network
from diffnb.parametrizations import Karras
from diffnb.samplers import DPMSolverPP2M
from diffnb.sdes import EDM
from diffnb.training import CheckpointCallback, LogNormal, fit

SDE, PARAMETRIZATION = EDM(), Karras(sigma_data=0.7)


def train(args, images, network):
    """Train for the time given, on from the weights in the network; return the record."""
    valid = image_set("fashion_mnist", split="test", root=args.data, limit=1000)

    def keep(name, state):
        save_file(state, args.work / f"{name}.part")
        os.replace(args.work / f"{name}.part", args.work / f"{name}.safetensors")

    result = fit(
        image_loaders(images, valid, batch_size=128, seed=args.seed, device="cpu"),
        network,
        SDE,
        PARAMETRIZATION,
        epochs=1000,
        lr=1e-3,
        times=LogNormal(-1.0, 1.3),
        label_dropout=0.1,
        ema=0.999,
        compile=True,
        seed=args.seed,
        time_limit=args.minutes * 60,
        callbacks=[CheckpointCallback(keep)],
    )
    network.load_state_dict(result.ema_state)
    save_file(result.ema_state, args.work / "last.safetensors")
    return result.record


def main():
    """Train and package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    weights, records_path = args.work / "last.safetensors", args.work / "records.json"
    records = json.loads(records_path.read_text()) if records_path.exists() else []
    images = image_set("fashion_mnist", split="train", root=args.data)
    network = build_network("small", images.shape, images.num_classes)
    if weights.exists():
        network.load_state_dict(load_file(weights))
    if args.minutes:
        records.append(train(args, images, network))
        records_path.write_text(json.dumps(records, indent=1))
    trained = Trained(network, SDE, PARAMETRIZATION, images.shape, Labels(tuple(images.values), tuple(images.names)), tuple(records))
    to_file(args.out, trained, SDE, DPMSolverPP2M(), torch.float16)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, {sum(r['images_seen'] for r in records):,} images seen")


if __name__ == "__main__":
    main()
