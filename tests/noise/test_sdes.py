"""Schedules, processes, parametrizations and predictions against quadrature, differences, and the formulae of the papers."""

import math

import pytest
import torch
from scipy.integrate import quad

from diffnb.denoise import Prediction
from diffnb.noise import (
    EDM,
    VE,
    VP,
    X0,
    Cosine,
    Epsilon,
    Exponential,
    Flow,
    FlowMatching,
    Karras,
    Linear,
    Score,
    SubVP,
    V,
    VEPower,
    check_parametrization,
)
from diffnb.training import DiffusionCallback, LogNormal, UniformHalfLogSNR, UniformTime

LINEAR, COSINE = Linear(), Cosine(beta_max=8.0)  # which is clipped at t = 0.75
T = torch.tensor([0.05, 0.3, 0.6, 0.74, 0.8, 0.98], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [LINEAR, Cosine(), COSINE, Exponential(), Exponential(0.2, 7.0, 0.7)], ids=repr)
def test_schedules_are_the_integrals_of_their_rates(schedule):
    kinks = [schedule.t_clip] if isinstance(schedule, Cosine) else None

    def rate(t):
        return schedule.beta(torch.tensor(t, dtype=torch.float64)).item()

    exact = torch.tensor([quad(rate, 0, t, points=kinks, epsabs=1e-10, limit=200)[0] for t in T.tolist()], dtype=torch.float64)
    integral = schedule.integral(T)
    torch.testing.assert_close(integral, exact, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(schedule.time_of_integral(integral), T, rtol=1e-9, atol=1e-9)


def test_the_cosine_is_a_cosine_until_it_is_clipped():
    t = T[T < COSINE.t_clip]
    signal = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(torch.exp(-COSINE.integral(t)), signal)
    assert len(t) == 4
    torch.testing.assert_close(COSINE.beta(T[4:]), torch.full((2,), 8.0, dtype=torch.float64))


# process: f and g^2 as printed
PRINTED = {
    VP(): (lambda t: -LINEAR.beta(t) / 2, lambda t: LINEAR.beta(t)),
    VP(COSINE): (lambda t: -COSINE.beta(t) / 2, lambda t: COSINE.beta(t)),
    SubVP(): (lambda t: -LINEAR.beta(t) / 2, lambda t: LINEAR.beta(t) * (1 - torch.exp(-2 * LINEAR.integral(t)))),
    VE(0.01, 50.0): (lambda t: 0 * t, lambda t: 2 * math.log(5000) * (0.01 * 5000**t) ** 2),
    VEPower(25.0): (lambda t: 0 * t, lambda t: 25.0 ** (2 * t)),
    FlowMatching(): (lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    EDM(0.1, 60.0, 3.0): (lambda t: 0 * t, lambda t: 6 * (60 ** (1 / 3) - 0.1 ** (1 / 3)) * (0.1 ** (1 / 3) * (1 - t) + 60 ** (1 / 3) * t) ** 5),
}


@pytest.mark.parametrize("sde", PRINTED, ids=repr)
def test_drift_and_diffusion_are_those_of_the_papers(sde):
    f, g2 = (function(T) for function in PRINTED[sde])
    torch.testing.assert_close(sde.drift(T), f)
    torch.testing.assert_close(sde.diffusion(T), g2.sqrt())
    levels = sde.levels(T)
    torch.testing.assert_close(torch.tensor([level.drift for level in levels], dtype=torch.float64), f)
    torch.testing.assert_close(torch.tensor([level.diffusion_squared for level in levels], dtype=torch.float64), g2)
    torch.testing.assert_close(sde.time_of_half_log_snr(sde.half_log_snr(T)), T, rtol=1e-8, atol=1e-8)
    # what the forward equation makes of noise: d sigma^2 / dt = 2 f sigma^2 + g^2, from any time to any later one

    def rate(t):
        t = torch.tensor(t, dtype=torch.float64)
        return (PRINTED[sde][1](t) / sde.alpha(t) ** 2).item()

    grown = torch.tensor([quad(rate, 0.3, t)[0] for t in (0.6, 0.74)], dtype=torch.float64)
    kappa2 = (sde.sigma(T) / sde.alpha(T)) ** 2
    torch.testing.assert_close(kappa2[2:4] - kappa2[1], grown)


@pytest.mark.parametrize("sde", PRINTED, ids=repr)
def test_the_prior_is_a_normal_distribution(sde):
    x = torch.linspace(-3, 3, 30, dtype=torch.float64).view(5, 2, 3) * sde.prior_std
    normal = torch.distributions.Normal(0.0, sde.sigma(torch.tensor(sde.t_max, dtype=torch.float64)))
    torch.testing.assert_close(sde.prior_log_prob(x), normal.log_prob(x).flatten(1).sum(1))


@pytest.mark.parametrize("sde", PRINTED, ids=repr)
def test_predictions_follow_from_x0(sde):
    """The score is a gradient, the velocity a derivative by t, and v one by the angle atan(sigma / alpha) where the process is a circle."""
    x0, noise = torch.tensor([[0.3, -0.8]], dtype=torch.float64), torch.tensor([[-1.1, 0.4]], dtype=torch.float64)
    for t in T[:4]:
        x = sde.perturb(x0, t, noise)
        found = Prediction(x0, x, t, sde)
        torch.testing.assert_close(found.epsilon, noise)
        at = x.clone().requires_grad_()
        torch.distributions.Normal(sde.alpha(t) * x0, sde.sigma(t)).log_prob(at).sum().backward()
        torch.testing.assert_close(found.score, at.grad)
        h = 1e-6
        slope = (sde.perturb(x0, t + h, noise) - sde.perturb(x0, t - h, noise)) / (2 * h)
        torch.testing.assert_close(found.velocity, slope, rtol=1e-6, atol=1e-6)
        if isinstance(sde, VP):
            angle = torch.atan2(sde.sigma(t), sde.alpha(t))
            torch.testing.assert_close(found.v, (torch.cos(angle + h) * x0 + torch.sin(angle + h) * noise - x) / h, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sde", PRINTED, ids=repr)
def test_networks_see_and_say_numbers_of_size_one(sde):
    """Inputs always; targets where they depend on the data by their own scale, for data of root mean square sigma_data."""
    for parametrization in (V(0.4), Flow(0.4), Karras(0.4), Epsilon(0.4), Score(0.4), X0(0.4)):
        variance = (sde.alpha(T) * 0.4) ** 2 + sde.sigma(T) ** 2
        torch.testing.assert_close(parametrization.input_scale(sde, T) ** 2 * variance, torch.ones_like(T))
        p, q = parametrization.network_target(sde, T)
        size = 0.4 if isinstance(parametrization, X0) else 1.0
        torch.testing.assert_close((p * 0.4) ** 2 + q**2, torch.full_like(T, size**2))
        check_parametrization(parametrization, sde, 1e-6)


@pytest.mark.parametrize("sde", PRINTED, ids=repr)
def test_training_times_have_the_distributions_that_their_names_say(sde):
    """The quantile of a level is the share of the distribution below it."""
    u = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    ends = -sde.half_log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))
    torch.testing.assert_close((UniformTime()(sde, u) - sde.t_min) / (sde.t_max - sde.t_min), u)
    level = -sde.half_log_snr(UniformHalfLogSNR()(sde, u))
    torch.testing.assert_close((level - ends[0]) / (ends[1] - ends[0]), u, rtol=1e-6, atol=1e-6)
    normal = torch.distributions.Normal(2.0, 1.5)  # of which much is cut off
    below, low, high = (normal.cdf(value) for value in (-sde.half_log_snr(LogNormal(2.0, 1.5)(sde, u)), *ends))
    torch.testing.assert_close((below - low) / (high - low), u, rtol=1e-6, atol=1e-6)
    assert DiffusionCallback(sde).times == LogNormal()
