"""What does each part of the network and of training bring? Fashion-MNIST, one part left out at a time.

    python benchmarks/ablation.py --root DIR [--images 100000] [--seeds 0] [--only NAME ...]

All variants start from the same seed and see the same images in the same order with the same times and noise; they differ in one thing:

full             the "tiny" U-Net of the library, trained by `fit` with its defaults (Karras target, AdamW, warm-up and decay, average of decay 0.999)
no EMA           the same run, judged by its last weights in place of the averaged ones
no attention     self-attention left out, in the middle too
no zero-init     residual branches and the last layer start like any other layer
no norm          group norms left out
tanh output      the network's output through tanh, as one has seen it done to keep images in range

Reported: the loss on 1,000 test images (fixed times and noise), and for 2,000 samples (18 steps of DPM-Solver++(2M), classes in turn, the same seeds)
the Frechet and the kernel distance to the 10,000 test images by the packaged classifier, beside those of 2,000 training images: the floor. A variant
is written to benchmarks/results/ablation.json, its first samples to ablation_NAME.png, as soon as it is done; one that is there is not run again.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from torch import nn

import diffnb
from diffnb.apps import grid, write_png
from diffnb.core import NoiseSource, to_unit
from diffnb.data import image_loaders, image_set
from diffnb.denoise import Denoiser
from diffnb.metrics import Evaluator, Sampled
from diffnb.networks import SelfAttention, UNet, network_settings
from diffnb.noise import EDM, Karras
from diffnb.samplers import DPMSolverPP2M
from diffnb.training import data_scale, diffusion_learner, fit

RESULT = Path(__file__).parent / "results" / "ablation.json"


class Scaled(nn.Module):
    """What is left of a group norm without the norm."""

    def forward(self, x, scale=None, shift=None):
        return x if scale is None else x * (1 + scale[..., None, None]) + shift[..., None, None]


def without(network, kind, instead=nn.Identity):
    """Put nothing in the place of all layers of a kind."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, kind):
                setattr(module, name, instead())
    return network


class TanhUNet(UNet):
    """A U-Net whose output lies in (-1, 1)."""

    def forward(self, x, half_log_snr, label=None):
        return super().forward(x, half_log_snr, label).tanh()


VARIANTS = {
    "full": lambda settings: UNet(**settings),
    "no attention": lambda settings: without(UNet(**settings), SelfAttention),
    "no zero-init": lambda settings: UNet(**settings, zero_init=False),
    "no norm": lambda settings: without(UNet(**settings), nn.GroupNorm, Scaled),
    "tanh output": lambda settings: TanhUNet(**settings),
}


def sampled(network, scale, shape, n):
    """Images of a network, drawn a batch at a time."""
    denoiser = Denoiser(network.eval(), EDM(), Karras(scale))

    def draw(first, m):
        labels = torch.arange(first, first + m) % network.num_classes
        result = DPMSolverPP2M()(denoiser, shape=(m, *shape), n_steps=18, seeds=NoiseSource.of(0, m, first), condition={"label": labels})
        return to_unit(result.x)

    return Sampled(draw, n, {"sampler": "DPMSolverPP2M", "n_steps": 18})


def judged(network, loaders, scale, evaluator, args):
    """Loss and distances of the weights that a network has now."""
    loss = float(diffusion_learner(loaders, network, EDM(), Karras(scale), progress=False).validate()[0])
    rows = evaluator(sampled(network, scale, loaders.train.dataset.shape, args.samples)).rows
    row = {"loss": round(loss, 5)}
    for one in rows:
        kind = one.result.name.split("[")[0]
        row |= {kind: one.result.value, f"{kind}_error": one.result.error, f"{kind}_floor": one.floor.value}
    return row


def run(name, seed, images, test, evaluator, args):
    """Train a variant; what is found of its averaged weights, and of the last ones."""
    scale = data_scale(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VARIANTS[name](network_settings(args.network, images.shape, images.num_classes))
    loaders = image_loaders(images, test.select(torch.arange(1000)), batch_size=args.batch, seed=seed, device="cpu")
    start = time.perf_counter()
    epochs = max(1, round(args.images / len(images)))
    result = fit(loaders, network, EDM(), Karras(scale), epochs=epochs, lr=args.lr, seed=seed, compile=args.compile, progress=False)
    last = {key: value.detach().clone() for key, value in network.state_dict().items()}
    network.load_state_dict(result.ema_state)
    facts = {"seed": seed, "images": result.record["images_seen"], "seconds": round(time.perf_counter() - start)}
    facts |= {"parameters": sum(p.numel() for p in network.parameters()), "curve": [round(loss, 5) for loss in result.record["valid_loss"]]}
    yield name, facts | judged(network, loaders, scale, evaluator, args), network
    if name == "full":
        network.load_state_dict(last)
        yield "no EMA", facts | judged(network, loaders, scale, evaluator, args), network


def stored(path, about):
    """Rows done before under the same settings."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return found["rows"] if found["about"] == about else []


def keep(path, about, rows):
    """Write what is done, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    os.replace(part, path)


def table(rows):
    """Print rows beside the full variant of the same seed."""
    full = {row["seed"]: row for row in rows if row["variant"] == "full"}
    print(f"{'variant':14s} {'seed':>4s} {'loss':>8s} {'frechet':>9s} {'over floor':>10s} {'kernel':>9s} {'+-':>7s} {'over full':>9s}")
    for row in rows:
        cost = row["frechet"] / full[row["seed"]]["frechet"] if row["seed"] in full else math.nan
        print(
            f"{row['variant']:14s} {row['seed']:4d} {row['loss']:8.4f} {row['frechet']:9.3f} {row['frechet'] / row['frechet_floor']:10.2f}"
            f" {row['kernel']:9.4f} {row['kernel_error']:7.4f} {cost:9.2f}"
        )


def main():
    """Run what is not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default=None)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--limit", type=int, default=20_000)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--network", default="tiny")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    about = {"diffnb": diffnb.__version__, "data": "fashion_mnist", "extractor": "fashion-classifier"}
    about |= {key: getattr(args, key) for key in ("images", "limit", "samples", "network", "batch", "lr")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = stored(args.out, about)
    train, test = (image_set("fashion_mnist", root=args.root, split=split, verbose=False) for split in ("train", "test"))
    floor = train.select(torch.arange(len(train) - args.samples, len(train)))
    evaluator = Evaluator(test, ["frechet", "kernel"], floor=floor, progress=False)
    train = train.select(torch.arange(args.limit))
    for seed in args.seeds:
        for name in args.only:
            if any(row["variant"] == name and row["seed"] == seed for row in rows):
                continue
            for variant, row, network in run(name, seed, train, test, evaluator, args):
                rows.append({"variant": variant} | row)
                keep(args.out, about, rows)
                if seed == args.seeds[0]:
                    images = torch.cat([image.float() / 255 for image, _ in sampled(network, data_scale(train), train.shape, 10).batches(10)])
                    write_png(grid(images, 10), args.out.with_name(f"ablation_{variant.replace(' ', '_')}.png"))
                table(rows[-1:])
    print()
    table(rows)


if __name__ == "__main__":
    main()
