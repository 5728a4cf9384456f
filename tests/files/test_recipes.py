"""Recipes: realistic components give, lowered and interpreted, what they give natively, to the last bit; the rest is refused with its line."""

import ast
import inspect
import json
import linecache
import pickle
import random
import subprocess
import sys
import time
import types

import pytest
import recipe_corpus as corpus
import torch
from attack_sources import ATTACKS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recipe_writer import Writer

import diffnb.files.recipe_expressions
import diffnb.files.recipe_host
import diffnb.files.recipe_interpreter
import diffnb.files.recipe_operations
import diffnb.files.recipe_plans
from diffnb.denoise import BaseDenoiser, GaussianMixture
from diffnb.files import (
    METHODS,
    OPERATIONS,
    ComponentBadResult,
    ComponentError,
    Instance,
    Limits,
    Plans,
    Program,
    RecipeComponent,
    RecipeError,
    RecipeGraph,
    RecipeLimit,
    bind,
    broadcast_size,
    canonical_json,
    lower,
    settings_of,
    source_of,
)
from diffnb.noise import SCHEDULES, VP, NoiseSchedule

EVERY = [
    cls for group in (corpus.SCHEDULES, corpus.PROCESSES, corpus.PARAMETRIZATIONS, corpus.SAMPLERS, corpus.GUIDANCE, corpus.METRICS) for cls in group
]
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


def recipe_of(native):
    """The recipe of a component, with the component's settings, by way of JSON text."""
    return RecipeGraph(lower(type(native)).text)(**settings_of(native))


def same(a, b):
    assert a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("cls", corpus.SCHEDULES, ids=lambda cls: cls.__name__)
def test_schedules_are_bit_equal(cls):
    native, recipe = cls(), recipe_of(cls())
    for dtype in (torch.float32, torch.float64):
        for t in (
            torch.linspace(0, 1, 101, dtype=dtype),
            torch.rand(101, dtype=dtype),
            torch.rand(101, dtype=dtype),
        ):  # interpreted, interpreted, planned
            same(native.beta(t), recipe.beta(t))
            same(native.integral(t), recipe.integral(t))
            same(native.time_of_integral(native.integral(t)), recipe.time_of_integral(native.integral(t)))
    same(native.beta(torch.tensor(0.3)), recipe.beta(torch.tensor(0.3)))
    planned = {key[0] for key, plan in recipe._plans.found.items() if plan}
    assert {"beta", "integral"} <= planned


@pytest.mark.parametrize("cls", corpus.PROCESSES, ids=lambda cls: cls.__name__)
def test_processes_are_bit_equal(cls):
    native, recipe = cls(), recipe_of(cls())
    t = torch.linspace(native.t_min, native.t_max, 101, dtype=torch.float64)
    assert (recipe.t_min, recipe.t_max, recipe.default_grid, recipe.prior_std) == (native.t_min, native.t_max, native.default_grid, native.prior_std)
    for name in ("alpha", "sigma", "half_log_snr", "drift", "diffusion"):  # rates by automatic differentiation through the interpreter
        same(getattr(native, name)(t), getattr(recipe, name)(t))
    lam = native.half_log_snr(t[1:-1])
    same(native.time_of_half_log_snr(lam), recipe.time_of_half_log_snr(lam))


@pytest.mark.parametrize("cls", corpus.PARAMETRIZATIONS, ids=lambda cls: cls.__name__)
def test_parametrizations_are_bit_equal(cls):
    native, recipe, t = cls(sigma_data=0.7), recipe_of(cls(sigma_data=0.7)), torch.linspace(0.01, 1, 101, dtype=torch.float64)
    for name in ("coefficients", "to_x0", "network_target"):
        for a, b in zip(getattr(native, name)(VP(), t), getattr(recipe, name)(VP(), t)):
            same(a, b)
    same(native.scale(VP(), t), recipe.scale(VP(), t))


@pytest.mark.parametrize("cls", corpus.SAMPLERS, ids=lambda cls: cls.__name__)
def test_samplers_are_bit_equal(cls):
    native, recipe = cls(), recipe_of(cls())
    for name in ("n_steps_default", "default_grid", "order", "is_stochastic", "n_history"):
        assert getattr(native, name) == getattr(recipe, name), name
    how = {"shape": (3, 4), "n_steps": 7, "seeds": 1, "dtype": torch.float64}
    a, b = native(MIXTURE.denoiser(VP()), **how), recipe(MIXTURE.denoiser(VP()), **how)
    same(a.x, b.x)
    assert a.nfe == b.nfe


@pytest.mark.parametrize("cls", corpus.GUIDANCE, ids=lambda cls: cls.__name__)
def test_guidance_is_bit_equal(cls):
    native = cls(Labelled())
    recipe = recipe_of(native)(Labelled())
    x = torch.linspace(-2, 2, 20, dtype=torch.float64).view(5, 4)
    condition = {"label": torch.tensor([0, 1, 2, -1, 1])}
    for t in (0.5, torch.tensor(0.3, dtype=torch.float64), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)):
        same(native(x, t, condition).x0, recipe(x, t, condition).x0)


@pytest.mark.parametrize("cls", corpus.METRICS, ids=lambda cls: cls.__name__)
def test_metrics_are_equal(cls):
    native, recipe, g = cls(), recipe_of(cls()), torch.Generator().manual_seed(0)
    real, generated = torch.rand(20, 1, 8, 8, generator=g), torch.rand(25, 1, 8, 8, generator=g)
    assert native(real, generated) == recipe(real, generated)
    assert native.config() == recipe.config()


def native_of(source):
    """The class of a text, made as Python makes it."""
    module = sys.modules["recipe_native"] = types.ModuleType("recipe_native")
    exec(compile(source, "recipe_native", "exec"), module.__dict__)  # the test's own text
    return module.Random


def answer(component, t):
    """beta(t), or None where it is refused."""
    try:
        value = component.beta(t)
    except Exception as error:
        assert not isinstance(component, RecipeComponent) or isinstance(error, (RecipeError, RecipeLimit, ComponentBadResult)), repr(error)
        return None
    return value if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == t.shape else None


