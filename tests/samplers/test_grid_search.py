"""Levels searched for a model: a problem whose answer is known, and what is found travels."""

import math

import pytest
import torch

from diffnb.core import NoiseSource
from diffnb.denoise import Gaussian, GaussianMixture
from diffnb.files import Context, Parts
from diffnb.noise import EDM, VE, VP, Discrete
from diffnb.samplers import DDIM, IPNDM, SAMPLERS, DPMSolverPP2M, DPMSolverPP3M, Sampler, Tuned, optimise_grid, short_karras

PLANE = GaussianMixture(
    torch.tensor([[-1.0, 0.3], [0.2, -0.6], [1.2, 0.8]]), torch.stack([torch.eye(2) * v for v in (0.002, 0.01, 0.004)]), torch.tensor([0.3, 0.5, 0.2])
)


def test_the_best_second_level_of_two():
    """Of a Gaussian the gain of two levels of DDIM is a formula in the second; the search finds the level at which it is right."""
    high, c, low = 20.0, 0.25, 0.01
    search = optimise_grid(DDIM(), Gaussian(0.0, c).denoiser(VE(low, high)), 2, (1,), dtype=torch.float64, teacher_steps=400)
    kappa = torch.linspace(math.log(0.02), math.log(10.0), 20_001, dtype=torch.float64).exp()
    share = c / (c + high**2)
    gain = c / (c + kappa**2) * (share + kappa / high * (1 - share))
    exact = c / math.sqrt((c + high**2) * (c + low**2))
    best = kappa[(gain - exact).abs().argmin()].item()
    assert math.exp(-search.sampler.half_log_snrs[0][0]) == pytest.approx(best, rel=0.01)
    assert search.after < search.before


@pytest.mark.parametrize("sampler", [DPMSolverPP2M(), IPNDM()])
def test_five_levels_beat_known_grids_on_noise_not_seen(sampler):
    """By a third at least, in distance to the exact flow."""
    denoiser, other = PLANE.denoiser(VP()), NoiseSource.of(99, 200)
    truth = DPMSolverPP3M()(denoiser, shape=(200, 2), n_steps=300, seeds=other, dtype=torch.float64).x

    def rms(sampler, grid=None):
        return (sampler(denoiser, shape=(200, 2), n_steps=5, grid=grid, seeds=other, dtype=torch.float64).x - truth).square().sum(1).mean().sqrt()

    search = optimise_grid(sampler, denoiser, 5, (2,), n=64, dtype=torch.float64)
    assert rms(search.sampler) < min(rms(sampler, "log-snr"), rms(sampler, "karras")) / 1.5
    assert search.sampler(denoiser, shape=(1, 2)).nfe == 5
    again = optimise_grid(sampler, denoiser, 5, (2,), n=64, dtype=torch.float64)
    assert again.sampler == search.sampler


def test_levels_mean_the_same_under_any_process():
    """They are values of lambda, clamped to what a process has, and steps where it has steps."""
    tuned = Tuned("dpm++2m", ((-1.0, 0.5, 2.0), (0.0,)))
    for sde in (VP(), EDM(), Discrete.linear(1000)):
        for n, row in ((4, (-1.0, 0.5, 2.0)), (2, (0.0,))):
            times = tuned.grid(sde, n)
            assert times[0] == sde.t_max
            assert (sde.half_log_snr(times[1:]) - torch.tensor(row)).abs().max() < (0.02 if isinstance(sde, Discrete) else 1e-9)
    steps = tuned.grid(Discrete.linear(1000), 4) * 1000
    assert torch.equal(steps, steps.round())
    assert torch.equal(tuned.grid(VP(), 3, grid="karras"), DPMSolverPP2M().grid(VP(), 3, grid="karras"))


def test_travels_and_has_a_name():
    """As a sampler does."""
    tuned = Tuned(IPNDM(), (tuple(short_karras(EDM(), 5).tolist()),))
    assert Context().revive(Parts().describe(tuned), None, "it") == tuned and tuned.n_steps_default == 5
    assert isinstance(SAMPLERS.resolve("tuned", Sampler), Tuned)
    assert math.exp(-short_karras(EDM(), 5)[-1]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Tuned(half_log_snrs=((1.0, 0.0),)), "rising levels"),
        (lambda: Tuned(half_log_snrs=((0.0,), (1.0,))), "one row for each"),
        (lambda: Tuned()(PLANE.denoiser(VP()), shape=(1, 2), n_steps=7), "not for n_steps=7"),
        (lambda: Tuned()(PLANE.denoiser(VP()), x=torch.zeros(1, 2), start=0.5), "from start=0.5"),
        (lambda: optimise_grid("ddpm", PLANE.denoiser(VP()), 5, (2,)), "draws noise of its own"),
        (lambda: optimise_grid("ddim", PLANE.denoiser(VP()), 1, (2,)), "n_steps must be at least 2"),
    ],
)
def test_errors(make, message):
    """Clear ones."""
    with pytest.raises(ValueError, match=message):
        make()
