"""How well do posterior methods sample the exact posterior of a mixture, and at how many evaluations?

Four Gaussians over images of 8, 16 and 64 pixels; inpainting, 2 x super-resolution, blur; noise 0.1. An evaluation is a forward
pass, or a vector-Jacobian product. For each method: sliced 2-Wasserstein distance to exact samples, error of the mean, mass of the
posterior inside the method's 90% intervals, and how often those hold the true pixel. Prints a table and writes results/inverse.json:

    python benchmarks/inverse.py [n]
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import diffnb
from diffnb.denoise import GaussianMixture
from diffnb.guidance import (
    DDNM,
    DPS,
    MMPS,
    Blur,
    CalibratedPosterior,
    Conditioned,
    Downsample,
    Hooked,
    Mask,
    Observation,
    PiGDM,
    Replacement,
    Resampled,
    calibrate,
    gaussian_kernel,
)
from diffnb.noise import EDM
from diffnb.samplers import DDIM, DPMSolverPP2M

NOISE, SAMPLES, SIZES = 0.1, 500, ((2, 4), (4, 4), (8, 8))
EXACT = "exact samples"


def smooth(h, w, length, std):
    """Covariance of an image whose neighbouring pixels go together."""
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    return std**2 * (torch.exp(-(torch.cdist(places, places) ** 2) / (2 * length**2)) + 0.01 * torch.eye(h * w, dtype=torch.float64))


def four(h, w):
    """Four Gaussians: smooth means, smooth covariances of different scales, unequal weights."""
    g = torch.Generator().manual_seed(0)
    draws = torch.rand(4, 2, generator=g, dtype=torch.float64)
    covariances = torch.stack([smooth(h, w, 1.0 + a, 0.3 + 0.4 * b) for a, b in draws.tolist()])
    means = torch.stack([torch.linalg.cholesky(smooth(h, w, 3.0, 1.0)) @ torch.randn(h * w, generator=g, dtype=torch.float64) for _ in range(4)])
    return GaussianMixture(means, covariances, [1.0, 2.0, 3.0, 4.0])


def problems(h, w):
    """Operators by name."""
    half = (torch.arange(w) >= w // 2).float().expand(h, w)
    return {"inpainting": Mask(half), "super-resolution": Downsample(2), "blur": Blur(gaussian_kernel(0.8, 1))}


def measure(prior, operator, shape, seed):
    """A draw from the prior, a measurement of it, and the exact posterior."""
    truth = prior.sample(1, seed=100 + seed).view(1, *shape)
    noise = NOISE * torch.randn(operator.A(truth).shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = operator.A(truth) + noise * (operator.A(torch.ones_like(truth)) != 0)
    return truth, Observation(operator, y.expand(SAMPLES, *y.shape[1:]), NOISE), prior.posterior(operator, y, NOISE, shape)


def methods(denoiser, observation, covariance):
    """Name, evaluations, sampler, denoiser, steps."""
    ancestral = DDIM(eta=1.0)
    for n in (5, 10, 20, 50):
        yield "calibrated (default)", n, CalibratedPosterior(covariance, observation), denoiser, n
    for n in (10, 20):
        yield "conditioned, DPM++2M", n, DPMSolverPP2M(), Conditioned(denoiser, observation, covariance), n
    for iterations, n in ((1, 5), (1, 50), (3, 25), (9, 10)):
        yield f"MMPS, {iterations} CG", (1 + iterations) * n, ancestral, MMPS(denoiser, observation, iterations), n
    for n in (5, 50):
        yield "PiGDM", 2 * n, ancestral, PiGDM(denoiser, observation), n
    for n in (10, 100):
        yield "DDNM", n, ancestral, DDNM(denoiser, observation), n
        yield "replacement", n, Hooked(ancestral, Replacement(observation)), denoiser, n
    yield "RePaint, 5 times", 96, Resampled(Hooked(ancestral, Replacement(observation)), 5), denoiser, 20
    for scale in (0.3, 0.6, 1.0, 1.6, 2.5):
        yield f"DPS, {scale}", 100, Hooked(ancestral, DPS(observation, scale)), denoiser, 50
    yield "DPS, 1.0", 10, Hooked(ancestral, DPS(observation, 1.0)), denoiser, 5


def sliced_w2(a, b, n=128):
    """Root mean square distance between the quantiles of projections."""
    directions = torch.randn(a.shape[1], n, generator=torch.Generator().manual_seed(0), dtype=a.dtype)
    directions = directions / directions.norm(dim=0)
    return ((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt().item()


def compare(x, posterior, truth):
    """The four figures."""
    flat, exact = x.flatten(1), posterior.sample(SAMPLES, seed=1)
    low, high = flat.quantile(0.05, 0), flat.quantile(0.95, 0)

    def inside(points):
        return ((points >= low) & (points <= high)).double().mean().item()

    return {
        "sliced_w2": sliced_w2(flat, exact),
        "mean_error": (flat.mean(0) - posterior.mean).square().mean().sqrt().item(),
        "mass": inside(exact),
        "coverage": inside(truth.flatten(1)),
    }


def measurements(n):
    """One row for each method, problem, size and measurement."""
    for h, w in SIZES:
        prior, shape = four(h, w), (1, h, w)
        denoiser = prior.denoiser(EDM())
        covariance = calibrate(denoiser, prior.sample(2000, seed=9).view(-1, *shape), dense=True)
        for problem, operator in problems(h, w).items():
            for seed in range(n):
                truth, observation, posterior = measure(prior, operator, shape, seed)
                about = {"d": h * w, "problem": problem}
                yield about | {"method": EXACT, "evaluations": 0} | compare(posterior.sample(SAMPLES, seed=2), posterior, truth)
                for name, evaluations, sampler, wrapped, n_steps in methods(denoiser, observation, covariance):
                    grid = None if isinstance(sampler, CalibratedPosterior) else "karras"
                    x = sampler(wrapped, shape=(SAMPLES, *shape), n_steps=n_steps, seeds=0, grid=grid, dtype=torch.float64).x
                    yield about | {"method": name, "evaluations": evaluations} | compare(x, posterior, truth)


FIGURES = ("sliced_w2", "mean_error", "mass", "coverage")


def averaged(rows, *keys):
    """Mean figures of the rows that agree in the keys."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return [dict(zip(keys, group)) | {f: round(sum(r[f] for r in own) / len(own), 4) for f in FIGURES} for group, own in groups.items()]


def main():
    """Print the table and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", nargs="?", type=int, default=6, help="measurements a problem")
    n = parser.parse_args().n
    torch.set_num_threads(1)
    start = time.perf_counter()
    rows = list(measurements(n))
    overall, detail = averaged(rows, "method", "evaluations"), averaged(rows, "method", "evaluations", "problem", "d")
    print(f"{'':22s} evaluations  sliced W2  mean off by  mass in 90%  truth in 90%")
    for row in sorted(overall, key=lambda row: row["sliced_w2"]):
        inside = f"{row['mass']:12.1%} {row['coverage']:13.1%}"
        print(f"{row['method']:22s} {row['evaluations']:11d} {row['sliced_w2']:10.3f} {row['mean_error']:12.3f} {inside}")
    about = {"diffnb": diffnb.__version__, "torch": torch.__version__, "machine": platform.machine(), "measurements": n, "samples": SAMPLES}
    about |= {"noise": NOISE, "seconds": round(time.perf_counter() - start)}
    path = Path(__file__).parent / "results" / "inverse.json"
    path.write_text(json.dumps({"about": about, "overall": overall, "detail": detail}, indent=1) + "\n")


if __name__ == "__main__":
    main()
