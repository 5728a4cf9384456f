"""Restoration with the packaged models: signal-to-noise ratio, similarity, feature distance and seconds, by task and method.

Real test images, which no method was calibrated on. Every method runs for the same processor time of one thread, that of the default
method with its 10 steps: a short run of a method tells how many steps it can afford. A machine that does other things as well changes
its speed; the same few steps of the default, timed before each method, tell by how much, and "seconds" are corrected for it.

Peak signal-to-noise ratios are means over images, over the whole picture and, where pixels are hidden, over those alone ("hidden"); the
error of the mean is theirs over images, of the difference from the default method ("+-"). With azula and deepinv installed, their
methods run on the same network.

A sample of the posterior is not made to be near the truth on average: the mean of the posterior is, by 3 dB where it is Gaussian. So for
inpainting there is a second table: the same seconds, and four times as many, spent on one sample or on four whose mean is taken
("samples"). Prints tables and writes results/restoration.json as far as it has come:

    python benchmarks/restoration.py [images] [model ...]
    python benchmarks/restoration.py pictures

The second draws results/restoration.png instead: what is given, and what the default method, "conditioned" and DPS make of it.

CIFAR-10 is read from DIFFNB_DATA, and Inception's weights, whose features measure the colour model, from DIFFNB_WEIGHTS.
"""

import argparse
import importlib.util
import json
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import diffnb
from diffnb.data import image_set
from diffnb.guidance import DPS, Blur, Downsample, Grayscale, Hooked, Identity, Mask, gaussian_kernel
from diffnb.metrics import FashionClassifier, InceptionFeatures
from diffnb.model import METHODS, GenerativeModel
from diffnb.samplers import DDIM

SETS = {"fashion_mnist": ("packaged", "train", FashionClassifier), "cifar10": ("cifar10", "test", InceptionFeatures)}
SCALES = (1.0, 3.0, 10.0, 30.0)  # of DPS: length of its descent
SAMPLES, TIMES = (1, 4), (1, 4)
PEERS = [name for name in ("azula", "deepinv") if importlib.util.find_spec(name)]


