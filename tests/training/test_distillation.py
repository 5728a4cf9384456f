"""Distillation: the fixed point of its loss, exact consistency functions, what a student refuses, and what stays when it ends early."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import nn

from diffnb.core import NoiseSource, expand
from diffnb.data import ImageSet
from diffnb.denoise import Denoiser, Gaussian, GaussianMixture
from diffnb.guidance import ClassifierFree
from diffnb.likelihood import log_prob
from diffnb.model import GenerativeModel
from diffnb.networks import MLP, UNet
from diffnb.noise import EDM, PARAMETRIZATIONS, SDE, VE, VP, FlowMatching, Karras, SubVP
from diffnb.samplers import DDIM, RK4, Consistency, ConsistencyFunction, GaussianConsistency, Heun, log_normal, make_grid
from diffnb.training import (
    TOP,
    ConsistencyCallback,
    ConsistencyTimes,
    Gap,
    Matching,
    Recent,
    TrainingError,
    fit,
    flow_step,
    pseudo_huber,
    set_features,
)

PROCESSES = {"vp": VP(), "sub-vp": SubVP(), "ve": VE(), "edm": EDM(), "flow": FlowMatching()}
M, S = 0.4, 0.3


def ends(sde):
    """The levels of t_min and t_max."""
    return sde.levels(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64))


def scale_of_chain(sde, kappa, method, gap):
    """By what the solver, along the chain of levels from kappa, multiplies the distance from the mean of N(m, S^2): by hand, float64."""
    last, factor = ends(sde)[0].noise_ratio, torch.ones_like(kappa)
    while bool((kappa > last * (1 + 1e-9)).any()):
        r = gap(kappa.clamp(max=TOP), 1.0).clamp(min=last).minimum(kappa)
        slope = kappa / (S**2 + kappa**2)
        step = 1 + (r - kappa) * slope
        if method == "heun":
            both = 1 + (r - kappa) / 2 * (slope + step * r / (S**2 + r**2))
            step = torch.where(r <= last * (1 + 1e-9), step, both)
        factor, kappa = factor * step, r
    return factor


# the exact function


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_formula_is_where_the_flow_of_a_gaussian_ends(name):
    sde = PROCESSES[name]
    x = sde.prior_std * torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)[:, None]
    end, start = ends(sde)
    followed = RK4()(Gaussian(M, S**2).denoiser(sde), x=x, n_steps=500, grid="open-karras").x / end.alpha
    formula = M + S * (x - start.alpha * M) / math.hypot(start.alpha * S, start.sigma)
    assert (followed - formula).abs().max() < 3e-5
    assert (followed - GaussianConsistency(sde, M, S).x0(x, torch.tensor(sde.t_max), {})).abs().max() < 3e-5


@pytest.mark.parametrize("sde", [VP(), EDM(), FlowMatching()], ids=lambda sde: type(sde).__name__)
def test_the_formula_is_the_identity_at_the_end(sde):
    """Also of data so narrow that the noise that is left there counts: then it is kept, and not scaled away."""
    x, end = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None], torch.tensor(sde.t_min, dtype=torch.float64)
    found = GaussianConsistency(sde, 0.4, 0.002).x0(x, end, {})
    torch.testing.assert_close(found, x / sde.alpha(end), atol=1e-5, rtol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("name", PROCESSES)
def test_samples_of_the_exact_function_are_exact(name, n):
    """From the prior, with any number of evaluations, on an open grid and with a closed one of given times; image k is the same in any batch."""
    sde = PROCESSES[name]
    f = ConsistencyFunction(GaussianConsistency(sde, M, S))
    run = Consistency()(f, shape=(40_000, 1), n_steps=n, seeds=0, dtype=torch.float64)
    assert run.nfe == n == Consistency().forecast(n) and run.seeds == [0] * 40_000
    assert abs(run.x.mean() - M) < 0.006 and abs(run.x.std() - S) < 0.006
    part = Consistency()(f, shape=(7, 1), n_steps=n, seeds=NoiseSource.of(0, 7, 30), dtype=torch.float64)
    assert torch.allclose(part.x, run.x[30:37], rtol=0, atol=1e-12)
    times = torch.linspace(sde.t_max, 0.3, n + 1, dtype=torch.float64)[:n]
    closed = Consistency()(f, shape=(40_000, 1), grid=times, seeds=0, dtype=torch.float64)
    assert closed.nfe == n and abs(closed.x.mean() - M) < 0.006 and abs(closed.x.std() - S) < 0.006


@pytest.mark.parametrize("sde", [EDM(), VP()], ids=["EDM", "VP"])
@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_the_levels_divide_what_is_below_the_first_into_equal_parts(sde, n):
    """Of the normal distribution of log kappa about 0, whose standard deviation is 1.8."""
    times = log_normal(sde, n)
    below = torch.special.ndtr(-sde.half_log_snr(times[:-1]) / 1.8)
    torch.testing.assert_close(below, below[0] * (1 - torch.arange(n, dtype=torch.float64) / n), atol=1e-6, rtol=0)
    assert times[0] == sde.t_max and times[-1] == sde.t_min and len(times) == n + 1


@pytest.mark.parametrize("sde", [VP(), FlowMatching(), SubVP()], ids=lambda sde: type(sde).__name__)
def test_two_evaluations_written_out(sde):
    """The end of the flow is noised from its own level to the next one; a run ends at its own level, at which the scale of x is not quite one."""
    function, seeds, n = GaussianConsistency(sde), NoiseSource.of(3, 5), 2
    result = Consistency()(ConsistencyFunction(function), shape=(5, 2), n_steps=n, seeds=seeds, dtype=torch.float64)
    first, second, end = make_grid(sde, n, grid="open-karras")
    ended = function.x0(sde.prior((2,), seeds, dtype=torch.float64), first, {})
    ratio = sde.alpha(second) / sde.alpha(end)
    z = seeds.normal((2,), "step", 0, torch.float64)
    x = ratio * sde.alpha(end) * ended + (sde.sigma(second) ** 2 - (ratio * sde.sigma(end)) ** 2).sqrt() * z
    torch.testing.assert_close(result.x, sde.alpha(end) * function.x0(x, second, {}), atol=1e-5, rtol=0)
    assert result.nfe == 2


def test_from_any_time_and_under_another_process():
    f, vp = ConsistencyFunction(GaussianConsistency(EDM(), M, S)).under(VP()), VP()
    x = vp.perturb(Gaussian(M, S**2).sample(20_000), 0.5, torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double())
    for start in (x, None):
        run = Consistency()(f, **({"shape": (20_000, 1)} if start is None else {"x": x, "start": 0.5}), n_steps=2, seeds=0)
        assert abs(run.x.mean() - M) < 0.01 and abs(run.x.std() - S) < 0.01


# the loss


class Scaled(nn.Module):
    """The network whose consistency function multiplies the distance from the mean by a given function of the level."""

    def __init__(self, sde, parametrization, scale):
        super().__init__()
        self.sde, self.parametrization, self.scale = sde, parametrization, scale

    def forward(self, x_in, half_log_snr):
        t = self.sde.time_of_half_log_snr(half_log_snr).clamp(self.sde.t_min, self.sde.t_max)
        x = x_in / expand(self.parametrization.input_scale(self.sde, t), x_in)
        f = M + expand(self.scale(torch.exp(-half_log_snr)), x) * (x / expand(self.sde.alpha(t), x) - M)
        a, b = self.parametrization.to_x0(self.sde, t)
        return (f - expand(a, x) * x) / expand(b, x)


def loss_of(sde, parametrization, scale, method, gap):
    """The loss of a student that is known, on a batch of float64, at the end of training."""
    callback = ConsistencyCallback(Gaussian(M, S**2).denoiser(sde), parametrization, method=method, gap=gap)
    network = Scaled(sde, parametrization, scale)
    callback.learn = SimpleNamespace(model=network, forward=SimpleNamespace(compiled=network, autocast_dtype=None), training=False)
    x0, u = Gaussian(M, S**2).sample(400), (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    epsilon = torch.randn(400, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs, asked = callback.problem(x0, {}, u, epsilon)
    return pseudo_huber(network(*inputs), *asked).item()


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_fixed_point_is_the_solver_s_map_and_nothing_else(name, method):
    """The chain of steps by hand makes the loss zero; the flow's own map does not, as long as steps are long; nor does a scale that is off by 1%."""
    sde, gap, karras = PROCESSES[name], Gap(3.0, 3.0), Karras(0.5)
    last = ends(sde)[0].noise_ratio

    def chain(kappa):
        return scale_of_chain(sde, kappa, method, gap)

    def flow(kappa):
        return torch.sqrt((S**2 + last**2) / (S**2 + kappa**2))

    zero = loss_of(sde, karras, chain, method, gap)
    off = loss_of(sde, karras, lambda kappa: chain(kappa) * (1 + 0.01 * torch.log(kappa / last)), method, gap)
    assert zero < 1e-5 and off > 1000 * zero and loss_of(sde, karras, flow, method, gap) > 1000 * zero


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS.names())
@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_with_short_steps_the_flow_s_map_is_the_fixed_point_of_any_parametrization(name, parametrization):
    """The error falls as that of a second-order method, and a constant, which agrees with itself everywhere, is none: the end is the identity."""
    sde, made = PROCESSES[name], PARAMETRIZATIONS[parametrization]()
    last = ends(sde)[0].noise_ratio

    def flow(kappa):
        return torch.sqrt((S**2 + last**2) / (S**2 + kappa**2))

    losses = [loss_of(sde, made, flow, "heun", Gap(a, a)) for a in (4.0, 6.0, 8.0)]
    assert losses[0] > 4 * losses[1] > 16 * losses[2] and losses[2] < 1e-3
    assert loss_of(sde, made, torch.zeros_like, "heun", Gap(2.0, 2.0)) > 0.1