@pytest.mark.parametrize("seed", range(60))
def test_random_components_are_bit_equal(seed):
    """Loops, branches on values, types and shapes, helpers, tables: at every call, interpreted or planned, what the class gives."""
    source = Writer(seed).source()
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    given = {"a": choose.uniform(-2, 2), "n": choose.randrange(5), "flag": choose.random() < 0.5} if seed % 2 else {}
    native, recipe = native_of(source)(**given), lower(source)(**given)
    shapes = [((5,), torch.float32), ((3, 2), torch.float32), ((5,), torch.float64), ((), torch.float64)]
    for shape, dtype in [*shapes * 3, *shapes[::-1]]:
        t = torch.rand(shape, generator=generator, dtype=dtype) * choose.choice((1, 1, 2))
        t.requires_grad_(choose.random() < 0.3)
        a, b = answer(native, t), answer(recipe, t)
        assert (a is None) == (b is None), source
        if a is not None:
            assert a.requires_grad == b.requires_grad, source
            a, b = a.detach(), b.detach()
            assert a.dtype == b.dtype and a.shape == b.shape, source
            assert ((a == b) & (a.signbit() == b.signbit()) | a.isnan() & b.isnan()).all(), source


def test_random_components_are_of_all_kinds():
    """So that the test above is about plans and about what has none."""
    found = set()
    for seed in range(12):
        recipe = lower(Writer(seed).source())()
        for _ in range(3):
            answer(recipe, torch.linspace(0, 1, 5))
        found |= {bool(plan) for plan in recipe._plans.found.values()}
    assert found == {True, False}


def test_numbers_are_kept_apart():
    """An expression within another, both of attributes alone: what is kept for one is not given for the other."""
    text = f"{HEAD}from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Random(NoiseSchedule):\n    n: int = 3\n    high: float = 2.5\n"
    text += "    def beta(self, t):\n        total = t * torch.linspace(0.0, 1.0, self.n + 1).sum() * torch.tensor(self.high - 1.0)\n"
    text += "        for k in range(self.n + 1):\n            total = total + t**k\n        return total\n"
    text += "    def integral(self, t):\n        return t\n"
    native, recipe = native_of(text)(), lower(text)()
    for _ in range(4):
        same(native.beta(torch.linspace(0, 1, 7)), recipe.beta(torch.linspace(0, 1, 7)))


class Dial(NoiseSchedule):
    """A schedule with an attribute that is not fixed."""

    height = 1.0

    def beta(self, t):
        return self.height + 0 * t

    def integral(self, t):
        return self.height * t


def test_objects_of_the_host_may_change():
    """What a helper asks of another component is asked each time: it may be of the user's own class."""
    text = f"{HEAD}from diffnb.noise.sdes import SDE\nclass Random(SDE):\n    def __init__(self, schedule=None):\n        self.schedule = schedule\n"
    text += "    def _top(self):\n        return float(self.schedule.integral(torch.tensor(1.0)))\n"
    text += "    def _rate(self):\n        return 2.0 * self._top()\n"
    text += "    def alpha(self, t):\n        return torch.exp(-self._rate() * t)\n    def sigma(self, t):\n        return t * (self._top() + 1.0)\n"
    dial, t = Dial(), torch.linspace(0.1, 1, 5)
    native, recipe = native_of(text)(dial), lower(text)(schedule=dial)
    for height in (1.0, 1.0, 1.0, 2.0, 3.0):
        dial.height = height
        same(native.alpha(t), recipe.alpha(t))
        same(native.sigma(t), recipe.sigma(t))


def test_most_of_the_corpus_lowers():
    lowered = []
    for cls in [*EVERY, *corpus.REFUSED]:
        try:
            lower(cls)
            lowered.append(cls)
        except RecipeError as error:
            assert "line" in str(error) and "`" in str(error)
    assert lowered == EVERY and len(EVERY) >= 26 and len(corpus.SAMPLERS) + len(corpus.GUIDANCE) >= 10


BASES = {  # name of the class, its wing and module: what a component has to add to it
    ("NoiseSchedule", "noise", "schedules"): """
    def beta(self, t):
        return 2 * t

    def integral(self, t):
        return t * t
""",
    ("Linear", "noise", "schedules"): """
    def beta(self, t):
        return 2 * super().beta(t)
""",
    ("SDE", "noise", "sdes"): """
    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t
""",
    ("Heun", "samplers", "ode"): "    order = 2\n",
    ("BaseDenoiser", "denoise", "denoisers"): """
    def __init__(self, denoiser):
        self.denoiser, self.sde = denoiser, denoiser.sde

    def x0(self, x, t, condition):
        return self.denoiser.x0(x, t, condition)
""",
    ("Metric", "metrics", "scores"): """
    needs = "images"

    def __call__(self, real, generated):
        return 1.0
""",
}
IMPORTS = {  # ways to name it
    "from diffnb.WING import NAME": "NAME",
    "from diffnb.WING.MODULE import NAME": "NAME",
    "from diffnb.WING import NAME as Base": "Base",
    "import diffnb.WING": "diffnb.WING.NAME",
    "import diffnb.WING as w": "w.NAME",
    "import diffnb.WING.MODULE as m": "m.NAME",
    "from diffnb import WING": "WING.NAME",
    "from diffnb.WING import MODULE as m": "m.NAME",
}


@pytest.mark.parametrize("base", BASES, ids=lambda base: base[0])
def test_a_base_is_found_however_it_is_imported(base):
    """A wing hands on the names of its modules, some wings when they are asked; a recipe does not show which name was used."""

    def written(text):
        return text.replace("NAME", base[0]).replace("WING", base[1]).replace("MODULE", base[2])

    texts = [written(f"{header}\n\n\nclass Mine({name}):\n{BASES[base]}") for header, name in IMPORTS.items()]
    for text in texts:
        exec(compile(text, "x", "exec"), {"__name__": "here"})  # Python finds it, too
    assert len({lower(text).text for text in texts}) == 1


@pytest.mark.parametrize(
    "header, name",
    [
        ("from diffnb.noise import Discreet", "Discreet"),  # no such name in the wing
        ("from diffnb.noise import *", "NoiseSchedule"),  # may be anything
        ("from diffnb.noyse import NoiseSchedule", "NoiseSchedule"),  # no such wing
        ("from diffnb.samplers import NoiseSchedule", "NoiseSchedule"),  # of another wing
        ("from diffnb.files import _binding", "_binding"),  # private to a module
        ("import diffnb", "diffnb.GenerativeModel"),
        ("import torch", "torch.nn.Module"),
    ],
)
def test_what_is_no_base_is_refused(header, name):
    with pytest.raises(RecipeError, match="its base is no class of diffnb"):
        lower(f"{header}\n\n\nclass Mine({name}):\n    order = 1\n")


