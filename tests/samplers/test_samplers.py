"""Samplers against exact answers: moments, orders, random numbers that belong to samples, and bad input."""

import math
from dataclasses import dataclass

import pytest
import torch

from diffnb.core import NoiseSource
from diffnb.denoise import Denoiser, Gaussian, GaussianMixture
from diffnb.noise import EDM, VE, VP, Cosine, FlowMatching, Linear, SubVP
from diffnb.samplers import (
    DDIM,
    RK4,
    SAMPLERS,
    DPMSolverPP2M,
    DPMSolverPP3M,
    EulerMaruyama,
    ExponentialIntegrator,
    Heun,
    NonFiniteError,
    PredictorCorrector,
    ProbabilityFlow,
    Sampler,
    check_sampler,
    exact_flow,
    karras,
    measure_order,
    uniform_half_log_snr,
    uniform_time,
)

PROCESSES = {
    "vp-linear": VP(Linear()),
    "vp-cosine": VP(Cosine()),
    "sub-vp-linear": SubVP(Linear()),
    "sub-vp-cosine": SubVP(Cosine()),
    "ve": VE(0.01, 50.0),
    "edm": EDM(),
    "flow": FlowMatching(),
}
STOCHASTIC = {"euler-maruyama": EulerMaruyama(), "predictor-corrector": PredictorCorrector(), "ddim-1": DDIM(1.0), "ddim-0.5": DDIM(0.5)}
DETERMINISTIC = {
    "flow-euler": ProbabilityFlow("euler"),
    "flow-heun": ProbabilityFlow(),
    "ddim-0": DDIM(),
    "heun": Heun(),
    "rk4": RK4(),
    "exponential-1": ExponentialIntegrator(1),
    "exponential-2": ExponentialIntegrator(),
    "dpmpp2m": DPMSolverPP2M(),
    "dpmpp3m": DPMSolverPP3M(),
}
SAMPLERS_HERE = STOCHASTIC | DETERMINISTIC


def tensor(values):
    """Float64."""
    return torch.tensor(values, dtype=torch.float64)


LINE = GaussianMixture(tensor([[-1.0], [0.2], [1.2]]), tensor([0.05, 0.2, 0.1])[:, None, None], tensor([0.3, 0.5, 0.2]))
PLANE = GaussianMixture(
    tensor([[-1.0, 0.0], [0.8, 0.6], [0.3, -0.9]]),
    tensor([[[0.05, 0.02], [0.02, 0.1]], [[0.2, -0.03], [-0.03, 0.04]], [[0.08, 0.0], [0.0, 0.08]]]),
    tensor([0.3, 0.5, 0.2]),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors: one thread is fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def room(name, process):
    """How far a moment may be off: Euler's method in t has more where t is far from uniform."""
    return 0.02 if name == "flow-euler" and process in ("ve", "edm") else 0.01


# moments of N(0.4, 0.3^2) in 500 steps, where the order is higher than first in 100


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n != "dpmpp2m"])
def test_exact_moments_without_noise(name, process):
    """On Gaussian data a run is affine in its start, so two points give the exact mean and standard deviation."""
    sde, sampler = PROCESSES[process], DETERMINISTIC[name]
    run = sampler(Gaussian(0.4, 0.09).denoiser(sde), x=tensor([[0.0], [1.0]]), n_steps=500 if sampler.order == 1 else 100)
    mean, std = run.x[0].item(), (run.x[1] - run.x[0]).abs().item() * sde.prior_std
    assert abs(mean - 0.4) < room(name, process)
    assert abs(std - 0.3) < room(name, process)


@pytest.mark.slow  # test_sde_samplers.py propagates the moments exactly; here they are those of draws
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n != "ddim-0.5"])
def test_moments_with_noise(name, process):
    """Mean and standard deviation of draws; 256 of them in 40 dimensions are 10,240 numbers at the price of a small batch."""
    sde, d = PROCESSES[process], 40
    oracle = Gaussian(torch.full((d,), 0.4), 0.09 * torch.eye(d))
    x = STOCHASTIC[name](oracle.denoiser(sde), shape=(256, d), n_steps=500, seeds=0, dtype=torch.float64).x
    assert abs(x.mean().item() - 0.4) < 0.01
    assert abs(x.std().item() - 0.3) < 0.01