@pytest.mark.parametrize("name", PROCESSES)
def test_the_levels_and_the_weight_of_a_pair_are_those_of_the_paper(name):
    """By hand: r = kappa (1 - 2^-a (1 + 8 sigmoid(-kappa))), not below the last level, and the weight 1 / (kappa - r), once and not squared."""
    sde, t = PROCESSES[name], torch.linspace(0, 1, 21, dtype=torch.float64)
    t = sde.t_min + (sde.t_max - sde.t_min) * t
    kappa, last = torch.exp(-sde.half_log_snr(t)).clamp(max=TOP), ends(sde)[0].noise_ratio
    r, weight = ConsistencyCallback(Gaussian(M, S**2).denoiser(sde), gap=Gap(2.0, 4.0)).pairs(t, 0.25)
    below = (kappa * (1 - 2**-2.5 * (1 + 8 / (1 + kappa.exp())))).clamp(min=last).minimum(kappa)
    assert torch.allclose(torch.exp(-sde.half_log_snr(r)), below, rtol=1e-5)
    inside = kappa > last * (1 + 1e-6)
    assert torch.allclose((weight * (kappa - below))[inside], torch.ones(int(inside.sum()), dtype=torch.float64), rtol=1e-3)
    assert weight[0] == 0 and inside.sum() >= 19


