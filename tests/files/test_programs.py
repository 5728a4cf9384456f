"""Programs: realistic components give, traced and run from JSON, what they give natively, to the last bit; the rest is refused with its line."""

import collections
import functools
import itertools
import json
import math
import pickle
import random
import re
import sys
import time
from dataclasses import replace

import component_corpus as corpus
import numpy as np
import pytest
import torch
from random_programs import measured, random_program, state_of

from diffnb.core import NoiseSource, expand
from diffnb.denoise import BaseDenoiser, GaussianMixture
from diffnb.files.comparison import _same, program_of
from diffnb.files.errors import ComponentBadResult
from diffnb.files.operations import OPERATIONS, SIGNATURES, Host, Program, ProgramError, choose
from diffnb.files.programs import component_of
from diffnb.files.tracing import trace
from diffnb.noise import VP, Linear, NoiseSchedule
from diffnb.samplers import DDIM, Sampler, State

MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.2, 0.5, 0.0], [0.3, 0.9, -0.4, 0.2]], dtype=torch.float64),
    torch.eye(4, dtype=torch.float64).expand(2, 4, 4) * torch.tensor([0.1, 0.3], dtype=torch.float64)[:, None, None],
    torch.tensor([0.4, 0.6], dtype=torch.float64),
)


class Labelled(BaseDenoiser):
    """An exact denoiser with a made-up dependence on the label."""

    def __init__(self):
        self.inner, self.sde = MIXTURE.denoiser(VP()), VP()

    def x0(self, x, t, condition):
        return self.inner.x0(x, t, {}) * (1 + 0.1 * condition["label"].to(x)[:, None])


@functools.cache
def traced(cls):
    """A component, and the same by way of JSON text: traced, compared with itself on its probes, written, read."""
    native = cls(Labelled()) if issubclass(cls, BaseDenoiser) else cls()
    return native, component_of(Program(program_of(native).text))


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


# what the corpus gives


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", corpus.SCHEDULES, ids=lambda cls: cls.__name__)
def test_schedules_are_bit_equal(cls, dtype):
    native, program = traced(cls)
    for t in (torch.linspace(0, 1, 101, dtype=dtype), torch.rand(7, dtype=dtype), torch.rand((), dtype=dtype), torch.rand(2, 3, dtype=dtype)):
        same(native.beta(t), program.beta(t))
        same(native.integral(t), program.integral(t))
        same(native.time_of_integral(native.integral(t)), program.time_of_integral(native.integral(t)))


@pytest.mark.parametrize("cls", corpus.PROCESSES, ids=lambda cls: cls.__name__)
def test_processes_are_bit_equal(cls):
    native, program = traced(cls)
    t = torch.linspace(native.t_min, native.t_max, 101, dtype=torch.float64)
    assert (program.t_min, program.t_max, program.default_grid, program.prior_std) == (
        native.t_min,
        native.t_max,
        native.default_grid,
        native.prior_std,
    )
    assert program.levels(t[1:]) == native.levels(t[1:])
    for name in ("alpha", "sigma", "half_log_snr", "drift", "diffusion"):  # rates by automatic differentiation through the program
        same(getattr(native, name)(t), getattr(program, name)(t))
    lam = native.half_log_snr(t[1:-1])
    same(native.time_of_half_log_snr(lam), program.time_of_half_log_snr(lam))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cls", corpus.PARAMETRIZATIONS, ids=lambda cls: cls.__name__)