# convergence orders


def settings(name):
    """The grid in whose variable a sampler steps."""
    return "time" if name.startswith("flow") else "log-snr"


@pytest.fixture(scope="module")
def plane_answer():
    """The probability flow on the plane under VP, by RK4 in 1,000 steps."""
    x = VP().prior_std * torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, RK4()(PLANE.denoiser(VP()), x=x, n_steps=1000, grid="log-snr").x


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_in_the_plane(name, plane_answer):
    """Every deterministic sampler converges with its stated order on three Gaussians in the plane, started as in practice."""
    (x, answer), sampler = plane_answer, DETERMINISTIC[name]
    error = [(sampler(PLANE.denoiser(VP()), x=x, n_steps=n, grid=settings(name)).x - answer).square().mean().sqrt().item() for n in (128, 256)]
    assert abs(math.log2(error[0] / error[1]) - sampler.order) < 0.15


@pytest.mark.parametrize("process", ["ve", "edm", "flow"])
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if not n.startswith(("flow", "exponential"))])
def test_order_on_the_line(name, process):
    """The same against an exact flow, with exact starting values for multistep methods."""
    sde, z = PROCESSES[process], torch.linspace(-2.5, 2.5, 32, dtype=torch.float64)[:, None]

    def flow(t):
        return exact_flow(LINE, sde, sde.prior_std * z, sde.t_max, t)

    assert abs(measure_order(DETERMINISTIC[name], LINE.denoiser(sde), flow, (128, 256)).slope - DETERMINISTIC[name].order) < 0.15


def test_a_grid_one_level_short_makes_any_method_first_order():
    """The last step has to start from a fixed t_min."""
    sde, z = VP(), torch.linspace(-2.5, 2.5, 32, dtype=torch.float64)[:, None]

    def flow(t):
        return exact_flow(LINE, sde, z, sde.t_max, t)

    def short(sde, n, start):
        return uniform_half_log_snr(sde, n + 1, start)[:-1]

    assert measure_order(RK4(), LINE.denoiser(sde), flow, grid=short).slope < 1.5


def test_equalities():
    """First-order exponential integration is DDIM; under flow matching so is Euler's method in t."""
    for sde in PROCESSES.values():
        x = sde.prior_std * torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

        def run(sampler, grid):
            return sampler(PLANE.denoiser(sde), x=x, n_steps=25, grid=grid).x

        assert (run(ExponentialIntegrator(1), "karras") - run(DDIM(), "karras")).abs().max() < 1e-12
    assert (run(ProbabilityFlow("euler"), "time") - run(DDIM(), "time")).abs().max() < 1e-12


def test_check_sampler_finds_a_wrong_factor():
    """A flow with g^2 for g^2/2, as a subclass: the moments tell."""

    class Doubled(ProbabilityFlow):
        def step(self, denoiser, state, t, s, noise):
            """A flow step, and another half of g^2 score."""
            score = (t.alpha * denoiser(state.x, t.time).x0 - state.x) / t.sigma**2
            after = super().step(denoiser, state, t, s, noise)
            return type(after)(after.x + (t.time - s.time) * t.diffusion_squared / 2 * score, state.step, after.x0)

    with pytest.raises(AssertionError, match="std is"):
        check_sampler(Doubled("euler"), n_samples=500, n_steps=200)


# random numbers


@pytest.mark.parametrize("name", SAMPLERS_HERE)
def test_samples_do_not_depend_on_the_batch(name):
    """Batches of 1, 7 and 64: noise to the last bit, images to 1e-12; the global generator stays where it was."""
    sampler, denoiser = SAMPLERS_HERE[name], PLANE.denoiser(VP())

    def make(first, n):
        return sampler(denoiser, shape=(n, 2), n_steps=8, seeds=NoiseSource.of(5, n, first), dtype=torch.float64, keep_states=True)

    before = torch.get_rng_state()
    whole = make(0, 64)
    for size in (1, 7):
        parts = [make(first, size) for first in range(0, 14, size)]
        assert torch.equal(torch.cat([p.states[0] for p in parts]), whole.states[0][:14])
        assert (torch.cat([p.x for p in parts]) - whole.x[:14]).abs().max() < 1e-12
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(make(64, 64).x, whole.x)