def test_what_other_cells_have_imported_comes_along(monkeypatch):
    """Registries, types and functions written in C do not say where they were defined; a source names where they can be had."""
    for names in ("_entries", "_names"):
        monkeypatch.setattr(SCHEDULES, names, dict(getattr(SCHEDULES, names)))
    cells = [
        "import torch\nfrom torch import exp, float64 as double\nfrom math import pi\nfrom torch.nn.functional import softplus",
        "import diffnb.noise as noise\nfrom diffnb.core import expand\nfrom diffnb.noise import SCHEDULES as TABLE, VP",
        "from diffnb.noise import *",
        """@TABLE.register("of cells")
class OfCells(noise.NoiseSchedule):
    scale = pi

    def beta(self, t):
        return softplus(exp(t).to(double)).to(t.dtype) + Linear().beta(t) + expand(t, t) * torch.tanh(t) * self.scale

    def integral(self, t):
        return VP(Linear()).half_log_snr(t) + SubVP(Cosine()).half_log_snr(t)
""",
    ]
    space = {"__name__": "__main__"}
    for number, text in enumerate(cells):
        linecache.cache[f"<cell {number}>"] = len(text), None, text.splitlines(keepends=True), f"<cell {number}>"
        exec(compile(text, f"<cell {number}>", "exec"), space)
    source = source_of(space["OfCells"])
    alone = {"__name__": "component"}
    exec(compile(source.text.replace("of cells", "of a source"), "<alone>", "exec"), alone)
    t = torch.linspace(0.1, 0.9, 5)
    for method in ("beta", "integral"):
        assert getattr(alone["OfCells"](), method)(t).equal(getattr(space["OfCells"](), method)(t))


def test_constructor_checks_travel():
    recipe = lower(corpus.TutorialExponential)
    with pytest.raises(RecipeError, match="TutorialExponential needs 0 < beta_min < beta_max, got 5.0 and 1"):
        recipe(beta_min=5.0, beta_max=1.0)
    with pytest.raises(RecipeError, match="needs at least two images of each, got 1 and 3"):
        lower(corpus.PixelFrechet)()(torch.zeros(1, 1, 8, 8), torch.zeros(3, 1, 8, 8))


def test_components_pickle_and_compare():
    for cls in (corpus.SigmoidSchedule, corpus.ShiftedVP, corpus.MyHeun):
        recipe = recipe_of(cls())
        assert pickle.loads(pickle.dumps(recipe)) == recipe == recipe_of(cls())
        assert recipe.recipe.text == lower(source_of(cls)).text


# what is refused, and why

HEAD = "import torch, math\nfrom diffnb.noise import NoiseSchedule\n"


def schedule(beta, top="", body="", header="class S(NoiseSchedule):"):
    return f"{HEAD}{top}\n{header}\n{body}\n    def beta(self, t):\n        {beta}\n    def integral(self, t):\n        return t\n"


