"""The likelihood against closed forms, its estimate, its dequantization, and the modes it runs in."""

import math
import warnings

import pytest
import torch

from diffnb.core import NoiseSource
from diffnb.denoise import BaseDenoiser, Denoiser, Gaussian, GaussianMixture
from diffnb.likelihood import bits_per_dim, dequantize, log_prob
from diffnb.noise import EDM, VE, VP, Discrete, FlowMatching, SubVP, VEPower

PROCESSES = {"vp": VP(), "sub-vp": SubVP(), "ve": VE(), "edm": EDM(), "flow": FlowMatching(), "discrete": Discrete.linear(1000)}


def gaussian(d):
    """Correlated axes."""
    spread = torch.randn(d, d, generator=torch.Generator().manual_seed(d), dtype=torch.float64) / math.sqrt(d)
    return Gaussian(torch.full((d,), 0.1), 0.1 * torch.eye(d) + spread @ spread.T / 8)


def mixture(d):
    """Three components."""
    means = torch.randn(3, d, generator=torch.Generator().manual_seed(0)) * 0.5
    return GaussianMixture(means, torch.eye(d).expand(3, d, d) * torch.tensor([0.04, 0.09, 0.16]).view(3, 1, 1))


def error(oracle, sde, n_steps, n=6):
    """Mean error in bits per dimension with the exact terminal density, and evaluations."""
    x = oracle.sample(n, seed=1)
    got = log_prob(oracle.denoiser(sde), x, exact=True, n_steps=n_steps, terminal=lambda z: oracle.log_prob(z, sde, sde.t_max))
    return (got.log_prob - oracle.log_prob(x, sde, sde.t_min)).abs().mean().item() / (x.shape[1] * math.log(2)), got.nfe


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_closed_forms(process, make):
    """1e-4 bits per dimension within 50 evaluations."""
    value, nfe = error(make(8), PROCESSES[process], 8)
    assert nfe <= 50 and value < 1e-4


SLOW = pytest.param(gaussian, 64, marks=pytest.mark.slow)  # the mixture of as many dimensions asks more


@pytest.mark.parametrize("make, d", [(gaussian, 2), (mixture, 2), (gaussian, 16), (mixture, 16), SLOW, (mixture, 64)])
def test_more_evaluations(make, d):
    """In up to 64 dimensions: 1e-4 bits per dimension within 50, 3e-6 within 100, and the order of the method."""
    (few, fewer), (many, nfe) = error(make(d), VP(), 8, n=2), error(make(d), VP(), 16, n=2)
    assert fewer <= 50 and few < 1e-4
    assert nfe <= 100 and many < 3e-6
    assert few / many > 2**4


def test_the_prior_and_what_it_costs():
    """Densities of N(0, sigma(t_max)^2); without `terminal` the mismatch is the difference of two log-densities at the latent."""
    z = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for sde in (*PROCESSES.values(), VEPower()):
        std = sde.sigma(torch.tensor(sde.t_max, dtype=torch.float64))
        want = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), std).log_prob(std * z).sum(1)
        assert (sde.prior_log_prob(std * z) - want).abs().max() < 1e-9
    oracle, sde = gaussian(3), VE(0.01, 5.0)
    x = oracle.sample(4)
    own = log_prob(oracle.denoiser(sde), x)
    exact = log_prob(oracle.denoiser(sde), x, terminal=lambda z: oracle.log_prob(z, sde, 1.0))
    gap = sde.prior_log_prob(own.latent) - oracle.log_prob(own.latent, sde, 1.0)
    assert (own.log_prob - exact.log_prob - gap).abs().max() < 1e-9 and gap.abs().max() > 1e-3


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_the_estimate_is_unbiased(probe):
    """Within three standard errors of the exact divergence; seeds belong to samples."""
    # small steps in noise: the estimate with normal numbers has the diagonal's variance too
    oracle, x = gaussian(4), gaussian(4).sample(1, seed=5)
    denoiser = oracle.denoiser(EDM(sigma_min=0.1))
    exact = log_prob(denoiser, x, n_steps=4).log_prob.item()
    draws = log_prob(denoiser, x.expand(400, -1), n_steps=4, exact=False, probe=probe, seeds=3).log_prob
    assert abs(draws.mean().item() - exact) <= 3 * draws.std().item() / 20 and draws.std() > 0
    part = log_prob(denoiser, x.expand(5, -1), n_steps=4, exact=False, probe=probe, seeds=NoiseSource.of(3, 5, 7)).log_prob
    assert (part - draws[7:12]).abs().max() < 1e-9
    many = log_prob(denoiser, x.expand(400, -1), n_steps=4, exact=False, probes=9, probe=probe, seeds=4).log_prob
    assert draws.std().item() / many.std().item() == pytest.approx(3, rel=0.25)