def test_noise_is_the_same_to_the_last_bit():
    """The numbers that a step draws, for each stream."""
    whole = NoiseSource.of(5, 64)
    for stream in ("prior", "step", "corrector"):
        for size in (1, 7, 64):
            parts = [NoiseSource.of(5, min(size, 64 - k), k).normal((1, 8, 8), stream, 37) for k in range(0, 64, size)]
            assert torch.equal(torch.cat(parts), whole.normal((1, 8, 8), stream, 37))


@pytest.fixture(scope="module")
def network_denoiser():
    """A small convolutional network with seeded weights."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.Conv2d(16, 1, 3, padding=1)
            self.level = torch.nn.Linear(1, 16)

        def forward(self, x, half_log_snr):
            return self.last(torch.nn.functional.silu(self.first(x) + self.level(half_log_snr[:, None])[:, :, None, None]))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network()
    return Denoiser(network, EDM(), "karras")


@pytest.mark.parametrize("name", ["euler-maruyama", "predictor-corrector", "ddim-1", "heun", "dpmpp2m"])
def test_a_float32_network_gives_the_same_images_in_any_batch(name, network_denoiser):
    """Sums may be taken in another order, so 1e-3."""

    def make(first, n):
        return SAMPLERS_HERE[name](network_denoiser, shape=(n, 1, 8, 8), n_steps=10, seeds=NoiseSource.of(2, n, first)).x

    whole = make(0, 64)
    for size in (1, 7):
        parts = torch.cat([make(first, size) for first in range(0, 14, size)])
        assert (parts - whole[:14]).abs().max() < 1e-3


def test_seeds():
    """One for a set, one each, a source, none."""

    def run(seeds, n=3):
        return EulerMaruyama()(PLANE.denoiser(VP()), shape=(n, 2), n_steps=5, seeds=seeds, dtype=torch.float64)

    assert torch.equal(run(4).x, run(NoiseSource.of(4, 3)).x)
    assert torch.allclose(run([4, 9, 4]).x[0], run(4).x[0], atol=1e-12)
    assert torch.equal(run([4, 9, 4]).x[0], run([4, 9, 4]).x[2])  # (4, 0) twice
    assert not torch.equal(run(4).x[1], run(5).x[0])  # neighbouring seeds share nothing
    fresh = run(None)
    assert torch.equal(run(fresh.seeds[0]).x, fresh.x) and not torch.equal(run(None).x, fresh.x)


# any process


@pytest.mark.parametrize("process", PROCESSES)
def test_swapping_the_process_keeps_the_posterior_mean(process):
    """A denoiser made for one process answers for another with the same mean, inside its range."""
    own, other = VP(), PROCESSES[process]
    low, high = own.half_log_snr(tensor([own.t_max, own.t_min])).tolist()
    for t in tensor([0.2, 0.4, 0.6, 0.8]):
        if not low < other.half_log_snr(t) < high:
            continue
        x = other.perturb(PLANE.sample(50), t, torch.randn(50, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
        swapped, direct = PLANE.denoiser(own).under(other)(x, t).x0, PLANE.denoiser(other)(x, t).x0
        assert (swapped - direct).abs().max() < 1e-6


# the loop


def test_restart_callback_and_states():
    """Start below t_max from given samples; see every step."""
    seen, denoiser = [], PLANE.denoiser(VP())
    x = VP().perturb(PLANE.sample(4000, seed=1), tensor(0.5), torch.randn(4000, 2, generator=torch.Generator().manual_seed(4)).double())
    run = Heun()(denoiser, x=x, start=0.5, n_steps=30, callback=lambda *a: seen.append(a), callback_frequency=7, keep_states=True)
    assert [(step, n) for step, n, _ in seen] == [(7, 30), (14, 30), (21, 30), (28, 30), (30, 30)]
    assert len(run.states) == 31 and torch.equal(run.states[0], x) and torch.equal(run.states[-1], run.x)
    assert run.grid[0] == 0.5 and run.grid[-1] == VP().t_min and run.nfe == 59
    assert (run.x.mean(0) - PLANE.mean).abs().max() < 0.04
    assert torch.equal(Heun()(denoiser, x=x, start=0.5, n_steps=1).x, denoiser(x, 0.5).x0)


def test_results_may_be_trained_on():
    """The samples are ordinary tensors."""
    weight = torch.ones(1, requires_grad=True)
    (weight * DDIM()(PLANE.denoiser(VP()), shape=(3, 2), n_steps=3, seeds=0).x).square().sum().backward()
    assert weight.grad.isfinite().all()


def test_non_finite_values_are_reported():
    """With the step, the time and the count."""

    class Broken(type(PLANE.denoiser(VP()))):
        def x0(self, x, t, condition):
            """Log of a negative number, below t = 0.3."""
            return torch.where((x < 0) & (t < 0.3), torch.nan, super().x0(x, t, condition))

    with pytest.raises(NonFiniteError, match=r"\d of 8 samples stopped being finite, the first at step 15 of 20, t = 0.26"):
        DDIM()(Broken(PLANE, VP()), shape=(8, 2), n_steps=20, seeds=0, grid="time")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "either shape="),
        ({"shape": (2, 2), "x": torch.zeros(2, 2)}, "either shape="),
        ({"shape": (0, 2)}, "at least one sample"),
        ({"shape": (2, 2), "n_steps": 0}, "n_steps must be a whole number of at least 1, got 0"),
        ({"shape": (2, 2), "n_steps": -3}, "n_steps"),
        ({"shape": (2, 2), "n_steps": 2.5}, "n_steps"),
        ({"shape": (2, 2), "start": 0.5}, "no prior to draw from"),
        ({"x": torch.zeros(2, 2), "start": 1.5}, "start must lie in"),
        ({"x": torch.zeros(2, 2), "start": 0.0}, "start must lie in"),
        ({"x": torch.zeros(2, 2, dtype=torch.uint8)}, "floating point"),
        ({"x": torch.zeros(2, 2), "grid": [0.1, 0.5, 0.9]}, "must fall strictly"),
        ({"x": torch.zeros(2, 2), "grid": [0.9, 0.5], "n_steps": 3}, "holds 3 times"),
        ({"x": torch.zeros(2, 2), "grid": [0.9, 0.0]}, r"lie in \[t_min, t_max\]"),
        ({"x": torch.zeros(2, 2), "grid": [0.9, 0.1], "start": 0.5}, "grid begins at 0.9"),
        ({"x": torch.zeros(2, 2), "grid": "quadratic"}, "unknown time grid"),
        ({"shape": (2, 2), "seeds": [1, 2, 3]}, "3 seeds for 2 samples"),
        ({"shape": (2, 2), "callback": print, "callback_frequency": 0}, "callback_frequency"),
        ({"x": torch.zeros(2, 2), "history": ((0.0, torch.zeros(2, 2)),)}, "DDIM remembers 0"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    """Every error names the argument."""
    with pytest.raises(ValueError, match=message):
        DDIM()(PLANE.denoiser(VP()), **({"n_steps": 5} if "grid" not in arguments else {}) | arguments)


@pytest.mark.parametrize(
    "make", [lambda: DDIM(1.5), lambda: ProbabilityFlow("rk45"), lambda: ExponentialIntegrator(0), lambda: PredictorCorrector(snr=2.0)]
)
def test_bad_settings_are_refused(make):
    """At construction."""
    with pytest.raises(ValueError, match="must"):
        make()


def test_grids():
    """Karras's equation 5, geometric levels, exact ends."""
    edm, i = EDM(), torch.linspace(0, 1, 18, dtype=torch.float64)
    assert (edm.sigma(karras(edm, 18)) - (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).abs().max() < 1e-10
    assert (edm.sigma(uniform_half_log_snr(edm, 18)).log().diff().diff()).abs().max() < 1e-10
    for sde in PROCESSES.values():
        for grid in (uniform_time, uniform_half_log_snr, karras):
            times = grid(sde, 9, 0.7)
            assert times[0] == 0.7 and times[-1] == sde.t_min and bool((times.diff() < 0).all())


@pytest.mark.parametrize(
    "cls, spellings",
    [
        (EulerMaruyama, ("euler-maruyama", "euler", "em", "Euler-Maruyama", "EM")),
        (ExponentialIntegrator, ("exponential integrator", "exponential", "exp")),
        (ProbabilityFlow, ("ode probability flow", "ode flow", "ode", "ODE Flow")),
        (PredictorCorrector, ("predictor-corrector", "pred")),
    ],
)
def test_aliases(cls, spellings):
    """Names of the four samplers with 500 steps by default."""
    for spelling in spellings:
        assert type(SAMPLERS.resolve(spelling, Sampler)) is cls
    assert cls.n_steps_default == 500
    with pytest.raises(ValueError, match="unknown sampler"):
        SAMPLERS.resolve(spellings[0] + "x", Sampler)


@pytest.mark.parametrize("name", [name for name in SAMPLERS.names() if name != "consistency" and SAMPLERS[name]().forecast(5) is not None])
def test_an_open_grid_is_the_closed_one_without_its_last_evaluation(name):
    """The states are the same to the last bit, and with them the order; only the evaluation at the last level is not spent."""
    sampler, denoiser = SAMPLERS[name](), LINE.denoiser(EDM())
    how = {"shape": (8, 1), "seeds": 0, "dtype": torch.float64, "keep_states": True}
    opened, closed = sampler(denoiser, n_steps=5, grid="open-karras", **how), sampler(denoiser, n_steps=6, grid="karras", **how)
    assert opened.x.equal(opened.states[-1]) and len(opened.states) == len(closed.states) - 1
    assert all(a.equal(b) for a, b in zip(opened.states, closed.states))
    assert opened.nfe == closed.nfe - sampler.evaluations(1) == sampler.forecast(5, "open-karras")


@dataclass(frozen=True)
class HalfCurvature(DPMSolverPP3M):
    """Third order with half the weight of the second divided difference."""

    def weights(self, sde, t, s, nodes):
        """Subtract half of what u^2 contributes."""
        carry, plain = super().weights(sde, t, s, nodes)
        if len(nodes) < 3:
            return carry, plain
        h = s.half_log_snr - t.half_log_snr
        r0, r1 = (nodes[0] - nodes[1]) / h, (nodes[1] - nodes[2]) / h
        half = s.alpha * (0.5 - (math.expm1(-h) + h) / h**2) / (r0 + r1)
        return carry, [w - half * part for w, part in zip(plain, (1 / r0, -1 / r0 - 1 / r1, 1 / r1))]


@pytest.mark.parametrize("grid", ["log-snr", "time", "karras"])
def test_third_order_of_diffusers_is_ours_with_half_the_curvature(grid):
    """To float32, in which it computes; and it is of second order, where ours is of third."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is an optional peer: pip install diffusers")
    sde, n, double = VP(), 20, torch.float64
    data = GaussianMixture(*(torch.tensor(a, dtype=double) for a in ([[-1.0], [0.6]], [[[0.05]], [[0.2]]], [0.4, 0.6])))
    oracle, start = data.denoiser(sde), torch.linspace(-2, 2, 32, dtype=double)[:, None]
    levels = sde.levels(HalfCurvature().grid(sde, n, grid=grid))
    settings = {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min", "prediction_type": "epsilon"}
    scheduler = diffusers.DPMSolverMultistepScheduler(**settings)
    scheduler.set_timesteps(n)
    scheduler.sigmas = torch.tensor([level.noise_ratio for level in levels], dtype=double)
    scheduler.timesteps = torch.arange(n - 1, 0, -1)
    x = start
    for k, t in zip(scheduler.timesteps, levels):
        epsilon = (x - t.alpha * oracle(x, t.time).x0) / t.sigma
        x = scheduler.step(epsilon, k, x).prev_sample.double()
    theirs = oracle(x, levels[-1].time).x0
    half, whole = (sampler(oracle, x=start, n_steps=n, grid=grid).x for sampler in (HalfCurvature(), DPMSolverPP3M()))
    assert (half - theirs).abs().max() < 1e-5
    assert (whole - theirs).abs().max() > 1e-4  # so that the two can be told apart
    if grid == "log-snr":
        made = (HalfCurvature(), DPMSolverPP3M())
        orders = [measure_order(one, oracle, lambda t: exact_flow(data, sde, sde.prior_std * start, sde.t_max, t)).slope for one in made]
        assert orders == pytest.approx([2, 3], abs=0.15)