REFUSED = {
    "try": (schedule("try:\n            return t\n        except Exception:\n            return t"), "errors cannot be caught"),
    "import": (schedule("import os\n        return t"), "imports nothing while it runs"),
    "numpy": (schedule("return torch.tensor(np.exp(t))", "import numpy as np"), "no such function"),
    "dunder": (schedule("return t.__class__(t)"), "double underscores|single underscores"),
    "mangled": (schedule("return t.data_ptr()"), "no object in a recipe has a method data_ptr"),
    "attribute of torch": (schedule("torch.os.system('true'); return t"), "recipes have no such function"),
    "save": (schedule("torch.save(t, 'x'); return t"), "recipes have no such function"),
    "random": (schedule("return t + torch.randn(3)"), "recipes have no such function"),
    "in place": (schedule("t.add_(1); return t"), "nothing is changed in place"),
    "assign to a part": (schedule("t[0] = 1; return t"), "torch.where"),
    "global": (schedule("global x\n        x = 1\n        return t"), "constants cannot be changed"),
    "del": (schedule("del t"), "nothing can be deleted"),
    "yield": (schedule("yield t"), "no generators"),
    "walrus": (schedule("return (y := t)"), "write the assignment"),
    "class inside": (schedule("class A: pass\n        return t"), "classes cannot be made"),
    "star arguments": (schedule("return torch.exp(*[t])"), "no names to bind"),
    "keyword dict": (schedule("return torch.exp(**{'input': t})"), "no names to bind"),
    "eval": (schedule("return eval('t')"), "no such function"),
    "getattr": (schedule("return getattr(t, 'data')"), "no such function"),
    "open": (schedule("open('x'); return t"), "no such function"),
    "format method": (schedule("return '{0}'.format(t)"), "method format"),
    "decorator": (schedule("return t", body="    @print\n    def helper(self): pass"), "of decorators"),
    "metaclass": (schedule("return t", header="class S(NoiseSchedule, metaclass=type):"), "runs code when the class is made"),
    "two bases": (schedule("return t", header="class S(NoiseSchedule, dict):"), "derives from one class"),
    "base of another library": (schedule("return t", "import collections", header="class S(collections.OrderedDict):"), "no class of diffnb"),
    "loop in the body": (schedule("return t", body="    for i in range(3): pass"), "when it is made"),
    "call in the body": (schedule("return t", body="    print('x')"), "when it is made"),
    "del method": (schedule("return t", body="    def __del__(self): pass"), "changes how Python treats"),
    "reduce": (schedule("return t", body="    def __reduce__(self): return print, ()"), "changes how Python treats"),
    "getattr method": (schedule("return t", body="    def __getattr__(self, n): return 1"), "changes how Python treats"),
    "unicode name": (schedule("\u0430 = t\n        return \u0430"), "ASCII"),
    "no class": (HEAD, "holds no class"),
    "no python": ("class S(:", "is not Python"),
    "null byte": ("a = '\0'", "is not Python"),
    "deep nesting": (schedule("return " + "(" * 150 + "t" + ")" * 150 + " + 1" * 3000), "."),
    "no integral": (f"{HEAD}class S(NoiseSchedule):\n    def beta(self, t):\n        return t\n", "needs integral"),
    "bytes": (schedule("return t + b'x'"), "a constant is a number"),
    "complex": (schedule("return t + 1j"), "a constant is a number"),
    "os in a default": (schedule("return t", "import os", body="    x = os.system('true')"), "|"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_line_and_construct(name):
    source, why = REFUSED[name]
    if name == "os in a default":  # nothing refers to it, so it is not taken along, and it did not run
        assert "class.x" not in lower(source).text
        return
    with pytest.raises((RecipeError, RecipeLimit), match=why):
        lower(source)


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_hostile_source_is_refused_or_inert(name, tmp_path):
    """Each attack of the corpus: lowering raises RecipeError or the recipe does nothing but compute, within its budget; no mark is left."""
    canary, secret = tmp_path / "canary", tmp_path / "secret"
    secret.write_text("a secret")
    source = ATTACKS[name].replace("CANARY", str(canary)).replace("SECRET", str(secret)).replace("PORT", "9")
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state().sum().item()
    try:
        recipe = lower(source, limits=Limits(seconds=2.0))
        assert "os" not in {node for node in json.dumps(json.loads(recipe.text)["functions"]).split('"')}
        recipe().beta(torch.linspace(0, 1, 4))
    except (RecipeError, RecipeLimit, ComponentError):
        pass
    assert not canary.exists()
    assert before == (torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state().sum().item())


# recipe JSON of strangers


def function(parameters, body, slots=None):
    return {"parameters": parameters.split(), "defaults": [], "locals": slots or len(parameters.split()), "body": body}


def run(body, slots=4, limits=Limits(seconds=5.0), argument=torch.ones(3)):
    program = Program("S", {}, {"f": function("x", body, slots)}, limits)
    return program.call(Instance("S", {}), "f", argument)


X, ONE = ["get", 0], ["const", 1]


def const(value):
    return ["const", value]


def op(name, *positional, **keywords):
    return ["op", name, list(positional), keywords]


FOREVER = [["while", const(True), [["set", ["get", 1], ONE]]]]
HUGE = const(10**12)
# (x, x) of (x, x) of ...: sixty assignments, 2^60 leaves
NESTED = [["set", ["get", 1], ONE], ["for", ["get", 2], op("py.range", const(60)), [["set", ["get", 1], ["tuple", [["get", 1], ["get", 1]]]]]]]
GRAPHS = {
    "not a list": [["return", "x"]],
    "empty node": [["return", []]],
    "unknown word": [["return", ["lambda", X]]],
    "unknown statement": [["exec", "x"]],
    "statement as expression": [["return", ["return", X]]],
    "too many parts": [["return", ["get", 0, 1]]],
    "too few parts": [["return", ["bin", "+"]]],
    "variable that is not there": [["return", ["get", 99]]],
    "negative variable": [["return", ["get", -3]]],
    "true as a variable": [["return", ["get", True]]],
    "variable without a value": [["return", ["get", 2]]],
    "unknown operation": [["return", op("os.system", const("ls"))]],
    "dunder operation": [["return", op("__import__", const("os"))]],
    "operation with a dot": [["return", op("linalg.__class__", X)]],
    "operation that is a list": [["return", ["op", ["exp"], [X], {}]]],
    "dunder attribute": [["return", ["attr", "__class__", X]]],
    "attribute data": [["return", ["attr", "data", X]]],
    "attribute grad_fn": [["return", ["attr", "grad_fn", X]]],
    "dunder method": [["return", ["method", "__reduce__", X, [], {}]]],
    "method numpy": [["return", ["method", "numpy", X, [], {}]]],
    "method resize_": [["return", ["method", "resize_", X, [const(10**9)], {}]]],
    "method set_": [["return", ["method", "set_", X, [X], {}]]],
    "method as_strided": [["return", ["method", "as_strided", X, [], {}]]],
    "out by keyword": [["return", op("exp", X, out=X)]],
    "out by position": [["return", op("exp", X, X)]],
    "generator": [["return", op("ones", const(3), generator=ONE)]],
    "dunder keyword": [["return", op("exp", X, __class__=X)]],
    "two values": [["return", op("sum", X, const(0), dim=const(0))]],
    "no argument": [["return", op("exp")]],
    "ones by position": [["return", op("ones", HUGE)]],
    "ones in a tuple": [["return", op("ones", ["tuple", [const(10**6), const(10**6)]])]],
    "full by keyword": [["return", op("full", size=["tuple", [HUGE]], fill_value=ONE)]],
    "arange": [["return", op("arange", HUGE)]],
    "arange by step": [["return", op("arange", const(0), ONE, const(1e-12))]],
    "linspace by keyword": [["return", op("linspace", start=ONE, end=ONE, steps=HUGE)]],
    "eye": [["return", op("eye", const(10**6))]],
    "repeat": [["return", ["method", "repeat", X, [HUGE], {}]]],
    "repeat_interleave": [["return", op("repeat_interleave", X, HUGE)]],
    "expand and sum": [["return", op("sum", ["method", "expand", ["item", X, ["slice", const(0), ONE, const(None)]], [HUGE], {}])]],
    "broadcast": [["set", X, op("ones", const(10**5))], ["return", ["bin", "*", op("unsqueeze", X, ONE), X]]],
    "outer": [["set", X, op("ones", const(10**5))], ["return", op("outer", X, X)]],
    "matmul": [["set", X, op("ones", const(4000), const(4000))], ["for", ["get", 1], op("py.range", const(999)), [["set", X, ["bin", "@", X, X]]]]],
    "einsum": [["set", X, op("ones", const(1000))], ["return", op("einsum", const("a,b,c,d->abcd"), X, X, X, X)]],
    "einsum with words": [["return", op("einsum", const("...a->a"), X)]],
    "cdist": [["set", X, op("ones", const(30000), const(30))], ["return", op("cdist", X, X)]],
    "pad": [["return", op("pad", X, ["tuple", [HUGE, HUGE]])]],
    "interpolate": [["return", op("interpolate", op("ones", ONE, ONE, ONE, ONE), ["tuple", [const(10**6), const(10**6)]])]],
    "one_hot": [["return", op("one_hot", op("ones", const(3), dtype=["dtype", "int64"]), HUGE)]],
    "large eigenvalues": [["return", op("linalg.eigh", op("eye", const(3000)))]],
    "many eigenvalues": [["set", X, op("ones", const(300), const(300), const(300))], ["return", op("linalg.eigvalsh", X)]],
    "solve": [["return", op("linalg.solve", op("eye", const(4000)), op("eye", const(4000)))]],
    "accumulation": [["while", const(True), [["set", X, op("cat", ["tuple", [X, X]])]]]],
    "list growth": [["set", ["get", 1], ["tuple", []]], ["while", const(True), [["set", ["get", 1], ["bin", "+", ["get", 1], ["tuple", [X]]]]]]],
    "nested tuples": [["for", ["get", 1], op("py.range", const(60)), [["set", X, ["tuple", [X, X]]]]], ["return", op("tensor", X)]],
    "nested tuples compared": [["for", ["get", 1], op("py.range", const(60)), [["set", X, ["tuple", [X, X]]]]], ["return", ["cmp", ["=="], [X, X]]]],
    "nested tuples returned": [
        ["set", X, ONE],
        ["for", ["get", 1], op("py.range", const(60)), [["set", X, ["tuple", [X, X]]]]],
        ["return", op("stack", X)],
    ],
    "tuple times a number": [["return", ["bin", "*", ["tuple", [ONE]], const(10**9)]]],
    "range as a tuple": [["return", op("py.tuple", op("py.range", HUGE))]],
    "unbind": [["return", op("unbind", op("ones", const(10**6)))]],
    "tolist": [["return", ["method", "tolist", op("ones", const(10**6)), [], {}]]],
    "power of whole numbers": [["return", ["bin", "**", const(10), const(10**8)]]],
    "repeated squares": [["set", X, const(3)], ["while", const(True), [["set", X, ["bin", "*", X, X]]]]],
    "shift": [["return", ["bin", "<<", ONE, const(10**10)]]],
    "text times a number": [["return", ["bin", "*", const("a"), const(10**9)]]],
    "text plus text": [["set", X, const("a")], ["while", const(True), [["set", X, ["bin", "+", X, X]]]]],
    "text formatting": [["return", ["bin", "%", const("%1000000000d"), ONE]]],
    "format width": [["return", ["text", [[ONE, "999999999d"]]]]],
    "number from text": [["return", op("py.int", const("9" * 1000))]],
    "for ever": FOREVER,
    "nested loops": [
        ["for", ["get", 1], op("py.range", const(10**5)), [["for", ["get", 2], op("py.range", const(10**5)), [["set", ["get", 3], ONE]]]]]
    ],
    "comprehension": [["return", ["each", ["get", 1], op("py.range", HUGE), [], ["get", 1]]]],
    "comprehension that keeps nothing": [["return", ["each", ["get", 1], op("py.range", HUGE), [const(False)], ["get", 1]]]],
    "break outside a loop": [["break"]],
    "calls itself": [["return", ["call", "f", [X], {}]]],
    "calls itself in arguments": [["return", ["call", "f", [["call", "f", [X], {}]], {}]]],
    "unknown function": [["return", ["call", "g", [X], {}]]],
    "call with too much": [["return", ["call", "f", [X, X, X], {}]]],
    "function as a result": [["return", ["function", "f", {}]]],
    "function that is not there": [["return", ["function", "g", {}]]],
    "sets an attribute late": [["set", ["field", "a"], X]],
    "sets an attribute of a tensor": [["set", ["attr", "requires_grad", X], ONE]],
    "attribute with a dunder name": [["return", ["field", "__dict__"]]],
    "replace a tensor": [["return", ["replace", X, {"x": X}]]],
    "replace with a dunder": [["return", ["replace", X, {"__class__": X}]]],
    "dict with number keys": [["return", ["dict", [[ONE, X]]]]],
    "index with a text": [["return", ["item", X, const("__class__")]]],
    "index out of range": [["return", ["item", X, const(10**9)]]],
    "index that multiplies": [
        ["set", X, op("ones", const(10**4), const(10**4))],
        ["return", ["item", X, op("zeros", const(10**6), dtype=["dtype", "int64"])]],
    ],
    "slice of a handle": [["return", ["slice", X]]],
    "adds in place what is larger": [["set", ["get", 1], op("zeros", const(1))], ["aug", ["get", 1], "+", X], ["return", ["get", 1]]],
    "adds in place what is of another type": [
        ["set", ["get", 1], op("zeros", const(3), dtype=["dtype", "int64"])],
        ["aug", ["get", 1], "+", X],
        ["return", ["get", 1]],
    ],
    "divide by zero": [["return", ["bin", "/", ONE, const(0)]]],
    "device by name": [["return", ["method", "to", X, [const("cuda")], {}]]],
    "device by keyword": [["return", op("ones", const(3), device=const("meta"))]],
    "unknown type": [["return", ["dtype", "__class__"]]],
    "a large constant": [["return", const(2**70)]],
    "constant list": [["return", const([1, 2])]],
    "deep": [["return", __import__("functools").reduce(lambda node, _: ["un", "-", node], range(80), X)]],
    "many nodes": [["return", ["tuple", [ONE] * 5000]]],
    "gradient of nothing": [["return", op("autograd.grad", X, X)]],
    "raises": [["raise", const("mine")]],
    "no signal": [["grad", const(True), []]],
    "returns nested tuples": [*NESTED, ["return", ["get", 1]]],
    "returns a dict of nested tuples": [*NESTED, ["return", ["dict", [[const("a"), ["get", 1]]]]]],
    "gives nested tuples to the host": [*NESTED, ["return", ["method", "beta", ["self"], [["get", 1]], {}]]],
    "nested tuples as a size": [*NESTED, ["return", op("zeros", ["get", 1])]],
    "nested tuples in a message": [*NESTED, ["raise", ["text", [[["get", 1], ""]]]]],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_hostile_graph(name):
    with pytest.raises((RecipeError, RecipeLimit)):
        result = run(GRAPHS[name])
        # what comes back is at worst a value that no component may return
        RecipeGraph(canonical_json(SCHEDULE | {"functions": SCHEDULE["functions"] | {"beta": function("x", GRAPHS[name], 4)}}))().beta(torch.ones(3))
        raise AssertionError(f"returned {type(result).__name__}")


SCHEDULE = {
    "api": 1,
    "kind": "schedule",
    "name": "S",
    "base": "NoiseSchedule",
    "parameters": [],
    "attributes": [],
    "constants": {},
    "functions": {"beta": function("t", [["return", X]]), "integral": function("t", [["return", X]])},
}
DOCUMENTS = {
    "no JSON": "{",
    "a list": "[]",
    "NaN": canonical_json(SCHEDULE).replace('"api":1', '"api":NaN'),
    "a key twice": canonical_json(SCHEDULE).replace('"api":1', '"api":1,"api":1'),
    "unknown field": canonical_json(SCHEDULE | {"trust": True}),
    "missing field": canonical_json({k: v for k, v in SCHEDULE.items() if k != "base"}),
    "api 2": canonical_json(SCHEDULE | {"api": 2}),
    "api true": canonical_json(SCHEDULE | {"api": True}),
    "unknown kind": canonical_json(SCHEDULE | {"kind": "network"}),
    "kind list": canonical_json(SCHEDULE | {"kind": []}),
    "dunder name": canonical_json(SCHEDULE | {"name": "__class__"}),
    "name with a space": canonical_json(SCHEDULE | {"name": "a b"}),
    "functions list": canonical_json(SCHEDULE | {"functions": []}),
    "function without body": canonical_json(SCHEDULE | {"functions": {"beta": {}, "integral": {}}}),
    "parameters twice": canonical_json(SCHEDULE | {"parameters": [["a", []], ["a", []]]}),
    "default that is a dict": canonical_json(SCHEDULE | {"parameters": [["a", [{}]]]}),
    "attribute without value": canonical_json(SCHEDULE | {"attributes": ["t_max"]}),
    "constant that loops": canonical_json(SCHEDULE | {"constants": {"c": ["call", "beta", [["const", 1]], {}], "d": ["global", "e"]}}),
    "no beta": canonical_json(SCHEDULE | {"functions": {"integral": SCHEDULE["functions"]["integral"]}}),
    "surrogates": canonical_json(SCHEDULE).replace('"S"', '"\\ud800"'),
    "200 kB of brackets": "[" * 200_000,
    "too long": canonical_json(SCHEDULE) + " " * 300_000,
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_hostile_document(name):
    with pytest.raises((RecipeError, RecipeLimit)):
        RecipeGraph(DOCUMENTS[name])


def test_limits_are_what_they_say():
    with pytest.raises(RecipeLimit, match="1,000 steps"):
        run(FOREVER, limits=Limits(steps=1000))
    with pytest.raises(RecipeLimit, match="0.05 seconds"):
        run(FOREVER, limits=Limits(seconds=0.05, steps=10**9))
    with pytest.raises(RecipeLimit, match="nested at most 8"):
        run(GRAPHS["deep"], limits=Limits(depth=8))
    small = [["return", op("linalg.eigvalsh", op("eye", const(5)))]]
    assert run(small).tolist() == [1.0] * 5
    with pytest.raises(RecipeLimit, match="at most 4 rows and columns"):
        run(small, limits=Limits(matrix_side=4))

    class Slow(BaseDenoiser):
        sde = VP()

        def x0(self, x, t, condition):
            return x

    step = [["while", const(True), [["do", ["method", "()", X, [["const", 0.5], ["const", 0.5]], {}]]]], ["return", X]]
    program = Program(
        "S", {}, {"f": function("d x", [["while", const(True), [["do", ["method", "()", X, [["get", 1], ["const", 0.5]], {}]]]]])}, Limits()
    )
    assert step
    with pytest.raises(RecipeLimit, match="256 evaluations"):
        program.call(Instance("S", {}), "f", Slow(), torch.ones(2, 3))


def test_tensors_of_the_host_stay_as_they_are():
    """What asks for gradients in a recipe is a tensor of its own; what is added to in place, too."""
    x = torch.ones(3)
    assert run([["return", ["method", "requires_grad_", X, [], {}]]], argument=x).requires_grad and not x.requires_grad
    assert run([["aug", X, "+", ONE], ["return", X]], argument=x).tolist() == [2.0] * 3 and x.tolist() == [1.0] * 3


def test_signatures_bind_position_and_keyword_alike():
    for name, operation in OPERATIONS.items():
        needed = [p for p in operation.parameters if p not in operation.optional and p not in operation.keyword_only and p != operation.rest]
        if operation.rest is None and needed:
            assert bind(operation, len(needed), ()) == bind(operation, 0, tuple(needed)), name
        assert not {"out", "generator"} & set(operation.parameters)
    assert all(entry.parameters[0] == "input" for entry in METHODS.values())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.integers(0, 4), max_size=4))
def test_broadcast_size_is_exact_where_it_broadcasts(a, b):
    x, y = torch.empty(a), torch.empty(b)
    try:
        assert broadcast_size(x, y) >= (x + y).numel()
    except RuntimeError:
        pass
    else:
        assert broadcast_size(x, y) == (x + y).numel() or x.numel() * y.numel() == 0


def test_the_interpreter_holds_no_door():
    """No exec, eval, compile, getattr, import while running, and no attribute by a name from a file, in what interprets files."""
    forbidden = {"exec", "eval", "compile", "getattr", "setattr", "delattr", "vars", "globals", "locals", "__import__", "open", "import_module"}
    for name in ("interpreter", "expressions", "host", "operations", "plans"):
        module = getattr(diffnb.files, f"recipe_{name}")
        tree = ast.parse(inspect.getsource(module))
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
        names |= {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and getattr(n.value, "id", None) != "re"}
        inner = [n for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f) if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not names & forbidden and not inner


AUDIT = """
import sys, torch
from diffnb.files import RecipeGraph
from diffnb.files import lower
from diffnb.noise import VP
from diffnb.denoise import Gaussian
texts = [open(path).read() for path in sys.argv[1:]]
torch.linalg.eigvalsh(torch.eye(2)); VP().levels(torch.tensor([0.5]))  # what torch itself imports late
Gaussian(0.0, 1.0).denoiser(VP())(torch.zeros(2, 1), 0.5)
events = []
watched = {"exec", "compile", "import", "open", "os.system", "subprocess.Popen", "socket.connect"}
sys.addaudithook(lambda event, args: events.append((event, str(args)[:80])) if event in watched else None)
for text in texts:
    component = RecipeGraph(text)()
    if component.recipe.kind == "schedule":
        for _ in range(3):
            component.beta(torch.linspace(0, 1, 5)), component.integral(torch.linspace(0, 1, 5))
    else:
        component(Gaussian(0.0, 1.0).denoiser(VP()), shape=(2, 1), n_steps=4, seeds=0)
print(events)
"""


def test_recipes_raise_no_audit_events(tmp_path):
    paths = []
    for i, cls in enumerate([*corpus.SCHEDULES, *corpus.SAMPLERS]):
        (tmp_path / str(i)).write_text(lower(cls).text)
        paths.append(str(tmp_path / str(i)))
    done = subprocess.run([sys.executable, "-c", AUDIT, *paths], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# fuzz: recipes with parts exchanged


def nodes(value, path=()):
    """Paths of all parts of a document."""
    yield path
    if isinstance(value, (list, dict)):
        for key in range(len(value)) if isinstance(value, list) else list(value):
            yield from nodes(value[key], (*path, key))


ODD = [
    None,
    True,
    -1,
    0,
    10**12,
    2**60,
    1e308,
    "",
    "__class__",
    "exp",
    "get",
    "op",
    [],
    {},
    ["get", 0],
    ["get", 99],
    ["self"],
    ["op", "ones", [["const", 10**9]], {}],
]
DONORS = [json.loads(lower(cls).text) for cls in (corpus.TableSchedule, corpus.SigmoidSchedule, corpus.FourierSchedule)]


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_fuzzed_recipes(data):
    document = json.loads(json.dumps(data.draw(st.sampled_from(DONORS))))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(nodes(document))[1:]))
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        donor = data.draw(st.sampled_from(DONORS))
        part = donor
        for key in data.draw(st.sampled_from(list(nodes(donor)))):
            part = part[key]
        holder[path[-1]] = data.draw(st.sampled_from(ODD)) if data.draw(st.booleans()) else json.loads(json.dumps(part))
    try:
        component = RecipeGraph(json.dumps(document), Limits(seconds=2.0, call_bytes=2**26, steps=50_000))()
        results = [component.beta(torch.linspace(0, 1, 5)) for _ in range(3)]
        assert all(result.equal(results[0]) or result.isnan().any() for result in results)
    except (RecipeError, RecipeLimit, ComponentError):
        pass


# plans: the second way to a result


def by_hand(body, fields, **functions):
    """The recipe of f(t), a component with such attributes, and its plans."""
    helpers = {name: {"parameters": ["x"], "defaults": [], "locals": 2, "body": lines} for name, lines in functions.items()}
    program = Program("ByHand", {}, {"f": {"parameters": ["t"], "defaults": [], "locals": 5, "body": body}, **helpers}, Limits())
    instance = Instance("ByHand", fields)
    instance.unfinished = False
    return program, instance, Plans(program, instance)


def learned(program, instance, plans, t):
    """Call until there is a plan, or none to be had."""
    for _ in range(2):
        plans.learn("f", t, program.call(instance, "f", t))
    return plans("f", t) is not None


FIELDS = {"a": 0.7, "b": -2, "n": 3, "flag": True, "weights": (0.5, -1.0, 2.0), "table": torch.arange(6, dtype=torch.float64).square()}
T = ["get", 0]
PLAIN = st.one_of(
    st.floats(-3, 3, allow_nan=False).map(lambda v: ["const", v]),
    st.integers(-3, 3).map(lambda v: ["const", v]),
    st.sampled_from([["field", "a"], ["field", "b"], ["op", "math.exp", [["field", "a"]], {}], ["bin", "-", ["field", "a"], ["const", 2]]]),
)


def larger(inner):
    """Expressions made of smaller ones."""
    once = st.sampled_from(["exp", "sin", "sigmoid", "sqrt", "floor", "abs", "log1p", "square", "expm1"])
    sign = st.sampled_from(["+", "-", "*", "/", "%", "//"])
    other = st.one_of(inner, PLAIN)
    loop = ["tuple", [["get", 1], ["get", 2]]], ["op", "py.enumerate", [["field", "weights"]], {"start": ["const", 1]}], []
    return st.one_of(
        st.tuples(sign, inner, other).map(lambda v: ["bin", *v]),
        st.tuples(sign, other, inner).map(lambda v: ["bin", *v]),
        inner.map(lambda v: ["un", "-", v]),
        inner.map(lambda v: ["bin", "**", v, ["const", 2]]),
        st.tuples(once, inner).map(lambda v: ["op", v[0], [v[1]], {}]),
        st.tuples(once, inner).map(lambda v: ["method", v[0], v[1], [], {}]),
        inner.map(lambda v: ["method", "clamp", v, [], {"max": ["field", "a"]}]),
        inner.map(lambda v: ["op", "clamp", [v, ["const", -1], ["const", 1.5]], {}]),
        inner.map(lambda v: ["op", "full_like", [v, ["field", "a"]], {}]),
        st.tuples(inner, PLAIN, inner, inner).map(lambda v: ["op", "where", [["cmp", ["<"], [v[0], v[1]]], v[2], v[3]], {}]),
        st.tuples(inner, inner).map(lambda v: ["if", ["cmp", ["<", "<"], [["const", 0], ["field", "a"], ["field", "n"]]], *v]),
        inner.map(lambda v: ["call", "help", [v], {}]),
        inner.map(lambda v: ["op", "py.sum", [["each", *loop, ["bin", "*", ["bin", "*", ["get", 1], ["get", 2]], v]]], {}]),
        inner.map(lambda v: ["item", ["tuple", [v, ["const", 1]]], ["const", 0]]),
        inner.map(
            lambda v: ["item", ["field", "table"], ["method", "long", ["bin", "%", ["method", "nan_to_num", v, [], {}], ["const", 6]], [], {}]]
        ),
        inner.map(lambda v: ["method", "to", v, [["attr", "dtype", T]], {}]),
        inner.map(lambda v: ["item", v, ["index", [["all"], ["const", None]]]]),
    )


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.recursive(st.just(T), larger, max_leaves=6), st.integers(0, 2**32))
def test_plans_give_what_the_interpreter_gives(expression, seed):
    helper = [["set", ["get", 1], ["bin", "*", ["get", 0], ["field", "a"]]], ["return", ["bin", "+", ["get", 1], ["const", 1]]]]
    body = [["set", ["tuple", [["get", 3], ["get", 4]]], ["tuple", [T, ["field", "b"]]]], ["return", ["bin", "+", expression, ["get", 4]]]]
    program, instance, plans = by_hand(body, FIELDS, help=helper)
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(7, generator=generator) * 4 - 2 for _ in range(2))
    try:
        learned(program, instance, plans, first)
        expected = program.call(instance, "f", second)
    except (RecipeError, RecipeLimit):  # an index out of range: then no plan may answer either
        assert plans("f", second) is None
        return
    planned = plans("f", second)
    if planned is not None:
        assert planned.dtype == expected.dtype and planned.shape == expected.shape
        assert ((planned == expected) | (planned.isnan() & expected.isnan())).all()


