"""Components as people write them: tutorials, papers and other libraries, in this library's interfaces. `test_programs.py` traces them all."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from diffnb.core import expand
from diffnb.denoise import BaseDenoiser
from diffnb.files import choose
from diffnb.metrics import Metric, MetricResult
from diffnb.noise import SDE, VP, Cosine, Epsilon, Linear, NoiseSchedule, Parametrization
from diffnb.samplers import DDIM, Sampler, langevin_step

# schedules


@dataclass(frozen=True)
class TutorialExponential(NoiseSchedule):
    """beta(t) = beta_min (beta_max / beta_min)^t, the exponential schedule of the tutorial."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        if not 0 < self.beta_min < self.beta_max:
            raise ValueError(f"{type(self).__name__} needs 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max:.3g}")

    @property
    def _growth(self):
        return math.log(self.beta_max / self.beta_min)

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min * torch.exp(t * self._growth)

    def integral(self, t: Tensor) -> Tensor:
        return self.beta_min * torch.expm1(t * self._growth) / self._growth

    def time_of_integral(self, value):
        return (torch.log1p(value * self._growth / self.beta_min) / self._growth).clamp(0, 1)


@dataclass(frozen=True)
class SigmoidSchedule(NoiseSchedule):
    """beta as a logistic curve from beta_min to beta_max; the integral is a softplus."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    steepness: float = 12.0

    def beta(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * torch.sigmoid(self.steepness * (t - 0.5))

    def integral(self, t):
        k = self.steepness
        start = math.log1p(math.exp(-k / 2))
        return self.beta_min * t + (self.beta_max - self.beta_min) * (F.softplus(k * (t - 0.5)) - start) / k


KNOTS = (0.1, 0.4, 1.5, 4.0, 9.0, 14.0, 17.5, 19.0, 20.0)


class TableSchedule(NoiseSchedule):
    """beta by linear interpolation in a table, its integral exact."""

    def __init__(self, scale=1.0):
        self.scale = scale
        self.knots = torch.tensor(KNOTS, dtype=torch.float64) * scale
        self.width = 1 / (len(KNOTS) - 1)
        areas = (self.knots[1:] + self.knots[:-1]) / 2 * self.width
        self.areas = torch.cat([torch.zeros(1, dtype=torch.float64), areas.cumsum(0)])

    def _place(self, t):
        cell = (t.double() / self.width).floor().clamp(0, len(KNOTS) - 2).long()
        return cell, t.double() - cell * self.width

    def beta(self, t):
        cell, rest = self._place(t)
        slope = (self.knots[cell + 1] - self.knots[cell]) / self.width
        return (self.knots[cell] + slope * rest).to(t.dtype)

    def integral(self, t):
        cell, rest = self._place(t)
        slope = (self.knots[cell + 1] - self.knots[cell]) / self.width
        return (self.areas[cell] + rest * (self.knots[cell] + slope * rest / 2)).to(t.dtype)


@dataclass(frozen=True)
class PiecewiseSchedule(NoiseSchedule):
    """A constant rate, then a ramp."""

    low: float = 0.5
    high: float = 25.0
    corner: float = 0.3

    def beta(self, t):
        ramp = self.low + (self.high - self.low) * (t - self.corner) / (1 - self.corner)
        return torch.where(t < self.corner, torch.full_like(t, self.low), ramp)

    def integral(self, t):
        late = (t - self.corner).clamp(min=0)
        return self.low * t + (self.high - self.low) * late**2 / (2 * (1 - self.corner))


@dataclass(frozen=True)
class QuadraticSqrt(NoiseSchedule):
    """The "scaled linear" schedule of latent diffusion: sqrt(beta) is linear."""

    beta_min: float = 0.85
    beta_max: float = 12.0

    def beta(self, t):
        a, b = self.beta_min**0.5, self.beta_max**0.5
        return (a + t * (b - a)) ** 2

    def integral(self, t):
        a, b = self.beta_min**0.5, self.beta_max**0.5
        return ((a + t * (b - a)) ** 3 - a**3) / (3 * (b - a))


@dataclass(frozen=True)
class WarmLinear(Linear):
    """A linear schedule of the library, stretched; what is not redefined comes from there."""

    warmth: float = 1.5

    def beta(self, t):
        return super().beta(t) * self.warmth

    def integral(self, t):
        return super().integral(t) * self.warmth

    def time_of_integral(self, value):
        return super().time_of_integral(value / self.warmth)


@dataclass(frozen=True)
class FourierSchedule(NoiseSchedule):
    """A linear rate with ripples; the sums are loops over coefficients."""

    coefficients: tuple = (2.0, -1.0, 0.5)
    base: float = 6.0

    def beta(self, t):
        total = self.base + 8 * t
        for k, c in enumerate(self.coefficients, start=1):
            total = total + c * torch.cos(2 * math.pi * k * t)
        return total

    def integral(self, t):
        waves = [c / (2 * math.pi * k) * torch.sin(2 * math.pi * k * t) for k, c in enumerate(self.coefficients, start=1)]
        return self.base * t + 4 * t.square() + sum(waves)


# processes


@dataclass(frozen=True)
class GeometricVE(SDE):
    """Variance exploding with a power of t."""

    sigma_max: float = 30.0
    power: float = 3.0

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return self.sigma_max * t**self.power

    def time_of_half_log_snr(self, value):
        return (torch.exp(-value) / self.sigma_max).pow(1 / self.power).clamp(0, 1)


@dataclass(frozen=True)
class TrigonometricFlow(SDE):
    """alpha = cos, sigma = sin, on the circle; ends before t = 1."""

    t_max = 1 - 1e-3
    default_grid = "log-snr"

    def alpha(self, t):
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t):
        return torch.sin(t * (math.pi / 2))

    def time_of_half_log_snr(self, value):
        return torch.atan(torch.exp(-value)) * (2 / math.pi)


@dataclass(frozen=True)
class ShiftedVP(SDE):
    """A variance-preserving process with its log-SNR shifted, as for large images; the schedule is a component of its own."""

    schedule: NoiseSchedule = field(default_factory=Cosine)
    shift: float = 2.0

    def half_log_snr(self, t):
        b = self.schedule.integral(t)
        return -torch.log(torch.expm1(b)) / 2 - math.log(self.shift)

    def alpha(self, t):
        return torch.sqrt(torch.sigmoid(2 * self.half_log_snr(t)))

    def sigma(self, t):
        return torch.sqrt(torch.sigmoid(-2 * self.half_log_snr(t)))


class StretchedVP(VP):
    """A process of the library that runs slower."""

    noise_ratio_min = 0.005

    def alpha(self, t):
        return super().alpha(0.9 * t)

    def sigma(self, t):
        return super().sigma(0.9 * t)

    def time_of_half_log_snr(self, value):
        return (super().time_of_half_log_snr(value) / 0.9).clamp(max=1)


# parametrizations


class ScaledNoise(Parametrization):
    """The noise plus a part of the image."""

    mix = 0.25

    def coefficients(self, sde, t):
        return -self.mix * sde.sigma(t), torch.ones_like(t)

    def scale(self, sde, t):
        p, q = self.coefficients(sde, t)
        return torch.sqrt(p.square() * self.sigma_data**2 + q.square())


@dataclass(frozen=True)
class SoftV(Epsilon):
    """Between epsilon and v, by the log-SNR."""

    sharpness: float = 1.0

    def coefficients(self, sde, t):
        w = torch.sigmoid(-self.sharpness * sde.half_log_snr(t))
        return -w * sde.sigma(t), (1 - w) + w * sde.alpha(t)


# samplers


def renoise(x0, epsilon, level):
    """Put signal and noise together at a level."""
    return level.alpha * x0 + level.sigma * epsilon


class TutorialEuler(Sampler):
    """Euler-Maruyama as the score-SDE tutorial writes it."""

    is_stochastic = True
    n_steps_default = 300

    def step(self, denoiser, state, t, s, noise):
        x = state.x
        dt = t.time - s.time
        prediction = denoiser(x, t.time)
        drift = t.drift * x - t.diffusion_squared * prediction.score
        mean = x - drift * dt
        z = noise.normal(x.shape[1:], "step", state.step, x.dtype)
        return replace(state, x=mean + math.sqrt(max(t.diffusion_squared, 0.0) * dt) * z, x0=prediction.x0)


@dataclass(frozen=True)
class PlainDDIM(Sampler):
    """Deterministic DDIM."""

    default_grid = "log-snr"

    def step(self, denoiser, state, t, s, noise):
        x0 = denoiser(state.x, t.time).x0
        return replace(state, x=renoise(x0, (state.x - t.alpha * x0) / t.sigma, s), x0=x0)


@dataclass(frozen=True)
class MyHeun(Sampler):
    """Heun's method of Karras et al., with a function inside the step."""

    order = 2
    default_grid = "karras"

    def evaluations(self, n_steps):
        return 2 * n_steps - 1

    def step(self, denoiser, state, t, s, noise):
        def slope(y, level):
            x0 = denoiser(level.alpha * y, level.time).x0
            return (y - x0) / level.noise_ratio, x0

        y, h = state.x / t.alpha, s.noise_ratio - t.noise_ratio
        first, x0 = slope(y, t)
        second, _ = slope(y + h * first, s)
        return replace(state, x=s.alpha * (y + (h / 2) * (first + second)), x0=x0)


