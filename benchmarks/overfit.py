"""What does it look like when a model learns its images by heart? A few flowers on purpose, beside the same training on all of them.

    python benchmarks/overfit.py --root DIR [--images 150000] [--sizes 100 1000 0]

DIR holds flowers64 (3,670 photos in class folders), of which a fifth is put aside and the rest resized to 32 x 32. One network, one schedule, no
mirroring, no classes; each run sees the same number of images: --images / size times each (0: all that are left to train on). For each run:

loss             Karras loss at fixed times and noise on 256 images trained on, and on 256 put aside: the gap is what was learned by heart
reconstruction   rms error of images noised to sigma/alpha = 2 and sampled back from there, of both kinds
generation       256 samples (18 steps of DPM-Solver++(2M)). `Memorisation` of diffnb.set_metrics asks how many are copies: nearer to one training
                 image than a third of the distance to the next. The same question about the images put aside is the floor.

Features are the pixels at 32 x 32. The network folds 8 x 8 pixels into channels: it is quick, and has room for many images. A run is written to
benchmarks/results/overfit.json, its figures to overfit_SIZE_*.png, as soon as it is done; one that is there is not run again.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

import diffnb
from diffnb.core import NoiseSource, to_unit
from diffnb.data import ImageSet, image_loaders, image_set
from diffnb.denoisers import Denoiser
from diffnb.networks import UNet
from diffnb.parametrizations import Karras
from diffnb.samplers import DPMSolverPP2M
from diffnb.sdes import EDM
from diffnb.set_metrics import Memorisation, nearest_neighbours, plot_pairs
from diffnb.training import LogNormal, data_scale, diffusion_learner, fit
from diffnb.training_reports import reconstruct, reconstruction_figure

RESULT = Path(__file__).parent / "results" / "overfit.json"
NETWORK = dict(channels=3, widths=(256,), blocks=1, attention_levels=(), unshuffle=8, embedding_width=128)
TIMES = LogNormal(0.3, 1.4)  # much noise: there it is decided which image it will be


def pixels(images):
    """Features: the pixels themselves."""
    return images.flatten(1)


def loss_of(denoiser, images, seed=0):
    """Karras loss of the weights there are, at fixed times and noise."""
    loaders = image_loaders(images, images, batch_size=64, device="cpu")
    learn = diffusion_learner(loaders, denoiser.network, denoiser.sde, denoiser.parametrization, times=TIMES, seed=seed, progress=False)
    return float(learn.validate()[0])


def generate(denoiser, n, shape):
    """Samples, 64 at a time."""
    parts = []
    for first in range(0, n, 64):
        m = min(64, n - first)
        with torch.inference_mode():
            parts.append(to_unit(DPMSolverPP2M()(denoiser, shape=(m, *shape), n_steps=18, seeds=NoiseSource.of(0, m, first)).x))
    return torch.cat(parts)


def examine(denoiser, train, aside, args, place):
    """The numbers of a trained model, and its figures."""
    check = Memorisation(extractor=pixels)
    some, other = train.select(torch.arange(min(256, len(train)))), aside.select(torch.arange(256))
    row = {"loss_train": loss_of(denoiser, some), "loss_aside": loss_of(denoiser, other)}
    for name, images in (("train", some), ("aside", other)):
        back = reconstruct(denoiser, DPMSolverPP2M(), images.unit(slice(0, 16)), 2.0, n_steps=12)
        row[f"reconstruction_{name}"] = back.error().mean().item()
        if args.figures:
            reconstruction_figure([back]).savefig(f"{place}_reconstruction_{name}.png")
    made, real = generate(denoiser, args.samples, train.shape), train.unit(slice(None))
    found, floor = check.from_features(pixels(real), pixels(made)), check.from_features(pixels(real), pixels(other.unit(slice(None))))
    row |= {"copies": found.value, "copies_error": found.error, "copies_floor": floor.value, "authenticity": found.values["authenticity"]}
    row["fires"] = found.value > floor.value + 3 * max(found.error, 1 / len(made))
    distances, indices = nearest_neighbours(pixels(made), pixels(real), 1)
    if args.figures:
        plot_pairs(made, train.images, distances[:, 0], indices[:, 0], 10).savefig(f"{place}_pairs.png")
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def run(size, images, aside, args):
    """Train on so many images, and examine."""
    train = images.select(torch.arange(size)) if size else images
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet(**NETWORK)
    scale, start = data_scale(images), time.perf_counter()
    # an epoch is a tenth of the training, whatever the size of the set
    repeated = train.select(torch.arange(max(1, args.images // 10)) % len(train))
    loaders = image_loaders(repeated, aside.select(torch.arange(128)), batch_size=args.batch, device="cpu")
    settings = {"times": TIMES, "lr": args.lr, "compile": args.compile, "precision": args.precision, "progress": not args.quiet}
    result = fit(loaders, network, EDM(), Karras(scale), epochs=10, **settings)
    network.load_state_dict(result.ema_state)
    seconds = round(time.perf_counter() - start)
    facts = {"size": len(train), "images_seen": result.record["images_seen"], "times_each": round(result.record["images_seen"] / len(train))}
    facts |= {"seconds": seconds, "curve_train": result.record["train_loss"], "curve_aside": result.record["valid_loss"]}
    denoiser = Denoiser(network.eval(), EDM(), Karras(scale))
    return facts | examine(denoiser, train, aside, args, str(args.out.with_name(f"overfit_{size or 'all'}")))


def stored(path, about):
    """Rows done before under the same settings."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return found["rows"] if found["about"] == about else []


def main():
    """Run what is not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 0])
    parser.add_argument("--images", type=int, default=150_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--figures", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    about = {"diffnb": diffnb.__version__, "data": "flowers64 at 32 x 32", "network": str(NETWORK), "times": repr(TIMES)}
    about |= {key: getattr(args, key) for key in ("images", "batch", "lr", "samples")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = stored(args.out, about)
    images, aside = image_set(args.root / "flowers64", size=32, verbose=False).split(0.2, seed=0)
    images, aside = (mixed(part) for part in (images, aside))
    for size in args.sizes:
        if not any(row["size"] == (size or len(images)) for row in rows):
            rows.append(run(size, images, aside, args))
            args.out.with_suffix(".part").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
            os.replace(args.out.with_suffix(".part"), args.out)
    names = ("size", "times_each", "loss_train", "loss_aside", "reconstruction_train", "reconstruction_aside", "copies", "copies_floor", "fires")
    print(" ".join(f"{name.replace('reconstruction', 'rec'):>13s}" for name in names))
    for row in rows:
        print(" ".join(f"{row[name]:13.4f}" if isinstance(row[name], float) else f"{row[name]!s:>13s}" for name in names))


def mixed(images):
    """The images in another order, classes mixed, without their labels."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return ImageSet(images.images[order], source=images.source)


if __name__ == "__main__":
    main()
