"""More components as people write them, beside those of `recipe_corpus.py`. `tests/files/test_programs.py` traces them all."""

import math
from dataclasses import dataclass, field, replace

import torch

from diffnb.core import expand
from diffnb.denoise import BaseDenoiser
from diffnb.files.operations import choose
from diffnb.noise import SDE, NoiseSchedule, Parametrization
from diffnb.samplers import DDIM, Sampler

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
class LinearLogSNR(SDE):
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
class LaplaceLogSNR(SDE):
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
    """`AncestralChurn` of the older corpus with its `if` written as a choice."""

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
    """`RescaledGuidance` of the older corpus with two questions in place of one for twice the samples."""

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


SCHEDULES = [SmoothRamp]
PROCESSES = [LinearLogSNR, LaplaceLogSNR, PowerFlow]
PARAMETRIZATIONS = [Rotated, Preconditioned]
SAMPLERS = [HeunInTime, TwoStepSDE, NormCorrected, RestartStep, RePaintWhite, ChurnByChoice, ClippedDDIM, SlopesOfNoise, MeanOfEnds]
GUIDANCE = [IntervalGuidance, RescaledByTwo, ProjectedGuidance, SoftThreshold]