@dataclass(frozen=True)
class MyDPM2M(Sampler):
    """DPM-Solver++(2M) with its history in the state."""

    order = 2
    n_history = 1
    n_steps_default = 20
    default_grid = "karras"

    def step(self, denoiser, state, t, s, noise):
        x0, lam = denoiser(state.x, t.time).x0, t.half_log_snr
        h = s.half_log_snr - lam
        d = x0
        if len(state.history) > 0:
            before, x0_before = state.history[0]
            r = (lam - before) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * x0_before
        x = (s.sigma / t.sigma) * state.x - s.alpha * math.expm1(-h) * d
        return replace(state, x=x, x0=x0, history=((lam, x0),))


@dataclass(frozen=True)
class AnnealedLangevin(Sampler):
    """Langevin steps at each level, then down."""

    inner_steps: int = 3
    snr: float = 0.16

    is_stochastic = True

    def evaluations(self, n_steps):
        return (n_steps - 1) * (self.inner_steps + 1) + 1

    def step(self, denoiser, state, t, s, noise):
        x = state.x
        for k in range(self.inner_steps):
            score = (t.alpha * denoiser(x, t.time).x0 - x) / t.sigma**2
            x = langevin_step(x, score, t.sigma, self.snr, noise.normal(x.shape[1:], "corrector", state.step * self.inner_steps + k, x.dtype))
        x0 = denoiser(x, t.time).x0
        return replace(state, x=renoise(x0, (x - t.alpha * x0) / t.sigma, s), x0=x0)


