"""Random components: classes with loops, branches, helpers and tables, as source text. `test_recipes.py` runs each natively and as a recipe."""

import random

TEMPLATE = """
import math
from dataclasses import dataclass

import torch

from diffnb.noise import NoiseSchedule

TABLE = torch.tensor([0.3, -1.0, 2.5, 0.75])
SHIFT = 0.5


@dataclass(frozen=True)
class Random(NoiseSchedule):
    a: float = 0.7
    b: float = -1.5
    n: int = 3
    flag: bool = True
    weights: tuple = (0.5, -1.0, 2.0)

    @property
    def _span(self):
        return {span}

    def _bend(self, t, k=2):
        y = {bend}
        return {bent}

    def beta(self, t):
{beta}

    def integral(self, t):
        return t
"""


class Writer:
    """Writes a component: all choices follow from a seed."""

    def __init__(self, seed: int):
        self.pick = random.Random(seed).choice

    def source(self) -> str:
        """The text of a component."""
        span = self.number(2, ())
        bend, bent = self.tensor(1, ("t",), ("k",)), self.tensor(1, ("y", "t"), ("k",))
        lines, tensors = self.lines(1, ("t",), (), 8)
        lines.append(f"        return {self.tensor(2, tensors, ('self._span',), helpers=True)}")
        return TEMPLATE.format(span=span, bend=bend, bent=bent, beta="\n".join(lines))

    def number(self, depth, names):
        """A number that depends on attributes, or on the variable of a loop."""
        if depth <= 0 or self.pick((True, False, False)):
            return self.pick(("self.a", "self.b", "self.n", "0.5", "2", "SHIFT", "self.weights[1]", "len(self.weights)", *names, *names))
        x, y = self.number(depth - 1, names), self.number(depth - 1, names)
        return self.pick((
            f"({x} + {y})", f"({x} - {y})", f"({x} * {y})", f"({x} / 4)", f"-{x}", f"abs({x})", f"min({x}, {y})", f"max({x}, {y})", f"float({x})",
            f"math.exp(-abs({x}))", f"int({x})", f"math.sqrt(abs({x}))", f"round({x}, 2)", "sum(self.weights)",
            f"({x} if {self.truth(depth - 1, names)} else {y})",
        ))  # fmt: skip

    def truth(self, depth, names):
        """A question about attributes."""
        x, y = self.number(depth - 1, names), self.number(depth - 1, names)
        return self.pick(("self.flag", "not self.flag", f"{x} < {y}", f"0 < {x} <= {y}", f"self.flag and {x} > 0", f"{x} > 1 or self.flag"))

    def watching(self, tensors):
        """A question about the values of a tensor, or about its shape and type."""
        x = self.pick(tensors)
        return self.pick((
            f"({x} > 0.5).any()", f"({x} > 0.2).all()", f"{x}.max() > 0.9", f"{x}.sum() < 1", f"float({x}.detach().mean()) > 0.4",
            "t.dtype == torch.float64", f"{x}.abs().max().item() < 2", "t.ndim == 1", "t.numel() > 4", "len(t.shape) > 1",
        ))  # fmt: skip

    def tensor(self, depth, tensors, names, helpers=False):
        """An expression of the shape of t."""
        if depth <= 0 or self.pick((True, *[False] * 6)):
            return self.pick((*tensors, "t"))
        x, y = self.tensor(depth - 1, tensors, names, helpers), self.tensor(depth - 1, tensors, names, helpers)
        u, v = self.number(2, names), self.number(1, names)
        sign, word = self.pick("+-*/"), self.pick(("exp", "sin", "sigmoid", "sqrt", "log1p", "floor", "abs", "tanh", "expm1", "square"))
        choices = (
            f"({x} {sign} {y})", f"({u} {sign} {x})", f"({x} {sign} {u})", f"({x} ** {u})", f"({x} % {u})", f"torch.{word}({x})", f"{x}.{word}()",
            f"-{x}", f"{x}.clamp({v}, {u})", f"torch.clamp({x}, max={u})", f"{x}.clamp(min=0.1)", f"torch.where({x} < {u}, {x}, {y})",
            f"torch.where(({x} > {u}) & ({y} < 1), {y}, {x})", f"torch.full_like({x}, {u})", f"TABLE[1].to(t) * {x}", f"torch.maximum({x}, {y})",
            f"TABLE.to({x})[({x}.nan_to_num(0.0, 0.0, 0.0) * 3).long().clamp(0, 3)]", f"sum([w * {x} ** k for k, w in enumerate(self.weights)])",
            f"sum([{x} * k for k in range(1, self.n + 1) if k != {v}])", f"({x} if {self.truth(1, names)} else {y})", f"torch.lerp({x}, {y}, {u})",
            f"({x} * torch.tensor({u}))", f"({x} + torch.linspace(0.0, 1.0, self.n + 1).sum())", f"({x} * ({x} < {u}).float())",
            f"torch.pow({x}, {u})", f"({x} * float({x}.detach().max()))",
            f"({x} if {self.watching(tensors)} else {y})", f"(({x} > {u}) * {y})", f"({x} - {y}.mean())",
            f"({x} + {y}[{y} > {u}].sum())", f"({x} + t.numel() * {u})", f"torch.stack(({x}, {y})).sum(0)", f"{x}.to(torch.float64).to(t.dtype)",
        )  # fmt: skip
        own = (f"self._bend({x})", f"self._bend({x}, {u})", f"self._bend({x}, k={v})", f"self.integral({x})")
        return self.pick((*choices, *own) if helpers else choices)

    def lines(self, depth, tensors, names, indent):
        """Statements, and the variables that hold tensors after them."""
        kinds = ("set", "set", "augment", "unpack", "grad") if depth <= 0 else ("set", "augment", "unpack", "grad", "loop", "if", "while", "early")
        lines = []
        for _ in range(self.pick((1, 2, 3))):
            new = self.pick(("u", "v", "w"))
            lines += [" " * indent + line for line in getattr(self, self.pick(kinds) + "_lines")(new, tensors, names)]
            tensors = (*tensors, new)
        return lines, tensors

    def set_lines(self, new, tensors, names):
        return [f"{new} = {self.tensor(2, tensors, names, helpers=True)}"]

    def augment_lines(self, new, tensors, names):
        return [f"{new} = {self.tensor(1, tensors, names)} + 0.0", f"{new} {self.pick('+-*')}= {self.number(2, names)}"]

    def unpack_lines(self, new, tensors, names):
        return [f"{new}, other = {self.tensor(1, tensors, names)}, {self.tensor(1, tensors, names)}", f"{new} = {new} - other"]

    def grad_lines(self, new, tensors, names):
        return ["with torch.no_grad():", f"    {new} = {self.tensor(1, tensors, names)}"]

    def loop_lines(self, new, tensors, names):
        heads = ("for k in range(self.n):", "for k in range(1, self.n + 1):", f"for k in range(int(abs({self.number(1, names)})) + 1):")
        head, inner = self.pick((*[(head, (*names, "k")) for head in heads], ("for k, z in enumerate(self.weights):", (*names, "k", "z"))))
        tensors = (*tensors, new)
        test, then = self.pick((self.truth(1, inner), self.watching(tensors))), self.pick(("break", "continue", f"{new} = -{new}"))
        body = [f"    {new} = {new} + {self.tensor(1, tensors, inner)}", f"    if {test}:", f"        {then}", f"    {new} = {new} * 0.5"]
        return [f"{new} = {self.tensor(1, tensors[:-1], names)}", head, *body]

    def if_lines(self, new, tensors, names):
        test = self.pick((self.truth(2, names), self.watching(tensors)))
        lines, _ = self.lines(0, tensors, names, 4)
        return [f"{new} = t", f"if {test}:", *lines, f"    {new} = {self.tensor(2, tensors, names)}", "else:", f"    {new} = -{new}"]

    def while_lines(self, new, tensors, names):
        start = f"{new} = ({self.tensor(1, tensors, names)}).nan_to_num(0.0, 1.0, -1.0)"
        return [start, f"while {new}.abs().max() > 1:", f"    {new} = {new} / 2 - 0.01"]

    def early_lines(self, new, tensors, names):
        test = self.pick((self.truth(2, names), self.watching(tensors)))
        return [f"{new} = t", f"if {test}:", f"    return {self.tensor(1, tensors, names)}"]
