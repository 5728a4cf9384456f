"""The chain of DDPM: its formulas as printed, another library's numbers, and every consumer of a process on it."""

import math

import pytest
import torch

from diffnb.core import NoiseSource
from diffnb.denoise import BaseDenoiser, Gaussian, GaussianMixture
from diffnb.files import Context, Parts
from diffnb.likelihood import log_prob
from diffnb.noise import (
    PARAMETRIZATIONS,
    VP,
    Betas,
    Cosine,
    Discrete,
    Parametrization,
    check_parametrization,
    check_schedule,
    check_sde,
    cosine_betas,
    linear_betas,
    scaled_linear_betas,
)
from diffnb.samplers import DDIM, DDPM, GRIDS, SAMPLERS, EulerMaruyama, Sampler, State, make_grid


def tensor(values):
    """Float64."""
    return torch.tensor(values, dtype=torch.float64)


class Noise:
    """A source that gives the same number everywhere."""

    def __init__(self, value):
        self.value = value

    def normal(self, shape, stream, draw, dtype):
        """That number."""
        return torch.full((1, *shape), self.value, dtype=dtype)


class FixedEpsilon(BaseDenoiser):
    """Always the same prediction of the noise."""

    def __init__(self, sde, epsilon):
        self.sde, self.epsilon = sde, epsilon

    def x0(self, x, t, condition):
        """What that noise leaves."""
        return (x - self.sde.sigma(t) * self.epsilon) / self.sde.alpha(t)


def one_step(sde, variance, k, j, x=0.7, epsilon=-0.3):
    """Mean and standard deviation of the step from k to j."""
    t, s = sde.levels(tensor([k / sde.T, j / sde.T]))
    mean, other = (DDPM(variance).step(FixedEpsilon(sde, epsilon), State(tensor([[x]])), t, s, Noise(z)).x.item() for z in (0.0, 1.0))
    return mean, other - mean


# the chain


@pytest.mark.parametrize("betas", [linear_betas(1000), linear_betas(50), cosine_betas(100), scaled_linear_betas(300), (0.3, 0.1, 0.6)])
def test_marginals_of_the_chain(betas):
    """Mean and variance by the recursion x_k = sqrt(1 - beta) x + sqrt(beta) z; g^2 over a step composes to the step."""
    sde, mean, variance = Discrete(betas), 1.0, 0.0
    levels = sde.levels(torch.arange(1, sde.T + 1, dtype=torch.float64) / sde.T)
    for beta, level in zip(betas, levels):
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        assert level.alpha == pytest.approx(mean, rel=1e-11) and level.sigma**2 == pytest.approx(variance, rel=1e-10)
        # the rate is that of the step which ends here
        assert level.diffusion_squared / sde.T == pytest.approx(-math.log1p(-beta), rel=1e-8)
    assert sde.t_min == 1 / sde.T and sde.prior_std == pytest.approx(math.sqrt(variance), rel=1e-10)