@dataclass(frozen=True)
class AncestralChurn(Sampler):
    """Karras et al.'s stochastic sampler: noise is added, then an Euler step is taken."""

    s_churn: float = 10.0
    s_min: float = 0.05
    s_max: float = 50.0
    n: int = 50

    is_stochastic = True
    default_grid = "karras"

    def step(self, denoiser, state, t, s, noise):
        x, sigma = state.x / t.alpha, t.noise_ratio
        gamma = min(self.s_churn / self.n, math.sqrt(2) - 1) if self.s_min <= sigma <= self.s_max else 0.0
        raised = sigma * (1 + gamma)
        if gamma > 0:
            z = noise.normal(x.shape[1:], "churn", state.step, x.dtype)
            x = x + math.sqrt(raised**2 - sigma**2) * z
        x0 = denoiser(t.alpha * x, t.time).x0
        d = (x - x0) / raised
        return replace(state, x=s.alpha * (x + (s.noise_ratio - raised) * d), x0=x0)


@dataclass(frozen=True)
class RestartDDIM(DDIM):
    """DDIM of the library, its step repeated after noising back; the ancestor's step is called."""

    repeats: int = 2

    @property
    def is_stochastic(self):
        return True

    def evaluations(self, n_steps):
        return self.repeats * (n_steps - 1) + 1

    def step(self, denoiser, state, t, s, noise):
        for j in range(self.repeats):
            down = super().step(denoiser, state, t, s, noise)
            if j + 1 == self.repeats:
                return down
            ratio = t.alpha / s.alpha
            spread = math.sqrt(max(t.sigma**2 - ratio**2 * s.sigma**2, 0.0))
            z = noise.normal(state.x.shape[1:], "churn", state.step * self.repeats + j, state.x.dtype)
            state = replace(state, x=ratio * down.x + spread * z)
        return down


@dataclass(frozen=True)
class RePaintRows(Sampler):
    """RePaint on the upper half: known rows are pasted in at each level."""

    value: float = 0.25

    is_stochastic = True

    def step(self, denoiser, state, t, s, noise):
        x0 = denoiser(state.x, t.time).x0
        x = renoise(x0, (state.x - t.alpha * x0) / t.sigma, s)
        z = noise.normal(x.shape[1:], "step", state.step, x.dtype)
        known = renoise(torch.full_like(x, self.value), z, s)
        mask = torch.arange(x.shape[-1], device=x.device) < x.shape[-1] // 2
        return replace(state, x=torch.where(mask, known, x), x0=x0)


@dataclass(frozen=True)
class AdamsBashforth(Sampler):
    """Linear multistep in sigma with k slopes, coefficients by the integral of Lagrange polynomials, as k-diffusion's LMS."""

    k: int = 3

    default_grid = "karras"

    @property
    def order(self):
        return self.k

    @property
    def n_history(self):
        return self.k - 1

    def _weight(self, nodes, j, a, b):
        """Integral over [a, b] of the polynomial that is 1 at node j and 0 at the others, by Gauss-Legendre with three points."""
        total = 0.0
        for point, weight in ((-math.sqrt(0.6), 5 / 9), (0.0, 8 / 9), (math.sqrt(0.6), 5 / 9)):
            u, value = (a + b) / 2 + (b - a) / 2 * point, 1.0
            for m, node in enumerate(nodes):
                if m != j:
                    value *= (u - node) / (nodes[j] - node)
            total += weight * value
        return total * (b - a) / 2

    def step(self, denoiser, state, t, s, noise):
        y, kappa = state.x / t.alpha, t.noise_ratio
        x0 = denoiser(state.x, t.time).x0
        slopes = [(y - x0) / kappa]
        nodes = [kappa]
        for lam, slope in state.history[: self.k - 1]:
            nodes.append(math.exp(-lam))
            slopes.append(slope)
        for j, d in enumerate(slopes):
            y = y + self._weight(nodes, j, kappa, s.noise_ratio) * d
        history = ((t.half_log_snr, slopes[0]), *state.history)[: self.k - 1]
        return replace(state, x=s.alpha * y, x0=x0, history=history)


