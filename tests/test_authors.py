"""What people who extend the library get wrong is told to them: what they did, and what to write."""

from dataclasses import dataclass, replace

import pytest
import torch

from diffnb import GenerativeModel
from diffnb.denoise import BaseDenoiser, Gaussian
from diffnb.guidance import ClassifierGuided, Hook, Hooked
from diffnb.metrics import Metric, score
from diffnb.networks import UNet
from diffnb.noise import EDM, SDE, VE, VP, FlowMatching, NoiseSchedule, Parametrization, check_sde
from diffnb.samplers import Heun, Sampler
from diffnb.training import DiffusionCallback

DATA = Gaussian(0.4, 0.09)
X = torch.zeros(3, 1)


def step_by(function):
    """A sampler whose step is a function."""

    class Mine(Sampler):
        def step(self, denoiser, state, t, s, noise):
            return function(denoiser, state, t, s)

    return lambda: Mine()(DATA.denoiser(VP()), shape=(3, 1), n_steps=3, seeds=0, callback=lambda *_: None)


def estimate_by(function):
    """A denoiser whose estimate is a function."""

    class Mine(BaseDenoiser):
        sde = VP()

        def x0(self, x, t, condition):
            return function(x)

    return lambda: Heun()(Mine(), shape=(3, 1), n_steps=3, seeds=0)


def guided_by(function, n=3):
    return lambda: Heun()(ClassifierGuided(DATA.denoiser(VP()), function), shape=(n, 1), n_steps=3, seeds=0)


def hooked_by(function):
    class Mine(Hook):
        def __call__(self, state, t, s, noise, seen):
            return function(state)

    return lambda: Hooked(Heun(), Mine())(DATA.denoiser(VP()), shape=(3, 1), n_steps=3, seeds=0)


def process_by(alpha, sigma=lambda t: t, use=None):
    """A process of two functions, used to sample."""

    class Mine(SDE):
        def alpha(self, t):
            return alpha(t)

        def sigma(self, t):
            return sigma(t)

    return (lambda: Heun()(DATA.denoiser(Mine()), shape=(3, 1), n_steps=3, seeds=0)) if use is None else (lambda: use(Mine()))


def schedule_by(**methods):
    return lambda: VP(type("Mine", (NoiseSchedule,), {name: staticmethod(f) and (lambda self, t, f=f: f(t)) for name, f in methods.items()})())


def predicting(function):
    class Mine(Parametrization):
        def coefficients(self, sde, t):
            return function(sde, t)

    return Mine()


def trained_on(parametrization):
    return lambda: GenerativeModel("edm", parametrization=parametrization, network="tiny", device="cpu", verbose=False).train(
        torch.rand(4, 1, 8, 8), epochs=1
    )


def level(x):
    return VP().levels(torch.tensor([0.5]))[0]


