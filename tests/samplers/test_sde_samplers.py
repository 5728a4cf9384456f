"""Stochastic samplers: exact distributions on Gaussian data, weak orders, published algorithms, noise that belongs to samples."""

import math

import pytest
import torch

from diffnb.core import NoiseSource, expand
from diffnb.denoise import Gaussian, GaussianMixture
from diffnb.files import Context, Parts
from diffnb.noise import EDM, VE, VP, Cosine, Discrete, FlowMatching, SubVP
from diffnb.samplers import (
    DDIM,
    DDPM,
    SAMPLERS,
    AdaptiveSDE,
    DPMSolverPP2M,
    DPMSolverPP3M,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    ProbabilityFlow,
    Restart,
    Sampler,
    SDEDPMSolverPP,
    SDEDPMSolverPP1,
    StochasticHeun,
    add_noise,
    affine_map,
    fixed_ratio_langevin_step,
    ideal_end,
    langevin_step,
    levels_at,
    noised,
    propagate,
    wasserstein,
)
from diffnb.samplers.stochastic import _Increments

PROCESSES = {
    "vp": VP(),
    "vp-cosine": VP(Cosine()),
    "sub-vp": SubVP(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "discrete": Discrete.linear(1000),
}
STOCHASTIC = {
    "ddpm-small": DDPM(),
    "ddpm-large": DDPM("large"),
    "sde++1": SDEDPMSolverPP1(),
    "sde++2m": SDEDPMSolverPP(),
    "sde++2m-0.5": SDEDPMSolverPP(noise_share=0.5),
    "churn": StochasticHeun(),
    "churn-ddim": StochasticHeun(3.0, solver=DDIM()),
    "restart": Restart(),
    "restart-2": Restart(((0.3, 1.0, 3, 1), (0.05, 0.2, 2, 2))),
    "corrected-ddim": PredictorCorrector(1, 0.16, DDIM()),
    "corrected-3m": PredictorCorrector(1, 0.1, DPMSolverPP3M()),
}
AXES = Gaussian(torch.full((3,), 0.4), torch.diag(torch.tensor([0.01, 0.09, 0.36])))
LINE = GaussianMixture(torch.tensor([[-1.0], [0.2], [1.2]]), torch.tensor([0.05, 0.2, 0.1])[:, None, None], torch.tensor([0.3, 0.5, 0.2]))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors: one thread is fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def distance(sampler, sde, n, grid=None):
    """W2 to the ideal end, from the exact start."""
    return wasserstein(propagate(sampler, AXES, sde, n, grid, initial=noised(AXES, sde, sde.t_max)).end, ideal_end(AXES, sde))


# exact distributions


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_exact_moments(name, process):
    """Mean 0.4 and standard deviation 0.3, propagated exactly, in 120 steps; first order methods have more room."""
    end = propagate(STOCHASTIC[name], Gaussian(0.4, 0.09), PROCESSES[process], 120).end
    room = 0.005 if name.startswith("sde++2m") else 0.012 if name in ("churn", "restart", "restart-2") else 0.025
    assert abs(end.mean.item() - 0.4) < room and abs(end.covariance.item() ** 0.5 - 0.3) < room


@pytest.mark.parametrize(
    "name, sampler, order",
    [
        ("ddpm-small", DDPM(), 1),
        ("ddpm-large", DDPM("large"), 1),
        ("sde++1", SDEDPMSolverPP1(), 1),
        ("sde++2m", SDEDPMSolverPP(), 2),
        ("sde++2m, nu 0.5", SDEDPMSolverPP(noise_share=0.5), 2),
        ("sde++2m, nu 2", SDEDPMSolverPP(noise_share=2.0), 2),
        ("churn 3", StochasticHeun(3.0, 0.0, 1e9), 2),
        ("churn 10", StochasticHeun(10.0, 0.0, 1e9), 2),
        ("ddim 0.5", DDIM(0.5), 1),
    ],
)
@pytest.mark.parametrize("process", ["vp", "ve"])
def test_weak_order(name, sampler, order, process):
    """The distribution converges with the stated order, apart from the bias of the prior."""
    grid = "karras" if isinstance(sampler, StochasticHeun) else "log-snr"
    a, b = (distance(sampler, PROCESSES[process], n, grid) for n in (64, 128))
    assert abs(math.log2(a / b) - order) < 0.15


def test_weak_order_of_euler_maruyama():
    """In its own time."""
    a, b = (distance(EulerMaruyama(), VP(), n, "time") for n in (256, 512))
    assert abs(math.log2(a / b) - 1) < 0.15


def test_the_bias_of_the_prior_is_no_error_of_the_sampler():
    """It stays as steps are added, a stochastic run forgets most of it, a deterministic one nothing."""
    sde = VE(0.01, 5.0)

    def error(sampler, n, initial):
        return wasserstein(propagate(sampler, AXES, sde, n, "log-snr", initial=initial).end, ideal_end(AXES, sde))

    exact = noised(AXES, sde, 1.0)
    # the flow keeps (x - m) / sqrt(v_t), so N(0, 25) in place of N(0.4, 25 + c) comes out shifted by 0.4 sqrt(c / (25 + c)), and narrower
    c = torch.tensor([0.01, 0.09, 0.36], dtype=torch.float64)
    mean_gap = 0.4 * (c / (25 + c)).sqrt()
    std_gap = c.sqrt() * (1 - 5 / (25 + c).sqrt())
    bias = (mean_gap.square() + std_gap.square()).sum().sqrt().item()
    assert error(DPMSolverPP2M(), 400, None) == pytest.approx(bias, rel=0.02)
    assert error(DPMSolverPP2M(), 400, exact) < bias / 50
    assert error(SDEDPMSolverPP(), 200, None) < bias / 8


def test_a_fixed_ratio_is_kept_by_every_sample():
    generator = torch.Generator().manual_seed(3)
    x, score, z = (scale * torch.randn(5, 2, 3, generator=generator, dtype=torch.float64) for scale in (1.0, 30.0, 1.0))
    score = score * torch.tensor([1e-3, 1.0, 10.0, 1e3, 1.0], dtype=torch.float64).view(-1, 1, 1)
    by_score = fixed_ratio_langevin_step(x, score, 0.2, z) - x
    by_noise = fixed_ratio_langevin_step(x, score, 0.2, -z) - x
    moved, shaken = (by_score + by_noise) / 2, (by_score - by_noise) / 2
    ratio = moved.flatten(1).norm(dim=1) / shaken.flatten(1).norm(dim=1)
    assert torch.allclose(ratio, torch.full((5,), 0.2, dtype=torch.float64), rtol=1e-12)
    size = (moved / score).flatten(1)[:, 0]
    assert torch.allclose(shaken, (2 * size).sqrt().view(-1, 1, 1) * z, rtol=1e-9)  # Langevin: the noise has variance 2 size
    torch.testing.assert_close(fixed_ratio_langevin_step(x[:2], score[:2], 0.2, z[:2]), x[:2] + by_score[:2])  # no sample sees another
    # a score of the length sqrt(d) / sigma and noise of the length sqrt(d): the annealed step
    score, z = (a * (6**0.5 / a.flatten(1).norm(dim=1)).view(-1, 1, 1) for a in (score, z))
    torch.testing.assert_close(fixed_ratio_langevin_step(x, score / 0.7, 0.2, z), langevin_step(x, score / 0.7, 0.7, 0.2, z), rtol=1e-12, atol=1e-12)


def test_steps_that_look_at_the_noise_have_no_affine_map():
    sampler = PredictorCorrector(step_size="fixed-ratio", predictor=DDIM())
    with pytest.raises(ValueError, match="is not affine"):
        affine_map(sampler, AXES, VP(), 5)
    seeds = {"seeds": [5, 6, 7], "n_steps": 6, "dtype": torch.float64}
    together = sampler(AXES.denoiser(VP()), shape=(3, 3), **seeds).x
    assert torch.allclose(sampler(AXES.denoiser(VP()), shape=(1, 3), **(seeds | {"seeds": [6]})).x, together[1:2], atol=1e-12)


def test_corrections_end_where_theory_says():
    """Many Langevin steps at the last level: variance sigma^2 / (1 - r^2) of a Gaussian's noise part."""
    r, sde = 0.3, VP()
    point = Gaussian(0.0, 1e-12)
    run = propagate(PredictorCorrector(60, r, DDIM()), point, sde, grid=torch.tensor([1.0, 0.5], dtype=torch.float64))
    # x0_hat of a point is 0, so look at the state before the end through a sampler that returns it

    class Raw(PredictorCorrector):
        def finish(self, denoiser, state, t):
            """Leave the state as it is."""
            return state

    end = propagate(Raw(60, r, DDIM()), point, sde, grid=torch.tensor([1.0, 0.5], dtype=torch.float64)).end
    assert end.covariance.item() == pytest.approx(sde.sigma(torch.tensor(0.5).double()).item() ** 2 / (1 - r**2), rel=1e-3)
    assert run.end.covariance.item() < 1e-6


@pytest.mark.parametrize(
    "sampler, draws",
    [
        (EulerMaruyama(), 7),
        (PredictorCorrector(1, 0.1), 14),
        (PredictorCorrector(2, 0.1), 21),
        (PredictorCorrector(3, 0.1, DDIM()), 21),
        (PredictorCorrector(2, 0.1, DDIM(eta=0.5)), 21),
        (DDIM(eta=0.5), 7),
        (DDPM(), 7),
        (SDEDPMSolverPP(), 7),
        (StochasticHeun(4.0, 0.0, math.inf), 7),
        (Restart(((0.3, 1.0, 3, 2), (0.05, 0.2, 2, 3))), 5),
    ],
    ids=repr,
)
def test_no_number_is_drawn_twice(sampler, draws):
    """Seven steps, each with as many independent draws as it has uses for one."""
    assert len(affine_map(sampler, AXES, VP(), 8, "karras").noise) == draws


# equalities and published algorithms


@pytest.mark.parametrize("process", PROCESSES)
def test_three_roads_to_ancestral_sampling(process):
    """DDPM small, DDIM(1), SDE-DPM-Solver++(1); and at nu 0 the deterministic solver."""
    sde = PROCESSES[process]

    def run(sampler):
        return sampler(LINE.denoiser(sde), shape=(8, 1), n_steps=12, grid="karras", seeds=2, dtype=torch.float64).x

    assert (run(DDPM()) - run(DDIM(1.0))).abs().max() < 1e-11
    assert (run(SDEDPMSolverPP1()) - run(DDIM(1.0))).abs().max() < 1e-11
    assert (run(SDEDPMSolverPP(noise_share=0.0)) - run(DPMSolverPP2M())).abs().max() < 1e-11
    assert torch.equal(run(StochasticHeun(0.0)), run(Heun()))
    assert torch.equal(run(PredictorCorrector(0, predictor="dpm++3m")), run(DPMSolverPP3M()))
    assert torch.equal(run(PredictorCorrector(0)), run(EulerMaruyama()))


def test_sde_dpm_solver_2m_as_in_k_diffusion():
    """k-diffusion's sample_dpmpp_2m_sde (midpoint, eta 0.7, s_noise 1), transcribed for sigma = exp(-lambda), on the same noise."""
    edm, noise, share = EDM(), NoiseSource.of(4, 6), 0.7
    denoiser = LINE.denoiser(edm)
    run = SDEDPMSolverPP(noise_share=share)(denoiser, shape=(6, 1), n_steps=15, seeds=noise, dtype=torch.float64)
    sigmas = [*edm.sigma(run.grid).tolist(), 0.0]
    x, old, h_last = edm.prior((1,), noise, torch.float64), None, None
    for i in range(15):
        denoised = denoiser(x, run.grid[i]).x0
        if sigmas[i + 1] == 0:
            x = denoised
            break
        t, s = -math.log(sigmas[i]), -math.log(sigmas[i + 1])
        h = s - t
        eta_h = share * h
        x = sigmas[i + 1] / sigmas[i] * math.exp(-eta_h) * x + -math.expm1(-h - eta_h) * denoised
        if old is not None:
            r = h_last / h
            x = x + 0.5 * -math.expm1(-h - eta_h) * (1 / r) * (denoised - old)
        x = x + noise.normal((1,), "step", i, torch.float64) * sigmas[i + 1] * math.sqrt(-math.expm1(-2 * eta_h))
        old, h_last = denoised, h
    assert (x - run.x).abs().max() < 1e-11


@pytest.mark.parametrize("s_churn, s_min, s_max, s_noise", [(30.0, 0.05, 50.0, 1.003), (4.0, 0.01, 1.0, 1.0)])
def test_algorithm_2_of_karras(s_churn, s_min, s_max, s_noise):
    """Written out from the listing, on the same noise."""
    edm, noise, n = EDM(), NoiseSource.of(3, 6), 18
    denoiser = LINE.denoiser(edm)
    run = StochasticHeun(s_churn, s_min, s_max, s_noise)(denoiser, shape=(6, 1), n_steps=n, seeds=noise, dtype=torch.float64)

    def slope(x, sigma):
        return (x - denoiser(x, edm.time_of_half_log_snr(-torch.tensor(sigma, dtype=torch.float64).log())).x0) / sigma

    sigmas, x = [*edm.sigma(run.grid).tolist(), 0.0], edm.prior((1,), noise, torch.float64)
    for i in range(n):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= sigmas[i] <= s_max else 0.0
        raised = sigmas[i] * (1 + gamma)
        x_hat = x + math.sqrt(raised**2 - sigmas[i] ** 2) * s_noise * noise.normal((1,), "churn", i, torch.float64)
        d = slope(x_hat, raised)
        x = x_hat + (sigmas[i + 1] - raised) * d
        if sigmas[i + 1]:
            x = x_hat + (sigmas[i + 1] - raised) * (d + slope(x, sigmas[i + 1])) / 2
    assert (x - run.x).abs().max() < 1e-9 and run.nfe == 2 * n - 1


def test_added_noise_is_the_forward_process():
    """From any level to any noisier one of any process."""
    for sde in PROCESSES.values():
        t, up = levels_at(sde, [0.1, 0.7])
        gain = add_noise(torch.ones(1), t, up, torch.zeros(1)).item()
        new = add_noise(torch.zeros(1), t, up, torch.ones(1)).item()
        assert gain * t.alpha == pytest.approx(up.alpha, rel=1e-6)
        assert gain**2 * t.sigma**2 + new**2 == pytest.approx(up.sigma**2, rel=1e-6)


def test_restarts_count_and_contract():
    """Evaluations as forecast; noise put in and taken out again takes most of a wrong start away."""
    denoiser = LINE.denoiser(VP())
    for sampler in (Restart(), Restart(((0.3, 1.0, 3, 1), (0.05, 0.2, 2, 2)))):
        assert sampler(denoiser, shape=(2, 1), n_steps=20, seeds=0).nfe == sampler.evaluations(20)
    assert Restart(()).evaluations(10) == 19
    assert torch.equal(Restart(())(denoiser, shape=(4, 1), n_steps=9, seeds=1).x, Heun()(denoiser, shape=(4, 1), n_steps=9, seeds=1).x)
    plain, churned = affine_map(Heun(), Gaussian(0.4, 0.09), VP(), 20), affine_map(Restart(((0.1, 3.0, 6, 2),)), Gaussian(0.4, 0.09), VP(), 20)
    assert churned.gain.abs().item() < 0.1 * plain.gain.abs().item()


# the adaptive stepper


def test_increments_of_refused_steps_stay_brownian():
    """Steps refused because their increment was large: with what was drawn kept, the path has variance 1, without it 0.4."""
    n, generator = 40_000, torch.Generator().manual_seed(0)
    h = torch.full((n,), 0.25, dtype=torch.float64)
    total = torch.zeros(n, 1, dtype=torch.float64)
    path, time, tried = _Increments(h, total), torch.zeros_like(h), torch.zeros(n, dtype=torch.bool)
    fourth = []
    while bool((time < 1 - 1e-9).any()):
        length = torch.minimum(torch.where(tried, 0.1, 0.25).double(), 1 - time)
        w = path.draw(length, torch.randn(n, 1, generator=generator, dtype=torch.float64))
        taken = tried | (w[:, 0].abs() < 0.4)
        path.settle(length, w, taken)
        total = total + torch.where(taken[:, None], w, 0.0)
        time, tried = torch.where(taken, time + length, time), ~taken
        fourth.append(total)
    assert total.mean().abs() < 4 / math.sqrt(n)
    assert abs(total.var().item() - 1) < 4 * math.sqrt(2 / n)
    assert abs((total**4).mean().item() - 3) < 0.2


@pytest.mark.parametrize("process", ["vp", "ve", "flow", "discrete"])
def test_adaptive_moments(process):
    """Mean and standard deviation in sixteen dimensions, more evaluations for a smaller tolerance."""
    sde, oracle = PROCESSES[process], Gaussian(torch.full((16,), 0.4), 0.09 * torch.eye(16))
    loose, tight = (AdaptiveSDE(r)(oracle.denoiser(sde), shape=(400, 16), seeds=0, dtype=torch.float64) for r in (0.3, 0.05))
    assert abs(tight.x.mean().item() - 0.4) < 0.015 and abs(tight.x.std().item() - 0.3) < 0.012
    assert tight.nfe > 1.5 * loose.nfe and AdaptiveSDE().evaluations(5) is None


def test_adaptive_samples_have_steps_of_their_own():
    """A sample comes out the same alone and among others, and with more levels at which states are kept it stays near."""
    denoiser = LINE.denoiser(VP())
    whole = AdaptiveSDE(0.2)(denoiser, shape=(5, 1), seeds=7, dtype=torch.float64).x
    alone = torch.cat([AdaptiveSDE(0.2)(denoiser, shape=(1, 1), seeds=NoiseSource.of(7, 1, k), dtype=torch.float64).x for k in range(5)])
    assert (whole - alone).abs().max() < 1e-12


# any sampler: seeds, starts, names, settings


@pytest.mark.parametrize("name", STOCHASTIC)
def test_samples_do_not_depend_on_the_batch(name):
    """Batches of 1 and 9; other seeds give other samples; the global generator stays."""
    denoiser, sampler, before = LINE.denoiser(VP()), STOCHASTIC[name], torch.get_rng_state()

    def make(first, n):
        return sampler(denoiser, shape=(n, 1), n_steps=9, seeds=NoiseSource.of(5, n, first), dtype=torch.float64).x

    whole = make(0, 9)
    assert (torch.cat([make(k, 1) for k in range(9)]) - whole).abs().max() < 1e-12
    assert (make(9, 9) - whole).abs().max() > 1e-3
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", STOCHASTIC)
def test_starts_anywhere(name):
    """From exact samples at t = 0.5."""
    sde = VP()
    end = propagate(STOCHASTIC[name], Gaussian(0.4, 0.09), sde, 100, start=0.5).end
    assert abs(end.mean.item() - 0.4) < 0.02 and abs(end.covariance.item() ** 0.5 - 0.3) < 0.02


@pytest.mark.parametrize("name", [*STOCHASTIC, "adaptive"])
def test_travels_as_data(name):
    """Settings, predictors and solvers included."""
    sampler = STOCHASTIC.get(name, AdaptiveSDE(0.1))
    assert Context().revive(Parts().describe(sampler), None, "it") == sampler


@pytest.mark.parametrize(
    "cls, spellings",
    [
        (DDPM, ("ddpm", "ancestral", "DDPM")),
        (SDEDPMSolverPP, ("sde-dpm-solver++2m", "SDE-DPM++ 2M", "dpm++2m-sde")),
        (SDEDPMSolverPP1, ("sde-dpm-solver++1",)),
        (StochasticHeun, ("stochastic heun", "churn", "edm-churn")),
        (Restart, ("restart",)),
        (AdaptiveSDE, ("adaptive-sde", "gotta go fast", "ggf")),
    ],
)
def test_names(cls, spellings):
    """Registered under the field's names."""
    for spelling in spellings:
        assert type(SAMPLERS.resolve(spelling, Sampler)) is cls


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DDPM("fixed"), "variance must be 'small'"),
        (lambda: SDEDPMSolverPP(extrapolation=3), "extrapolation must be 1 or 2"),
        (lambda: SDEDPMSolverPP(noise_share=-1.0), "noise_share must be at least 0"),
        (lambda: StochasticHeun(s_churn=-1.0), "s_churn >= 0"),
        (lambda: StochasticHeun(solver=EulerMaruyama()), "draws noise of its own"),
        (lambda: StochasticHeun(solver=DPMSolverPP2M()), "remembers predictions"),
        (lambda: Restart(((0.3, 0.1, 2, 2),)), "0 < low < high"),
        (lambda: Restart(((0.1, 0.3, 2, 0.5),)), "whole numbers"),
        (lambda: Restart(solver="dpm++2m"), "remembers predictions"),
        (lambda: AdaptiveSDE(rtol=0.0), "rtol must be"),
        (lambda: AdaptiveSDE(atol=math.inf), "atol must be"),
        (lambda: PredictorCorrector(predictor=PredictorCorrector()), "corrects already"),
        (lambda: PredictorCorrector(predictor="nothing"), "unknown sampler"),
        (lambda: PredictorCorrector(step_size="song"), "step_size must be 'annealed' or 'fixed-ratio'"),
        (lambda: Restart(((0.3, 1e6, 2, 1),))(LINE.denoiser(VP()), shape=(1, 1), n_steps=5), "reaches above t_max"),
    ],
)
def test_bad_settings_are_refused(make, message):
    """At construction, or before any work."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_refused_increment_is_bridged():
    """All refused over 1/4, then taken over 1/10 and the rest: variances 1/10 and 3/20, uncorrelated, and the sum is what was drawn."""
    n, generator = 40_000, torch.Generator().manual_seed(1)
    full = torch.full((n,), 0.25, dtype=torch.float64)
    path = _Increments(full, torch.zeros(n, 1, dtype=torch.float64))

    def draw(h):
        return path.draw(h, torch.randn(n, 1, generator=generator, dtype=torch.float64))

    refused, yes = draw(full), torch.ones(n, dtype=torch.bool)
    path.settle(full, refused, ~yes)
    first = draw(0.4 * full)
    path.settle(0.4 * full, first, yes)
    second = draw(0.6 * full)
    path.settle(0.6 * full, second, yes)
    assert (first + second - refused).abs().max() < 1e-12
    assert first.var().item() == pytest.approx(0.1, rel=0.03) and second.var().item() == pytest.approx(0.15, rel=0.03)
    assert abs((first * second).mean().item()) < 4 * math.sqrt(0.1 * 0.15 / n)
    assert path.span.abs().max() < 1e-12


def test_expand_is_used_per_sample():
    """Increments broadcast over images."""
    h, x = torch.tensor([0.1, 0.4]).double(), torch.zeros(2, 1, 3, 3, dtype=torch.float64)
    w = _Increments(h, x).draw(h, torch.ones_like(x))
    assert torch.allclose(w, expand(h.sqrt(), x).expand_as(x))
    assert ProbabilityFlow().is_stochastic is False