# guidance


class ScaledGuidance(BaseDenoiser):
    """Classifier-free guidance in an interval of noise levels only."""

    def __init__(self, denoiser, guidance_scale=2.0, low=0.1, high=0.9):
        super().__init__()
        self.denoiser, self.sde = denoiser, denoiser.sde
        self.guidance_scale, self.low, self.high = float(guidance_scale), low, high

    def x0(self, x, t, condition: Mapping[str, Tensor]):
        conditional = self.denoiser.x0(x, t, condition)
        if not self.low <= t.mean().item() <= self.high:
            return conditional
        null = {**condition, "label": torch.full_like(condition["label"], -1)}
        free = self.denoiser.x0(x, t, null)
        return free + self.guidance_scale * (conditional - free)


class RescaledGuidance(BaseDenoiser):
    """Classifier-free guidance with its contrast brought back, after Lin et al. (2024)."""

    def __init__(self, denoiser, guidance_scale=3.0, phi=0.7):
        self.denoiser, self.guidance_scale, self.phi = denoiser, guidance_scale, phi
        self.sde = denoiser.sde

    def x0(self, x, t, condition):
        null = {key: torch.full_like(value, -1) if key == "label" else value for key, value in condition.items()}
        both = {key: torch.cat([null[key], condition[key]]) for key in condition}
        twice = t if t.numel() == 1 else torch.cat([t, t])
        free, having = self.denoiser.x0(torch.cat([x, x]), twice, both).chunk(2)
        guided = free + self.guidance_scale * (having - free)
        dims = list(range(1, x.ndim))
        rescaled = guided * (having.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True).clamp(min=1e-8))
        return self.phi * rescaled + (1 - self.phi) * guided


class DynamicThreshold(BaseDenoiser):
    """Imagen's dynamic thresholding of x0."""

    def __init__(self, denoiser, percentile=0.95):
        self.denoiser, self.sde, self.percentile = denoiser, denoiser.sde, percentile

    @torch.no_grad()
    def x0(self, x, t, condition):
        x0 = self.denoiser.x0(x, t, condition)
        limit = torch.quantile(x0.flatten(1).abs(), self.percentile, dim=1).clamp(min=1.0)
        limit = limit.view(-1, *[1] * (x.ndim - 1))
        return torch.maximum(torch.minimum(x0, limit), -limit) / limit


class MeanBrightness(BaseDenoiser):
    """Posterior guidance by a gradient through the denoiser: the mean of the image is known, as in DPS."""

    def __init__(self, denoiser, target=0.3, strength=5.0):
        self.denoiser, self.sde, self.target, self.strength = denoiser, denoiser.sde, target, strength

    def x0(self, x, t, condition):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            x0 = self.denoiser.x0(x, t, condition)
            loss = ((x0.flatten(1).mean(1) - self.target) ** 2).sum()
            gradient = torch.autograd.grad(loss, x)[0]
        scale = expand(self.sde.sigma(t).square() / self.sde.alpha(t), x)
        return x0.detach() - self.strength * scale * gradient


# metrics


@dataclass(frozen=True)
class Brightness(Metric):
    """Difference between the mean values of two sets."""

    name = "brightness"

    def config(self):
        return {}

    def __call__(self, real, generated):
        return MetricResult(self.name, (real.mean() - generated.mean()).abs().item(), None, len(real), len(generated))


