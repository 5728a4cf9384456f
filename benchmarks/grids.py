"""What are chosen noise levels worth? Five evaluations of the packaged model on known grids and on levels that were searched for it.

Distances are Fréchet's, between features of the packaged classifier, to all 10,000 images that come with the package.
Prints a table and writes results/grids.json:  python benchmarks/grids.py [images] [steps]
"""

import argparse
import json
import time
from pathlib import Path

import torch

from diffnb import GenerativeModel
from diffnb.core import NoiseSource, to_unit
from diffnb.data import image_set
from diffnb.metrics import FashionClassifier, frechet_distance
from diffnb.samplers import IPNDM, DPMSolverPP2M, Tuned, optimise_grid, short_karras

extractor = FashionClassifier()


def features(x):
    """Features of images in [-1, 1]."""
    return extractor.features(extractor.prepare(to_unit(x)))


def moments(f):
    """Mean and covariance."""
    return f.double().mean(0), torch.cov(f.double().T)


def distance(denoiser, sampler, n_steps, grid, n, seed, real):
    """Distance of n images, classes in turn, from the real ones."""
    parts = []
    for first in range(0, n, 100):
        labels = torch.arange(first, first + 100) % 10
        noise = NoiseSource.of(seed, 100, first)
        run = sampler(denoiser, shape=(100, 1, 28, 28), n_steps=n_steps, grid=grid, seeds=noise, condition={"label": labels})
        parts.append(features(run.x))
    return frechet_distance(*moments(torch.cat(parts)), *real)


@torch.no_grad()
def main():
    """Search, measure, print and write down after each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=int, default=1000)
    parser.add_argument("steps", nargs="?", type=int, default=5)
    args = parser.parse_args()
    n, n_steps = args.images, args.steps
    model = GenerativeModel.pretrained("fashion_mnist", device="cpu", verbose=False)
    denoiser, test = model.trained.denoiser(), image_set("packaged", verbose=False)
    real = moments(torch.cat([features(part.float() / 127.5 - 1) for part in test.images.split(500)]))
    table, labels = [], torch.arange(32) % 10
    print(f"{'sampler':16s} {'levels':14s} {'evaluations':>11s} {'distance':>9s}")
    for sampler in (IPNDM(), DPMSolverPP2M()):
        name, start = type(sampler).__name__, time.perf_counter()
        search = optimise_grid(sampler, denoiser, n_steps, (1, 28, 28), features=features, condition={"label": labels}, seed=12345)
        seconds = time.perf_counter() - start
        short = Tuned(sampler, (short_karras(denoiser.sde, n_steps).tolist(),))
        for levels, variant, grid in (("karras", sampler, "karras"), ("short karras", short, None), ("searched", search.sampler, None)):
            value = distance(denoiser, variant, n_steps, grid, n, 0, real)
            row = {"sampler": name, "levels": levels, "evaluations": n_steps, "images": n, "seed": 0, "distance": round(value, 4)}
            if levels == "searched":
                row |= {"half_log_snrs": [round(v, 4) for v in search.sampler.half_log_snrs[0]], "runs": search.runs, "seconds": round(seconds, 1)}
                row |= {"before": round(search.before, 5), "after": round(search.after, 5)}
            table.append(row)
            print(f"{name:16s} {levels:14s} {n_steps:11d} {value:9.3f}", flush=True)
            about = {"model": repr(model.trained.sde), "extractor": "fashion-classifier", "torch": torch.__version__}
            out = Path(__file__).parent / "results" / "grids.json"
            out.write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