def test_most_of_these_have_plans():
    """So that the test above is about plans."""
    found = 0
    for word in ("exp", "sin", "sqrt"):
        for body in ([["return", ["op", word, [T], {}]]], [["aug", T, "+", ["const", 1]], ["return", T]], [["return", ["method", word, T, [], {}]]]):
            found += learned(*by_hand(body, FIELDS), torch.rand(3))
    assert found == 9


def test_plans_follow_nothing_that_is_in_the_tensor():
    """What another tensor of the same shape could change has no plan."""
    mask, single = ["cmp", [">"], [T, ["const", 0.5]]], ["item", T, ["const", 0]]
    bodies = [
        [["when", ["op", "any", [mask], {}], [["return", T]], []], ["return", ["un", "-", T]]],
        [["return", ["bin", "*", T, ["method", "item", single, [], {}]]]],
        [["return", ["bin", "*", T, ["op", "py.float", [single], {}]]]],
        [["return", ["bin", "*", T, ["op", "math.exp", [single], {}]]]],
        [["return", ["bin", "+", T, ["op", "py.max", [["tuple", [single, ["const", 0.5]]]], {}]]]],
        [["return", ["if", ["cmp", ["<"], [single, ["const", 0.5]]], T, ["un", "-", T]]]],
        [["return", ["bin", "+", T, ["op", "sum", [["item", T, mask]], {}]]]],
        [["return", ["item", ["field", "table"], ["method", "item", ["method", "long", single, [], {}], [], {}]]]],
        [["while", ["op", "any", [mask], {}], [["set", T, ["bin", "/", T, ["const", 2]]]]], ["return", T]],
        [["return", ["bin", "+", T, ["op", "py.sum", [["tuple", [["const", 0.1], ["const", 0.2], T]]], {}]]]],
    ]
    for body in bodies:
        try:
            program, instance, plans = by_hand(body, FIELDS)
            assert not learned(program, instance, plans, torch.tensor([0.2, 0.7, 0.9])), body
        except RecipeError:
            pass
    shown = [["return", ["if", ["cmp", ["=="], [["text", ["const", [T, ".4g"]]], ["const", "const0.3"]]], T, ["un", "-", T]]]]
    assert not learned(*by_hand(shown, FIELDS), torch.tensor([0.2]))
    masked = by_hand([["return", ["item", T, mask]]], FIELDS)
    assert not learned(*masked, torch.ones(3))