@dataclass(frozen=True)
class PixelFrechet(Metric):
    """Frechet distance between Gaussians fitted to pixels, pooled to a few."""

    side: int = 4

    name = "pixel-frechet"

    def config(self):
        return {"side": self.side}

    def _moments(self, images):
        x = F.avg_pool2d(images.double(), images.shape[-1] // self.side).flatten(1)
        mean = x.mean(0)
        centred = x - mean
        return mean, centred.T @ centred / (len(x) - 1)

    def __call__(self, real, generated):
        if len(real) < 2 or len(generated) < 2:
            raise ValueError(f"{self.name} needs at least two images of each, got {len(real)} and {len(generated)}")
        (m1, c1), (m2, c2) = self._moments(real), self._moments(generated)
        roots = torch.linalg.eigvals(c1 @ c2)
        trace = torch.linalg.eigvalsh(c1).sum() + torch.linalg.eigvalsh(c2).sum() - 2 * roots.abs().sqrt().sum()
        return MetricResult(self.name, ((m1 - m2).square().sum() + trace).item(), n_real=len(real), n_generated=len(generated))


@dataclass(frozen=True)
class PolynomialMMD(Metric):
    """Squared kernel distance with the kernel (x.y/d + 1)^3, unbiased."""

    name = "mmd"

    def config(self):
        return {"degree": 3}

    def __call__(self, real, generated):
        def kernel(a, b):
            return (a @ b.T / a.shape[1] + 1) ** 3

        x, y = real.flatten(1).double(), generated.flatten(1).double()
        n, m = len(x), len(y)
        kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
        within = (kxx.sum() - kxx.diagonal().sum()) / (n * (n - 1)) + (kyy.sum() - kyy.diagonal().sum()) / (m * (m - 1))
        return MetricResult(self.name, (within - 2 * kxy.mean()).item(), n_real=n, n_generated=m)


@dataclass(frozen=True)
class NearestNeighbours(Metric):
    """Share of generated images that lie within the k-th neighbour distance of some real image: precision."""

    k: int = 3

    name = "precision"
    is_lower_better = False

    def config(self):
        return {"k": self.k}

    def __call__(self, real, generated):
        x, y = real.flatten(1), generated.flatten(1)
        radii = torch.cdist(x, x).kthvalue(self.k + 1, dim=1)[0]
        inside = (torch.cdist(y, x) <= radii).any(dim=1)
        return MetricResult(self.name, inside.double().mean().item(), n_real=len(x), n_generated=len(y), is_lower_better=False)


# whose making costs something


@dataclass(frozen=True)
class SummedByHand(NoiseSchedule):
    """Adds up in a loop before it is ready."""

    n: int = 2
    more: tuple = ()

    def __post_init__(self):
        total = 0.0
        for i in range(self.n):
            total = total + i
        if total < 0:
            raise ValueError("n must not be so")

    def beta(self, t):
        return 20.0 * t

    def integral(self, t):
        return 10.0 * t**2


@dataclass(frozen=True)
class KeptApart(NoiseSchedule):
    """Looks at a value, so that it is no program; with settings of any kind."""

    more: tuple = ()

    def beta(self, t):
        return 20.0 * t if float(t.mean()) >= 0 else t

    def integral(self, t):
        return 10.0 * t**2


class LongTable(NoiseSchedule):
    """Goes through a long table for every value."""

    def beta(self, t):
        return torch.linspace(0.0, 1.0, 1_000_000).sum()

    def integral(self, t):
        return t


# what does not travel


class CachedByHand(NoiseSchedule):
    """Keeps what it computed in a file-like cache: try/except and a change of itself while it runs."""

    def __init__(self):
        self.cache = {}

    @functools.lru_cache
    def beta(self, t):
        try:
            return self.cache[float(t)]
        except KeyError:
            self.cache[float(t)] = 0.1 + 19.9 * t
            return self.cache[float(t)]

    def integral(self, t):
        return 0.1 * t + 19.9 * t**2 / 2


# a schedule


@dataclass(frozen=True)
class SmoothRamp(NoiseSchedule):
    """A smooth step between two rates, written with arithmetic in place."""

    low: float = 0.2
    high: float = 18.0

    def beta(self, t):
        ramp = 3 * t**2
        ramp -= 2 * t**3
        ramp *= self.high - self.low
        ramp += self.low
        return ramp

    def integral(self, t):
        total = t * self.low
        total += (self.high - self.low) * (t**3 - t**4 / 2)
        return total


# processes


@dataclass(frozen=True)
class LinearHalfLogSNR(SDE):
    """The log-SNR falls linearly from `high` to `low`."""

    high: float = 6.2
    low: float = -4.6

    def half_log_snr(self, t):
        return self.high + t * (self.low - self.high)

    def alpha(self, t):
        return torch.sigmoid(2 * self.half_log_snr(t)).sqrt()

    def sigma(self, t):
        return torch.sigmoid(-2 * self.half_log_snr(t)).sqrt()

    def time_of_half_log_snr(self, value):
        return ((value - self.high) / (self.low - self.high)).clamp(0, 1)


@dataclass(frozen=True)
class LaplaceHalfLogSNR(SDE):
    """Times are spread as a Laplace distribution of the log-SNR, after Hang and Gu (2024)."""

    mean: float = 0.0
    width: float = 0.8

    t_max = 1 - 1e-3

    def half_log_snr(self, t):
        side = torch.sign(0.5 - t)
        return self.mean - self.width * side * torch.log(1 - 2 * (t - 0.5).abs() + 1e-6)

    def alpha(self, t):
        return torch.exp(torch.nn.functional.logsigmoid(2 * self.half_log_snr(t)) / 2)

    def sigma(self, t):
        return torch.exp(torch.nn.functional.logsigmoid(-2 * self.half_log_snr(t)) / 2)


@dataclass(frozen=True)
class PowerFlow(SDE):
    """A flow-matching path with a power of t, its rates by hand."""

    power: float = 1.5

    t_max = 1 - 1e-3
    default_grid = "log-snr"

    def alpha(self, t):
        return 1 - t**self.power

    def sigma(self, t):
        return t**self.power

    def rates(self, t):
        rate = self.power * t ** (self.power - 1)
        return -rate, rate


# parametrizations


@dataclass(frozen=True)
class Rotated(Parametrization):
    """The target turned by a fixed angle between image and noise."""

    angle: float = 0.7

    def coefficients(self, sde, t):
        c, s = math.cos(self.angle), math.sin(self.angle)
        return c * torch.ones_like(t) - s * sde.sigma(t), s * sde.alpha(t) + c * torch.zeros_like(t)


class Preconditioned(Parametrization):
    """EDM's target, with an inversion of its own in which nothing cancels."""

    def input_scale(self, sde, t):
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        return 1 / torch.hypot(alpha * self.sigma_data, sigma)

    def coefficients(self, sde, t):
        c_in = self.input_scale(sde, t)
        return sde.sigma(t) * c_in / self.sigma_data, -sde.alpha(t) * c_in * self.sigma_data

    def to_x0(self, sde, t):
        c_in = self.input_scale(sde, t)
        return sde.alpha(t) * torch.square(self.sigma_data * c_in), sde.sigma(t) * self.sigma_data * c_in


# samplers


class HeunInTime(Sampler):
    """Heun's method on the velocity that the denoiser predicts."""

    order = 2

    def evaluations(self, n_steps):
        return 2 * n_steps - 1

    def step(self, denoiser, state, t, s, noise):
        h = s.time - t.time
        here = denoiser(state.x, t.time)
        there = denoiser(state.x + h * here.velocity, s.time)
        return replace(state, x=state.x + 0.5 * h * (here.velocity + there.velocity), x0=here.x0)


@dataclass(frozen=True)
class TwoStepSDE(Sampler):
    """SDE-DPM-Solver++(2M): exponential integrator with one earlier prediction, and noise."""

    eta: float = 1.0

    is_stochastic = True
    n_history = 1
    default_grid = "karras"

    def step(self, denoiser, state, t, s, noise):
        x0, lam = denoiser(state.x, t.time).x0, t.half_log_snr
        h, middle = s.half_log_snr - lam, x0
        for earlier, before in state.history:
            middle = x0 + (h / (lam - earlier) / 2) * (x0 - before)
        x = (s.sigma / t.sigma * math.exp(-self.eta * h)) * state.x - s.alpha * math.expm1(-(1 + self.eta) * h) * middle
        x.add_(noise.normal(x.shape[1:], "step", state.step, x.dtype), alpha=s.sigma * math.sqrt(-math.expm1(-2 * self.eta * h)))
        return replace(state, x=x, x0=x0, history=((lam, x0),))


@dataclass(frozen=True)
class NormCorrected(Sampler):
    """DDIM, then Langevin steps whose size follows each sample's own score, as Song et al. (2021) print it."""

    snr: float = 0.1
    steps: int = 2

    is_stochastic = True

    def evaluations(self, n_steps):
        return (n_steps - 1) * (1 + self.steps) + 1

    def step(self, denoiser, state, t, s, noise):
        x0 = denoiser(state.x, t.time).x0
        x = s.alpha * x0 + s.sigma * (state.x - t.alpha * x0) / t.sigma
        for k in range(self.steps):
            z = noise.normal(x.shape[1:], "corrector", state.step * self.steps + k, x.dtype)
            score = denoiser(x, s.time).score
            ratio = z.flatten(1).norm(dim=1) / torch.linalg.vector_norm(score.flatten(1), dim=1).clamp(min=1e-6)
            size = expand((2 * (self.snr * ratio) ** 2).clamp(max=0.5), x)
            x = x + size * score + torch.sqrt(2 * size) * z
        return replace(state, x=x, x0=x0)


@dataclass(frozen=True)
class RestartStep(Sampler):
    """Down by DDIM, up again by the forward process, and down: a restart at every level in a window."""

    low: float = 0.2
    high: float = 2.0

    is_stochastic = True
    default_grid = "log-snr"

    def evaluations(self, n_steps):
        return 2 * (n_steps - 1) + 1

    def _down(self, denoiser, x, t, s):
        x0 = denoiser(x, t.time).x0
        return s.alpha * x0 + s.sigma * (x - t.alpha * x0) / t.sigma, x0

    def step(self, denoiser, state, t, s, noise):
        x, x0 = self._down(denoiser, state.x, t, s)
        up = math.sqrt(max(t.noise_ratio**2 - s.noise_ratio**2, 0.0))
        raised = t.alpha * (x / s.alpha + up * noise.normal(x.shape[1:], "churn", state.step, x.dtype))
        again, _ = self._down(denoiser, raised, t, s)
        inside = (self.low <= t.noise_ratio) * (t.noise_ratio <= self.high)
        return replace(state, x=x + inside * (again - x), x0=x0)


@dataclass(frozen=True)
class RePaintWhite(Sampler):
    """RePaint where the picture is known to be white once it is bright: pasted in at the level of noise, harmonised by going back."""

    white: float = 1.0
    bright: float = 0.6
    jumps: int = 2

    is_stochastic = True

    def evaluations(self, n_steps):
        return (n_steps - 1) * self.jumps + 1

    def step(self, denoiser, state, t, s, noise):
        x = state.x
        for j in range(self.jumps):
            draw = 2 * (self.jumps * state.step + j)
            prediction = denoiser(x, t.time)
            free = s.alpha * prediction.x0 + s.sigma * prediction.epsilon
            z = noise.normal(x.shape[1:], "step", draw, x.dtype)
            known = s.alpha * torch.full_like(x, self.white) + s.sigma * z
            x = torch.where(prediction.x0 > self.bright, known, free)
            if j + 1 < self.jumps:
                ratio = t.alpha / s.alpha
                back = noise.normal(x.shape[1:], "step", draw + 1, x.dtype)
                x = ratio * x + math.sqrt(max(t.sigma**2 - (ratio * s.sigma) ** 2, 0.0)) * back
        return replace(state, x=x, x0=prediction.x0)


@dataclass(frozen=True)
class ChurnByChoice(Sampler):
    """`AncestralChurn` above with its `if` written as a choice."""

    s_churn: float = 10.0
    s_min: float = 0.05
    s_max: float = 50.0
    n: int = 50

    is_stochastic = True
    default_grid = "karras"

    def step(self, denoiser, state, t, s, noise):
        x, sigma = state.x / t.alpha, t.noise_ratio
        inside = choose(self.s_min <= sigma, choose(sigma <= self.s_max, 1.0, 0.0), 0.0)
        raised = sigma * (1 + inside * min(self.s_churn / self.n, math.sqrt(2) - 1))
        x = x + math.sqrt(raised**2 - sigma**2) * noise.normal(x.shape[1:], "churn", state.step, x.dtype)
        x0 = denoiser(t.alpha * x, t.time).x0
        return replace(state, x=s.alpha * (x + (s.noise_ratio - raised) * (x - x0) / raised), x0=x0)


class ClippedDDIM(DDIM):
    """DDIM on predictions that are cut off at the range of images, by methods that change tensors in place."""

    def step(self, denoiser, state, t, s, noise):
        x0 = denoiser(state.x, t.time).x0.clone()
        kept = x0  # another name for the same tensor
        x0.clamp_(-1, 1)
        epsilon = (state.x - t.alpha * kept).div_(t.sigma)
        return replace(state, x=torch.lerp(kept, epsilon, s.sigma).mul_(1.0) + (s.alpha - 1 + s.sigma) * kept, x0=kept)


@dataclass(frozen=True)
class SlopesOfNoise(Sampler):
    """Adams-Bashforth of order three on the noise, which is what it remembers."""

    n_history = 2
    order = 3
    default_grid = "noise-ratio"
    weights: tuple = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12))

    def memory(self, x, x0, t):
        return (x - t.alpha * x0) / t.sigma

    def step(self, denoiser, state, t, s, noise):
        x0 = denoiser(state.x, t.time).x0
        newest = self.memory(state.x, x0, t)
        slopes = [newest] + [slope for _, slope in state.history]
        mean = sum(w * slope for w, slope in zip(self.weights[len(slopes) - 1], slopes))
        x = s.alpha * (state.x / t.alpha + (s.noise_ratio - t.noise_ratio) * mean)
        return replace(state, x=x, x0=x0, history=((t.half_log_snr, newest), *state.history)[: self.n_history])