def test_parametrizations_are_bit_equal(cls, dtype):
    (native, program), t = traced(cls), torch.linspace(0.01, 1, 101, dtype=dtype)
    for sde in (VP(), traced(corpus.TrigonometricFlow)[1]):
        for name in ("coefficients", "to_x0", "network_target"):
            for a, b in zip(getattr(native, name)(sde, t[:-5]), getattr(program, name)(sde, t[:-5])):
                same(a, b)
        same(native.scale(sde, t[:-5]), program.scale(sde, t[:-5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("cls", corpus.SAMPLERS, ids=lambda cls: cls.__name__)
def test_samplers_are_bit_equal(cls, n, dtype):
    native, program = traced(cls)
    for name in ("n_steps_default", "default_grid", "order", "is_stochastic", "n_history"):
        assert getattr(native, name) == getattr(program, name), name
    how = {"shape": (n, 4), "n_steps": 7, "seeds": 1, "dtype": dtype, "keep_states": True}
    a, b = native(MIXTURE.denoiser(VP()), **how), program(MIXTURE.denoiser(VP()), **how)
    for x, y in zip(a.states, b.states, strict=True):
        same(x, y)
    assert a.nfe == b.nfe == program.evaluations(7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("cls", corpus.GUIDANCE, ids=lambda cls: cls.__name__)
def test_guidance_is_bit_equal(cls, n, dtype):
    native, program = traced(cls)
    program = program(Labelled())
    x = torch.linspace(-2, 2, 4 * n, dtype=dtype).view(n, 4)
    condition = {"label": torch.arange(n) % 3 - 1}
    for t in (0.5, torch.tensor(0.3, dtype=torch.float64), torch.linspace(0.1, 0.9, n, dtype=torch.float64), torch.linspace(0.1, 0.9, n)):
        same(native(x, t, condition).x0, program(x, t, condition).x0)


def test_most_of_the_corpus_travels():
    travels, stays = corpus.TRAVEL, [*corpus.STAY]
    assert len(travels + stays) >= 50 and len(travels) >= 40
    of_any = [c for c in travels + stays if c not in corpus.METRICS]
    assert len(travels) / len(of_any) > 0.8


@pytest.mark.parametrize("cls", corpus.STAY, ids=lambda cls: cls.__name__)
def test_the_rest_is_refused_with_its_line(cls):
    with pytest.raises(ProgramError, match=corpus.STAY[cls]):
        trace(cls(Labelled()) if issubclass(cls, BaseDenoiser) else cls())


def test_programs_read_compare_and_pickle():
    for cls in (corpus.SigmoidSchedule, corpus.ShiftedVP, corpus.MyDPM2M, corpus.IntervalGuidance, corpus.Rotated):
        _, program = traced(cls)
        again = pickle.loads(pickle.dumps(program))
        assert again == program and hash(again) == hash(program) and again.program.text == program.program.text
        assert Program(json.dumps(json.loads(program.program.text), indent=1)) == program.program
        assert repr(program).startswith(cls.__name__)
        assert program_of(program) == program.program  # saved again, it is the same
    assert traced(corpus.SigmoidSchedule)[1] != traced(corpus.QuadraticSqrt)[1]


def test_the_settings_are_folded_in_and_shown():
    program = program_of(corpus.SigmoidSchedule(beta_min=0.2, steepness=9.0))
    assert program.equations()["beta"] == ["beta(t) = 0.2 + 19.8 sigmoid(9 (t - 0.5))"]
    assert program.equations(latex=True)["beta"] == [r"\beta(t) = 0.2 + 19.8\,\operatorname{sigmoid}\left(9\,\left(t - 0.5\right)\right)"]


# what would look at a value: refused, with the line and what to write instead


def schedule(beta):
    """A schedule class with such a beta."""
    return type("S", (NoiseSchedule,), {"beta": beta, "integral": lambda self, t: t})


def step(function):
    """A sampler class with such a step of x."""

    def step(self, denoiser, state, t, s, noise):
        return replace(state, x=function(self, denoiser, state.x, t, s, noise))

    return type("S", (Sampler,), {"step": step})


def guided(function):
    """A guidance class with such a function of x, t and x0."""

    def x0(self, x, t, condition):
        return function(self, x, t, self.denoiser.x0(x, t, condition), condition)

    return type("S", (BaseDenoiser,), {"__init__": lambda self, d: vars(self).update(denoiser=d, sde=d.sde), "x0": x0})


NETWORK, BUFFER, CACHE, KEPT = torch.nn.Linear(4, 4), torch.zeros(4), {}, []


def keeps(self, t):
    KEPT.append(t)
    return t + KEPT[0]


def hidden(self, t):
    try:
        return t * float(t)
    except Exception:
        return t


def remembers(self, t):
    self.last = t
    return t


def counts(self, t):
    self.n += 1
    return t


def fills(self, t):
    y = torch.zeros_like(t)
    y[t > 0.5] = 1.0
    return y


def swaps(self, t):
    t[:] = 0.0
    return t


def own_buffer(self, d, x, t, s, n):
    BUFFER.add_(x)
    return x


def own_argument(self, t):
    t += 1
    return t


def view_of_argument(self, d, x, t, s, n):
    x.flatten(1).mul_(2)
    return x


def cast(self, t):
    y = t.to(t.dtype)
    y += 1
    return y


def slept(self, t):
    return t + time.perf_counter() % 1


REFUSED = {
    "if": (schedule(lambda self, t: t if t > 0.5 else 2 * t), "choose"),
    "and": (schedule(lambda self, t: (t > 0.5) and t), "torch.where"),
    "chained comparison": (step(lambda self, d, x, t, s, n: x * (0.1 < t.sigma < 0.9)), "choose"),
    "while on a number": (step(lambda self, d, x, t, s, n: [x for _ in iter(lambda: bool(t.sigma > 1), False)][0]), "choose"),
    "any": (schedule(lambda self, t: t if (t > 0.5).any() else t), "torch.where"),
    "in": (schedule(lambda self, t: t if t in (0.0, 1.0) else t), "torch.where"),
    "loop": (schedule(lambda self, t: torch.stack([v * 2 for v in t])), "shape or a size"),
    "len": (step(lambda self, d, x, t, s, n: x * len(x)), "shape or a size"),
    "shape": (step(lambda self, d, x, t, s, n: x * x.shape[-1]), "shape or a size"),
    "shape compared": (step(lambda self, d, x, t, s, n: x if x.shape == (1,) else x), "shape"),
    "unpacked shape": (step(lambda self, d, x, t, s, n: x * max(x.shape)), "shape or a size"),
    "numel": (step(lambda self, d, x, t, s, n: x / x.numel()), "shape or a size"),
    "prod of a shape": (step(lambda self, d, x, t, s, n: x / math.prod(x.shape[1:])), "shape or a size"),
    "dtype compared": (schedule(lambda self, t: t if t.dtype == torch.float64 else t), "type"),
    "item": (schedule(lambda self, t: t * t.item()), "as it is"),
    "float": (step(lambda self, d, x, t, s, n: x * float(t.sigma)), "as it is"),
    "text": (step(lambda self, d, x, t, s, n: x * float(f"{t.sigma:.3f}")), "looked at"),
    "range": (step(lambda self, d, x, t, s, n: sum(x for _ in range(t.sigma))), "looked at"),
    "key": (schedule(lambda self, t: CACHE.setdefault(t, t)), "unhashable"),
    "index": (step(lambda self, d, x, t, s, n: x[:, :1] + x), "whole fields"),
    "set part": (schedule(fills), "torch.where"),
    "set all": (schedule(swaps), "torch.where"),
    "numpy": (schedule(lambda self, t: np.exp(t)), "math and torch"),
    "numpy method": (schedule(lambda self, t: torch.tensor(t.numpy() * 2)), "looked at"),
    "torch's random numbers": (step(lambda self, d, x, t, s, n: x + torch.randn(4)), "noise.normal"),
    "randn_like": (step(lambda self, d, x, t, s, n: x + torch.randn_like(x)), "noise.normal"),
    "normal_": (step(lambda self, d, x, t, s, n: x.clone().normal_()), "noise.normal"),
    "noise of another shape": (step(lambda self, d, x, t, s, n: x + n.normal((4,), "step", 0, x.dtype)), "noise.normal"),
    "noise of another type": (step(lambda self, d, x, t, s, n: x + n.normal(x.shape[1:], "step", 0)), "noise.normal"),
    "uniform": (step(lambda self, d, x, t, s, n: x + n.uniform(x.shape[1:], "step")), "uniform"),
    "a network": (step(lambda self, d, x, t, s, n: NETWORK(x)), "linear.*components="),
    "matmul": (step(lambda self, d, x, t, s, n: x @ torch.eye(4)), "."),
    "a gradient": (guided(lambda self, x, t, x0, c: torch.autograd.grad(x0.sum(), x)[0]), "."),
    "requires_grad": (guided(lambda self, x, t, x0, c: x.requires_grad_()), "components="),
    "cat": (guided(lambda self, x, t, x0, c: torch.cat([x, x0])), "twice"),
    "chunk": (guided(lambda self, x, t, x0, c: x0.chunk(2)[0]), "twice"),
    "mean over the batch": (guided(lambda self, x, t, x0, c: x0 - x0.mean(0)), "each sample"),
    "mean over all": (guided(lambda self, x, t, x0, c: x0 - x0.mean()), "each sample"),
    "a number a sample unshaped": (guided(lambda self, x, t, x0, c: x0 * t), "expand"),
    "how many dimensions a time has": (schedule(lambda self, t: t * t.ndim), "expand"),
    "a part of the times": (guided(lambda self, x, t, x0, c: x0 * t[:, 0]), "a part of a tensor"),
    "times in a row": (guided(lambda self, x, t, x0, c: x0 * t.view(1, -1)), "expand"),
    "a flat batch": (guided(lambda self, x, t, x0, c: x0.flatten()), "keeps them apart"),
    "kept from an earlier call": (type("S", (NoiseSchedule,), {"beta": keeps, "integral": keeps}), "kept from an earlier call"),
    "another view": (guided(lambda self, x, t, x0, c: x0.view(-1) + x0), "expand"),
    "a made-up condition": (guided(lambda self, x, t, x0, c: self.denoiser.x0(x, t, {"label": torch.zeros(3)})), "label"),
    "another label": (guided(lambda self, x, t, x0, c: self.denoiser.x0(x, t, {"label": torch.full_like(c["label"], 3)})), "label"),
    "a larger question": (guided(lambda self, x, t, x0, c: self.denoiser.x0(x.flatten(1), t, c)), "state's"),
    "the process's range": (guided(lambda self, x, t, x0, c: x0 * self.sde.t_min), "alpha, sigma"),
    "a table of two": (schedule(lambda self, t: t + torch.tensor([1.0, 2.0])), "table"),
    "a matrix as a table": (schedule(lambda self, t: torch.eye(2)[t.long()]), "1-d"),
    "a tensor of values": (step(lambda self, d, x, t, s, n: x * torch.tensor([t.sigma])), "full_like"),
    "infinity": (schedule(lambda self, t: t + math.inf), "finite"),
    "max of tensors": (schedule(lambda self, t: max(t, 1 - t)), "torch.maximum"),
    "math of a tensor": (schedule(lambda self, t: math.exp(t)), "torch.exp"),
    "torch of a number": (step(lambda self, d, x, t, s, n: x * torch.exp(t.sigma)), "."),
    "a buffer changed": (step(own_buffer), "in place|changed"),
    "its argument changed": (schedule(own_argument), "clone"),
    "a view of its argument changed": (step(view_of_argument), "clone"),
    "changed after a cast": (schedule(cast), "y = y \\+ 1"),
    "errors that are caught": (schedule(hidden), "as it is"),
    "remembers": (schedule(remembers), "changes itself"),
    "counts": (type("S", (schedule(counts),), {"__init__": lambda self: setattr(self, "n", 0)}), "changes itself"),
    "samples paired with channels": (guided(lambda self, x, t, x0, c: x0 * t.view(1, -1, 1, 1)), "is given another shape"),
    "samples paired with rows": (guided(lambda self, x, t, x0, c: x0 * t.reshape(1, 1, -1, 1)), "is given another shape"),
    "a constant": (schedule(lambda self, t: torch.ones(3)), "full_like"),
    "a number": (schedule(lambda self, t: 0.5), "full_like"),
    "no state": (type("S", (Sampler,), {"step": lambda self, denoiser, state, t, s, noise: state.x}), "replace"),
    "another loop": (type("S", (DDIM,), {"__call__": lambda self, *a, **k: None}), "redefines __call__"),
    "another drift": (type("S", (VP,), {"drift": lambda self, t: t}), "redefines drift"),
    "no method": (schedule(lambda self, t: t.foo()), "foo"),
    "its own mistake": (schedule(lambda self, t: t + [][0]), "IndexError"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_line_and_advice(name):
    cls, why = REFUSED[name]
    native = cls(Labelled()) if issubclass(cls, BaseDenoiser) else cls()
    before = {module: dict(vars(module)) for module in (math, torch)}
    with pytest.raises(ProgramError) as found:
        trace(native)
    told = str(found.value)
    assert re.search(why, told[told.rfind("`: ") + 1 :]), told  # behind the line that is quoted, in which these words stand as well
    assert "redefines" in str(found.value) or "changes itself" in str(found.value) or "test_programs.py, line " in str(found.value)
    assert len(str(found.value)) < 700
    assert all(dict(vars(module)) == names for module, names in before.items()) and math.exp(0.0) == max(1.0, 0.5) == sum([1.0])


def test_what_changes_between_calls_is_not_saved():
    for cls in (schedule(slept), schedule(lambda self, t: t * random.random()), schedule(lambda self, t: t * np.random.rand())):
        with pytest.raises(ProgramError, match="does not give what the class gives"):
            program_of(cls())


def test_a_shape_that_decides_is_found_on_save():
    """While traced a field has four dimensions; a step that computes something else for two is no program."""
    with pytest.raises(ProgramError, match="does not give what the class gives"):
        program_of(step(lambda self, d, x, t, s, n: d(x, t.time).x0 * (1.0 if x.ndim == 4 else 2.0))())


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_type_that_decides_is_found_on_save(name):
    """Seen in that precision only."""
    odd = schedule(lambda self, t: 2 * t if name in str(t.dtype) else t)()
    assert trace(odd)
    with pytest.raises(ProgramError, match="does not give what the class gives"):
        program_of(odd)


def test_a_component_that_fails_on_a_probe_is_not_saved():
    def beta(self, t):
        return torch.where(t > 2, t, t * 1.0) if calls.append(1) or len(calls) < 3 else t.no_such_method()

    calls = []
    with pytest.raises(ProgramError, match="could not be compared with its program: AttributeError"):
        program_of(schedule(beta)())


def test_a_component_that_changes_its_mind_late_is_not_saved():
    """After all probes in double precision: those in single precision are not idle."""
    calls = []
    with pytest.raises(ProgramError, match="does not give what the class gives: beta at torch.float32"):
        program_of(schedule(lambda self, t: t * (1.0 if calls.append(1) or len(calls) < 12 else 2.0))())


def test_bits_are_compared():
    """Type, shape and sign of zero as well; NaN is NaN."""
    x = torch.tensor([0.0, 1.0, math.nan])
    assert _same(x, x.clone()) and _same((x, 3), (x.clone(), 3))
    for other in (x.double(), x[None], torch.tensor([-0.0, 1.0, math.nan]), x + 1e-7, torch.tensor([0.0, 1.0, 2.0]), (x,), 0.0):
        assert not _same(x, other) and not _same(other, x)


def test_the_component_itself_stays_as_it_is():
    """Tracing works on a copy, and on copies of its lists."""
    seen = type("S", (schedule(lambda self, t: self.seen.append(t) or t),), {"__init__": lambda self: vars(self).update(seen=[])})()
    with pytest.raises(ProgramError, match="changes itself"):
        trace(seen)
    assert seen.seen == []


def test_a_profiler_goes_on():
    def mine(frame, event, argument):
        pass

    before = sys.getprofile()
    sys.setprofile(mine)
    try:
        trace(Linear())
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(before)


def test_two_denoisers():
    class Two(BaseDenoiser):
        def __init__(self, denoiser):
            self.denoiser, self.weak, self.sde = denoiser, Labelled(), denoiser.sde

        def x0(self, x, t, condition):
            return 2 * self.denoiser.x0(x, t, condition) - self.weak.x0(x, t, condition)

    with pytest.raises(ProgramError, match="asks two denoisers"):
        trace(Two(Labelled()))


# constructs of Python that a translator of source gets wrong: right, because Python itself ran them


def alias(self, t):
    y = t * 2
    z = y
    z += 1
    return y


def view(self, d, x, t, s, n):
    y = d(x, t.time).x0 * 2
    flat = y.flatten(1)
    flat *= 3
    flat.add_(1.0)
    return y


def detached(self, t):
    y = t * 2
    y.detach().mul_(5)
    return y


def late_binding(self, t):
    return sum(f(t) for f in [lambda v: v * k for k in range(1, 4)])


def early_binding(self, t):
    return sum(f(t) for f in [lambda v, k=k: v * k for k in range(1, 4)])


def mutable_default(self, t, seen=[]):  # noqa: B006
    seen.append(t)
    return seen[-1] * 2


def generator(self, t):
    def parts():
        total = t
        for k in range(3):
            total = total * t
            yield total

    return sum(parts(), 0.5 * t)


def cell(self, t):
    total = t

    def add(v):
        nonlocal total
        total = total + v
        return total

    add(t * t), add(1.0)
    return total


def items(self, t):
    parts = [t * 1.0, t * t]
    parts[0] += parts[1]
    parts[1] = parts[0] * 2
    a, *rest = [parts[0]] + parts
    return a + rest[-1]


def order(self, t):
    y = t * 1.0

    def change():
        nonlocal y
        y *= 2
        return y

    return y + change() + y


def finally_(self, t):
    try:
        return t * 2
    finally:
        t = t * 0


class Descriptor:
    def __get__(self, instance, owner):
        return instance.base * 3

    def __set__(self, instance, value):
        instance.base = value


def formula(self, t):
    return functools.reduce(lambda a, b: a * t + b, (1.0, -0.5, 0.25), 0.0 * t)


def partly(self, t):
    return collections.OrderedDict(a=t, b=t * 2)["b"] if (n := 3) > 2 else t * n


CONSTRUCTS = {
    f.__name__: schedule(f) for f in (alias, detached, late_binding, early_binding, mutable_default, generator, cell, items, order, finally_)
}
CONSTRUCTS |= {f.__name__: schedule(f) for f in (formula, partly)}
CONSTRUCTS["descriptor"] = type("S", (schedule(lambda self, t: t * self.rate),), {"rate": Descriptor(), "base": 2.0})
CONSTRUCTS["class attribute"] = type("S", (schedule(lambda self, t: t * type(self).rates[self.n]),), {"rates": [1.0, 4.0], "n": -1})
CONSTRUCTS["star"] = schedule(lambda self, t: (lambda *parts, **named: parts[0] * named["k"])(*[t], **{"k": 2.0}))
CONSTRUCTS["view"] = step(view)
CONSTRUCTS["sums of numbers"] = step(lambda self, d, x, t, s, n: d(x, t.time).x0 * (sum([t.alpha, 0.1, s.alpha, 1e-9]) + sum((t.sigma, 1), 0.5)))


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_constructs_are_right(name):
    native = CONSTRUCTS[name]()
    program = component_of(program_of(native))
    if issubclass(CONSTRUCTS[name], Sampler):
        a, b = (sampler(MIXTURE.denoiser(VP()), shape=(3, 4), n_steps=4, seeds=0).x for sampler in (native, program))
        same(a, b)
    else:
        t = torch.rand(9)
        same(native.beta(t.clone()), program.beta(t.clone()))


def test_a_question_that_is_asked_twice_is_two_evaluations():
    native = step(lambda self, d, x, t, s, n: (d(x, t.time).x0 + d(x, t.time).x0) / 2)()
    program = component_of(program_of(native))
    runs = [sampler(MIXTURE.denoiser(VP()), shape=(2, 4), n_steps=4, seeds=0) for sampler in (native, program)]
    assert runs[0].nfe == runs[1].nfe == program.evaluations(4) == 7


def test_a_question_whose_answer_nobody_needs_is_an_evaluation():
    native = step(lambda self, d, x, t, s, n: d(x, t.time).x0 if d(x, s.time) else x)()
    assert [f.questions for f in trace(native).functions.values()] == [2]


def test_a_number_a_sample_takes_the_type_of_the_field():
    native = guided(lambda self, x, t, x0, c: x0 + expand(self.sde.sigma(t), x) * (x - x0))(Labelled())
    program, condition = component_of(program_of(native))(Labelled()), {"label": torch.tensor([0, 1, 2])}
    x, t = torch.linspace(-1, 1, 12).view(3, 4), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    same(native.x0(x, t, condition), program.x0(x, t, condition))
    assert program.x0(x, t, condition).dtype == torch.float32


def test_what_is_exchanged_while_tracing_is_put_back():
    import diffnb.noise.sdes
    import diffnb.samplers.stochastic

    modules = (diffnb.noise.sdes, diffnb.samplers.stochastic, corpus)
    before = [dict(vars(module)) for module in modules]
    for cls in (corpus.TwoStepSDE, corpus.AnnealedLangevin):
        trace(cls())
    with pytest.raises(ProgramError):
        trace(corpus.AncestralChurn())
    assert [dict(vars(module)) for module in modules] == before


def test_a_settled_choice_is_no_choice_on_a_value():
    """`if eta * sigma` where eta is nothing."""
    assert "noise" not in {row[0] for row in trace(DDIM()).functions["step_0"].operations}
    with pytest.raises(ProgramError, match="decision"):
        trace(DDIM(eta=0.5))


# programs of strangers

GOOD = json.loads(trace(Linear()).text)
STEP = json.loads(trace(corpus.MyHeun()).text)
PROCESS = json.loads(trace(corpus.PROCESSES[0]()).text)


def read(document):
    """A program, by way of JSON text."""
    return Program(json.dumps(document))


def changed(document, **fields):
    return json.loads(json.dumps(document)) | fields


def beta(*operations, outputs=None):
    """A schedule whose beta is such operations."""
    functions = {"integral": {"operations": [], "outputs": [0]}}
    functions["beta"] = {"operations": list(operations), "outputs": [len(operations)] if outputs is None else outputs}
    return changed(GOOD, functions=functions)


def stepped(*operations, outputs=None, **facts):
    function = {"operations": list(operations), "outputs": [0, None] if outputs is None else outputs}
    return changed(STEP, functions={"step_0": function}, facts=STEP["facts"] | facts)


HOSTILE = {
    "a list": [],
    "a text": "schedule",
    "no fields": {},
    "another field": GOOD | {"more": 1},
    "version": changed(GOOD, api=2),
    "version true": changed(GOOD, api=True),
    "kind": changed(GOOD, kind="network"),
    "kind is a list": changed(GOOD, kind=["schedule"]),
    "kind is a dict": changed(GOOD, kind={}),
    "name": changed(GOOD, name="os.system"),
    "name with an escape": changed(GOOD, name="a\x1b[2J"),
    "name too long": changed(GOOD, name="a" * 65),
    "name of 100,000 letters": changed(GOOD, name="a" * 100_000),
    "operation of 100,000 letters": beta(["a" * 100_000, 0]),
    "name unicode": changed(GOOD, name="Sсhedule"),
    "name a number": changed(GOOD, name=3),
    "facts": changed(GOOD, facts={"t_min": 0.1}),
    "facts a list": changed(GOOD, facts=[]),
    "functions a list": changed(GOOD, functions=[]),
    "no functions": changed(GOOD, functions={}),
    "another function": changed(GOOD, functions=GOOD["functions"] | {"__init__": GOOD["functions"]["beta"]}),
    "a step in a schedule": changed(GOOD, functions=GOOD["functions"] | {"step_0": GOOD["functions"]["beta"]}),
    "a step for a longer history": changed(STEP, functions=STEP["functions"] | {"step_3": {"operations": [], "outputs": [0, None]}}),
    "a process that ends where it begins": changed(PROCESS, facts=PROCESS["facts"] | {"t_min": PROCESS["facts"]["t_max"]}),
    "a process that ends before it begins": changed(PROCESS, facts=PROCESS["facts"] | {"t_min": 0.9, "t_max": 0.1}),
    "one missing": changed(GOOD, functions={"beta": GOOD["functions"]["beta"]}),
    "function a list": changed(GOOD, functions=GOOD["functions"] | {"beta": []}),
    "function with more": changed(GOOD, functions=GOOD["functions"] | {"beta": GOOD["functions"]["beta"] | {"code": ""}}),
    "operations a text": changed(GOOD, functions=GOOD["functions"] | {"beta": {"operations": "exp", "outputs": [0]}}),
    "operation a text": beta("exp"),
    "operation empty": beta([]),
    "operation a dict": beta({"exp": 0}),
    "operation a number": beta([0, 0]),
    "operation a list": beta([["exp"], 0]),
    "unknown operation": beta(["system", 0]),
    "dunder operation": beta(["__class__", 0]),
    "method of torch": beta(["cholesky", 0]),
    "no argument": beta(["exp"]),
    "two arguments": beta(["exp", 0, 0]),
    "forward": beta(["exp", 1]),
    "far": beta(["exp", 10**15]),
    "negative": beta(["exp", -1]),
    "true": beta(["exp", 0], ["add", 0, True]),
    "float as a value": beta(["exp", 0.0]),
    "null": beta(["exp", None]),
    "text": beta(["exp", "t"]),
    "dict": beta(["exp", {}]),
    "two constants": beta(["add", 0, [1.0, 2.0]]),
    "no constant": beta(["add", 0, []]),
    "constant true": beta(["add", 0, [True]]),
    "constant text": beta(["add", 0, ["1"]]),
    "constant list": beta(["add", 0, [[1.0]]]),
    "constants alone": beta(["exp", [1.0]]),
    "sigmoid of a constant": beta(["sigmoid", [1.0]]),
    "condition as a value": beta(["lt", 0, [0.5]], ["exp", 1]),
    "condition as a result": beta(["lt", 0, [0.5]]),
    "value as a condition": beta(["where", 0, 0, 0]),
    "atan2 of both": beta(["atan2", 0, [1.0]]),
    "mean of a time": beta(["mean", 0]),
    "table empty": beta(["lookup", 0, [], "float64"]),
    "table of text": beta(["lookup", 0, ["a"], "float64"]),
    "table of another type": beta(["lookup", 0, [1.0], "complex64"]),
    "table of a million": beta(["lookup", 0, [0.0] * 10**5, "float64"]),
    "tables": beta(*[["lookup", 0, [0.0] * 1000, "float64"]] * 5),
    "operations": beta(*[["exp", i] for i in range(2049)]),
    "operations of two": changed(
        beta(*[["exp", i] for i in range(1500)]),
        functions=beta(*[["exp", i] for i in range(1500)])["functions"]
        | {"integral": {"operations": [["exp", i] for i in range(1500)], "outputs": [1500]}},
    ),
    "process in a schedule": beta(["alpha", 0]),
    "denoiser in a schedule": beta(["denoise", 0, 0, "given"]),
    "noise in a schedule": beta(["noise", "step", [1]], outputs=[0]),
    "no output": beta(["exp", 0], outputs=[]),
    "two outputs": beta(["exp", 0], outputs=[0, 1]),
    "output far": beta(["exp", 0], outputs=[2]),
    "output null": beta(["exp", 0], outputs=[None]),
    "output true": beta(["exp", 0], outputs=[True]),
    "output a number": beta(["exp", 0], outputs=[0.0]),
    "outputs": beta(["exp", 0], outputs=[0] * 10**5),
    "17 questions": stepped(["as_tensor", 1], *[["denoise", 0, 12, "given"]] * 17),
    "another condition": stepped(["as_tensor", 1], ["denoise", 0, 12, "label"]),
    "level is a number": stepped(["denoise", 0, 1, "given"]),
    "level is a field": stepped(["denoise", 0, 0, "given"]),
    "question a number": stepped(["as_tensor", 1], ["denoise", 12, 12, "given"]),
    "stream": stepped(["noise", "os", 11]),
    "noise numbered by a field": stepped(["noise", "step", 0]),
    "quantile of a field": stepped(["quantile", 0, 0]),
    "sum of fields": stepped(["total", 0, 0]),
    "sum of none": stepped(["total"]),
    "sigmoid of a number": stepped(["sigmoid", 1]),
    "sum of 65": stepped(["total", *[1] * 65]),
    "noise at the end": changed(STEP, functions=STEP["functions"] | {"finish": {"operations": [["noise", "step", 6]], "outputs": [7, None]}}),
    "choice between kinds": stepped(["lt", 1, 2], ["where", 12, 0, 1]),
    "number for x": stepped(outputs=[1, None]),
    "history that is not declared": stepped(["as_tensor", 1], outputs=[0, None, 1, 0]),
    "half a history": stepped(outputs=[0, None, 1], n_history=1),
    "missing step": stepped(n_history=1),
    "n_history": stepped(n_history=17),
    "n_history negative": stepped(n_history=-1),
    "steps": stepped(n_steps_default=2**28),
    "steps a float": stepped(n_steps_default=10.0),
    "order": stepped(order=1e300),
    "order nan": stepped(order="nan"),
    "stochastic": stepped(is_stochastic=1),
    "grid": stepped(default_grid="os"),
    "grid a list": stepped(default_grid=["karras"]),
}
TEXTS = {
    "nan": json.dumps(beta(["add", 0, [1.0]])).replace("1.0", "NaN"),
    "infinity": json.dumps(beta(["add", 0, [1.0]])).replace("1.0", "1e400"),
    "beyond 2^53": json.dumps(beta(["add", 0, [1.0]])).replace("1.0", str(2**53 + 1)),
    "a long number": json.dumps(beta(["add", 0, [1.0]])).replace("1.0", "9" * 5000),
    "twice": json.dumps(GOOD)[:-1] + ', "kind": "schedule"}',
    "deep": json.dumps(beta()).replace("[]", "[" * 5000 + "]" * 5000, 1),
    "too deep": json.dumps(beta()).replace("[]", "[" * 9 + "]" * 9, 1),
    "half": json.dumps(GOOD)[:50],
    "nothing": "",
    "surrogate": json.dumps(GOOD).replace("Linear", "\ud800"),
    "long": json.dumps(GOOD) + " " * 2**18,
}


@pytest.mark.parametrize("name", [*HOSTILE, *TEXTS])
def test_hostile_programs_are_refused(name):
    start = time.process_time()
    with pytest.raises(ProgramError) as found:
        Program(TEXTS[name] if name in TEXTS else json.dumps(HOSTILE[name]))
    assert time.process_time() - start < 1 and len(str(found.value)) < 1000 and str(found.value).isascii() and str(found.value).isprintable()


def test_the_corpus_of_programs_is_alive():
    """Each document without its fault is a program."""
    assert (read(GOOD).kind, read(STEP).kind, read(PROCESS).kind) == ("schedule", "sampler", "process")
    assert read(beta(["lookup", 0, [1.0], "float64"]))
    assert read(stepped(["as_tensor", 1], *[["denoise", 0, 12, "given"]] * 16))
    assert read(beta(*[["exp", i] for i in range(2048)]))
    assert read(stepped(["noise", "step", [1e6]], outputs=[12, None]))


BROKEN = {  # programs that are valid, and whose operations have no result: a documented error when they run
    "log of a negative": [["neg", 2], ["log", 12], ["mul", 0, 13]],
    "division by zero": [["sub", 2, 2], ["div", 2, 12], ["mul", 0, 13]],
    "overflow": [["exp", [1e3]], ["mul", 0, 12]],
    "root of a negative": [["neg", 2], ["pow", 12, [0.5]], ["mul", 0, 13]],
    "noise below zero": [["noise", "step", [-1]]],
    "noise between two": [["noise", "step", [0.5]]],
    "noise beyond": [["noise", "step", [1e300]]],
    "the process at whole numbers": [["as_tensor", 1], ["long", 12], ["alpha_rate", 13], ["mul", 0, 14]],
    "quantile beyond one": [["quantile", 0, [2.0]], ["mul", 0, 12]],
}


@pytest.mark.parametrize("name", BROKEN)
def test_operations_without_result(name):
    operations = BROKEN[name]
    sampler = component_of(read(stepped(*operations, outputs=[11 + len(operations), None])))
    with pytest.raises(ComponentBadResult, match=r"Heun.step_0: operation \d, \w+, has no result|noise is numbered from 0"):
        sampler(MIXTURE.denoiser(VP()), shape=(2, 4), n_steps=3, seeds=0)


def test_errors_of_the_denoiser_pass():
    class Broken(Labelled):
        def x0(self, x, t, condition):
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        traced(corpus.MyHeun)[1](Broken(), shape=(2, 4), n_steps=3, seeds=0)


def test_an_answer_of_another_shape_is_no_answer():
    class Broken(Labelled):
        def x0(self, x, t, condition):
            return x[:1]

    with pytest.raises(ComponentBadResult, match=r"the denoiser gave shape \(1, 4\) for \(2, 4\)"):
        traced(corpus.MyHeun)[1](Broken(), shape=(2, 4), n_steps=3, seeds=0)


def test_formulas_stay_short():
    """Sixty values, each the sum of the last with itself: written out in place they would be 2^60 terms."""
    lines = read(beta(*[["add", i, i] for i in range(60)])).equations()["beta"]
    assert len(lines) == 60 and max(map(len, lines)) < 30


def test_guidance_needs_something_to_steer():
    with pytest.raises(ProgramError, match="has no denoiser to steer yet"):
        traced(corpus.SoftThreshold)[1].x0(torch.zeros(1, 4), torch.tensor(0.5), {})
    steered = traced(corpus.SoftThreshold)[1](Labelled())
    again, ask = pickle.loads(pickle.dumps(traced(corpus.SoftThreshold)[1])), (torch.ones(2, 4), torch.tensor(0.5), {"label": torch.ones(2)})
    same(again(Labelled()).x0(*ask), steered.x0(*ask))


def test_a_table_is_never_left():
    table = component_of(read(beta(["lookup", 0, [3.0, 4.0, 5.0], "float64"])))
    assert table.beta(torch.tensor([-5.0, 0.0, 1.7, 9e18])).tolist() == [3.0, 3.0, 4.0, 5.0]
    assert set(table.beta(torch.tensor([-math.inf, math.inf, 1e300, math.nan], dtype=torch.float64)).tolist()) <= {3.0, 5.0}


# the bound


@pytest.fixture(scope="module", autouse=True)
def warm():
    """The profiler takes its time when it is first used."""
    measured(lambda: torch.ones(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(30))
def test_random_programs_stay_within_their_bound(seed, dtype):
    """Memory as torch's allocator counts it, and time: a hundred nanoseconds an element and a millisecond an operation, on a busy machine."""
    program, shape = random_program(seed, 10 + 4 * seed), (3, 2, 48, 48)
    bound, sampler, denoiser = program.bound(shape), component_of(program), MIXTURE.denoiser(VP())
    denoiser.x0 = lambda x, t, condition: x  # its own needs are not the program's
    state, levels = State(state_of(shape, dtype, seed)), VP().levels(torch.tensor([0.9, 0.5]))

    def call():
        try:
            sampler.step(denoiser, state, *levels, NoiseSource.of(seed, 3))
        except ComponentBadResult:
            pass

    memory, seconds = measured(call)
    assert memory <= bound.memory
    assert seconds < 1 + 4e-7 * bound.work + 2e-3 * bound.operations


@pytest.mark.parametrize("seed", range(60))
def test_no_value_is_of_another_shape_than_its_kind_says(seed):
    """The theorem behind the bound, looked at: every field has the state's shape, every number a sample one entry for each, or one for all."""
    shape, program = (3, 2, 4, 5), random_program(seed, 150)
    function, line = program.functions["step_0"], component_of(program)._lines["step_0"]
    denoiser = MIXTURE.denoiser(VP())
    denoiser.x0 = lambda x, t, condition: x
    host = Host(VP(), denoiser, state_of(shape, torch.float32), {}, NoiseSource.of(0, 3))
    values = [host.x, *VP().levels(torch.tensor([0.9]))[0], *VP().levels(torch.tensor([0.5]))[0], 1.0, *line.rest, host]
    for (call, places, place, _), row in zip(line.steps, function.operations):
        if any(values[p] is None for p in places):
            continue
        try:
            values[place] = call(*[values[p] for p in places])
        except Exception:
            continue  # no result: an error, when it is run
        kind = function.kinds[place]
        if kind == 0:
            assert isinstance(values[place], (float, bool)), row
        else:
            assert values[place].shape in ([(), (3,)] if kind == 1 else [shape]), row
            assert values[place].dtype in (torch.float32, torch.float64, torch.int64, torch.bool), row


def test_the_bound_is_not_empty():
    """A field more that is kept is a field more in the bound, and is measured."""
    shape = (1, 2**18)
    keep = [["exp", 0], ["exp", 12], ["exp", 13], ["add", 12, 13], ["add", 14, 15]]
    drop = [["exp", 0], ["exp", 12], ["exp", 13], ["exp", 14], ["exp", 15]]
    found = []
    for operations in (keep, drop):
        program = read(stepped(*operations, outputs=[16, None]))
        sampler, state, levels = component_of(program), State(torch.rand(shape, dtype=torch.float64)), VP().levels(torch.tensor([0.9, 0.5]))
        memory, _ = measured(lambda: sampler.step(MIXTURE.denoiser(VP()), state, *levels, None))
        found.append((round(program.bound(shape).memory / 8 / 2**18), round(memory / 8 / 2**18)))
    assert found == [(4, 4), (2, 2)]


def test_the_bound_knows_of_copies():
    """A sum of two types is made of copies of one type; noise, of whole numbers that are larger than itself."""
    shape, levels = (2, 2**19), VP().levels(torch.tensor([0.9, 0.5]))
    for operations, dtype, least in (([["double", 0], ["add", 0, 12]], torch.float32, 2.5), ([["noise", "step", 11]], torch.float64, 4)):
        program = read(stepped(*operations, outputs=[11 + len(operations), None]))
        sampler, state = component_of(program), State(state_of(shape, dtype))
        memory, _ = measured(lambda: sampler.step(MIXTURE.denoiser(VP()), state, *levels, NoiseSource.of(0, 2)))
        assert least * 2**23 < memory <= program.bound(shape).memory


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (2, 3, 4, 5), (7, 64), (4096, 1)])
def test_the_bound_knows_that_short_draws_are_made_together(shape):
    """Random numbers of a small state are made for many steps at once, which takes more than the state."""
    program, levels = read(stepped(["noise", "step", 11], outputs=[12, None])), VP().levels(torch.tensor([0.9, 0.5]))
    sampler, state = component_of(program), State(state_of(shape, torch.float64))
    memory, _ = measured(lambda: sampler.step(MIXTURE.denoiser(VP()), state, *levels, NoiseSource.of(0, shape[0])))
    assert 2**18 < memory <= program.bound(shape).memory


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_operation_needs_more_than_its_row_says(name):
    """On a field, a number a sample and a number, in every place where they fit: `2 / x`, too, for which torch makes two fields."""
    shape, levels, tried = (2, 2**17), VP().levels(torch.tensor([0.9, 0.5])), 0
    before, denoiser = [["as_tensor", 1], ["lt", 0, [0.5]]], MIXTURE.denoiser(VP())  # values 12 and 13
    denoiser.x0 = lambda x, t, condition: x
    of = {"v": [0, 2, 12], "n": [2, 11], "e": [0, 12], "s": [12], "f": [0], "m": [13], "t": [[0.5, 1.0]], "w": OPERATIONS[name].words}
    for arguments in itertools.product(*[of[letter] for letter in OPERATIONS[name].takes.rstrip("*")]):
        try:
            program = read(stepped(*before, [name, *arguments]))
        except ProgramError:
            continue
        for dtype in (torch.float32, torch.float64):
            sampler, state = component_of(program), State(state_of(shape, dtype))
            try:
                sampler._lines["step_0"](Host(VP(), denoiser, state.x, {}, NoiseSource.of(0, 2)), state.x, *levels[0], *levels[1], 1.0)
            except (ComponentBadResult, ValueError):
                continue
            memory, _ = measured(lambda: sampler.step(denoiser, state, *levels, NoiseSource.of(0, 2)))
            assert memory <= 8 * program.functions["step_0"].alive((0, 2, 2**18)) + 2**16, (arguments, dtype)
            tried += 1
    assert tried


@pytest.mark.parametrize("cls", [corpus.MyHeun, corpus.AdamsBashforth, corpus.NormCorrected, corpus.SoftThreshold])
def test_the_corpus_stays_within_its_bound(cls):
    native, program = traced(cls)
    shape = (2, 3, 64, 64)
    bound, levels, denoiser = program.program.bound(shape), VP().levels(torch.tensor([0.9, 0.5])), MIXTURE.denoiser(VP())
    denoiser.x0 = lambda x, t, condition: x
    x = state_of(shape, torch.float32)
    run = (
        (lambda: program(denoiser)(x, 0.5, {}))
        if cls is corpus.SoftThreshold
        else lambda: program.step(denoiser, State(x), *levels, NoiseSource.of(0, 2))
    )
    memory, _ = measured(run)
    assert memory <= bound.memory < 60 * x.numel() * 8 + 2**22


# what it costs


def test_every_operation_is_traced_by_somebody():
    """No row of the table without a component that needs it, but for those that are there for completeness."""
    programs = [traced(cls)[1].program for cls in corpus.TRAVEL]
    used = {row[0] for program in programs for function in program.functions.values() for row in function.operations}
    beyond = "sinh cosh tanh asinh asin acos tan erf atan2 amax amin mean long float hypot eq or not softplus log1p alpha_rate sigma_rate rsqrt total"
    assert len(used) >= 38 and set(OPERATIONS) - used <= set(beyond.split())


def test_numbers_of_a_choice():
    assert choose(True, 1.0, 2.0) == 1.0 and choose(torch.tensor([True, False]), 1.0, 2.0).tolist() == [1.0, 2.0]
    assert set(SIGNATURES) == {"schedule", "process", "parametrization", "sampler", "guidance"}
    same(expand(torch.ones(2), torch.ones(2, 3)), torch.ones(2, 1))
