"""What does it look like when a model learns its images by heart? 1,000 flowers on purpose, beside the model of all of them.

    python benchmarks/overfit.py --root DIR --compile [--model FILE] [--images 300000] [--runs 1000 all] [--figures FOLDER]

DIR holds flowers64 (3,670 photos in class folders), of which a fifth is put aside. Rows:

1000     1,000 of them at 32 x 32, each with a label of its own, as a caption would be that no other picture has; a perceptron that predicts x0
all      the same with all that are left to train on, and as many images seen in all, so that each is seen a third as often
FILE     the model that `train_models.py flowers64` makes of the same images at 64 x 64: a U-Net, and five labels for all

A perceptron has no reason to prefer a flower that it has not seen, and a label for each image says what to draw while there is nothing but noise.

loss             squared error of x0 at fixed times and noise on 256 images trained on, and on 256 put aside (without labels, where each has its own):
                 the gap is what was learned by heart
reconstruction   rms error of images noised to sigma/alpha = 2 and sampled back from there, of both kinds
generation       256 samples (18 steps of DPM-Solver++(2M)). `Memorisation` of diffnb.metrics.sets asks how many are copies: nearer to one training
                 image than a third of the distance to the next. The same question about the images put aside is the floor.

Features are the pixels. A row is written to benchmarks/results/overfit.json as soon as it is done; one that is there is not made again. The option
--figures writes the pictures of a row to FOLDER/ROW_*.jpg. They show photographs, or near copies of them, which belong to those who took them (the
file LICENSE.txt of the set names them), so they are not stored with the results.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch

import diffnb
from diffnb.core import NoiseSource, to_model, to_unit
from diffnb.data import ImageSet, image_loaders, image_set
from diffnb.denoise import Denoiser
from diffnb.metrics import Memorisation, nearest_neighbours, plot_pairs
from diffnb.model import GenerativeModel
from diffnb.networks import MLP
from diffnb.noise import EDM, X0
from diffnb.samplers import DPMSolverPP2M
from diffnb.training import LogNormal, fit, reconstruct, reconstruction_figure

RESULT = Path(__file__).parent / "results" / "overfit.json"
NETWORK = dict(dim=3 * 32 * 32, width=1024, depth=2)
TIMES = LogNormal(0.3, 1.4)  # much noise: there it is decided which image it will be
RUNS = {"1000": 1000, "all": 0}  # images; 0: all
JPEG = {"quality": 90}  # a quarter of the bytes of a PNG


def pixels(images):
    """Features: the pixels themselves."""
    return images.flatten(1)


def labels_of(images, some):
    """Labels of some images, as a denoiser takes them."""
    return None if images.labels is None else {"label": images.labels[some]}


def loss_of(denoiser, images):
    """Squared error of x0 at fixed times and noise."""
    n, total = len(images), 0.0
    t = TIMES(denoiser.sde, (torch.arange(n) + 0.5) / n)[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    for some in (slice(first, first + 64) for first in range(0, n, 64)):
        x0 = to_model(images.unit(some))
        noise = NoiseSource.of(0, len(x0), some.start).normal(tuple(x0.shape[1:]), "training")
        with torch.inference_mode():
            guess = denoiser(denoiser.sde.perturb(x0, t[some], noise), t[some], labels_of(images, some)).x0
        total += (guess - x0).square().mean((1, 2, 3)).sum().item()
    return total / n


def generate(denoiser, n, images):
    """Samples, 64 at a time, with the labels of images spread over the set."""
    parts = []
    for first in range(0, n, 64):
        m = min(64, n - first)
        some = torch.arange(first, first + m) * (len(images) // n or 1) % len(images)
        seeds = NoiseSource.of(0, m, first)
        with torch.inference_mode():
            run = DPMSolverPP2M()(denoiser, shape=(m, *images.shape), n_steps=18, seeds=seeds, condition=labels_of(images, some))
        parts.append(to_unit(run.x))
    return torch.cat(parts)


def examine(denoiser, train, aside, args, name):
    """The numbers of a trained model, and its figures where they are asked for."""
    if args.figures:
        args.figures.mkdir(parents=True, exist_ok=True)
    check = Memorisation(extractor=pixels)
    some, other = train.select(torch.arange(256)), aside.select(torch.arange(256))
    row = {"loss_train": loss_of(denoiser, some), "loss_aside": loss_of(denoiser, other)}
    for part, images in (("train", some), ("aside", other)):
        first = slice(0, 12)
        back = reconstruct(denoiser, DPMSolverPP2M(), images.unit(first), 2.0, n_steps=12, condition=labels_of(images, first))
        row[f"reconstruction_{part}"] = back.error().mean().item()
        if args.figures:
            reconstruction_figure([back]).savefig(args.figures / f"{name}_reconstruction_{part}.jpg", pil_kwargs=JPEG)
    made, real = generate(denoiser, args.samples, train), train.unit(slice(None))
    found, floor = check.from_features(pixels(real), pixels(made)), check.from_features(pixels(real), pixels(other.unit(slice(None))))
    row |= {"copies": found.value, "copies_error": found.error, "copies_floor": floor.value, "authenticity": found.values["authenticity"]}
    row["fires"] = found.value > floor.value + 3 * max(found.error, 1 / len(made))
    if args.figures:
        distances, indices = nearest_neighbours(pixels(made), pixels(real), 1)
        plot_pairs(made, train.images, distances[:, 0], indices[:, 0], 10).savefig(args.figures / f"{name}_pairs.jpg", pil_kwargs=JPEG)
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in row.items()}


def run(name, images, aside, args):
    """Train as a row says, and examine."""
    train = images.select(torch.arange(RUNS[name] or len(images)))
    train = ImageSet(train.images, torch.arange(len(train)), source=train.source)
    aside = ImageSet(aside.images, source=aside.source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MLP(**NETWORK, num_classes=len(train))
    start = time.perf_counter()
    # an epoch is a tenth of the training, whatever the size of the set
    repeated = train.select(torch.arange(max(1, args.images // 10)) % len(train))
    loaders = image_loaders(repeated, train.select(torch.arange(100)), batch_size=args.batch, device="cpu")
    result = fit(loaders, network, EDM(), X0(), epochs=10, times=TIMES, lr=args.lr, compile=args.compile, progress=not args.quiet)
    network.load_state_dict(result.ema_state)
    seen = result.record["images_seen"]
    facts = {"row": name, "size": len(train), "images_seen": seen, "times_each": round(seen / len(train))}
    facts |= {"seconds": round(time.perf_counter() - start), "curve": result.record["train_loss"]}
    return facts | examine(Denoiser(network.eval(), EDM(), X0()), train, aside, args, name)


def beside(file, args):
    """The model of all flowers, examined alike."""
    model = GenerativeModel.load(file, "cpu", verbose=False)
    train, aside = image_set(args.root / "flowers64", verbose=False).split(0.2, seed=0)
    train, aside = shuffled(train), shuffled(aside)
    seen = sum(record["images_seen"] for record in model.trained.records)
    facts = {"row": file.stem, "size": len(train), "images_seen": seen, "times_each": round(seen / len(train))}
    return facts | examine(model.trained.denoiser(), train, aside, args, file.stem)


def stored(path, about):
    """Rows done before under the same settings."""
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    return found["rows"] if found["about"] == about else []


def main():
    """Make the rows that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="model file of all flowers at 64 x 64")
    parser.add_argument("--runs", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--images", type=int, default=300_000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--figures", type=Path, help="folder for pictures of what the models draw and restore")
    args = parser.parse_args()
    about = {"diffnb": diffnb.__version__, "data": "flowers64", "network": f"MLP({NETWORK})", "times": repr(TIMES)}
    about |= {key: getattr(args, key) for key in ("images", "batch", "lr", "samples")}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = stored(args.out, about)

    def add(name, make):
        if not any(row["row"] == name for row in rows):
            rows.append(make())
            args.out.with_suffix(".part").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
            os.replace(args.out.with_suffix(".part"), args.out)

    if args.model:
        add(args.model.stem, lambda: beside(args.model, args))
    images, aside = map(shuffled, image_set(args.root / "flowers64", size=32, verbose=False).split(0.2, seed=0))
    for name in args.runs:
        add(name, lambda name=name: run(name, images, aside, args))
    names = ("row", "times_each", "loss_train", "loss_aside", "reconstruction_train", "reconstruction_aside", "copies", "copies_floor", "fires")
    print(" ".join(f"{name.replace('reconstruction', 'rec'):>13s}" for name in names))
    for row in rows:
        print(" ".join(f"{row[name]:13.4f}" if isinstance(row[name], float) else f"{row[name]!s:>13s}" for name in names))


def shuffled(images):
    """The images in another order, classes mixed."""
    return images.select(torch.randperm(len(images), generator=torch.Generator().manual_seed(0)))


if __name__ == "__main__":
    main()