def test_a_plan_keeps_nothing_of_a_call():
    """One made in inference mode serves autograd and forward mode."""
    made = recipe_of(corpus.TableSchedule())
    with torch.inference_mode():
        for _ in range(3):
            made.beta(torch.linspace(0, 1, 9))
    t, native = torch.linspace(0.05, 0.95, 9), corpus.TableSchedule()
    assert made._plans("beta", t) is not None
    ones = torch.ones_like(t)
    same(torch.func.jvp(made.beta, (t,), (ones,))[1], torch.func.jvp(native.beta, (t,), (ones,))[1])
    x = t.clone().requires_grad_()
    same(torch.autograd.grad(made.integral(x).sum(), x)[0], torch.autograd.grad(native.integral(x).sum(), x)[0])
    same(torch.func.vmap(made.beta)(t[:, None]), native.beta(t)[:, None])


def test_a_plan_holds_no_tensors_but_attributes():
    """Not what follows from them: that is computed each time, in the mode of the call."""
    program, instance, plans = by_hand([["return", ["bin", "*", T, ["item", ["op", "exp", [["field", "table"]], {}], ["const", 2]]]]], FIELDS)
    assert learned(program, instance, plans, torch.rand(3))
    (plan,) = plans.found.values()
    assert [value is FIELDS["table"] for value in plan.constants if isinstance(value, torch.Tensor)] == [True]