@pytest.mark.parametrize("d", [1, 7])
def test_the_loss_of_a_difference_is_that_of_the_paper(d):
    """With c = 0.00054 whatever the dimension, since d is a root mean square: quadratic far below c, linear far above, and zero at zero."""
    c, differences = 0.00054, torch.tensor([0.0, 0.00054, 0.3], dtype=torch.float64)
    zero, ones = torch.zeros(3, d, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    offset = differences[:, None].expand(3, d)
    for k, expected in enumerate((0.0, (math.sqrt(2) - 1) * c, math.sqrt(0.09 + c**2) - c)):
        assert abs(pseudo_huber(zero[k : k + 1], offset[k : k + 1], ones[:1], ones[:1]).item() - expected) < 1e-9, k
    weighed = pseudo_huber(offset / 2, offset / 2, torch.tensor([1.0, 1.0, -3.0]), torch.tensor([1.0, 2.0, 3.0]), c=0.1)
    by_hand = sum(w * (math.hypot(d, 0.1) - 0.1) for w, d in zip((1, 2, 3), (0.0, 0.00054, -0.3))) / 3  # of -3 * 0.15 + 0.15
    assert abs(weighed.item() - by_hand) < 1e-7


def test_a_step_has_the_order_of_its_method():
    sde = EDM()
    denoiser = Gaussian(M, S**2).denoiser(sde)
    at = lambda kappa: sde.time_of_half_log_snr(-torch.tensor([kappa], dtype=torch.float64).log())  # noqa: E731
    errors = {}
    for method in ("euler", "heun"):
        for h in (0.08, 0.04):
            y = flow_step(denoiser, torch.tensor([[1.0]], dtype=torch.float64), at(0.5), at(0.5 - h), method=method)
            errors[method, h] = abs((y - M).item() - 0.6 * math.sqrt((S**2 + (0.5 - h) ** 2) / (S**2 + 0.25)))
    orders = {method: math.log2(errors[method, 0.08] / errors[method, 0.04]) for method in ("euler", "heun")}
    assert abs(orders["euler"] - 2) < 0.2 and abs(orders["heun"] - 3) < 0.2  # of one step


class Points:
    """Batches (x0,) of a tensor, in an order of their own."""

    def __init__(self, x, batch_size):
        self.x, self.batch_size, self.generator = x, batch_size, torch.Generator().manual_seed(0)

    def __len__(self):
        return len(self.x) // self.batch_size

    def __iter__(self):
        for index in torch.randperm(len(self.x), generator=self.generator).split(self.batch_size)[: len(self)]:
            yield (self.x[index],)

    def to(self, device):
        return self


def test_a_small_student_reaches_it():
    """A perceptron taught by the exact denoiser of a mixture: five times nearer to the end of the flow than the posterior mean, at every level."""
    oracle, sde = GaussianMixture(torch.tensor([[-1.0, 0.0], [0.7, 0.8], [0.7, -0.8]]), 0.04 * torch.eye(2).expand(3, 2, 2)), EDM()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MLP(2, width=64)
    x, teacher = oracle.sample(8192, dtype=torch.float32), oracle.denoiser(sde)
    callback = ConsistencyCallback(teacher, Karras(0.764), gap=Gap(1.5, 3.0))
    dls = DataLoaders(Points(x, 256), Points(x[:256], 256), device="cpu")
    result = fit(dls, network, sde, Karras(0.764), steps=300, lr=6e-3, progress=False, diffusion=callback)
    network.load_state_dict(result.ema_state)
    student = callback.denoiser(network.eval())
    for kappa in (0.5, 2.0, 10.0, 80.0):
        t = sde.time_of_half_log_snr(-torch.tensor([kappa], dtype=torch.float64).log()).clamp(max=1)[0]
        noisy = sde.perturb(oracle.sample(300, 1), t.item(), torch.randn(300, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
        end = RK4()(teacher, x=noisy, start=t.item(), grid="open-karras", n_steps=50).x
        with torch.no_grad():
            ours, mean = student.function(noisy.float(), t).x0, teacher(noisy, t).x0
        assert (ours - end).square().mean() < (0.04 if kappa > 1 else 0.15) * (mean - end).square().mean(), kappa
    for n in (1, 2, 4):
        drawn = Consistency()(student, shape=(4000, 2), n_steps=n, seeds=0).x
        assert (drawn.T.cov() - oracle.covariance).abs().max() < 0.15 and drawn.mean(0).abs().max() < 0.2, n
    assert result.record["distilled"]["method"] == "heun" and result.record["train_loss"][-1] < result.record["train_loss"][0]


# sets


def test_a_share_of_the_times_is_where_runs_begin():
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for sde in PROCESSES.values():
        shared, plain = ConsistencyTimes(start=0.15)(sde, u), ConsistencyTimes()(sde, u[:1700] / 0.85)
        assert (shared[1700:] > sde.t_max - 1e-9).all() and torch.allclose(shared[:1700], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_the_exact_function_is_the_fixed_point_of_both_losses(name):
    """Loss of pairs: zero. Pull towards the images: no mean force, where a function that draws half as far from the mean is pushed apart."""
    sde = PROCESSES[name]
    oracle = Gaussian(M, S**2)
    matching, forces = Matching(weight=1.0), {}
    for factor in (1.0, 0.5):
        callback = ConsistencyCallback(oracle.denoiser(sde), matching=matching)
        callback.learn = SimpleNamespace(model=nn.Identity(), training=True, forward=SimpleNamespace(autocast_dtype=None))
        generator = torch.Generator().manual_seed(0)
        drawn = {}
        for round_ in range(5):
            x0 = oracle.sample(400, round_).float()
            t = torch.full((400,), sde.t_max)
            x = sde.perturb(x0, t, torch.randn(400, 1, generator=generator))
            end = M + factor * (GaussianConsistency(sde, M, S).x0(x, t, {}) - M)
            callback._matched(x0, end, t, {})
            end.requires_grad_(True)
            zero, one = torch.zeros(400), torch.ones(400)
            loss = callback.compare(end, -end.detach(), one, zero + 1, end.detach(), one > 0, zero.long())
            (drawn["force"],) = torch.autograd.grad(loss, end)
            drawn["away"] = -(drawn["force"] * (end.detach() - M).sign()).sum().item()
        forces[factor] = drawn["away"]
    assert abs(forces[1.0]) < 0.05 and forces[0.5] > 0.15, forces


def test_the_pull_has_the_weight_of_its_pair_and_spares_what_is_nearly_clean():
    callback = ConsistencyCallback(Gaussian(M, S**2).denoiser(EDM()), matching=Matching(weight=3.0, lowest=0.5))
    callback.learn = SimpleNamespace(model=nn.Identity(), training=True, forward=SimpleNamespace(autocast_dtype=None))
    x0, label, sde = Gaussian(M, S**2).sample(200, 0).float(), torch.zeros(200).long(), EDM()
    levels = torch.where(torch.arange(200) < 100, 0.49, 0.51).double()
    _, pulled, _ = callback._matched(x0, x0, sde.time_of_half_log_snr(-levels.log()), {})
    assert pulled.tolist() == [False] * 100 + [True] * 100
    earlier = Gaussian(M, S**2).sample(200, 1).float() + 1
    weight, gradients = torch.linspace(0.5, 2, 200), []
    for one in (weight, torch.ones(200)):
        callback.drawn = Recent(2000)
        callback.drawn.add(earlier, label)
        end = (x0 + 1).requires_grad_(True)
        loss = callback.compare(end, -end.detach(), torch.ones(200), one, end.detach(), pulled, label)
        gradients.append(torch.autograd.grad(loss, end)[0])
    assert not gradients[0][:100].any() and gradients[0][100:].all()
    assert torch.allclose(gradients[0], weight[:, None] * gradients[1], rtol=1e-3, atol=0)
    pull = callback.matching.pull(x0 + 1, label, callback.seen, callback.drawn)
    loss = callback.compare(x0 + 1, -x0 - 1, torch.ones(200), torch.ones(200), x0 + 1, pulled, label)
    assert pull.mean() > 0.1 and loss.item() == pytest.approx(3 * pull[100:].mean().item() / 2, rel=0.05)


def test_features_are_means_and_deviations_of_the_quarters():
    class Plain(nn.Module):
        def maps(self, x, half_log_snr):
            assert torch.allclose(half_log_snr, torch.full((len(x),), -math.log(0.1)), atol=1e-3)
            return [x, 2 * x]

    teacher, x = Denoiser(Plain(), EDM(), Karras(0.5)), torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    scaled = x / math.hypot(0.5, 0.1)
    quarters = scaled.unflatten(3, (2, 2)).unflatten(2, (2, 3)).permute(0, 1, 2, 4, 3, 5).flatten(4)  # (n, c, 2, 2, places)
    mean, deviation = quarters.mean(-1).flatten(1), quarters.std(-1, correction=0).flatten(1)
    assert torch.allclose(set_features(teacher, x), torch.cat([mean, deviation, 2 * mean, 2 * deviation], 1), atol=1e-4)


def test_features_are_the_teacher_s_and_sets_are_compared_in_a_training():
    model, records = trained(), {}
    network = model.trained.network
    found = network.maps(torch.randn(2, 1, 8, 8), torch.zeros(2))
    assert [tuple(one.shape) for one in found] == [(2, 8, 8, 8), (2, 8, 8, 8)]
    features = set_features(model.trained.denoiser(), torch.randn(3, 1, 8, 8))
    assert features.shape == (3, 2 * 2 * 8 * 4)
    assert torch.equal(set_features(Gaussian(0.0, 1.0).denoiser(EDM()), torch.ones(2, 1, 3, 3)), torch.ones(2, 9))
    for matching in (0.0, None, 20.0):
        records[matching] = model.distill(images(400), steps=8, batch_size=32, matching=matching)
    assert "matching" not in records[0.0].distilled and records[20.0].distilled["matching"] == repr(Matching(20.0))
    drawn = {matching: student.generate(2, seed=0) for matching, student in records.items()}
    assert not torch.equal(drawn[None], drawn[0.0]) and not torch.equal(drawn[None], drawn[20.0])


# the facade


@dataclass(frozen=True)
class Noisy(SDE):
    """A process that begins with noise in the images."""

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 0.5 + 20 * t


@dataclass(frozen=True)
class Weak(SDE):
    """A process that never comes to noise."""

    def alpha(self, t):
        return torch.ones_like(t)

    def sigma(self, t):
        return 2 * t


def images(n=40, side=8, labels=True):
    """Images of two classes, dark and bright."""
    label = torch.arange(n) % 2
    pixels = (60 + 120 * label[:, None, None, None] + 40 * torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(0))).byte()
    return ImageSet(pixels, label, [3, 7], ["three", "seven"]) if labels else ImageSet(pixels)


def trained(process="edm", **how):
    """A model of a few steps."""
    network = UNet(1, widths=(8,), blocks=1, attention_levels=(), groups=4, num_classes=2 if how.get("labels", True) else 0)
    model = GenerativeModel(process, "heun", network=network, verbose=False, device="cpu")
    model.train(images(**how), steps=2)
    return model


@pytest.fixture(scope="module")
def teacher():
    return trained()


@pytest.fixture(scope="module")
def student(teacher):
    return teacher.distill(images(), steps=3, guidance_scale=2.0)


def test_a_student_says_what_it_is_also_from_a_file(teacher, student, tmp_path):
    student.save(tmp_path / "student.safetensors")
    again = GenerativeModel.load(tmp_path / "student.safetensors", verbose=False)
    plain = GenerativeModel.load(tmp_path / "student.safetensors", verbose=False, keep_sampler=False)
    for model in (student, again, plain):
        found = model.distilled
        assert found == model.record["distilled"] and found["guidance_scale"] == 2.0 and found["teacher_steps"] == 2 and len(found["teacher"]) == 16
        assert model.record["steps"] == 3 and len(model.records) == 1
        assert model.sampler == Consistency() and model.n_steps == 2
    how = {"seed": 5, "class_labels": ["three", "seven", "three"]}
    assert torch.equal(student.generate(3, **how), again.generate(3, **how))
    assert teacher.distilled is None and teacher.last_student is student and len(teacher.records) == 1
    assert not torch.equal(student.generate(2, seed=1), student.generate(2, seed=1, n_steps=1))
    assert torch.allclose(student.generate(4, seed=1)[3:], student.generate(1, seed=1, first=3, batch_size=1), rtol=0, atol=1e-3)


def test_a_student_begins_as_its_teacher_and_leaves_it_alone(teacher):
    before = {key: value.clone() for key, value in teacher.denoiser().network.state_dict().items()}
    weights = dict(teacher.denoiser().network.named_parameters())
    begun = teacher.distill(images(), steps=1, lr=1e-12)
    for key, value in begun.trained.network.named_parameters():
        assert torch.allclose(value, weights[key], rtol=0, atol=1e-9), key
    assert all(torch.equal(value, teacher.denoiser().network.state_dict()[key]) for key, value in before.items())


def test_what_a_student_can_do_it_does_right(student):
    picture = images(1).images.float() / 255
    assert student.reconstruct(picture, 0.3, seed=0).shape == student.edit(picture, 0.3, seed=0).shape == (1, 1, 8, 8)
    assert torch.equal(student.edit(picture, 0.0), picture) and student.under("vp").generate(1, seed=0).shape == (1, 1, 8, 8)


PICTURE = torch.full((1, 1, 8, 8), 0.5)
NO_MEAN = "has lost the mean that other samplers"
REFUSED = {
    "another sampler": (lambda s: s.sampler("ddim").generate(1), NO_MEAN),
    "a sampler by itself": (lambda s: Heun()(s().denoiser(), shape=(1, 1, 8, 8), condition={"label": torch.tensor([0])}), NO_MEAN),
    "a hook": (lambda s: s().generate(1, guidance=lambda x, t: -x.flatten(1).square().sum(1)), NO_MEAN),
    "a scale": (lambda s: s().generate(1, class_labels=3, guidance_scale=2.0), "whose guidance was learned"),
    "scales": (lambda s: s().generate(2, class_labels=3, guidance_scale=[1.0, 2.0]), "whose guidance was learned"),
    "a guided denoiser": (lambda s: s().denoiser(guidance_scale=3.0), "whose guidance was learned"),
    "guidance by itself": (lambda s: ClassifierFree(s().denoiser(), 2.0)(PICTURE, 0.5, {"label": torch.tensor([0])}), NO_MEAN),
    "denoise": (lambda s: s().denoise(PICTURE, 0.1), NO_MEAN),
    "imputation": (lambda s: s().imputation(PICTURE, torch.ones(8, 8)), NO_MEAN),
    "imputation by ddnm": (lambda s: s().imputation(PICTURE, torch.ones(8, 8), method="ddnm"), NO_MEAN),
    "upscale": (lambda s: s().upscale(PICTURE[..., :4, :4]), NO_MEAN),
    "deblur": (lambda s: s().deblur(PICTURE, 1.0), NO_MEAN),
    "calibrate": (lambda s: s().calibrate(), NO_MEAN),
    "encode": (lambda s: s().encode(PICTURE), NO_MEAN),
    "interpolate": (lambda s: s().interpolate(PICTURE, PICTURE), NO_MEAN),
    "log_prob": (lambda s: log_prob(s().denoiser([3]), PICTURE), NO_MEAN),
    "bits per dimension": (lambda s: s().score(images(), metrics=["bpd"], n=10), NO_MEAN),
    "train": (lambda s: s().train(images(), steps=1), "a distilled model is not trained further"),
    "distill": (lambda s: s().distill(images(), steps=1), "was distilled itself"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_a_student_is_refused_in_a_sentence(case, student):
    class Fresh:
        """A view of the student, with another sampler if one is named."""

        def __call__(self):
            return student.under(student.sde)

        def sampler(self, name):
            model = self()
            model.sampler = name
            return model

    act, words = REFUSED[case]
    with pytest.raises(ValueError, match=words) as told:
        act(Fresh())
    assert "\n" not in str(told.value) and student.sampler == Consistency()


WRONG = {
    "not trained": (RuntimeError, lambda t: GenerativeModel("edm", verbose=False).distill(images()), "has not been trained"),
    "still noisy": (ValueError, lambda t: trained(Noisy()).distill(images(), steps=1), "images that are still noisy"),
    "never noise": (ValueError, lambda t: trained(Weak()).distill(images(), steps=1), "begin with images and not with noise"),
    "another size": (ValueError, lambda t: t.distill(images(side=12), steps=1), "these are (1, 12, 12)"),
    "colours": (ValueError, lambda t: t.distill(ImageSet(torch.zeros(9, 3, 8, 8).byte()), steps=1), "these are (3, 8, 8)"),
    "no labels": (ValueError, lambda t: t.distill(images(labels=False), steps=1), "give (images, labels)"),
    "an unknown class": (ValueError, lambda t: t.distill(ImageSet(images().images, images().labels, [3, 8], None), steps=1), "unknown label 8"),
    "a moment": (ValueError, lambda t: t.distill(images(), time_limit=1), "at least 10 seconds"),
    "three gaps": (ValueError, lambda t: t.distill(images(), steps=1, gap=(2, 3, 4)), "gap must hold two numbers"),
    "levels that come apart": (ValueError, lambda t: t.distill(images(), steps=1, gap=(4, 2)), "Gap needs 0 <= first <= last, got 4"),
    "no time": (ValueError, lambda t: t.distill(images(), time_limit=0), "at least 10 seconds"),
    "not a time": (ValueError, lambda t: t.distill(images(), time_limit=math.nan), "at least 10 seconds"),
    "no step": (ValueError, lambda t: t.distill(images(), steps=0), "steps"),
    "a negative scale": (ValueError, lambda t: t.distill(images(), guidance_scale=-1.0, steps=1), "one number of at least 0"),
    "several scales": (ValueError, lambda t: t.distill(images(), guidance_scale=[1.0, 2.0], steps=1), "guidance_scale must be a number"),
    "a method": (ValueError, lambda t: t.distill(images(), method="rk4", steps=1), "method must be 'heun' or 'euler'"),
    "nothing to go on with": (ValueError, lambda t: t.distill(images(), steps=1, resume=True), "needs checkpoints="),
    "a rate": (ValueError, lambda t: t.distill(images(), steps=1, lr=-1.0), "lr must be positive"),
    "a plain model": (ValueError, lambda t: Consistency()(t.denoiser(), shape=(1, 1, 8, 8)), "needs a distilled model"),
    "a weight": (ValueError, lambda t: t.distill(images(), steps=1, matching=-1.0), "matching must be a number of at least 0"),
    "no weight": (ValueError, lambda t: t.distill(images(), steps=1, matching=True), "matching must be a number or None"),
    "sets and guidance": (ValueError, lambda t: t.distill(images(), steps=1, matching=1.0, guidance_scale=2.0), "leave one of them out"),
    "a share": (ValueError, lambda t: ConsistencyTimes(start=1.0), "share of the samples in [0, 1)"),
    "a weight of sets": (ValueError, lambda t: Matching(0.0), "weight > 0"),
    "a gap": (ValueError, lambda t: Gap(3.0, 2.0), "0 <= first <= last"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_a_distillation_is_refused_in_a_sentence(case, teacher):
    kind, act, words = WRONG[case]
    with pytest.raises(kind) as told:
        act(teacher)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_a_scale_needs_classes():
    with pytest.raises(ValueError, match="needs a model with classes"):
        trained(labels=False).distill(images(labels=False), guidance_scale=2.0, steps=1)
    with pytest.raises(TrainingError, match="still noisy"):
        ConsistencyCallback(Gaussian(0.0, 1.0).denoiser(Noisy()))


class Hand(Callback):
    """Interrupt training after a number of steps."""

    def __init__(self, steps):
        self.left = steps

    def after_step(self):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupt_goes_on_and_loses_nothing(tmp_path):
    model = trained()
    with pytest.raises(KeyboardInterrupt):
        model.distill(images(), epochs=50, callbacks=[Hand(3)])
    left = model.last_student
    assert (left.record["stopped"], left.record["steps"]) == ("interrupted", 3) and left.distilled and left.generate(1, seed=0).shape == (1, 1, 8, 8)
    with pytest.raises(KeyboardInterrupt):
        model.distill(images(), None, steps=6, checkpoints=tmp_path, callbacks=[Hand(4)])
    going_on = model.distill(images(), None, steps=6, checkpoints=tmp_path, resume=True)
    whole = model.distill(images(), None, steps=6)  # without a limit, whose clock would tell how far a training has come
    assert going_on.record["steps"] == 6 and torch.equal(going_on.generate(2, seed=0), whole.generate(2, seed=0))
    last = GenerativeModel.load(tmp_path / "last.safetensors", verbose=False)
    assert last.distilled == whole.distilled and last.sampler == Consistency()  # what is written on the way is no ordinary model either


def test_a_guided_teacher_is_asked_once_for_both():
    """The student of a guided teacher is taught the guided step; without a label both are the same."""
    model = trained()
    steps = {}
    for scale in (1.0, 3.0):
        guided = model.trained.denoiser() if scale == 1 else ClassifierFree(model.trained.denoiser(), scale)
        t, r = torch.tensor([0.5, 0.5]), torch.tensor([0.4, 0.4])
        steps[scale] = flow_step(guided, torch.ones(2, 1, 8, 8), t, r, {"label": torch.tensor([1, -1])})
    assert not torch.allclose(steps[1.0][0], steps[3.0][0]) and torch.allclose(steps[1.0][1], steps[3.0][1], atol=1e-4)
    assert DDIM() != Consistency()