def rounded(std, **settings):
    """True bits of a rounded Gaussian by differences of its distribution function, and the bound."""
    sde, grey = VP(), 128 / 127.5 - 1
    kappa = sde.levels(torch.tensor([sde.t_min], dtype=torch.float64))[0].noise_ratio
    oracle = Gaussian(torch.full((2,), grey), std**2 * torch.eye(2))
    images = ((oracle.sample(400, seed=7) + 1) * 127.5).round().to(torch.uint8).view(400, 1, 1, 2)
    cdf = torch.distributions.Normal(grey, math.hypot(std, kappa)).cdf
    centre = images.double() / 127.5 - 1
    true = -(cdf(centre + 0.5 / 127.5) - cdf(centre - 0.5 / 127.5)).log2().flatten(1).mean(1)
    settings = dict(terminal=lambda z: oracle.log_prob(z, sde, 1.0), scale=std, n_steps=4, dtype=torch.float64, batch_size=400) | settings
    gap = bits_per_dim(oracle.denoiser(sde), images, **settings).values - true
    return gap.mean().item(), gap.std().item() / 20


@pytest.mark.parametrize("kind", ["uniform", "truncated-normal"])
@pytest.mark.parametrize("std", [0.05, 0.004, 0.0003])
def test_a_rounded_gaussian(kind, std):
    """Never below the truth; importance weights close in on it."""
    gaps = [rounded(std, dequantization=kind, draws=draws) for draws in (1, 16)]
    assert all(gap > -3 * e - 1e-3 for gap, e in gaps)
    assert gaps[1][0] < gaps[0][0] / 3 + 5e-3
    if std == 0.05 and kind == "uniform":  # (cell / std)^2 / (24 log 2) to leading order
        assert abs(gaps[0][0] - (1 / 127.5 / std) ** 2 / (24 * math.log(2))) < 3 * gaps[0][1]
    if std == 0.0003 and kind == "truncated-normal":  # the noise that the model has there
        assert gaps[0][0] < 2e-2


def test_dequantization_stays_in_its_cells():
    """Uniform and truncated normal, with the density of what was drawn."""
    images = torch.full((3, 5000), 7, dtype=torch.uint8)
    for name, std in (("uniform", 1.0), ("truncated-normal", 0.002), ("truncated-normal", 0.02)):
        x, log_q = dequantize(images, NoiseSource.of(1, 3), torch.float64, name, std)
        w = (x + 1) * 127.5 - 7
        assert w.abs().max() <= 0.5 + 1e-9 and w.mean().abs() < 0.01
        if name == "uniform":
            assert torch.equal(log_q, torch.zeros(3, dtype=torch.float64)) and w.var().item() == pytest.approx(1 / 12, rel=0.03)
        else:
            normal = torch.distributions.Normal(0.0, 127.5 * std)
            mass = 2 * normal.cdf(torch.tensor(0.5, dtype=torch.float64)) - 1
            assert log_q[0].item() == pytest.approx((normal.log_prob(w[0]) - mass.log()).sum().item(), rel=1e-3, abs=0.5)
        other = dequantize(images, NoiseSource.of(1, 3), torch.float64, name, std, draw=1).x
        assert (other - x).abs().max() > 1e-3


class Small(torch.nn.Module):
    """Two layers, with attention between them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 32), torch.nn.Linear(32, 4)

    def forward(self, x, half_log_snr):
        """Attend over four tokens of eight channels."""
        h = torch.nn.functional.silu(self.first(torch.cat([x, half_log_snr[:, None] / 4], 1))).view(-1, 1, 4, 8)
        return self.last(torch.nn.functional.scaled_dot_product_attention(h, h, h).flatten(1))


def test_modes():
    """No warnings, 16-bit autocast, inference mode, parameters that need no gradient; nothing is left behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Small()
    x = mixture(4).sample(6).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        want = log_prob(Denoiser(network, VP()), x, n_steps=3).log_prob
        short = log_prob(Denoiser(network, VP(), autocast=torch.bfloat16), x, n_steps=3).log_prob
        with torch.inference_mode():
            inside = log_prob(Denoiser(network, VP()), x, n_steps=3).log_prob
        frozen = log_prob(Denoiser(network.requires_grad_(False), VP()), x, n_steps=3)
    assert (short - want).abs().max() / 4 < 0.05
    assert torch.equal(inside, want) and torch.equal(frozen.log_prob, want)
    assert not frozen.log_prob.requires_grad and not frozen.latent.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_errors():
    """What is wrong, and what would do."""

    class Frozen(BaseDenoiser):
        sde = VP()

        def x0(self, x, t, condition):
            """Leave no trace."""
            with torch.no_grad():
                return x / 2

    denoiser, x = gaussian(2).denoiser(VP()), torch.zeros(1, 2, dtype=torch.float64)
    images = torch.zeros(2, 1, 1, 2, dtype=torch.uint8)
    for make, message in (
        (lambda: log_prob(Frozen(), x), "cannot be differentiated"),
        (lambda: log_prob(denoiser, x, exact=False, probe="signs"), "'rademacher' or 'gaussian'"),
        (lambda: log_prob(denoiser, x, probes=0), "probes must be"),
        (lambda: bits_per_dim(denoiser, images, draws=0), "draws must be"),
        (lambda: bits_per_dim(denoiser, images, dequantization="normal"), "one of 'uniform', 'truncated-normal'"),
        (lambda: bits_per_dim(denoiser, images.float() + 0.3), "8-bit values"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