def tasks(c, h, w):
    """Operator and noise level, in units of [0, 1], by name."""
    hole = torch.zeros(h, w)
    hole[h // 4 : -h // 4, w // 4 : -w // 4] = 1
    colour = {"colorization": (Grayscale(), 1 / 255)} if c == 3 else {}
    return {
        "inpainting": (Mask(hole), 1 / 255),
        "super-resolution x4": (Downsample(4), 1 / 255),
        "noise": (Identity(), 0.2),
        **colour,
        "blur": (Blur(gaussian_kernel(1.5), "reflect"), 0.01),
    }


def decibels(a, b, where=None):
    """Peak signal-to-noise ratio of each image, (n,); of the pixels where a mask is 1."""
    error = (a - b).square().flatten(1)
    weight = torch.ones_like(error) if where is None else where.expand_as(a).flatten(1)
    return -10 * ((error * weight).sum(1) / weight.sum(1)).log10()


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


class Problem:
    """Images, what has been measured of them, and the model that restores them."""

    def __init__(self, model, truth, operator, noise):
        self.model, self.truth, self.operator, self.noise = model, truth, operator, noise
        # ancestral steps for the methods that steer somebody else's sampler
        self.ancestral = GenerativeModel.of(model.trained, sampler=DDIM(eta=1.0), verbose=False)
        y, seen = operator.A(truth), operator.A(torch.ones_like(truth)) != 0
        self.y = y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(0)) * seen

    def restore(self, method, n_steps, seed=0):
        """Restore by a method of ours: its name, or DPS with a step length."""
        model = self.model if method == "calibrated" else self.ancestral
        if not isinstance(method, str):
            scale = method

            def method(sampler, denoiser, observation, covariance):
                return Hooked(sampler, DPS(observation, scale)), denoiser

        return model.restore(self.y, self.operator, self.noise, n_steps, seed, method=method)

    def in_model_range(self):
        """Measurement and noise level of images with values in [-1, 1]."""
        return 2 * self.y - self.operator.A(torch.ones_like(self.truth[:1])), 2 * self.noise

    def predict(self, x, sigma):
        """The prediction of the clean images, (n, c, h, w) in [-1, 1], from x = clean + sigma noise."""
        own = self.model.denoiser()
        time_ = own.sde.time_of_half_log_snr(-torch.log(torch.as_tensor(sigma).double().flatten()[0]))
        return own(x, time_, {"label": torch.full((len(x),), -1)} if self.model.num_classes else {}).x0

    def by_azula(self, kind, steps):
        """azula's own methods on the same network, in its variance-exploding schedule."""
        from azula.denoise import Denoiser, DiracPosterior
        from azula.guidance import DPSSampler, MMPSDenoiser
        from azula.linalg.covariance import IsotropicCovariance
        from azula.noise import VESchedule
        from azula.sample import DDPMSampler

        predict = self.predict

        class Ours(Denoiser):
            """Our network behind azula's interface."""

            def __init__(self):
                super().__init__()
                self.schedule = VESchedule(0.002, 80.0)

            def forward(self, x_t, t, **kwargs):
                """Predict the mean."""
                return DiracPosterior(predict(x_t, self.schedule(t)[1]))

        y, std = self.in_model_range()
        torch.manual_seed(0)
        start = 80.0 * torch.randn(self.truth.shape)
        if kind == "DPS":
            sampler = DPSSampler(Ours(), y, self.operator.A, steps=steps, silent=True)
        else:
            guided = MMPSDenoiser(Ours(), y, self.operator.A, IsotropicCovariance(torch.tensor(std**2)), iterations=1)
            sampler = DDPMSampler(guided, steps=steps, silent=True)
        return ((sampler(start) + 1) / 2).clamp(0, 1)

    def by_deepinv(self, kind, steps):
        """deepinv's own methods on the same network, which it wants for values in [0, 1]."""
        import deepinv

        def denoise(x, sigma, **kwargs):
            return ((self.predict(2 * x.float() - 1, 2 * torch.as_tensor(sigma)) + 1) / 2).to(x.dtype)

        noise = deepinv.physics.GaussianNoise(self.noise)
        physics = deepinv.physics.LinearPhysics(A=self.operator.A, A_adjoint=self.operator.At, noise_model=noise)
        if kind == "DPS":
            dps = deepinv.sampling.DPS(denoise, num_steps=steps, dtype=torch.float32, rng=torch.Generator())
            restored = dps(self.y, physics, x_init=self.truth.shape, seed=0)
        else:
            torch.manual_seed(0)
            diffpir = deepinv.sampling.DiffPIR(denoise, deepinv.optim.L2(), max_iter=steps)
            restored = diffpir(self.y, physics, x_init=self.operator.At(self.y))
        return restored.float().clamp(0, 1)

    def methods(self):
        """Name, evaluations of a step, and a function of the number of steps, of every method but the default."""
        cost = {"mmps": 4, "pigdm": 2, "repaint": 5}
        for name in METHODS.names():
            if name not in ("calibrated", "dps"):
                yield name, cost.get(name, 1), lambda n, name=name: self.restore(name, n)
        for scale in SCALES:
            yield f"DPS, {scale}", 2, lambda n, scale=scale: self.restore(scale, n)
        for name in PEERS:
            importlib.import_module(name)  # here, for its time is not that of a method
        if "azula" in PEERS:
            yield "azula DPS", 2, lambda n: self.by_azula("DPS", n)
            yield "azula MMPS", 3, lambda n: self.by_azula("MMPS", n)
        if "deepinv" in PEERS:
            yield "deepinv DPS", 2, lambda n: self.by_deepinv("DPS", n)
            yield "deepinv DiffPIR", 1, lambda n: self.by_deepinv("DiffPIR", n)


def timed(run, *arguments):
    """What a function returns, and the processor time that it took."""
    start = time.process_time()
    result = run(*arguments)
    return result, time.process_time() - start


class Pace:
    """How fast the machine is, compared with when this was made."""

    def __init__(self, problem, steps=4):
        self.problem, self.steps = problem, steps
        problem.restore("calibrated", self.steps)  # what is prepared once is not counted
        self.first = timed(problem.restore, "calibrated", steps)[1]

    def __call__(self):
        """Seconds now for a second then."""
        return timed(self.problem.restore, "calibrated", self.steps)[1] / self.first


def affordable(run, seconds, trial=5):
    """The number of steps that takes so long, by a short run."""
    return max(2, round(trial * seconds / timed(run, trial)[1]))


def figures(images, problem, extractor, wanted, default=None):
    """How near restored images are to the true ones."""
    truth = problem.truth
    every = decibels(images, truth)
    row = {
        "psnr": round(every.mean().item(), 2),
        "ssim": round(ssim(images, truth), 4),
        "feature_distance": round((extractor(images) - wanted).square().sum(1).mean().item(), 3),
    }
    if default is not None:
        row["error"] = round(((every - decibels(default, truth)).std() / len(truth) ** 0.5).item(), 2)
    if isinstance(problem.operator, Mask):
        row["hidden"] = round(decibels(images, truth, problem.operator.mask).mean().item(), 2)
    return row