MISTAKES = {
    "a Level for a time": (
        step_by(lambda d, state, t, s: replace(state, x=d(state.x, t).x0)),
        r"t must be a time, got a Level; write denoiser\(x, t.time\), here t.time = 1",
    ),
    "a Level for a time, directly": (lambda: DATA.denoiser(VP())(X, level(X)), r"write denoiser\(x, t.time\)"),
    "a text for a time": (lambda: DATA.denoiser(VP())(X, "now"), "t must be a number, got 'now'"),
    "a step that returns x": (
        step_by(lambda d, state, t, s: d(state.x, t.time).x0),
        r"Mine.step must return a State, got Tensor; write return replace\(state, x=..., x0=...\)",
    ),
    "a step that returns nothing": (step_by(lambda d, state, t, s: None), "Mine.step must return a State, got NoneType"),
    "a step that loses samples": (
        step_by(lambda d, state, t, s: replace(state, x=state.x[:1])),
        r"Mine.step must return a State whose x has the shape that it was given, \(3, 1\), got shape \(1, 1\)",
    ),
    "a step without a prediction": (step_by(lambda d, state, t, s: replace(state, x=state.x)), "Mine.step must set x0, its prediction"),
    "an estimate of another shape": (
        estimate_by(lambda x: x[:1]),
        r"Mine.x0 must return an estimate .* the shape of x, \(3, 1\), got shape \(1, 1\)",
    ),
    "an estimate that is none": (estimate_by(lambda x: None), "Mine.x0 must return an estimate of the clean samples, .* got NoneType"),
    "an estimate that is a number": (estimate_by(lambda x: 0.0), "Mine.x0 must return .* got float"),
    "a guidance that returns nothing": (guided_by(lambda x, t: None), r"log_prob must return one number for each of the 3 samples, .* got None"),
    "a guidance of one number": (guided_by(lambda x, t: x.sum()), r"a tensor \(3,\), got shape \(\)"),
    "a guidance of a Python number": (guided_by(lambda x, t: 1.0), r"a tensor \(3,\), got 1.0"),
    "a guidance that is NaN": (guided_by(lambda x, t: x.sum(1).sqrt()), "log_prob is nan for sample . at t = 1"),
    "a guidance that is infinite": (guided_by(lambda x, t: (0 * x.sum(1)).log()), "log_prob is -inf for sample 0 at t = 1"),
    "a gradient that is NaN": (guided_by(lambda x, t: (0 * x.sum(1)).sqrt()), "log_prob has a gradient that is not finite for sample 0 at t = 1"),
    "nothing differentiable, detached": (
        guided_by(lambda x, t: x.detach().sum(1)),
        "must return something that can be differentiated .* without detach",
    ),
    "nothing differentiable, by NumPy": (
        guided_by(lambda x, t: torch.tensor(x.detach().numpy()).sum(1)),
        "must return something that can be differentiated",
    ),
    "nothing differentiable, of other things": (
        guided_by(lambda x, t: torch.ones(3, requires_grad=True) * 2),
        "must return something that can be differentiated with respect to x",
    ),
    "a hook that returns nothing": (hooked_by(lambda state: None), "Mine must return a State, got NoneType"),
    "a hook that returns x": (hooked_by(lambda state: state.x), r"Mine must return a State, got Tensor; write return replace\(state"),
    "an alpha that is a number": (
        process_by(lambda t: 1.0),
        r"Mine.alpha\(t\) must return a tensor of the shape of t, \(.*\), got 1.0; a constant c is c \* torch.ones_like\(t\)",
    ),
    "an alpha that is one tensor for all": (process_by(lambda t: torch.tensor(1.0)), r"Mine.alpha\(t\) must return .* got a tensor of shape \(\)"),
    "an alpha that is nothing": (process_by(lambda t: None), r"Mine.alpha\(t\) must return .* got None"),
    "a sigma that is a number": (process_by(torch.ones_like, lambda t: 2), r"Mine.sigma\(t\) must return .* got 2; a constant"),
    "a sigma of another shape": (
        process_by(torch.ones_like, lambda t: t[None] if t.ndim else t[None]),
        r"Mine.sigma\(t\) must return a tensor of the shape",
    ),
    "an alpha that is a number, in training": (
        process_by(lambda t: 1.0, use=lambda sde: sde.perturb(torch.zeros(2, 1), 0.5, torch.zeros(2, 1))),
        "a function of time must return a tensor of the shape of t, got 1.0",
    ),
    "a schedule without integral": (
        schedule_by(beta=lambda t: t),
        r"Mine must define integral\(t\), the integral of beta from 0 to t, which takes a tensor of times",
    ),
    "a schedule without beta": (schedule_by(integral=lambda t: t), r"Mine must define beta\(t\), the rate of noising"),
    "a schedule of nothing": (lambda: NoiseSchedule(), r"NoiseSchedule must define beta\(t\)"),
    "an integral that is a number": (
        lambda: schedule_by(beta=lambda t: t, integral=lambda t: 3.0)().half_log_snr(torch.tensor([0.5])),
        r"Mine.integral\(t\) must return a tensor of the shape of t, \(1,\), got 3.0",
    ),
    "an integral that is one tensor for all": (
        lambda: schedule_by(beta=lambda t: t, integral=lambda t: torch.tensor(3.0))().half_log_snr(torch.tensor([0.5])),
        r"Mine.integral\(t\) must return .* got a tensor of shape \(\)",
    ),
    "a target that says nothing": (
        trained_on(predicting(lambda sde, t: (torch.zeros_like(t), torch.zeros_like(t)))),
        r"Mine.coefficients\(sde, t\) has p = q = 0 at t = .*; the noise, for example, is p = 0 and q = 1",
    ),
    "a target that says nothing, sampled": (
        lambda: GenerativeModel("edm", parametrization=predicting(lambda sde, t: (0 * t, 0 * t)), network="tiny", device="cpu").train(
            torch.rand(4, 1, 8, 8)
        ),
        "has p = q = 0",
    ),
    "a target that is x_t": (
        lambda: DiffusionCallback(VP(), predicting(lambda sde, t: (sde.alpha(t), sde.sigma(t)))),
        "alpha q - sigma p = 0 at t = .*, so that the target p x_0 . q epsilon says no more than x_t does",
    ),
    "coefficients that are numbers": (
        lambda: DiffusionCallback(VP(), predicting(lambda sde, t: (0.0, 1.0))),
        r"must return p and q .*, two tensors of the shape of t; got \(0.0, 1.0\); constants are c \* torch.ones_like\(t\)",
    ),
    "one coefficient": (lambda: DiffusionCallback(VP(), predicting(lambda sde, t: t)), "must return p and q of the target"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_an_author_is_told_what_to_write(mistake):
    do, message = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError), match=message) as told:
        do()
    assert "\n" not in str(told.value)


