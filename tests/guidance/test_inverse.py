"""Posterior sampling against exact posteriors: Gaussians, where the covariance-aware methods are exact, and mixtures."""

import math
from dataclasses import replace

import pytest
import torch

from diffnb.core import NoiseSource
from diffnb.denoise import BaseDenoiser, Gaussian, GaussianMixture, check_denoiser
from diffnb.guidance import (
    DDNM,
    DPS,
    MMPS,
    Blur,
    CalibratedPosterior,
    Conditioned,
    DenseCovariance,
    Downsample,
    Hook,
    Hooked,
    Identity,
    Mask,
    Observation,
    PiGDM,
    Replacement,
    Resampled,
    SpectralCovariance,
    Steered,
    calibrate,
    cosines,
    gaussian_kernel,
)
from diffnb.guidance.posterior import _smoothed
from diffnb.noise import EDM, VE, VP, FlowMatching, SubVP
from diffnb.samplers import DDIM, DPMSolverPP2M, EulerMaruyama, Heun, State

PROCESSES = [VP(), SubVP(), VE(), EDM(), FlowMatching()]
SHAPE, NOISE = (1, 4, 4), 0.1
HALF = (torch.arange(4) > 1).double().expand(4, 4)
PROBLEMS = {"hole": Mask(HALF), "small": Downsample(2), "blurred": Blur(gaussian_kernel(0.8, 1)), "noisy": Identity()}


