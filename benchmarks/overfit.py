"""What does it look like when a model learns its images by heart? A few flowers on purpose, beside the same training on all of them.

    python benchmarks/overfit.py --root DIR --compile [--images 500000] [--runs 1000-named 1000 100 all]

DIR holds flowers64 (3,670 photos in class folders), of which a fifth is put aside and the rest resized to 32 x 32. One network, one schedule, no
mirroring; each run sees the same number of images. Four runs:

all              all that are left to train on, without labels: the training that the others are held against
1000             1,000 of them
1000-named       the same 1,000, each with a label of its own, as a caption would be that no other picture has
100              100 of them

For each run:

loss             squared error of x0 at fixed times and noise on 256 images trained on, and on 256 put aside: the gap is what was learned by heart
reconstruction   rms error of images noised to sigma/alpha = 2 and sampled back from there, of both kinds
generation       256 samples (18 steps of DPM-Solver++(2M)). `Memorisation` of diffnb.set_metrics asks how many are copies: nearer to one training
                 image than a third of the distance to the next. The same question about the images put aside is the floor.

Features are the pixels at 32 x 32. The network is a perceptron that predicts x0: without convolutions it has no reason to prefer a flower that it has
not seen, and what it has to give, combinations of the images, fits through its hidden width (noise would not). Where it has labels, images put aside
go without. A run is written to benchmarks/results/overfit.json, its figures to overfit_RUN_*.png, as soon as it is done; one that is there is not
run again.
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
from diffnb.networks import MLP
from diffnb.parametrizations import X0
from diffnb.samplers import DPMSolverPP2M
from diffnb.sdes import EDM
from diffnb.set_metrics import Memorisation, nearest_neighbours, plot_pairs
from diffnb.training import LogNormal, diffusion_learner, fit
from diffnb.training_reports import reconstruct, reconstruction_figure

RESULT = Path(__file__).parent / "results" / "overfit.json"
NETWORK = dict(dim=3 * 32 * 32, width=1024, depth=2)
TIMES = LogNormal(0.3, 1.4)  # much noise: there it is decided which image it will be
RUNS = {"all": (0, False), "1000": (1000, False), "1000-named": (1000, True), "100": (100, False)}  # images (0: all), and whether each has a label


def pixels(images):
    """Features: the pixels themselves."""
    return images.flatten(1)


def loss_of(denoiser, images, seed=0):
    """Loss of the weights there are, at fixed times and noise."""
    loaders = image_loaders(images, images, batch_size=64, device="cpu")
    learn = diffusion_learner(loaders, denoiser.network, denoiser.sde, denoiser.parametrization, times=TIMES, seed=seed, progress=False)
    return float(learn.validate()[0])


def generate(denoiser, n, labels):
    """Samples, 64 at a time; with labels, of one image after the other."""
    parts = []
    for first in range(0, n, 64):
        m = min(64, n - first)
        condition = {"label": torch.arange(first, first + m) * 3 % labels} if labels else None
        with torch.inference_mode():
            run = DPMSolverPP2M()(denoiser, shape=(m, 3, 32, 32), n_steps=18, seeds=NoiseSource.of(0, m, first), condition=condition)
        parts.append(to_unit(run.x))
    return torch.cat(parts)


def examine(denoiser, train, aside, args, place):
    """The numbers of a trained model, and its figures."""
    check = Memorisation(extractor=pixels)
    some, other = train.select(torch.arange(min(256, len(train)))), aside.select(torch.arange(256))
    row = {"loss_train": loss_of(denoiser, some), "loss_aside": loss_of(denoiser, other)}
    for name, images in (("train", some), ("aside", other)):
        condition = None if images.labels is None else {"label": images.labels[:16]}
        back = reconstruct(denoiser, DPMSolverPP2M(), images.unit(slice(0, 16)), 2.0, n_steps=12, condition=condition)
        row[f"reconstruction_{name}"] = back.error().mean().item()
        if args.figures:
            reconstruction_figure([back]).savefig(f"{place}_reconstruction_{name}.png")
    made, real = generate(denoiser, args.samples, 0 if train.labels is None else len(train)), train.unit(slice(None))
    found, floor = check.from_features(pixels(real), pixels(made)), check.from_features(pixels(real), pixels(other.unit(slice(None))))
    row |= {"copies": found.value, "copies_error": found.error, "copies_floor": floor.value, "authenticity": found.values["authenticity"]}
    row["fires"] = found.value > floor.value + 3 * max(found.error, 1 / len(made))
    distances, indices = nearest_neighbours(pixels(made), pixels(real), 1)
    if args.figures:
        plot_pairs(made, train.images, distances[:, 0], indices[:, 0], 10).savefig(f"{place}_pairs.png")
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def run(name, images, aside, args):
    """Train as a run says, and examine."""
    size, named = RUNS[name]
    train = images.select(torch.arange(size or len(images)))
    if named:
        train = ImageSet(train.images, torch.arange(len(train)), source=train.source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(**NETWORK, num_classes=len(train) if named else 0)
    start = time.perf_counter()
    # an epoch is a tenth of the training, whatever the size of the set
    repeated = train.select(torch.arange(max(1, args.images // 10)) % len(train))
    loaders = image_loaders(repeated, (train if named else aside).select(torch.arange(100)), batch_size=args.batch, device="cpu")
    settings = {"times": TIMES, "lr": args.lr, "compile": args.compile, "precision": args.precision, "progress": not args.quiet}
    result = fit(loaders, network, EDM(), X0(), epochs=10, **settings)
    network.load_state_dict(result.ema_state)
    facts = {"run": name, "size": len(train), "named": named, "images_seen": result.record["images_seen"]}
    facts |= {"times_each": round(result.record["images_seen"] / len(train)), "seconds": round(time.perf_counter() - start)}
    facts |= {"curve_train": result.record["train_loss"], "curve_aside": None if named else result.record["valid_loss"]}
    denoiser = Denoiser(network.eval(), EDM(), X0())
    return facts | examine(denoiser, train, aside, args, str(args.out.with_name(f"overfit_{name}")))


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
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--images", type=int, default=500_000)
    parser.add_argument("--batch", type=int, default=128)
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
    for name in args.runs:
        if not any(row["run"] == name for row in rows):
            rows.append(run(name, images, aside, args))
            args.out.with_suffix(".part").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
            os.replace(args.out.with_suffix(".part"), args.out)
    names = ("run", "times_each", "loss_train", "loss_aside", "reconstruction_train", "reconstruction_aside", "copies", "copies_floor", "fires")
    print(" ".join(f"{name.replace('reconstruction', 'rec'):>13s}" for name in names))
    for row in rows:
        print(" ".join(f"{row[name]:13.4f}" if isinstance(row[name], float) else f"{row[name]!s:>13s}" for name in names))


def mixed(images):
    """The images in another order, classes mixed, without their labels."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return ImageSet(images.images[order], source=images.source)


if __name__ == "__main__":
    main()
