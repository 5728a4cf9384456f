"""Which sampler for few evaluations? Distance against evaluations for every sampler, on the packaged Fashion-MNIST model.

    python benchmarks/few_steps.py [--n 2000] [--seeds 0 1 2] [--evaluations 3 5 8 10 20 50] [--samplers NAME ...] [--grids NAME ...]
    python benchmarks/few_steps.py --grids open-karras      the same on a grid whose last level is not evaluated
    python benchmarks/few_steps.py --precision bfloat16 --compile      three times as fast on a processor that multiplies in bfloat16
    python benchmarks/few_steps.py --plan      how long that would take on this machine; runs nothing else
    python benchmarks/few_steps.py --show      the table of what has been measured

The distance is Frechet's, in the features of the packaged classifier, between n generated images (classes in turn) and the 10,000 packaged
images. Beside it, for samplers without noise of their own, stands the root mean square difference of the first 32 images from where the exact
flow takes the same noise (RK4 with 157 evaluations, in float32). A sampler takes as many steps as fit into the evaluations.

Every row is written to results/few_steps.json as soon as it is measured, and rows that are there are not measured again, so that the run may be
stopped and taken up at any time. Rows belong to the weights that they were measured with, however the file that holds them is written.
Images are made and looked at in batches and not kept.
"""

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path

import torch

from diffnb.core import NoiseSource, to_unit
from diffnb.data import image_set
from diffnb.denoise import Denoiser
from diffnb.metrics import FashionClassifier, FeatureStatistics, frechet_of_features
from diffnb.model import GenerativeModel, digest_of_model
from diffnb.samplers import SAMPLERS, is_open

RESULT = Path(__file__).parent / "results" / "few_steps.json"
SAME = ("exponential-integrator", "single-step")  # as dpm-solver++2m and dpm-solver++2s
SEARCHED = ("tuned", "consistency")  # levels of one model and one number of steps: see grids.py; distilled models: see distill.py
LOWERED = ("dpm-solver++2m", "dpm-solver++3m", "unipc")  # measured with lower_order_final, too
FOLLOWED = 32  # images compared with the exact flow


def steps_for(sampler, evaluations, grid=None):
    """The largest number of steps that costs at most so many evaluations; None if there is none."""
    fitting = [n for n in range(1, evaluations + 1) if (cost := sampler.forecast(n, grid)) is not None and cost <= evaluations]
    return max(fitting, default=None)


def names_of_all():
    """Samplers that the table is of."""
    return [name for name in SAMPLERS.names() if name not in SAME + SEARCHED] + ["unipc-2"] + [f"{name}, lowered" for name in LOWERED]


def named(name):
    """The sampler that a name of the table stands for: a registered name, UniPC of the order that others have by default, or last steps lowered."""
    if name == "unipc-2":
        return SAMPLERS["unipc"](extrapolation=2)
    registered = name.removesuffix(", lowered")
    return SAMPLERS[registered]() if registered == name else SAMPLERS[registered](lower_order_final=True)


def settings(names, grids, budgets):
    """What to measure: (name, sampler, grid, evaluations allowed, levels)."""
    for budget in budgets:
        for name in names:
            sampler = named(name)
            if sampler.evaluations(2) is None:
                continue
            for grid in grids or [sampler.default_grid]:
                n_steps = steps_for(sampler, budget, grid)
                if n_steps is not None and (n_steps > 1 or is_open(grid) or budget == 1):
                    yield name, sampler, grid, budget, n_steps


def make_denoiser(model, precision, compiled):
    """The model's denoiser; compiled for batches of one size, since each size costs a compilation."""
    own = model.trained.denoiser(precision)
    return Denoiser(torch.compile(own.network, dynamic=False), own.sde, own.parametrization, own.autocast) if compiled else own


def generate(sampler, denoiser, n, seed, n_steps, grid, batch):
    """Yield batches of images with values in [0, 1], and the evaluations spent."""
    for first in range(0, n, batch):
        k = min(batch, n - first)
        labels = torch.arange(first, first + k) % 10
        run = sampler(denoiser, shape=(k, 1, 28, 28), n_steps=n_steps, grid=grid, seeds=NoiseSource.of(seed, k, first), condition={"label": labels})
        yield to_unit(run.x), run.nfe


@functools.cache
def exact_images(model, seed):
    """Where the flow takes the first images of a seed."""
    return next(generate(SAMPLERS["rk4"](), model.trained.denoiser(), FOLLOWED, seed, 40, "karras", FOLLOWED))[0]


def measure(model, denoiser, extractor, reference, sampler, grid, n_steps, n, seed, batch):
    """Distance, evaluations and seconds of one run; difference from the exact flow with the first seed."""
    start, found, nfe, difference = time.time(), FeatureStatistics(), 0, None
    for k, (images, nfe) in enumerate(generate(sampler, denoiser, n, seed, n_steps, grid, batch)):
        found.update(extractor((images * 255).round() / 255))
        if k == 0 and not sampler.is_stochastic and seed == 0 and len(images) >= FOLLOWED:
            difference = (images[:FOLLOWED] - exact_images(model, seed)).square().mean().sqrt().item()
    return {"distance": frechet_of_features(reference, found), "flow_rmse": difference, "nfe": nfe, "seconds": round(time.time() - start, 1)}


def load_rows():
    """What has been measured."""
    return json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []


def store(rows):
    """Write all rows at once, so that a stopped run leaves a whole file."""
    RESULT.parent.mkdir(exist_ok=True)
    part = RESULT.with_suffix(".part")
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    part.write_text(f'{{"metric": "frechet[fashion-classifier], 10,000 packaged images", "rows": [\n  {lines}\n]}}\n')
    os.replace(part, RESULT)


def key(row):
    """What makes two rows the same measurement."""
    return tuple(row[k] for k in ("model", "precision", "compiled", "sampler", "grid", "evaluations", "n", "seed"))


def show(rows, model):
    """Print mean and standard deviation over seeds, a line a sampler and grid, a column for each number of evaluations."""
    rows = [row for row in rows if row["model"] == model]
    for precision, n in sorted({(row["precision"], row["n"]) for row in rows}):
        own = [row for row in rows if (row["precision"], row["n"]) == (precision, n)]
        budgets = sorted({row["evaluations"] for row in own})
        cells = {}
        for row in own:
            cells.setdefault((row["name"], row["grid"]), {}).setdefault(row["evaluations"], []).append(row["distance"])
        print(
            f"\n{n} images a cell in {precision}: mean (standard deviation over seeds)\n{'sampler':26s}{'grid':12s}"
            + "".join(f"{b:>15d}" for b in budgets)
        )
        order = sorted(cells, key=lambda c: statistics.fmean(cells[c].get(budgets[0]) or cells[c][max(cells[c])]))
        for cell in order:
            text = ""
            for budget in budgets:
                found = cells[cell].get(budget, [])
                deviation = f" ({statistics.stdev(found):.2f})" if len(found) > 1 else ""
                text += f"{f'{statistics.fmean(found):.2f}{deviation}' if found else '':>15s}"
            print(f"{cell[0]:26s}{cell[1] or '-':12s}{text}")
        print("\nroot mean square difference from the exact flow, images in [0, 1]")
        exact = {(row["name"], row["grid"], row["evaluations"]): row["flow_rmse"] for row in own if row["flow_rmse"] is not None}
        for name, grid in dict.fromkeys((name, grid) for name, grid, _ in exact):
            values = "".join(f"{exact[name, grid, b]:15.4f}" if (name, grid, b) in exact else " " * 15 for b in budgets)
            print(f"{name:26s}{grid or '-':12s}{values}")


def main():
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="images in a cell of the table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--evaluations", type=int, nargs="+", default=[3, 5, 8, 10, 20, 50])
    parser.add_argument("--samplers", nargs="+", default=names_of_all(), help='registered names, "unipc-2" or "NAME, lowered"; all without it')
    parser.add_argument("--grids", nargs="+", help="time grids; each sampler's own without it")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="what the network computes in")
    parser.add_argument("--compile", action="store_true", help="compile the network: two minutes to start; n is then a multiple of the batch")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="estimate the time, and stop")
    parser.add_argument("--show", action="store_true", help="print what has been measured, and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    model, extractor = GenerativeModel.pretrained("fashion_mnist", verbose=False), FashionClassifier()
    digest, rows = digest_of_model(model), load_rows()
    if args.show:
        return show(rows, digest)
    if args.compile and args.n % args.batch:
        parser.error(f"--compile is for whole batches: --n {args.n} is no multiple of --batch {args.batch}")
    denoiser = make_denoiser(model, args.precision, args.compile)
    known = {key(row) for row in rows}
    todo = []
    for seed in args.seeds:  # one seed for the whole table before the next
        for name, sampler, grid, budget, n_steps in settings(args.samplers, args.grids, args.evaluations):
            row = {
                "model": digest,
                "precision": args.precision,
                "compiled": args.compile,
                "name": name,
                "sampler": repr(sampler),
                "grid": grid,
                "evaluations": budget,
                "n": args.n,
                "seed": seed,
            }
            if key(row) not in known:
                todo.append((row, sampler, grid, n_steps))
    for n_steps in (1, 4):  # the first run compiles
        start = time.time()
        next(generate(SAMPLERS["ddim"](), denoiser, args.batch, 0, n_steps, None, args.batch))
    each = (time.time() - start) / args.batch / n_steps
    total = sum(args.n * sampler.forecast(n_steps, grid) for _, sampler, grid, n_steps in todo) * each
    print(f"{len(todo)} rows to measure, {1000 * each:.1f} ms an evaluation: about {total / 3600:.2f} hours", flush=True)
    if args.plan:
        return

    reference = FeatureStatistics()
    images = image_set("packaged", verbose=False).images
    for batch in images.split(500):
        reference.update(extractor(batch.float() / 255))
    for row, sampler, grid, n_steps in todo:
        row |= {"n_steps": n_steps} | measure(model, denoiser, extractor, reference, sampler, grid, n_steps, args.n, row["seed"], args.batch)
        rows = [*load_rows(), row]
        store(rows)
        exact = "" if row["flow_rmse"] is None else f"{row['flow_rmse']:.4f}"
        cost = f"nfe {row['nfe']:3d}  seed {row['seed']}"
        print(f"{row['name']:26s}{row['grid'] or '-':12s} {cost} {row['distance']:9.2f} {exact:>8s} {row['seconds']:6.0f} s", flush=True)
    show(rows, digest)


if __name__ == "__main__":
    main()