def smooth(h, w, length=1.5, std=0.6):
    y, x = torch.meshgrid(torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    return std**2 * (torch.exp(-(torch.cdist(places, places) ** 2) / (2 * length**2)) + 0.01 * torch.eye(h * w, dtype=torch.float64))


GAUSS = Gaussian(torch.linspace(-0.5, 0.5, 16, dtype=torch.float64), smooth(4, 4))
MIXTURE = GaussianMixture(
    torch.stack([torch.linspace(-1, 1, 16, dtype=torch.float64), 0.8 * torch.ones(16, dtype=torch.float64), torch.cos(torch.arange(16.0)).double()]),
    torch.stack([smooth(4, 4, 1.0, 0.3), smooth(4, 4, 2.0, 0.4), smooth(4, 4, 1.5, 0.5)]),
    [1.0, 2.0, 2.0],
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measure(prior, operator, n, seed=0):
    truth = prior.sample(1, seed=seed).view(1, *SHAPE)
    y = operator.A(truth)
    y = y + NOISE * normal(*y.shape, seed=seed) * (operator.A(torch.ones_like(truth)) != 0)
    return Observation(operator, y.expand(n, *y.shape[1:]), NOISE), prior.posterior(operator, y, NOISE, SHAPE)


def dense(operator):
    return operator.A(torch.eye(16, dtype=torch.float64).view(16, *SHAPE)).flatten(1).T


def exact_covariance(prior):
    """The Gaussian's V at many levels."""
    lambdas = torch.linspace(-6, 5, 80, dtype=torch.float64)
    precision, eye = torch.linalg.inv(prior.covariances[0]), torch.eye(16, dtype=torch.float64)
    return DenseCovariance(
        tuple(lambdas.tolist()), torch.stack([torch.linalg.inv(precision + torch.exp(2 * v) * eye) * (1 + torch.exp(2 * v)) for v in lambdas])
    )


def off(x, posterior):
    """Errors of mean and standard deviation in standard deviations of the posterior."""
    std, flat = posterior.covariance.diagonal().sqrt(), x.flatten(1)
    return max(((e / std).square().mean().sqrt().item()) for e in (flat.mean(0) - posterior.mean, flat.std(0) - std))


@pytest.mark.parametrize("name", PROBLEMS)
def test_posterior_of_a_mixture_by_precisions_and_by_bayes(name):
    operator = PROBLEMS[name]
    observation, posterior = measure(MIXTURE, operator, 1, seed=2)
    matrix, y = dense(operator), observation.y.flatten()
    x = torch.cat([MIXTURE.sample(30, seed=5), posterior.sample(30, seed=6)])
    likelihood = torch.distributions.Normal(x @ matrix.T, NOISE).log_prob(y)[:, matrix.abs().sum(1) > 0].sum(1)
    evidence = MIXTURE.log_prob(x) + likelihood - posterior.log_prob(x)
    torch.testing.assert_close(evidence, evidence[:1].expand(60), atol=1e-7, rtol=0)
    for mean, covariance, m, c in zip(MIXTURE.means, MIXTURE.covariances, posterior.means, posterior.covariances):
        if len(posterior.weights) == 3:
            inverse = torch.linalg.inv(torch.linalg.inv(covariance) + matrix.T @ matrix / NOISE**2)
            torch.testing.assert_close(c, inverse, atol=1e-9, rtol=1e-7)
            torch.testing.assert_close(m, inverse @ (torch.linalg.solve(covariance, mean) + matrix.T @ y / NOISE**2), atol=1e-8, rtol=1e-7)


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("name", PROBLEMS)
def test_mmps_and_conditioned_are_exact_for_a_gaussian(sde, name):
    observation, posterior = measure(GAUSS, PROBLEMS[name], 4)
    covariance = exact_covariance(GAUSS)
    for time in (0.1, 0.5, 0.9):
        x = sde.perturb(GAUSS.sample(4, seed=1), time, normal(4, 16)).view(4, *SHAPE)
        exact = posterior.denoiser(sde)(x, time).x0
        torch.testing.assert_close(MMPS(GAUSS.denoiser(sde), observation, 40)(x, time).x0, exact, atol=1e-7, rtol=0)
        torch.testing.assert_close(Conditioned(GAUSS.denoiser(sde), observation, covariance)(x, time).x0, exact, atol=3e-3, rtol=0)


@pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
def test_pigdm_is_exact_for_round_data_of_any_scale(sde):
    for scale in (1.0, 0.5):
        ball = Gaussian(torch.zeros(16), scale**2)
        observation, posterior = measure(ball, PROBLEMS["small"], 4)
        x = 2 * normal(4, *SHAPE)
        steered = PiGDM(ball.denoiser(sde), observation, data_std=scale)(x, 0.4).x0
        torch.testing.assert_close(steered, posterior.denoiser(sde)(x, 0.4).x0, atol=1e-5, rtol=0)


def test_ddnm_meets_an_exact_measurement_and_trusts_a_noisy_one_less_and_less():
    x, sde = normal(3, *SHAPE), VP()
    for operator in PROBLEMS.values():
        y = operator.A(GAUSS.sample(3, seed=1).view(3, *SHAPE))
        torch.testing.assert_close(operator.A(DDNM(GAUSS.denoiser(sde), Observation(operator, y))(x, 0.5).x0), y, atol=1e-5, rtol=0)
    y = GAUSS.sample(3, seed=1).view(3, *SHAPE)
    t = sde.time_of_half_log_snr(torch.tensor(-math.log(0.02), dtype=torch.float64))
    x0 = GAUSS.denoiser(sde)(x, t).x0
    moved = DDNM(GAUSS.denoiser(sde), Observation(Identity(), y, 0.1))(x, t).x0
    torch.testing.assert_close(moved, x0 + 0.2 * (y - x0))


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("sde, n_steps", [(EDM(), 2), (VP(), 3), (FlowMatching(), 8)], ids=str)
def test_calibrated_posterior_is_exact_for_a_gaussian_in_any_number_of_steps(name, sde, n_steps):
    observation, posterior = measure(GAUSS, PROBLEMS[name], 4000)
    sampler = CalibratedPosterior(exact_covariance(GAUSS), observation)
    result = sampler(GAUSS.denoiser(sde), shape=(4000, *SHAPE), n_steps=n_steps, seeds=1, dtype=torch.float64)
    assert off(result.x, posterior) < 0.06
    covariance = result.x.flatten(1).T.cov()
    assert (covariance - posterior.covariance).norm() < 0.12 * posterior.covariance.norm()
    assert result.nfe == n_steps


def test_calibration_measures_the_posterior_covariance():
    images = GAUSS.sample(20_000, seed=1).view(-1, *SHAPE)
    for sde in (VP(), EDM()):
        covariance = calibrate(GAUSS.denoiser(sde), images, dense=True)
        for lam in covariance.lambdas[2:-1:3]:
            exact = torch.linalg.inv(torch.linalg.inv(GAUSS.covariances[0]) + math.exp(2 * lam) * torch.eye(16, dtype=torch.float64))
            assert (covariance.at(lam, images).matrix - exact).norm() < 0.04 * exact.norm()
    # stationary data with two unequal channels: the spectral form finds scale, axes and spectrum
    line = torch.exp(-torch.arange(8, dtype=torch.float64))
    root = cosines(8).T @ torch.diag(line.sqrt()) @ cosines(8)
    field = root @ normal(4000, 2, 8, 8, seed=3) @ root.mT
    mixed = torch.einsum("cd,ndhw->nchw", torch.tensor([[1.0, 0.0], [0.8, 0.3]], dtype=torch.float64), field)
    data = Gaussian(torch.zeros(128), mixed.flatten(1).T.cov())
    spectral = calibrate(data.denoiser(EDM()), data.sample(4000, seed=5).view(-1, 2, 8, 8))
    assert isinstance(spectral, SpectralCovariance)
    z = normal(1, 2, 8, 8, seed=8)
    for lam in (-1.0, 0.5):
        exact = torch.linalg.inv(torch.linalg.inv(data.covariances[0]) + math.exp(2 * lam) * torch.eye(128, dtype=torch.float64))
        factor = spectral.at(lam, z)
        basis = torch.eye(128, dtype=torch.float64).view(128, 2, 8, 8)
        found = factor.multiply(basis).flatten(1)
        assert (found - exact).norm() < 0.08 * exact.norm()  # 0.22 to 0.31 if the edges, where cosines add up to more, are scaled up once more
        assert abs(found.trace() / exact.trace() - 1) < 0.03
        half = factor.root(basis).flatten(1).T
        torch.testing.assert_close(half @ half.T, found, atol=1e-9, rtol=0)


class Erring(BaseDenoiser):
    """A denoiser under EDM whose errors are given: the truth less sqrt(kappa^2 / (1 + kappa^2)) times those of the upper or lower levels."""

    sde = EDM()

    def x0(self, x, t, condition):
        kappa = (self.sde.sigma(t) / self.sde.alpha(t)).item()
        return condition["truth"] - kappa / math.hypot(1, kappa) * condition["upper" if kappa > 1 else "lower"]


def with_second_moment(root, shape, n):
    """Samples (n, *shape) whose mean outer product is root @ root^T to the last digit."""
    return (math.sqrt(n) * torch.linalg.qr(normal(n, len(root), seed=11))[0] @ root.T).reshape(n, *shape)


def white(channels, pixels):
    """The covariance of images that are white in space: a matrix for the channels, repeated at each pixel; or a root of it."""
    return torch.kron(channels.contiguous(), torch.eye(pixels, dtype=torch.float64))


def calibrated_on(upper, lower):
    """The spectral covariance of given errors, measured at a large and at a small noise level."""
    condition = {"truth": normal(*upper.shape, seed=12), "upper": upper, "lower": lower}
    return calibrate(Erring(), condition["truth"], n_levels=2, condition=condition)


def test_the_spectral_covariance_of_three_channels_is_that_of_the_errors():
    """Errors that are white in space and correlated across channels, by axes that are no symmetric matrix: every factor is exact."""
    channels = torch.tensor([[1.0, 0.7, 0.1], [0.7, 0.9, -0.3], [0.1, -0.3, 0.5]], dtype=torch.float64)
    errors = with_second_moment(white(torch.linalg.cholesky(channels), 12), (3, 3, 4), 80)
    spectral, basis = calibrated_on(2 * errors, errors), torch.eye(36, dtype=torch.float64).view(36, 3, 3, 4)
    assert (spectral.rotation - spectral.rotation.T).abs().max() > 0.1
    for lam in (spectral.lambdas[0], -1.0, 0.0, 2.5, spectral.lambdas[1]):
        upper = (spectral.lambdas[1] - lam) / (spectral.lambdas[1] - spectral.lambdas[0])  # share of the upper level, where all is 4 times as much
        exact = 4**upper * white(channels, 12) / (1 + math.exp(2 * lam))
        factor = spectral.at(lam, basis)
        torch.testing.assert_close(factor.multiply(basis).flatten(1), exact, atol=1e-10, rtol=1e-8)
        half = factor.root(basis).flatten(1).T
        torch.testing.assert_close(half @ half.T, exact, atol=1e-10, rtol=1e-8)


def test_every_level_has_the_same_say_in_the_axes_of_the_channels():
    """The axes are those of the sum of the two covariances, although the errors of one are ten thousand times those of the other."""
    upper = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.2, 0.2], [0.0, 0.2, 0.4]], dtype=torch.float64)
    lower = torch.tensor([[0.8, -0.5, 0.3], [-0.5, 0.5, 0.0], [0.3, 0.0, 1.5]], dtype=torch.float64)
    spectral = calibrated_on(*(with_second_moment(white(torch.linalg.cholesky(c), 4), (3, 2, 2), 40) for c in (upper, lower)))
    turned = spectral.rotation @ (upper + lower) @ spectral.rotation.T
    torch.testing.assert_close(turned, turned.diagonal().diag(), atol=1e-10, rtol=0)
    assert (spectral.rotation @ upper @ spectral.rotation.T).triu(1).abs().max() > 0.1  # not those of one level