@dataclass(frozen=True)
class MeanOfEnds(Sampler):
    """DDIM whose last step averages two predictions: it has a `finish` of its own."""

    predictor: Sampler = field(default_factory=DDIM)

    def evaluations(self, n_steps):
        return n_steps + 1

    def step(self, denoiser, state, t, s, noise):
        x0 = denoiser(state.x, t.time).x0
        total = sum((s.alpha, -t.alpha * s.sigma / t.sigma))  # numbers, added by Python's sum
        return replace(state, x=total * x0 + (s.sigma / t.sigma) * state.x, x0=x0)

    def finish(self, denoiser, state, t):
        first = denoiser(state.x, t.time).x0
        second = denoiser(t.alpha * first, t.time).x0
        return replace(state, x=(first + second) / 2, x0=first)


# guidance


class IntervalGuidance(BaseDenoiser):
    """Classifier-free guidance between two noise levels, for each sample by itself."""

    def __init__(self, denoiser, guidance_scale=2.0, low=0.2, high=5.0):
        self.denoiser, self.sde = denoiser, denoiser.sde
        self.guidance_scale, self.low, self.high = guidance_scale, low, high

    def x0(self, x, t, condition):
        having = self.denoiser.x0(x, t, condition)
        free = self.denoiser.x0(x, t, {**condition, "label": torch.full_like(condition["label"], -1)})
        ratio = self.sde.sigma(t) / self.sde.alpha(t)
        scale = torch.where((ratio >= self.low) & (ratio <= self.high), self.guidance_scale, 1.0)
        return free + expand(scale, x) * (having - free)


