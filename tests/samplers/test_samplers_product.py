"""Any sampler with any process, grid, parametrization and start; orders of all deterministic samplers; Gaussian data without sampling."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from diffnb.core import NoiseSource, expand
from diffnb.denoise import BaseDenoiser, Denoiser, Gaussian, GaussianMixture
from diffnb.noise import EDM, PARAMETRIZATIONS, SDE, VE, VP, Cosine, FlowMatching, SubVP
from diffnb.samplers import (
    DDIM,
    DEIS,
    GRIDS,
    IPNDM,
    RK4,
    SAMPLERS,
    VARIABLES,
    AdaptiveSDE,
    DormandPrince,
    DPMSolver2,
    DPMSolver2M,
    DPMSolver3,
    DPMSolver3M,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPP3S,
    EulerMaruyama,
    ExponentialIntegrator,
    Heun,
    NonFiniteError,
    Sampler,
    SingleStep,
    State,
    UniPC,
    adaptive_flow,
    affine_map,
    check_sampler,
    exact_flow,
    exponential_moments,
    exponential_weights,
    karras,
    lagrange_weights,
    measure_order,
    noised,
    propagate,
    scipy_flow,
    wasserstein,
)


def tensor(values):
    """Float64."""
    return torch.tensor(values, dtype=torch.float64)


# tuned has its own numbers of steps, see test_grid_search.py, and consistency takes distilled models only, see training/test_distillation.py
NAMES = [name for name in SAMPLERS.names() if name not in ("tuned", "consistency")]
PROCESSES = {"vp": VP(), "vp-cosine": VP(Cosine()), "sub-vp": SubVP(), "ve": VE(), "edm": EDM(), "flow": FlowMatching()}
LINE = GaussianMixture(tensor([[-1.0], [0.2], [1.2]]), tensor([0.05, 0.2, 0.1])[:, None, None], tensor([0.3, 0.5, 0.2]))
Z = torch.linspace(-2.5, 2.5, 24, dtype=torch.float64)[:, None]
PLANE = Gaussian(tensor([0.4, -0.2]), tensor([[0.3, 0.1], [0.1, 0.07]]))


def order_of(sampler, sde=VP(), n_steps=(128, 256), **kwargs):
    """Convergence order on the line against the exact flow."""
    return measure_order(sampler, LINE.denoiser(sde), lambda t: exact_flow(LINE, sde, sde.prior_std * Z, sde.t_max, t), n_steps, **kwargs)


# the product


class Exact(torch.nn.Module):
    """The network that a parametrization asks for, made from an oracle."""

    def __init__(self, oracle, sde, parametrization):
        super().__init__()
        self.oracle, self.sde, self.parametrization = oracle, sde, parametrization

    def forward(self, x, half_log_snr):
        """Undo the input's scale, ask the oracle, and make the target."""
        t = self.sde.time_of_half_log_snr(half_log_snr).clamp(self.sde.t_min, self.sde.t_max)
        x = x / expand(self.parametrization.input_scale(self.sde, t), x)
        x0 = self.oracle.posterior_mean(x, self.sde, t)
        epsilon = (x - expand(self.sde.alpha(t), x) * x0) / expand(self.sde.sigma(t), x)
        p, q = self.parametrization.network_target(self.sde, t)
        return expand(p, x) * x0 + expand(q, x) * epsilon