def test_calibration_noises_every_image_at_every_level_anew():
    class Seeing(Erring):
        seen = []

        def x0(self, x, t, condition):
            self.seen.append((x - self.sde.alpha(t) * condition["truth"]) / self.sde.sigma(t))
            return condition["truth"]

    truth = normal(90, 1, 8, 8, seed=12)
    calibrate(Seeing(), truth, n_levels=3, condition={"truth": truth}, batch_size=30)
    noise = torch.cat(Seeing.seen).reshape(270, 64)  # 30 images at a time, three times a level
    products = noise @ noise.T / 64  # rows that are independent have products of size 1 / 8
    assert (products.diagonal() - 1).abs().max() < 6 * math.sqrt(2) / 8
    assert products.triu(1).abs().max() < 6 / 8 and products.triu(1).square().sum() / (270 * 269 / 2) == pytest.approx(1 / 64, rel=0.05)


@pytest.mark.parametrize("n", [32, 96])
def test_variances_are_pulled_to_their_neighbours_by_what_the_number_of_samples_says(n):
    """One variance stands out among equal ones. Its logarithm moves by 1 / (1 + n / 32) of the way to the mean of its nine."""
    pull, tall = 1 / (1 + n / 32), 3.0
    inside, corner = torch.zeros(2, 4, 4, dtype=torch.float64)
    inside[:3, :3] = 1 / 9  # the pixel (1, 1), once in the window of each of its neighbours
    # (0, 0), four times in its own window: the edge is repeated outwards
    corner[:2, :2] = torch.tensor([[4.0, 2.0], [2.0, 1.0]], dtype=torch.float64) / 9
    for place, shares in (((1, 1), inside), ((0, 0), corner)):
        variance = torch.ones(1, 4, 4, dtype=torch.float64)
        variance[0][place] = tall
        expected = math.log(tall) * (pull * shares + (1 - pull) * (variance == tall))
        torch.testing.assert_close(_smoothed(variance, n).log(), expected, atol=1e-12, rtol=0)
    # each pixel has the variance that was measured in it, pulled in space and with the floor, up to one factor for the image
    variance = torch.ones(4, 4, dtype=torch.float64)
    variance[1, 1] = tall
    errors = with_second_moment(variance.sqrt().flatten().diag(), (1, 4, 4), n)
    spectral, basis = calibrated_on(errors, errors), torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    given = spectral.at(0.0, basis).multiply(basis).flatten(1).diagonal().view(4, 4)
    floor = 1e-3 * (15 + tall) / 16
    expected = math.log((tall + floor) / (1 + floor)) * (pull * inside + (1 - pull) * (variance == tall))
    torch.testing.assert_close((given / given[3, 3]).log(), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("n, pull", [(32, 1 / 2), (96, 1 / 4), (10**9, 0.0)])
def test_a_frequency_is_pulled_to_its_neighbours_too(n, pull, monkeypatch):
    """The constant one alone stands out, so that all pixels vary alike: its logarithm moves by five ninths of the pull, as a corner's does."""
    tall, rows = 3.0, cosines(4)
    variance = torch.ones(4, 4, dtype=torch.float64)
    variance[0, 0] = tall
    errors = with_second_moment(torch.kron(rows, rows).mT * variance.flatten().sqrt(), (1, 4, 4), 32)
    monkeypatch.setattr("diffnb.guidance.posterior._smoothed", lambda variance, _: _smoothed(variance, n))
    found = calibrated_on(errors, errors).spectrum[0, 0]
    assert (found[0, 0] / found[3, 3]).log() / math.log(tall) == pytest.approx(1 - pull * 5 / 9, abs=0.02)


def sliced_w2(a, b):
    directions = normal(a.shape[1], 100, seed=9)
    directions = directions / directions.norm(dim=0)
    return ((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean().sqrt().item()


def test_on_a_mixture_ten_evaluations_beat_a_hundred_of_dps_and_the_intervals_are_honest():
    n, denoiser = 600, MIXTURE.denoiser(EDM())
    covariance = calibrate(denoiser, MIXTURE.sample(2000, seed=9).view(-1, *SHAPE), dense=True)
    mine, theirs, inside = [], [], []
    for k, operator in enumerate((PROBLEMS["hole"], PROBLEMS["blurred"])):
        for seed in (1, 2):
            observation, posterior = measure(MIXTURE, operator, n, seed=seed + k)
            exact = posterior.sample(n, seed=3)
            x = CalibratedPosterior(covariance, observation)(denoiser, shape=(n, *SHAPE), n_steps=10, seeds=0, dtype=torch.float64).x.flatten(1)
            other = Hooked(DDIM(eta=1.0), DPS(observation))(denoiser, shape=(n, *SHAPE), n_steps=50, grid="karras", seeds=0, dtype=torch.float64).x
            mine.append(sliced_w2(x, exact))
            theirs.append(sliced_w2(other.flatten(1), exact))
            inside.append(((exact >= x.quantile(0.05, 0)) & (exact <= x.quantile(0.95, 0))).double().mean().item())
    assert sum(mine) < 0.6 * sum(theirs)
    assert 0.87 < sum(inside) / len(inside) < 0.93


def test_replacement_is_noise_matched():
    """At every level what is pasted has mean alpha y and variance sigma^2, the measurement's own noise included."""
    seen, y = [], torch.full((4000, *SHAPE), 0.7, dtype=torch.float64)
    truth = 0.7

    class Look(Hook):
        def __call__(self, state, t, s, noise, watched):
            seen.append((s, state.x[:, 0, 0, 0]))
            return state

    noisy = Observation(Mask(HALF), (y + NOISE * normal(4000, *SHAPE)) * (1 - HALF), NOISE)
    Hooked(Hooked(DDIM(eta=1.0), Replacement(noisy)), Look())(GAUSS.denoiser(VP()), shape=(4000, *SHAPE), n_steps=12, seeds=0, dtype=torch.float64)
    for s, values in seen[:-1]:
        if s.sigma > s.alpha * NOISE:
            assert abs(values.mean().item() - s.alpha * truth) < 5 * s.sigma / 4000**0.5
            assert abs(values.std().item() / s.sigma - 1) < 0.06


def test_resampling_leaves_the_prior_alone_and_counts_its_evaluations():
    result = Resampled(DDIM(eta=1.0), 3)(GAUSS.denoiser(VP()), shape=(3000, 16), n_steps=150, seeds=0, dtype=torch.float64)
    assert off(result.x, GAUSS) < 0.07
    assert result.nfe == Resampled(DDIM(eta=1.0), 3).evaluations(150) == 448


@pytest.mark.parametrize("sampler", [DDIM(eta=1.0), DPMSolverPP2M(), Heun()], ids=lambda s: type(s).__name__)
def test_jumps_are_walks_up_and_down_again(sampler):
    """One stretch over all levels, taken twice: the run, its noising back to the start, and the run from there."""
    sde, n = VP(), 6
    whole = Resampled(sampler, 2, jump=n - 1)(GAUSS.denoiser(sde), shape=(2000, *SHAPE), n_steps=n, seeds=0, dtype=torch.float64, keep_states=True)
    once = sampler(GAUSS.denoiser(sde), shape=(2000, *SHAPE), n_steps=n, seeds=0, dtype=torch.float64, keep_states=True)
    for k in range(n - 1):  # the first way down is the plain run, bit for bit
        assert torch.equal(whole.states[k], once.states[k])
    assert not torch.equal(whole.states[n - 1], once.states[n - 1])
    levels = sde.levels(sampler.grid(sde, n))
    z = NoiseSource.of(0, 2000).normal(SHAPE, "corrector", 2**31, torch.float64)
    scale = levels[0].alpha / levels[-1].alpha
    up = scale * once.states[n - 1] + math.sqrt(levels[0].sigma ** 2 - (scale * levels[-1].sigma) ** 2) * z
    assert abs(up.std().item() / (levels[0].alpha ** 2 * GAUSS.covariances[0].diagonal().mean() + levels[0].sigma ** 2).sqrt().item() - 1) < 0.02
    if not sampler.is_stochastic:  # no numbers of its own: the second way down can be taken by hand
        state = State(up, plan=sampler.plan(sde, levels, []))
        for k in range(n - 1):
            state = sampler.step(GAUSS.denoiser(sde), replace(state, step=k), levels[k], levels[k + 1], None)
        torch.testing.assert_close(whole.states[n - 1], state.x, atol=1e-10, rtol=0)
    assert whole.nfe == Resampled(sampler, 2, jump=n - 1).evaluations(n)


def test_a_stretch_taken_again_remembers_what_came_before_it():
    """A multistep method goes down again with the predictions from above the stretch, not with those from its end."""
    sde, sampler, jump = VP(), DPMSolverPP2M(), 3
    whole = Resampled(sampler, 2, jump)(GAUSS.denoiser(sde), shape=(20, *SHAPE), n_steps=7, seeds=0, dtype=torch.float64, keep_states=True)
    levels = sde.levels(sampler.grid(sde, 7))
    state = State(whole.states[0], plan=sampler.plan(sde, levels, []))
    for first in (0, 3):
        start, top, end = state, levels[first], levels[first + jump]
        for again in (False, True):
            if again:
                z, scale = NoiseSource.of(0, 20).normal(SHAPE, "corrector", 2**31 + first, torch.float64), top.alpha / end.alpha
                state = replace(start, x=scale * state.x + math.sqrt(top.sigma**2 - (scale * end.sigma) ** 2) * z)
            for k in range(first, first + jump):
                state = sampler.step(GAUSS.denoiser(sde), replace(state, step=k), levels[k], levels[k + 1], None)
        torch.testing.assert_close(whole.states[first + jump], state.x, atol=1e-10, rtol=0)


@pytest.mark.parametrize("times, jump, n_steps, evaluations", [(3, 1, 10, 28), (3, 4, 10, 26), (2, 9, 10, 19), (2, 10, 10, 10), (1, 3, 10, 10)])
def test_jumps_cost_what_they_say(times, jump, n_steps, evaluations):
    sampler = Resampled(Hooked(DDIM(eta=1.0), Replacement(measure(GAUSS, PROBLEMS["hole"], 2)[0])), times, jump)
    result = sampler(GAUSS.denoiser(VP()), shape=(2, *SHAPE), n_steps=n_steps, seeds=0, dtype=torch.float64)
    assert result.nfe == sampler.evaluations(n_steps) == evaluations
    with pytest.raises(ValueError, match="jump"):
        Resampled(DDIM(), 2, 0)


def test_dps_descends_the_distance():
    sde, levels = VP(), VP().levels(torch.tensor([0.6, 0.5], dtype=torch.float64))
    observation, _ = measure(GAUSS, PROBLEMS["small"], 5)
    x = normal(5, *SHAPE)
    noise = NoiseSource.of(0, 5)
    moved, plain = (s.step(GAUSS.denoiser(sde), State(x), *levels, noise).x for s in (Hooked(DDIM(), DPS(observation, 0.3)), DDIM()))

    def distance(v):
        return observation.residual(GAUSS.denoiser(sde)(v, 0.6).x0).flatten(1).norm(dim=1)

    h, gradient = 1e-6, (plain - moved) / 0.3
    directional = (distance(x + h * gradient) - distance(x - h * gradient)) / (2 * h)
    torch.testing.assert_close(directional, gradient.flatten(1).square().sum(1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("make", [lambda d, o: MMPS(d, o, 2), PiGDM, DDNM], ids=["mmps", "pigdm", "ddnm"])
def test_steered_denoisers_are_denoisers(make):
    observation, _ = measure(GAUSS, PROBLEMS["small"], 1)
    check_denoiser(make(GAUSS.denoiser(VP()), observation), (4, *SHAPE), tolerance=1e-5, dtype=torch.float64)


@pytest.mark.parametrize("sampler", [DDIM(), Heun(), DPMSolverPP2M(), EulerMaruyama()], ids=lambda s: type(s).__name__)
def test_a_hook_that_does_nothing_changes_nothing(sampler):
    class Nothing(Hook):
        differentiates = True

        def __call__(self, state, t, s, noise, seen):
            return state

    plain, hooked = (s(GAUSS.denoiser(VP()), shape=(2, 16), n_steps=9, seeds=0, dtype=torch.float64) for s in (sampler, Hooked(sampler, Nothing())))
    assert torch.equal(plain.x, hooked.x) and plain.nfe == hooked.nfe


def test_posterior_samples_belong_to_their_seeds_also_in_inference_mode():
    observation, _ = measure(MIXTURE, PROBLEMS["small"], 4)
    covariance, denoiser = exact_covariance(GAUSS), MIXTURE.denoiser(VP())
    together = CalibratedPosterior(covariance, observation)(denoiser, shape=(4, *SHAPE), n_steps=5, seeds=[7, 8, 9, 7], dtype=torch.float64).x
    alone = CalibratedPosterior(covariance, observation.select(slice(1, 2)))(denoiser, shape=(1, *SHAPE), n_steps=5, seeds=[8], dtype=torch.float64).x
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=0)
    assert torch.equal(together[0], together[3])
    with torch.inference_mode():
        DPMSolverPP2M()(MMPS(denoiser, observation), shape=(4, *SHAPE), n_steps=3, seeds=0, dtype=torch.float64)


def test_bad_input():
    observation, _ = measure(GAUSS, PROBLEMS["small"], 2)
    denoiser = GAUSS.denoiser(VP())
    for make, sentence in [
        (lambda: MMPS(denoiser, observation, 0), "iterations"),
        (lambda: Resampled(DDIM(), 0), "times"),
        (lambda: calibrate(denoiser, normal(1, *SHAPE)), "at least 2 images"),
        (lambda: CalibratedPosterior(None, observation)(denoiser, shape=(2, *SHAPE), n_steps=1), "at least 2"),
        (lambda: GAUSS.posterior(torch.ones(1, 3), torch.ones(1), 0.1), "matrix of shape"),
        (lambda: GAUSS.posterior(torch.ones(1, 16), torch.ones(2), 0.1), "1 elements"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            make()
    with pytest.raises(TypeError, match="must define steer"):
        Steered(denoiser, observation)(normal(2, *SHAPE), 0.5)