class RescaledByTwo(BaseDenoiser):
    """`RescaledGuidance` above with two questions in place of one for twice the samples."""

    def __init__(self, denoiser, guidance_scale=3.0, phi=0.7):
        self.denoiser, self.guidance_scale, self.phi = denoiser, guidance_scale, phi
        self.sde = denoiser.sde

    def x0(self, x, t, condition):
        null = {key: torch.full_like(value, -1) if key == "label" else value for key, value in condition.items()}
        free, having = self.denoiser.x0(x, t, null), self.denoiser(x, t, condition).x0
        guided = free + self.guidance_scale * (having - free)
        dims = list(range(1, x.ndim))
        rescaled = guided * (having.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True).clamp(min=1e-8))
        return self.phi * rescaled + (1 - self.phi) * guided


class ProjectedGuidance(BaseDenoiser):
    """Guidance without its part along the prediction, after Sadat et al. (2024)."""

    def __init__(self, denoiser, guidance_scale=4.0, along=0.2):
        self.denoiser, self.sde, self.guidance_scale, self.along = denoiser, denoiser.sde, guidance_scale, along

    def x0(self, x, t, condition):
        having = self.denoiser.x0(x, t, condition)
        free = self.denoiser.x0(x, t, {"label": torch.full_like(condition["label"], -1)})
        difference = having - free
        dot = (difference * having).flatten(1).sum(1)
        square = having.square().flatten(1).sum(1).clamp(min=1e-12)
        parallel = expand(dot / square, x) * having
        return having + (self.guidance_scale - 1) * (difference - (1 - self.along) * parallel)