def test_a_plan_is_for_one_type_and_shape():
    """What it knows of them is in it as a constant."""
    program, instance, plans = by_hand([["return", ["method", "to", ["op", "exp", [T], {}], [["attr", "dtype", T]], {}]]], FIELDS)
    assert learned(program, instance, plans, torch.rand(3))
    assert plans("f", torch.rand(3, dtype=torch.float64)) is None and plans("f", torch.rand(3, 1)) is None


def test_a_plan_that_disagrees_is_not_used(monkeypatch):
    wrong = {**diffnb.files.recipe_operations.TENSOR_BINARY, "*": torch.add}  # a planner with a wrong idea of *
    monkeypatch.setattr(diffnb.files.recipe_plans, "TENSOR_BINARY", wrong)
    assert not learned(*by_hand([["return", ["bin", "*", T, ["const", 3.0]]]], FIELDS), torch.rand(5))


@pytest.mark.parametrize("attribute", ["order", "default_grid", "n_steps_default", "is_stochastic"])
@pytest.mark.parametrize("how", ["attribute", "property"])
def test_hostile_attributes(attribute, how):
    """What the library reads of a component is looked at before it is used, and shown in a few characters."""
    constants = {"a100": ONE} | {f"a{i}": ["tuple", [["global", f"a{i - 1}"], ["global", f"a{i - 1}"]]] for i in range(101, 160)}
    step = function("denoiser state t s noise", [["return", ["get", 1]]])
    document = SCHEDULE | {"kind": "sampler", "base": "Sampler", "constants": constants, "functions": {"step": step}}
    if how == "attribute":
        document |= {"attributes": [attribute], "constants": constants | {f"class.{attribute}": ["global", "a159"]}}
    else:
        document["functions"] = {"step": step, attribute: function("", [["return", ["global", "a159"]]])}
    start = time.process_time()
    with pytest.raises((RecipeError, RecipeLimit)) as found:
        RecipeGraph(canonical_json(document))()
    assert time.process_time() - start < 2 and len(str(found.value)) < 200