def equal_time(problem, task, extractor):
    """One row for each method, all for the time of the default method."""
    wanted, pace = extractor(problem.truth), Pace(problem)
    default, seconds = timed(problem.restore, "calibrated", 10)
    about = {"task": task, "method": "calibrated", "steps": 10, "evaluations": 10, "seconds": round(seconds, 2)}
    yield about | figures(default, problem, extractor, wanted)
    for name, cost, run in problem.methods():
        slower = pace()
        steps = affordable(run, slower * seconds)
        images, spent = timed(run, steps)
        about = {"task": task, "method": name, "steps": steps, "evaluations": cost * steps, "seconds": round(spent / slower, 2)}
        yield about | figures(images, problem, extractor, wanted, default)


def samples_and_means(problem):
    """One sample, or the mean of several, for the same time in all."""
    pace = Pace(problem)
    once = timed(problem.restore, "calibrated", 10)[1]
    for factor in TIMES:
        for method in ("calibrated", "conditioned", *SCALES[2:]):
            for samples in SAMPLES:
                slower = pace()
                steps = affordable(lambda n: problem.restore(method, n), slower * factor * once / samples)
                images, spent = timed(lambda: [problem.restore(method, steps, seed) for seed in range(samples)])
                mean = torch.stack(images).mean(0)
                row = {"times": factor, "method": method if isinstance(method, str) else f"DPS, {method}", "samples": samples, "steps": steps}
                row |= {"seconds": round(spent / slower, 2), "psnr": round(decibels(mean, problem.truth).mean().item(), 2)}
                yield row | {"hidden": round(decibels(mean, problem.truth, problem.operator.mask).mean().item(), 2)}


def table(rows, *columns):
    """Print rows as they come, and keep them."""
    kept = []
    print(" ".join(f"{column:>19s}" if k < 2 else f"{column[:11]:>11s}" for k, column in enumerate(columns)))
    for row in rows:
        kept.append(row)
        texts = [str(row.get(column, "")) for column in columns]
        print(" ".join(f"{text:>19s}" if k < 2 else f"{text:>11s}" for k, text in enumerate(texts)), flush=True)
    return kept


def record(path, model, **found):
    """Write down what has been found, beside what is known of other models."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[model] = found
    path.write_text(json.dumps(results, indent=1) + "\n")


def draw(path, columns=4):
    """Restorations of CIFAR-10, a row a method, each with steps that take about as long as the default's 10."""
    from diffnb.apps import grid, write_png

    truth = image_set("cifar10", split="test", verbose=False).images[:columns].float() / 255
    model, rows = GenerativeModel.pretrained("cifar10", verbose=False).calibrate(), [truth]
    for task, (operator, noise) in tasks(*truth.shape[1:]).items():
        problem = Problem(model, truth, operator, noise)
        given = F.interpolate(problem.y, truth.shape[-2:], mode="nearest").expand_as(truth).clamp(0, 1)
        default, seconds = timed(problem.restore, "calibrated", 10)
        steps = affordable(lambda n: problem.restore(SCALES[2], n), seconds)
        rows += [given, default, problem.restore("conditioned", 10), problem.restore(SCALES[2], steps)]
    write_png(grid(torch.cat(rows), columns), path)


def main():
    """Print the tables and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", default="16", help='images of each set, or "pictures" to draw them')
    parser.add_argument("model", nargs="*", help=f"models to measure, of {', '.join(SETS)}; without one, all")
    args = parser.parse_args()
    if args.images != "pictures" and not args.images.isdecimal():
        parser.error(f"images must be a number or the word pictures, got {args.images}")
    if unknown := [name for name in args.model if name not in SETS]:
        parser.error(f"unknown model {unknown[0]}; known: {', '.join(SETS)}")
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "restoration.json"
    if args.images == "pictures":
        return draw(path.with_suffix(".png"))
    n, names = int(args.images), args.model or list(SETS)
    about = {"diffnb": diffnb.__version__, "torch": torch.__version__, "machine": platform.machine(), "images": n, "threads": 1}
    for name in names:
        data, split, make_extractor = SETS[name]
        truth = image_set(data, split=split, verbose=False).images[:n].float() / 255
        model, extractor, rows, means = GenerativeModel.pretrained(name, verbose=False).calibrate(), make_extractor(), [], []
        for task, (operator, noise) in tasks(*truth.shape[1:]).items():
            print(f"\n{name}, {n} images")
            problem = Problem(model, truth, operator, noise)
            columns = "task method steps evaluations psnr error hidden ssim feature_distance seconds".split()
            rows += table(equal_time(problem, task, extractor), *columns)
            record(path, name, about=about, equal_time=rows, samples_and_means=means)
            if task == "inpainting":
                means = table(samples_and_means(problem), *"times method samples steps seconds psnr hidden".split())
            record(path, name, about=about, equal_time=rows, samples_and_means=means)


if __name__ == "__main__":
    main()