class SoftThreshold(BaseDenoiser):
    """Dynamic thresholding with a bound on the scale, written as the library's own is described."""

    def __init__(self, denoiser, percentile=0.9, limit=1.0, maximum=3.0):
        self.denoiser, self.sde = denoiser, denoiser.sde
        self.percentile, self.limit, self.maximum = percentile, limit, maximum

    def x0(self, x, t, condition):
        x0 = self.denoiser.x0(x, t, condition)
        s = x0.abs().flatten(1).quantile(self.percentile, dim=1).clamp(self.limit, self.maximum)
        s = s[:, None, None, None] if x.ndim == 4 else expand(s, x)
        return torch.minimum(torch.maximum(x0, -s), s) * (self.limit / s)


SCHEDULES = [
    TutorialExponential,
    SigmoidSchedule,
    TableSchedule,
    PiecewiseSchedule,
    QuadraticSqrt,
    WarmLinear,
    FourierSchedule,
    SummedByHand,
    SmoothRamp,
]
PROCESSES = [GeometricVE, TrigonometricFlow, ShiftedVP, StretchedVP, LinearHalfLogSNR, LaplaceHalfLogSNR, PowerFlow]
PARAMETRIZATIONS = [ScaledNoise, SoftV, Rotated, Preconditioned]
SAMPLERS = [TutorialEuler, PlainDDIM, MyHeun, MyDPM2M, AnnealedLangevin, RestartDDIM, AdamsBashforth, HeunInTime, TwoStepSDE, NormCorrected]
SAMPLERS += [RestartStep, RePaintWhite, ChurnByChoice, ClippedDDIM, SlopesOfNoise, MeanOfEnds]
GUIDANCE = [DynamicThreshold, IntervalGuidance, RescaledByTwo, ProjectedGuidance, SoftThreshold]
METRICS = [Brightness, PixelFrechet, PolynomialMMD, NearestNeighbours]
TRAVEL = [*SCHEDULES, *PROCESSES, *PARAMETRIZATIONS, *SAMPLERS, *GUIDANCE]
STAY = {  # the line, and what to write instead
    AncestralChurn: r"component_corpus.py, line \d+: `gamma = min.*choose for numbers",
    RePaintRows: r"line \d+: `mask = torch.arange\(x.shape.*a shape or a size is looked at",
    ScaledGuidance: r"line \d+: `if not self.low.*x.flatten\(1\).mean\(dim=1\)",
    RescaledGuidance: r"line \d+: `both = .*ask the denoiser twice",
    MeanBrightness: r"line \d+: `x = x.detach\(\).requires_grad_.*components=",
    CachedByHand: r"line \d+: `@functools.lru_cache`.*unhashable",
    LongTable: r"line \d+: `def beta.*torch.full_like",
    **dict.fromkeys(METRICS, "is no schedule, process, parametrization, sampler or guidance.*components="),
}
