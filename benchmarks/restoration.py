"""Restoration with the packaged model: peak signal-to-noise ratio, similarity, feature distance and seconds, by task and method.

Real images that the model was not calibrated on; every method runs with its own default or as many steps as given, and "DPS, equal time"
with as many as take as long as the default method. With azula installed, its DPS and MMPS run on the same network. Prints a table and
writes results/restoration.json:

    python benchmarks/restoration.py [images] [model]
"""

import importlib.util
import json
import platform
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import diffnb
from diffnb.data import image_set
from diffnb.inverse import DPS, Hooked
from diffnb.model import GenerativeModel
from diffnb.operators import Blur, Downsample, Identity, Mask, gaussian_kernel
from diffnb.restoration import Restoration
from diffnb.samplers import DDIM

CALLS = {"calibrated": 10, "conditioned": 10, "mmps": 5, "pigdm": 25, "ddnm": 50, "replacement": 50, "repaint": 10, "dps": 50}


class Model(GenerativeModel, Restoration):
    """A generative model that restores."""


def tasks(h, w):
    """Operator and noise level, in units of [0, 1], by name."""
    hole = torch.zeros(h, w)
    hole[h // 4 : -h // 4, w // 4 : -w // 4] = 1
    return {
        "inpainting": (Mask(hole), 1 / 255),
        "super-resolution x4": (Downsample(4), 1 / 255),
        "blur": (Blur(gaussian_kernel(1.5), "reflect"), 0.01),
        "noise": (Identity(), 0.2),
    }


def psnr(a, b):
    """Peak signal-to-noise ratio in dB, mean over images."""
    return -10 * (a - b).flatten(1).square().mean(1).log10().mean().item()


def ssim(a, b, size=7):
    """Structural similarity with uniform windows.

    References:
        Wang et al. (2004), "Image quality assessment: from error visibility to structural similarity".
    """

    def mean(x):
        return F.avg_pool2d(x, size, 1)

    ma, mb = mean(a), mean(b)
    va, vb, covariance = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * ma * mb + c1) * (2 * covariance + c2)) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean().item()


def features(images):
    """What the packaged classifier sees."""
    from diffnb.extractors import FashionClassifier

    return FashionClassifier()(images)


def by_azula(model, operator, y, noise, kind, steps):
    """azula's own methods on the same network, in its variance-exploding schedule."""
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance import DPSSampler, MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.noise import VESchedule
    from azula.sample import DDPMSampler

    own, schedule = model.denoiser(), VESchedule(0.002, 80.0)

    class Ours(Denoiser):
        """Our network behind azula's interface."""

        def __init__(self):
            super().__init__()
            self.schedule = schedule

        def forward(self, x_t, t, **kwargs):
            """Predict the mean."""
            _, sigma = schedule(t)
            time = own.sde.time_of_half_log_snr(-torch.log(sigma.double().flatten()[0]))
            condition = {"label": torch.full((len(x_t),), -1)} if model.num_classes else {}
            return DiracPosterior(own(x_t, time, condition).x0)

    ones = operator.A(torch.ones(1, *model.shape))
    target, std = 2 * y - ones, 2 * noise
    torch.manual_seed(0)
    start = 80.0 * torch.randn(len(y), *model.shape)
    if kind == "DPS":
        sampler = DPSSampler(Ours(), target, operator.A, steps=steps, silent=True)
    else:
        guided = MMPSDenoiser(Ours(), target, operator.A, IsotropicCovariance(torch.tensor(std**2)), iterations=1)
        sampler = DDPMSampler(guided, steps=steps, silent=True)
    return (sampler(start).clamp(-1, 1) + 1) / 2


def runs(model, operator, y, noise):
    """Name, number of evaluations, and images, of every method."""
    start = time.perf_counter()
    yield "calibrated", 10, model.restore(y, operator, noise, seed=0, n_steps=10)
    allowed = time.perf_counter() - start
    ancestral = Model.of(model.trained, sampler=DDIM(eta=1.0), verbose=False)
    start = time.perf_counter()
    ancestral.restore(y, operator, noise, seed=0, n_steps=3, method="dps")
    affordable = max(3, round(3 * allowed / (time.perf_counter() - start)))
    yield "DPS, equal time", 2 * affordable, ancestral.restore(y, operator, noise, seed=0, n_steps=affordable, method="dps")
    for scale in (0.3, 3.0):

        def method(sampler, denoiser, observation, covariance, scale=scale):
            return Hooked(sampler, DPS(observation, scale)), denoiser

        yield f"DPS, step {scale}", 100, ancestral.restore(y, operator, noise, seed=0, n_steps=50, method=method)
    cost = {"mmps": 4, "pigdm": 2, "dps": 2, "repaint": 5}
    for name, n_steps in CALLS.items():
        if name != "calibrated":
            yield name, n_steps * cost.get(name, 1), ancestral.restore(y, operator, noise, seed=0, n_steps=n_steps, method=name)
    if importlib.util.find_spec("azula"):
        for kind, steps, evaluations in (("DPS", 50, 100), ("MMPS", 33, 99)):
            yield f"azula {kind}", evaluations, by_azula(model, operator, y, noise, kind, steps)


def rows(model, truth):
    """One row for each task and method."""
    model.restore(Identity().A(truth[:1]), Identity(), 0.1, seed=0)  # calibrates, once for a model
    wanted = features(truth)
    for task, (operator, noise) in tasks(*truth.shape[-2:]).items():
        y = operator.A(truth)
        y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) * (operator.A(torch.ones_like(truth)) != 0)
        results, start = runs(model, operator, y, noise), time.perf_counter()
        for method, evaluations, images in results:
            seconds = time.perf_counter() - start
            yield {
                "task": task,
                "method": method,
                "evaluations": evaluations,
                "psnr": round(psnr(images, truth), 2),
                "ssim": round(ssim(images, truth), 4),
                "feature_distance": round((features(images) - wanted).square().sum(1).mean().item(), 3),
                "seconds": round(seconds, 2),
            }
            start = time.perf_counter()


def main():
    """Print the table and write it down."""
    n, name = int(sys.argv[1]) if len(sys.argv) > 1 else 16, sys.argv[2] if len(sys.argv) > 2 else "fashion_mnist"
    torch.set_num_threads(1)
    model, table = Model.pretrained(name, verbose=False), []
    truth = image_set("packaged", verbose=False).images[:n].float() / 255
    print(f"{'task':20s} {'method':18s} evaluations   PSNR    SSIM  features  seconds")
    for row in rows(model, truth):
        table.append(row)
        figures = f"{row['psnr']:6.2f} {row['ssim']:7.3f} {row['feature_distance']:9.2f} {row['seconds']:8.2f}"
        print(f"{row['task']:20s} {row['method']:18s} {row['evaluations']:11d} {figures}", flush=True)
    about = {"diffnb": diffnb.__version__, "torch": torch.__version__, "machine": platform.machine(), "model": name, "images": n, "threads": 1}
    path = Path(__file__).parent / "results" / "restoration.json"
    path.write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