def test_tables():
    """Ho's range, its scaling with T, the cosine of Nichol and Dhariwal, the roots of latent diffusion."""
    assert linear_betas()[0] == 1e-4 and linear_betas()[-1] == pytest.approx(0.02) and len(linear_betas()) == 1000
    assert linear_betas(500)[0] == 2e-4 and linear_betas(500)[-1] == pytest.approx(0.04)
    for n in (100, 500, 1000, 4000):  # the image is gone at the end, whatever T
        assert math.sqrt(math.prod(1 - b for b in linear_betas(n))) < 0.0068
    assert linear_betas()[500] == pytest.approx(1e-4 + 500 / 999 * (0.02 - 1e-4), rel=1e-12)
    bar = torch.cumprod(1 - tensor(cosine_betas(1000)), 0)
    t = torch.arange(0, 999, dtype=torch.float64)
    f = torch.cos(((t + 1) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert (bar[:999] - f).abs().max() < 1e-12
    assert cosine_betas(1000)[-1] == 0.999
    assert scaled_linear_betas()[499] == pytest.approx((0.00085**0.5 + 499 / 999 * (0.012**0.5 - 0.00085**0.5)) ** 2, rel=1e-12)
    # many steps: the continuous schedules
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    assert (Discrete.linear(100_000).alpha(t) - VP().alpha(t)).abs().max() < 1e-4
    assert (Discrete.cosine(10_000).alpha(t) - VP(Cosine()).alpha(t)).abs().max() < 1e-9 + 1e-6


def test_schedule_and_process_pass_their_checks():
    """Derivatives, integrals and inverses between the steps."""
    check_schedule(Betas(linear_betas(200)))
    for sde in (Discrete.linear(1000), Discrete.cosine(300), Discrete((0.3, 0.1, 0.6, 0.9))):
        check_sde(sde)
        for name in PARAMETRIZATIONS.names():
            check_parametrization(PARAMETRIZATIONS.resolve(name, Parametrization), sde)


# Ho et al., equations 6 and 7, and strides


@pytest.mark.parametrize("k, j", [(1000, 999), (500, 499), (2, 1), (1000, 900), (500, 400), (200, 100), (777, 3)])
def test_posterior_as_printed(k, j):
    """Mean and both variances with the alpha-bar of Ho et al., for single steps and for strides."""
    bar = torch.cumprod(1 - tensor(linear_betas()), 0)
    bar_t, bar_s = bar[k - 1].item(), bar[j - 1].item()
    beta = 1 - bar_t / bar_s
    x, epsilon = 0.7, -0.3
    x0 = (x - math.sqrt(1 - bar_t) * epsilon) / math.sqrt(bar_t)
    mean = math.sqrt(bar_s) * beta / (1 - bar_t) * x0 + math.sqrt(1 - beta) * (1 - bar_s) / (1 - bar_t) * x
    assert one_step(Discrete(), "small", k, j) == pytest.approx((mean, math.sqrt((1 - bar_s) / (1 - bar_t) * beta)), rel=1e-9)
    assert one_step(Discrete(), "large", k, j) == pytest.approx((mean, math.sqrt(beta)), rel=1e-9)
    if k - j == 1:  # algorithm 2
        assert mean == pytest.approx((x - beta / math.sqrt(1 - bar_t) * epsilon) / math.sqrt(1 - beta), rel=1e-9)


# diffusers 0.42.1: DDPMScheduler(1000, 1e-4, 0.02, "linear", variance_type=..., clip_sample=False, timestep_spacing="trailing") with betas in
# float64; step(-0.3, t, 0.7) with the noise set to 0 and to 1. Its t counts from 0; rows are (t, mean, standard deviation).
DIFFUSERS = {
    ("small", 1): [(999, 0.713167818762, 0.141421297995), (499, 0.706694400873, 0.10015665437), (1, 0.702468128736, 0.00738457017117)],
    ("small", 100): [(999, 2.49646391017, 0.923662245395), (499, 1.39722863121, 0.72231109153), (199, 0.97568394203, 0.283072038631)],
    ("large", 1): [(999, 0.713167818762, 0.141421356237), (499, 0.706694400873, 0.1002000002), (1, 0.702468128736, 0.0109507954012)],
    ("large", 100): [(999, 2.49646391017, 0.923770728819), (499, 1.39722863121, 0.772845995276), (199, 0.97568394203, 0.515073593232)],
}


@pytest.mark.parametrize("variance, stride", DIFFUSERS)
def test_the_numbers_of_diffusers(variance, stride):
    """Means and both variances, single steps and strides of 100."""
    for t, mean, std in DIFFUSERS[variance, stride]:
        assert one_step(Discrete(), variance, t + 1, t + 1 - stride) == pytest.approx((mean, std), rel=1e-9)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_whole_runs_agree_with_diffusers(variance):
    """Twenty strided steps with the same start, network and noise, in float64."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is an optional peer: pip install diffusers")
    from diffusers.schedulers import scheduling_ddpm

    betas = tensor(linear_betas())
    peer = diffusers.DDPMScheduler(
        trained_betas=betas.numpy(), variance_type=f"fixed_{variance}", clip_sample=False, timestep_spacing="trailing", prediction_type="epsilon"
    )
    peer.betas, peer.alphas_cumprod, peer.one = betas, torch.cumprod(1 - betas, 0), tensor(1.0)
    peer.alphas = 1 - betas
    peer.set_timesteps(20)
    sde, oracle, noise = Discrete(), Gaussian(0.4, 0.09), NoiseSource.of(3, 8)
    denoiser = oracle.denoiser(sde)
    grid = (peer.timesteps + 1).double() / 1000
    ours = DDPM(variance)(denoiser, shape=(8, 1), grid=grid, seeds=noise, dtype=torch.float64, keep_states=True).states
    x = sde.prior((1,), noise, torch.float64)
    for i, t in enumerate(peer.timesteps):
        scheduling_ddpm.randn_tensor = lambda *a, i=i, **k: noise.normal((1,), "step", i, torch.float64)
        x = peer.step(denoiser(x, (t + 1).double() / 1000).epsilon, int(t), x).prev_sample
        # to clean data from a last level above the first step, diffusers adds noise with the large variance, to the result itself
        if i < 19 or variance == "small":
            assert (x - ours[i + 1]).abs().max() < 1e-9


# training and grids


def test_training_times_are_steps_drawn_uniformly():
    """Uniform times become every step equally often, in float32; a step stays; any other time moves by less than a step."""
    sde = Discrete.linear(500)
    u = (torch.arange(100_000) + 0.5) / 100_000
    t = sde.t_min + u * (1 - sde.t_min)
    k, count = (sde.snap(t) * 500).round().long().unique(return_counts=True)
    assert k.tolist() == list(range(1, 501)) and (count - 200).abs().max() <= 2
    assert (sde.snap(t) - t).abs().max() < 1 / 500
    for dtype in (torch.float32, torch.float64):
        for T in (2, 7, 500, 1000, 4000):
            chain, steps = Discrete([0.5 / T] * T), torch.arange(1, T + 1, dtype=dtype) / T
            assert torch.equal(chain.snap(steps), steps)
            beta = chain.continuous.schedule.beta(steps)  # a knot belongs to the step that ends there
            assert (beta / -(T * math.log1p(-0.5 / T)) - 1).abs().max() < (1e-2 if dtype == torch.float32 else 1e-8)


@pytest.mark.parametrize("name", ["time", "log-snr", "karras"])
@pytest.mark.parametrize("n, start", [(1, 1.0), (2, 1.0), (10, 1.0), (100, 1.0), (499, 1.0), (500, 1.0), (20, 0.1), (50, 0.1)])
def test_grids_are_distinct_steps(name, n, start):
    """Whole steps from the start down, as many as were asked for, near to where the formula put them."""
    sde = Discrete.linear(500)
    times = make_grid(sde, n, start, name)
    steps = times * 500
    assert torch.equal(steps.round() / 500, times) and times[0] == start and len(times) == n
    assert bool((steps.diff() <= -0.999).all()) and steps[-1] >= 1
    if n == 10:  # no two levels meet: plain rounding
        assert (times - GRIDS[name](sde, n, start)).abs().max() <= 0.5 / 500 + 1e-12


def test_errors():
    """Each says what would do."""
    sde = Discrete.linear(100)
    denoiser, x = Gaussian(0.4, 0.09).denoiser(sde), torch.zeros(2, 1)
    for make, message in (
        (lambda: Discrete([0.1, 1.0]), "beta_2 is 1.0"),
        (lambda: Discrete([0.0, 0.1]), "beta_1 is 0.0"),
        (lambda: Discrete([0.1]), "at least 2"),
        (lambda: linear_betas(20), "n_steps above 20"),
        (lambda: linear_betas(1), "at least 2"),
        (lambda: DDPM()(denoiser, shape=(2, 1), n_steps=101), "100 steps from t = 1 down, too few for 101"),
        (lambda: DDPM()(denoiser, x=x, n_steps=11, start=0.1), "10 steps from t = 0.1 down"),
        (lambda: DDPM()(denoiser, x=x, n_steps=5, start=0.105), "t = 0.105 lies between them"),
        (lambda: DDPM()(denoiser, shape=(2, 1), grid=[1.0, 0.505, 0.01]), "t = 0.505 lies between them"),
        (lambda: DDPM("learned"), "variance must be 'small'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="betas must be a list of numbers, got 0.02"):
        Discrete(0.02)


# every consumer of a process


def moments(sampler, n_steps, sde=None):
    """Mean and standard deviation of 10,240 draws of N(0.4, 0.3^2)."""
    sde = Discrete.linear(500) if sde is None else sde
    oracle = Gaussian(torch.full((40,), 0.4), 0.09 * torch.eye(40))
    x = sampler(oracle.denoiser(sde), shape=(256, 40), n_steps=n_steps, seeds=0, dtype=torch.float64).x
    return x.mean().item(), x.std().item()


@pytest.mark.parametrize("name", ["ddpm", "euler-maruyama", "predictor-corrector", "ddim", "ode", "heun", "rk4", "dpm++2m", "dpm++3m"])
def test_any_sampler_runs_on_it(name):
    """Exact moments within 0.01 in all of its steps; nothing is asked at a time outside the chain's."""
    mean, std = moments(SAMPLERS.resolve(name, Sampler), 500)
    assert abs(mean - 0.4) < 0.01 and abs(std - 0.3) < 0.01


def test_the_two_variances_enclose_the_truth():
    """Too little spread with the small variance, too much with the large one, less so with more steps."""
    for n in (25, 100):
        small, large = moments(DDPM("small"), n)[1], moments(DDPM("large"), n)[1]
        assert small < 0.3 - 0.1 / n < 0.3 + 0.1 / n < large
    assert moments(DDPM(), 500)[1] == pytest.approx(moments(DDIM(1.0), 500, Discrete.linear(500))[1], abs=2e-3)


def test_small_variance_is_ddim_with_eta_one():
    """To rounding, on the same grid."""
    denoiser = Gaussian(0.4, 0.09).denoiser(Discrete.linear(100))
    a, b = (s(denoiser, shape=(8, 1), n_steps=20, grid="time", seeds=1, dtype=torch.float64).x for s in (DDPM(), DDIM(1.0)))
    assert (a - b).abs().max() < 1e-12


def test_all_steps_of_euler_maruyama_are_those_of_the_chain():
    """The reverse SDE in T steps has beta_k for g^2 h, to first order."""
    sde = Discrete.linear(1000)
    t, s = sde.levels(tensor([0.5, 0.499]))
    x = EulerMaruyama().step(FixedEpsilon(sde, -0.3), State(tensor([[0.7]])), t, s, Noise(0.0)).x.item()
    assert x == pytest.approx(one_step(sde, "small", 500, 499)[0], abs=1e-4)


def test_likelihood_runs_between_the_steps():
    """Against the closed form at the first step."""
    sde, oracle = Discrete.linear(200), Gaussian(tensor([0.4, -0.2]), tensor([[0.09, 0.02], [0.02, 0.05]]))
    x = oracle.sample(6)
    got = log_prob(oracle.denoiser(sde), x, terminal=lambda z: oracle.log_prob(z, sde, 1.0)).log_prob
    assert (got - oracle.log_prob(x, sde, sde.t_min)).abs().max() < 1e-5


def test_a_chain_under_another_process_and_the_reverse():
    """The same posterior mean, inside the range of levels that both have."""
    plane = GaussianMixture(tensor([[-1.0, 0.0], [0.8, 0.6]]), torch.stack([0.1 * torch.eye(2), 0.04 * torch.eye(2)]))
    chain, x = Discrete.linear(500), torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a, b in ((VP(), chain), (chain, VP())):
        for t in (0.3, 0.6, 0.9):
            assert (plane.denoiser(a).under(b)(x, t).x0 - plane.denoiser(b)(x, t).x0).abs().max() < 1e-9


def test_travels_as_data():
    """By name and numbers, to the last bit."""
    sde = Discrete(linear_betas(37))
    again = Context().revive(Parts().describe(sde), None, "it")
    assert again == sde and hash(again) == hash(sde) and again.betas == sde.betas and repr(sde).startswith("Discrete(37 steps")
    assert Discrete(torch.tensor([0.25, 0.5])).betas == (0.25, 0.5)