@pytest.mark.parametrize("name", NAMES)
def test_any_sampler_process_grid_parametrization_and_start(name):
    """With the network of any parametrization the samples are those of the oracle, and near the exact ones.

    A sampler meets half of the processes here, and its neighbour in the list the rest; the exact moments are tested for all of them.
    """
    sampler, oracle = AdaptiveSDE(0.2) if name == "adaptive-sde" else SAMPLERS[name](), Gaussian(0.4, 0.09)  # a tenth of its steps are enough here
    choices = zip(PROCESSES.values(), itertools.cycle(GRIDS.names()), itertools.cycle(PARAMETRIZATIONS.names()[::-1]), itertools.cycle((1.0, 0.5)))
    for k, (sde, grid, parametrization, start) in enumerate(choices):
        if (k + k // 2 + NAMES.index(name)) % 2:  # three of six processes, and both starts
            continue
        grid = "karras" if grid == "noise-ratio" and start == 1 else grid  # all but one of its levels would be noise
        start_at, n_steps = min(start, sde.t_max), 2 if sampler.evaluations(2) is None else 24
        x = exact_flow(oracle, sde, sde.prior_std * Z, sde.t_max, start_at)
        parametrization = PARAMETRIZATIONS[parametrization]()
        learned = Denoiser(Exact(oracle, sde, parametrization), sde, parametrization)

        def run(denoiser):
            return sampler(denoiser, x=x, start=start, grid=grid, n_steps=n_steps, seeds=3, keep_states=True)

        ours, exact = run(learned), run(oracle.denoiser(sde))
        if not (sampler.is_stochastic and sampler.order is None):  # where rounding decides whether a random step is made again
            assert (ours.x - exact.x).abs().max() < 1e-6, (sde, grid, parametrization, start)
        assert len(ours.states) == n_steps + 1 and not any(state.requires_grad for state in ours.states)
        assert ours.nfe == (sampler.forecast(n_steps, grid) or ours.nfe)
        if not sampler.is_stochastic and grid != "time":  # under VP its last step is 4.5 long in lambda, too far for most
            right = oracle.denoiser(sde)(exact_flow(oracle, sde, x, start_at, sde.t_min), sde.t_min).x0
            assert (ours.x - right).abs().max() < 0.15, (sde, grid, parametrization, start)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", ["time", "log-snr", "karras"])
def test_a_run_on_an_open_grid_is_that_on_the_closed_one_without_its_last_evaluation(name, grid):
    """Bit for bit, at every level; the evaluations are those that were forecast."""
    sampler, denoiser = SAMPLERS[name](), Gaussian(0.4, 0.09).denoiser(VP())
    n_steps = 2 if sampler.evaluations(2) is None else 7
    how = {"shape": (4, 1), "seeds": 1, "keep_states": True, "dtype": torch.float64}
    ours, closed = sampler(denoiser, n_steps=n_steps, grid=f"open-{grid}", **how), sampler(denoiser, n_steps=n_steps + 1, grid=grid, **how)
    assert len(ours.states) == n_steps + 1 and all(torch.equal(a, b) for a, b in zip(ours.states, closed.states[:-1], strict=True))
    assert torch.equal(ours.x, closed.states[-2]) and torch.equal(ours.grid, closed.grid) and ours.nfe < closed.nfe
    assert ours.nfe == (sampler.forecast(n_steps, f"open-{grid}") or ours.nfe) and closed.nfe == (sampler.forecast(n_steps + 1, grid) or closed.nfe)


@pytest.mark.parametrize("name", [n for n in NAMES if SAMPLERS[n]().evaluations(2) is not None])
def test_a_step_outside_a_run_is_the_step_of_a_run(name):
    """What `plan` tabulates for a run, `planned` finds for a single step: the first of a run, here with history where there is any."""
    sampler, sde = SAMPLERS[name](), VP()
    denoiser, levels = LINE.denoiser(sde), sde.levels(karras(sde, 6))
    run = sampler(denoiser, x=Z, grid=karras(sde, 6), seeds=0, keep_states=True)
    step = sampler.step(denoiser, State(Z), levels[0], levels[1], NoiseSource.of(0, len(Z)))
    assert torch.allclose(step.x, run.states[1], rtol=0, atol=1e-12)


# orders


MULTISTEP = {
    **{f"exponential-{p}-{k}": ExponentialIntegrator(k, p) for p in ("x0", "epsilon") for k in (2, 3, 4)},
    **{f"deis-{v}-{k}": DEIS(k, v) for v in ("time", "noise-ratio") for k in (2, 3, 4)},
    **{f"ipndm-{k}": IPNDM(k) for k in (1, 2, 3, 4)},
    **{f"unipc-{k}-{line}": UniPC(k, line=line) for k in (1, 2, 3) for line in ("midpoint", "trapezoid")},
}
SINGLE = {f"single-{p}-{k}": SingleStep(k, p) for p in ("x0", "epsilon") for k in (1, 2, 3)}


@pytest.mark.parametrize("name", [*MULTISTEP, *SINGLE])
def test_order(name):
    """128 to 256 steps, twice as many where polynomials in other variables come to their order later; exact starting values for what remembers."""
    sampler = (MULTISTEP | SINGLE)[name]
    expected = int(name.split("-")[1]) + 1 if name.startswith("unipc") else int(name.split("-")[-1])
    assert sampler.order == expected
    n_steps = (256, 512) if name.startswith(("deis", "ipndm")) else (128, 256)
    assert abs(order_of(sampler, n_steps=n_steps).slope - expected) < 0.15


@pytest.mark.parametrize("process", ["ve", "flow", "edm"])
@pytest.mark.parametrize("sampler", [DPMSolver3(), DPMSolver3M(), DEIS(), IPNDM(), UniPC()], ids=lambda s: type(s).__name__)
def test_order_under_other_processes(sampler, process):
    """The same where alpha is 1, and where it is not."""
    assert abs(order_of(sampler, PROCESSES[process]).slope - sampler.order) < 0.15


@pytest.mark.parametrize(
    "sampler, grid, at_64, at_512",
    [
        (DDIM(), "log-snr", 7e-2, 6e-3),
        (Heun(), "log-snr", 5e-3, 7e-5),
        (DPMSolverPP2M(), "log-snr", 3e-3, 4e-5),
        (DPMSolverPP3M(), "log-snr", 4e-4, 6e-7),
        (DEIS(3), "log-snr", 7e-4, 2e-6),
        (RK4(), "log-snr", 1e-5, 3e-9),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Sampler) else "",
)
def test_size_of_the_errors(sampler, grid, at_64, at_512):
    """An order can be right with a constant that is not."""
    errors = order_of(sampler, n_steps=(64, 512), grid=grid, exact_start=False).errors
    assert errors[0] < at_64 and errors[1] < at_512


def test_start_from_the_middle():
    """An own start makes third order second, its correction third again at no cost."""
    own, corrected = (order_of(DPMSolverPP3M(corrected_start=c), start=0.5, exact_start=False) for c in (False, True))
    assert abs(own.slope - 2) < 0.15 and abs(corrected.slope - 3) < 0.15 and corrected.errors[1] < own.errors[1] / 15
    costs = {c: DPMSolverPP3M(corrected_start=c)(LINE.denoiser(VP()), x=Z, n_steps=9).nfe for c in (False, True)}
    assert costs == {False: 9, True: 9}


def first_order(x, d, t, s):
    """x at s where the prediction of x_0 stays d."""
    return s.sigma / t.sigma * x - s.alpha * math.expm1(t.half_log_snr - s.half_log_snr) * d


def test_lower_order_final():
    """DPM-Solver++(3M) by hand over six levels: one prediction, two, three, two, one, and x0_hat; polynomials by numpy, integrals by scipy."""
    sde = EDM()
    levels, denoiser = sde.levels(karras(sde, 6)), LINE.denoiser(sde)
    x, seen = sde.prior_std * Z, []
    for (t, s), n in zip(zip(levels, levels[1:]), (1, 2, 3, 2, 1)):
        seen.insert(0, (t.half_log_snr, denoiser(x, t.time).x0))
        nodes, h = [lam for lam, _ in seen[:n]], s.half_log_snr - t.half_log_snr
        d = 0
        for j, (_, x0) in enumerate(seen[:n]):
            basis = np.poly1d([node for k, node in enumerate(nodes) if k != j], r=True)
            mean = quad(lambda lam: basis(lam) / basis(nodes[j]) * math.exp(lam - s.half_log_snr), t.half_log_snr, s.half_log_snr, epsabs=1e-14)[0]
            d = d + mean / -math.expm1(-h) * x0
        x = first_order(x, d, t, s)
    ours = ExponentialIntegrator(3, line="exact", lower_order_final=True)(denoiser, x=sde.prior_std * Z, n_steps=6, grid="karras")
    assert ours.nfe == 6 and (ours.x - denoiser(x, levels[-1].time).x0).abs().max() < 1e-10


@pytest.mark.parametrize("sampler", [DPMSolverPP2M, DPMSolverPP3M, DPMSolver3M, DEIS, IPNDM, UniPC])
def test_lower_order_final_spares_the_other_steps(sampler):
    """All levels but the last few are as they were, the samples are not; the last step is DDIM's; a step outside a run keeps its order."""
    sde = VP()
    denoiser, levels, x = LINE.denoiser(sde), sde.levels(karras(sde, 12)), sde.prior_std * Z
    plain, lowered = (sampler(lower_order_final=low) for low in (False, True))
    runs = [s(denoiser, x=x, grid=karras(sde, 12), keep_states=True) for s in (plain, lowered)]
    changed = [bool((a - b).abs().max() > 1e-12) for a, b in zip(*(run.states for run in runs))]
    n = plain.extrapolation
    assert changed == [False] * (len(changed) - n) + [True] * n, changed
    assert lowered.order is None and plain.order is not None
    if sampler is not UniPC:  # which corrects the level before, and then takes the step
        before = runs[1].states[10]
        last = first_order(before, denoiser(before, levels[10].time).x0, levels[10], levels[11])
        assert (runs[1].states[11] - last).abs().max() < 1e-10
    history = tuple((level.half_log_snr, Z * k) for k, level in enumerate(levels[2::-1], 1))[: plain.n_history]
    alone = [s.step(denoiser, State(Z, history=history), levels[3], levels[4], NoiseSource.of(0, len(Z))).x for s in (plain, lowered)]
    assert torch.equal(*alone)


def test_only_the_start_is_corrected():
    """Last steps that use few predictions by choice are not taken again for it."""
    sde = EDM()
    plan = ExponentialIntegrator(4, corrected_start=True, lower_order_final=True).plan(sde, sde.levels(karras(sde, 10)), ())
    assert [len(row.weights) for row in plan] == [1, 2, 3, 4, 4, 4, 3, 2, 1]
    assert [len(row.correction) for row in plan] == [0, 2, 3, 0, 0, 0, 0, 0, 0]


def test_ipndm_is_of_second_order_where_steps_are_not_equal():
    """As its page says."""
    assert abs(order_of(IPNDM(), grid="log-snr", start=0.5).slope - 2) < 0.15


# coefficients


def test_moments_against_quadrature():
    """On both sides of where the series takes over."""
    for z in (-8.0, -1.0, -0.99, -1e-6, 0.0, 0.5, 1.01, 4.0):
        for k, moment in enumerate(exponential_moments(z, 4)):
            assert abs(moment / quad(lambda u: u**k * math.exp(z * (1 - u)), 0, 1, epsrel=1e-13)[0] - 1) < 1e-12


def test_weights_are_exact_for_cubics():
    """Whatever the nodes; for the noise in time too, where the cubic is one of t."""
    sde = VP(Cosine())
    t, s = sde.levels(tensor([0.6, 0.45]))
    times = tensor([0.6, 0.66, 0.7, 0.85])
    nodes = sde.half_log_snr(times).tolist()

    def cubic(v):
        return 0.3 - 1.1 * v + 0.7 * v**2 + 0.2 * v**3

    exact = -quad(lambda lam: s.alpha * math.exp(-lam) * cubic(lam), t.half_log_snr, s.half_log_snr, epsabs=1e-14)[0]
    assert abs(sum(w * cubic(n) for w, n in zip(exponential_weights("epsilon", t, s, nodes)[1], nodes)) - exact) < 1e-11
    units, moments = VARIABLES["time"](sde, t, s, nodes)
    found = (s.noise_ratio - t.noise_ratio) * sum(w * cubic(v) for w, v in zip(lagrange_weights(units, moments), times.tolist()))
    exact = quad(lambda lam: -math.exp(-lam) * cubic(sde.time_of_half_log_snr(tensor(lam)).item()), t.half_log_snr, s.half_log_snr)[0]
    assert abs(found - exact) < 1e-10


def test_ipndm_has_the_printed_weights():
    """3/2, -1/2; 23/12, -16/12, 5/12; 55/24, -59/24, 37/24, -9/24."""
    sde = EDM()
    levels = sde.levels(karras(sde, 8))
    printed = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    for step, weights, (t, s) in zip(IPNDM().plan(sde, levels, []), [*printed, printed[-1]], zip(levels, levels[1:])):
        assert torch.allclose(tensor(step.weights), (s.sigma - t.sigma) * tensor(weights), rtol=1e-12)


def test_one_prediction_is_ddim_in_every_family():
    """Under every process."""
    for sde in PROCESSES.values():
        x, denoiser = sde.prior_std * Z, LINE.denoiser(sde)
        right = DDIM()(denoiser, x=x, n_steps=12, grid="karras").x
        for sampler in (ExponentialIntegrator(1), ExponentialIntegrator(1, "epsilon"), DEIS(1), IPNDM(1), SingleStep(1), SingleStep(1, "epsilon")):
            assert (sampler(denoiser, x=x, n_steps=12, grid="karras").x - right).abs().max() < 1e-9


# adaptive steps


@pytest.mark.parametrize("process", PROCESSES)
def test_dormand_prince_keeps_its_tolerance(process):
    """Against the exact flow, and against scipy."""
    sde = PROCESSES[process]
    x, denoiser = sde.prior_std * Z, LINE.denoiser(sde)
    right = exact_flow(LINE, sde, x, sde.t_max, sde.t_min)
    errors, costs = [], []
    for tolerance in (1e-4, 1e-6):
        run = DormandPrince(tolerance, tolerance)(denoiser, x=x, keep_states=True)
        errors.append((run.states[1] - right).abs().max().item()), costs.append(run.nfe)
        assert errors[-1] < 100 * tolerance
    assert errors[1] < errors[0] / 20 and costs[1] < 130
    reference = scipy_flow(denoiser, x, sde.t_max, sde.t_min, 1e-9, 1e-9)
    assert (reference - right).abs().max() < 1e-6


def test_dormand_prince_takes_each_sample_by_itself():
    """A company of easy and hard samples changes none of them."""
    denoiser, sampler = LINE.denoiser(VP()), DormandPrince(1e-5, 1e-5)
    together = sampler(denoiser, x=Z)
    alone = [sampler(denoiser, x=x[None]) for x in Z[::5]]
    assert (together.x[::5] - torch.cat([run.x for run in alone])).abs().max() < 1e-12
    assert min(run.nfe for run in alone) < together.nfe


def test_dormand_prince_gives_up_with_a_reason():
    """Where no step is exact enough, and where the tolerance cannot be resolved."""

    class Ragged(type(LINE.denoiser(VP()))):
        def x0(self, x, t, condition):
            """No function of x that a step could follow."""
            return super().x0(x, t, condition) + torch.sin(1e9 * x)

    with pytest.raises(ArithmeticError, match="24 of 24 samples have not arrived after 20 steps"):
        adaptive_flow(Ragged(LINE, VP()), Z, 1.5, 0.1, 1e-8, 1e-8, max_steps=20)
    with pytest.raises(ValueError, match="rtol and atol must be at least"):
        DormandPrince(1e-9, 1e-9)(LINE.denoiser(VP()), x=Z.float())


# Gaussian data


@pytest.mark.parametrize("name", [n for n in NAMES if SAMPLERS[n]().evaluations(2) is not None])
def test_every_sampler_with_fixed_steps_is_affine_on_gaussian_data(name):
    """The map, found on impulses, tells where other points end; with noise, the covariance of draws."""
    sampler, sde = SAMPLERS[name](), VP()
    d, denoiser = 2, PLANE.denoiser(sde)
    if sampler.is_stochastic:
        drawn = sampler(denoiser, shape=(6000, d), n_steps=15, seeds=1, dtype=torch.float64).x
        end = propagate(sampler, PLANE, sde, 15).end
        spread = end.covariance.diagonal().max().item()
        assert (drawn.mean(0) - end.mean).abs().max() < 0.06 * math.sqrt(spread) and (drawn.T.cov() - end.covariance).abs().max() < 0.06 * spread
    else:
        found, vectors = affine_map(sampler, PLANE, sde, 15), torch.linalg.eigh(PLANE.covariances[0])[1]
        x = torch.cat([Z, Z.flip(0) - 0.3], 1)
        assert (sampler(denoiser, x=x, n_steps=15).x - ((x @ vectors) * found.gain + found.shift) @ vectors.T).abs().max() < 1e-10


def test_heun_by_hand():
    """Two predictions of a linear denoiser make a number a step; its product is the map."""
    sde, c = EDM(), 0.09
    levels, gain = sde.levels(Heun().grid(sde, 18)), 1.0
    for t, s in zip(levels, levels[1:]):

        def slope(level):
            return level.sigma / (c + level.sigma**2)

        h = s.sigma - t.sigma
        gain *= 1 + h / 2 * (slope(t) + slope(s) * (1 + h * slope(t)))
    gain *= c / (c + levels[-1].sigma ** 2)
    assert abs(affine_map(Heun(), Gaussian(0.0, c), sde, 18).gain.item() - gain) < 1e-10


def test_bias_of_the_prior_apart_from_the_steps():
    """From the exact start the error goes to zero; from the prior it stays at what the flow makes of the prior's error."""
    sde, m, c = VE(0.01, 5.0), 0.4, 0.09
    data = Gaussian(m, c)
    biased = propagate(RK4(), data, sde, 300, grid="log-snr").end
    exact = propagate(RK4(), data, sde, 300, grid="log-snr", initial=noised(data, sde, 1.0)).end
    shrink = math.sqrt((c + 1e-4) / (c + 25)) * c / (c + 1e-4)
    assert abs(biased.mean.item() - m * (1 - shrink)) < 1e-6
    assert abs(exact.mean.item() - m) < 1e-6


def test_weak_order_of_euler_maruyama():
    """First order, without a sample drawn."""
    sde = VP()
    start, last = noised(PLANE, sde, 1.0), propagate(RK4(), PLANE, sde, 400, grid="log-snr", initial=noised(PLANE, sde, 1.0)).end
    errors = [wasserstein(propagate(EulerMaruyama(), PLANE, sde, n, initial=start).end, last) for n in (128, 256)]
    assert abs(math.log2(errors[0] / errors[1]) - 1) < 0.15


def test_wasserstein():
    """Closed forms, symmetry, and digits where two are nearly equal."""
    assert abs(wasserstein(Gaussian(0.0, 1.0), Gaussian(1.0, 4.0)) - math.sqrt(2)) < 1e-14
    other = Gaussian(tensor([0.0, 0.1]), tensor([[0.2, -0.05], [-0.05, 0.1]]))
    assert abs(wasserstein(PLANE, other) - wasserstein(other, PLANE)) < 1e-12
    flat, round_ = Gaussian(torch.zeros(2), tensor([[1.0, 0.0], [0.0, 0.0]])), Gaussian(torch.zeros(2), tensor([[4.0, 0.0], [0.0, 9.0]]))
    assert abs(wasserstein(flat, round_) - math.sqrt(10)) < 1e-12 and abs(wasserstein(round_, flat) - math.sqrt(10)) < 1e-12
    near = Gaussian(PLANE.mean, PLANE.covariance * (1 + 1e-9))
    assert abs(wasserstein(PLANE, near) / (0.5e-9 * PLANE.covariance.trace().sqrt()) - 1) < 1e-5


# what a check finds, and what is refused


CHECKED_ON_PAGES = [DPMSolverPP2S(), DEIS(), IPNDM(), UniPC(), DormandPrince()]  # those of single-step, multistep and adaptive samplers


@pytest.mark.parametrize(
    "sampler", [DPMSolver2(), DPMSolver2M(), DPMSolverPP3S(), *(pytest.param(sampler, marks=pytest.mark.slow) for sampler in CHECKED_ON_PAGES)]
)
def test_check_sampler_accepts(sampler):
    """All that is said of them holds, and the result prints as a table."""
    found = check_sampler(sampler, n_samples=300, n_steps=100)
    assert "mean from t = 0.5" in str(found) and found["draws noise"] == 0


@pytest.mark.parametrize("sampler", [DPMSolver3(), UniPC(), DEIS(), DormandPrince(), EulerMaruyama()], ids=lambda s: type(s).__name__)
def test_a_process_that_lacks_what_is_needed(sampler):
    """Said by name, before the denoiser is asked anything."""

    class Half(SDE):
        def alpha(self, t):
            """The other half, sigma, is missing."""
            return 1 - t

    class Untouched(BaseDenoiser):
        sde, calls = Half(), 0

        def x0(self, x, t, condition):
            """Should not be reached."""
            self.calls += 1

    denoiser = Untouched()
    with pytest.raises(TypeError, match=r"Half must define sigma\(t\)"):
        sampler(denoiser, x=Z, n_steps=4)
    assert denoiser.calls == 0


def test_check_sampler_finds_wrong_weights():
    """A weight of iPNDM mistyped; an order stated that is not there; noise that is not the seed's."""

    class Mistyped(DEIS):
        def weights(self, sde, t, s, nodes):
            """The second weight a tenth too large."""
            carry, weights = super().weights(sde, t, s, nodes)
            return carry, [w * (1.1 if j == 1 else 1) for j, w in enumerate(weights)]

    class Boastful(DPMSolverPP2M):
        order = 3

    class Unseeded(DDIM):
        def step(self, denoiser, state, t, s, noise):
            """A draw from the global generator."""
            after = super().step(denoiser, state, t, s, noise)
            return State(after.x + 1e-3 * torch.randn_like(after.x), after.step, after.x0)

    for sampler, message in ((Mistyped(), "order is|mean is"), (Boastful(), "order is 2"), (Unseeded(), "same seed again is")):
        with pytest.raises(AssertionError, match=message):
            check_sampler(sampler, n_samples=300, n_steps=100)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ExponentialIntegrator(5), "extrapolation must be 1, 2, 3 or 4, got 5"),
        (lambda: ExponentialIntegrator(2, "v"), "prediction must be 'x0' or 'epsilon', got 'v'"),
        (lambda: ExponentialIntegrator(line="simpson"), "line must be 'exact', 'midpoint' or 'trapezoid'"),
        (lambda: SingleStep(4), "stages must be 1, 2 or 3, got 4"),
        (lambda: DEIS(2, "rho"), "variable must be 'time', 'noise-ratio' or 'step', got 'rho'"),
        (lambda: UniPC(4), "extrapolation must be 1, 2 or 3, got 4"),
        (lambda: DormandPrince(rtol=-1.0), "rtol must be a positive number"),
    ],
)
def test_bad_settings(make, message):
    """At construction, by name."""
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sampler", [DPMSolver3(), UniPC(), DEIS(), IPNDM(), DormandPrince()], ids=lambda s: type(s).__name__)
def test_bad_input_and_broken_denoisers(sampler):
    """Every sampler refuses in the same words, and reports values that are not finite with step, time and count."""
    denoiser = LINE.denoiser(VP())
    for arguments, message in (
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1"),
        ({"n_steps": 5, "start": 1.5}, "start must lie in"),
        ({"n_steps": 5, "start": 0.0}, "start must lie in"),
        ({"grid": [0.1, 0.5]}, "must fall strictly"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler(denoiser, x=Z, **arguments)

    class Broken(type(denoiser)):
        def x0(self, x, t, condition):
            """Not a number below t = 0.3, for negative values."""
            return torch.where((x < 0) & (t.view(-1, 1) < 0.3), torch.nan, super().x0(x, t, condition))

    with pytest.raises(NonFiniteError, match=r"\d+ of 24 samples stopped being finite, the first at step \d+ of 10, t = 0\.\d+"):
        sampler(Broken(LINE, VP()), x=Z, n_steps=10, grid="time")