def test_hostile_work_while_planning():
    """What is cheap to interpret, and could be dear to plan, has no plan, and no long search for one."""
    none = ["each", ["get", 2], op("py.range", const(10**5)), [const(False)], ONE]
    for before in (NESTED, [["set", ["get", 1], none]], [["for", ["get", 2], op("py.range", const(10**5)), []]]):
        program, instance, plans = by_hand([*before, ["return", op("exp", T)]], FIELDS)
        result = program.call(instance, "f", torch.ones(3))
        start = time.process_time()
        for _ in range(2):
            plans.learn("f", torch.ones(3), result)
        assert time.process_time() - start < 0.5 and plans("f", torch.ones(3)) is None


def test_plans_are_few_and_small():
    program, instance, plans = by_hand([["return", ["op", "exp", [T], {}]]], FIELDS)
    assert not learned(program, instance, plans, torch.rand(2**20))
    for n in range(100):
        learned(program, instance, plans, torch.rand(n + 1))
    assert len(plans.found) == 64
    long = [["set", T, ["bin", "+", T, ["const", 1]]]] * 300
    assert not learned(*by_hand([*long, ["return", T]], FIELDS), torch.rand(5))
    endless = [["for", ["get", 1], ["op", "py.range", [["const", 10**5]], {}], [["set", ["get", 2], ["get", 1]]]], ["return", T]]
    assert not learned(*by_hand(endless, FIELDS), torch.rand(5))


def test_names_that_are_no_texts():
    """Found by benchmarks/fuzz_files.py: a list where a method's name should be."""
    for node in (
        ["method", ["exp"], X, [], {}],
        ["attr", {}, X],
        ["call", [], [], {}],
        ["cmp", [["<"]], [X, X]],
        ["isa", [[]], X],
        ["dtype", []],
        ["field", []],
    ):
        with pytest.raises(RecipeError):
            run([["return", node]])