PROCESSES = {
    "a sigma that falls": (lambda t: 1 - t / 2, lambda t: 0.5 - t / 10, "sigma must grow with t, for noise is added .*; it falls near t = "),
    "a sigma that stays": (lambda t: 1 - t / 2, lambda t: 0.5 + 0 * t, "sigma must grow with t, .*; it is 0.5 from the first to the last"),
    "a sigma that turns back": (lambda t: torch.exp(-9 * t), lambda t: 0.01 + torch.sin(t * 2), "sigma must grow with t, .*; it falls near t = 0.78"),
    "an alpha(0) of 2": (
        lambda t: 2 - t,
        lambda t: t + 0.01,
        r"alpha\(0\) is 2, not 1, .*; divide alpha by alpha\(0\), or say check_sde\(..., alpha_0=2\)",
    ),
    "an alpha(0) of 0.99": (lambda t: 0.99 + 0 * t, lambda t: t + 0.01, r"alpha\(0\) is 0.99, not 1"),
    "an alpha(0) of 0": (lambda t: t + 0.0, lambda t: t + 0.01, "alpha"),
    "an alpha that is a number": (lambda t: 1.0, lambda t: t, r"Mine.alpha\(t\) must return a tensor of the shape of t"),
}


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_process_that_is_none_is_refused(kind):
    *functions, message = PROCESSES[kind]
    with pytest.raises(AssertionError, match=message):
        process_by(*functions, use=check_sde)()


def test_what_is_meant_can_be_said():
    found = process_by(lambda t: 2 - t, lambda t: t + 0.01, use=lambda sde: check_sde(sde, alpha_0=2.0))()
    assert set(found) == {"rates", "inverse"}
    for sde in (VP(), VE(), EDM(), FlowMatching()):
        check_sde(sde)


def small():
    return GenerativeModel("edm", "heun", network=UNet(channels=1, widths=(32,), blocks=1, attention_levels=()), device="cpu", verbose=False)


@pytest.mark.parametrize("lr", [1e4, 1e2, 5.0e3])
def test_a_rate_that_is_too_high_does_not_blame_the_data(lr):
    with pytest.raises(
        ArithmeticError, match=r"is not finite at epoch 0, batch .*; the data are finite, and lr=.* is far more than a training takes; 1e-3"
    ) as told:
        small().train(torch.rand(64, 1, 8, 8), epochs=4, batch_size=8, lr=lr)
    assert "look at the data" not in str(told.value)


@pytest.mark.parametrize("lr", [float("inf"), 0.0, -1e-3, float("nan")])
def test_a_rate_that_is_none_is_refused(lr):
    with pytest.raises(ValueError, match="lr must be positive and finite, such as 1e-3, got"):
        small().train(torch.rand(8, 1, 8, 8), epochs=1, lr=lr)


def test_data_that_are_not_finite_are_named():
    from diffnb.data import image_loaders, image_set
    from diffnb.training import fit

    loaders = image_loaders(image_set(torch.rand(16, 1, 8, 8), verbose=False), batch_size=4, device="cpu")
    batch = type(loaders.train)._batch

    class Spoiled(type(loaders.train)):
        def _batch(self, index, mirrored, chosen):
            x, label, index = batch(self, index, mirrored, chosen)
            return x / 0.0, label, index

    loaders.train.__class__ = Spoiled
    with pytest.raises(ArithmeticError, match="the images of that batch hold values that are not finite"):
        fit(loaders, UNet(channels=1, widths=(32,), blocks=1, attention_levels=()), EDM(), epochs=1, progress=False)


@dataclass(frozen=True)
class Own(Metric):
    """A metric of a function."""

    function: object = None
    name = "own"

    def config(self):
        return {}

    def __call__(self, real, generated):
        return self.function(real, generated)


METRICS = {
    "the mean of bytes": (
        lambda a, b: a.mean() - b.mean(),
        r"the metric own failed \(\w+Error: mean.*\); it is called with bytes, uint8 tensors .n, c, h, w.",
    ),
    "a matrix of bytes": (lambda a, b: (a.flatten(1) @ a.flatten(1).double().T).mean(), r"the metric own failed \(\w+Error: .* from 0 to 255"),
    "a shape of its own": (lambda a, b: a.view(3, 5), r"the metric own failed \(\w+Error: .* here \(..?, 1, 8, 8\) and"),
    "many numbers": (
        lambda a, b: a.float().mean(0),
        r"must return a number or a MetricResult, got a tensor of shape \(1, 8, 8\); it is called with bytes",
    ),
    "nothing": (lambda a, b: None, "must return a number or a MetricResult, got None"),
    "no number": (lambda a, b: a.float().mean() / 0, "own of .* images is inf, which is no score; it is called with bytes"),
    "a text": (lambda a, b: "good", "must return a number or a MetricResult, got 'good'"),
}


@pytest.mark.parametrize("kind", METRICS)
def test_authors_of_metrics_are_told_what_they_are_given(kind):
    function, message = METRICS[kind]
    images = torch.randint(0, 255, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    with pytest.raises(ValueError, match=message):
        score(images, images.flip(0), [Own(function)], progress=False)


def test_a_metric_without_a_name_is_told_so():
    class Nameless(Metric):
        def __call__(self, real, generated):
            return 0.0

    images = torch.randint(0, 255, (40, 1, 8, 8)).byte()
    with pytest.raises(ValueError, match="Nameless must have a name, .* such as name = 'nameless'"):
        score(images, images, [Nameless], progress=False)
