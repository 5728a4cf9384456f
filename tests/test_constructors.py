"""The constructor of every public part reads numbers by its annotations: those of NumPy and torch are taken, wrong ones are refused in a sentence."""

import dataclasses
import importlib
import inspect
import math

import numpy as np
import pytest
import torch

INSIDE = set("State Drawing Returning ConvNorm MetricResult FeatureMetric CrossAttention ResBlock SelfAttention UncertaintyNetwork".split())
INSIDE |= set("DiffusersResnet DiffusersAttention DiffusersHalve DiffusersDouble DiffusersBlock".split())
INSIDE |= {"Parametrization", "UncertaintyCallback", "DiffusionCallback", "AgainCallback"}  # made by the library alone, or only derived from
WINGS = ("noise", "samplers", "guidance", "networks", "metrics", "training")
KINDS = {"int": int, "float": float, "bool": bool}


def parts():
    """Public classes of the wings that people build with numbers, each with the numbers that its constructor takes and their defaults."""
    found = {}
    for wing in map(importlib.import_module, (f"diffnb.{name}" for name in WINGS)):
        for name in dir(wing):
            cls = getattr(wing, name, None)
            if (
                isinstance(cls, type)
                and cls.__module__.startswith("diffnb.")
                and not inspect.isabstract(cls)
                and cls.__name__ not in INSIDE
                and not issubclass(cls, BaseException)
            ):
                numbers = [p for p in inspect.signature(cls).parameters.values() if p.annotation in (int, float) and p.default is not p.empty]
                numbers = [p for p in numbers if p.default is not None and math.isfinite(p.default)]
                if numbers:
                    found[f"{wing.__name__.removeprefix('diffnb.')}.{cls.__qualname__}"] = (cls, numbers)
    return found


PARTS = parts()


def needed(cls):
    """Arguments without a default."""
    return [p for p in inspect.signature(cls).parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]


def test_there_are_many():
    print(len(PARTS), {name: [p.name for p in numbers] for name, (_, numbers) in PARTS.items()})
    assert len(PARTS) > 40


@pytest.mark.parametrize("name", PARTS)
def test_wrong_numbers_are_refused_by_name(name):
    cls, numbers = PARTS[name]
    rest = {p.name: 1 if p.annotation in (int, float) else None for p in needed(cls)}
    for parameter in numbers:
        for wrong in ("many", [1, 2], np.zeros(2), torch.zeros(1, 2), object()):
            with pytest.raises(ValueError, match=rf"^{parameter.name} must be a (whole )?number") as error:
                cls(**rest, **{parameter.name: wrong})
            assert "\n" not in str(error.value) and len(str(error.value)) < 200
        if parameter.annotation is int:
            for wrong in (2.5, True, np.float32(1)):  # 1.0 is no whole number
                with pytest.raises(ValueError, match=rf"^{parameter.name} must be a whole number"):
                    cls(**rest, **{parameter.name: wrong})


@pytest.mark.parametrize("name", [name for name, (cls, _) in PARTS.items() if not needed(cls)])
def test_what_stands_for_a_number_is_taken(name, monkeypatch):
    for draws in ("kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, draws, lambda weights, *arguments, **settings: weights)  # which nobody looks at
    cls, numbers = PARTS[name]
    narrow = {  # not 36 million weights each time
        "networks.DiffusersUNet": {"widths": (32,), "attention_down": (), "attention_up": ()},
        "networks.DiffusersAutoencoder": {"widths": (32,)},
    }.get(name, {})
    plain = cls(**narrow)
    for parameter in numbers:
        kinds = (
            (np.int64, np.uint8, torch.tensor)
            if parameter.annotation is int
            else (np.float64, lambda x: torch.tensor(x, dtype=torch.float64), np.array)
        )
        for kind in kinds:
            if kind is np.uint8 and parameter.default > 255:
                continue
            made = cls(**narrow, **{parameter.name: kind(parameter.default)})
            if dataclasses.is_dataclass(cls) and cls.__dataclass_params__.eq:
                assert made == plain
            value = getattr(made, parameter.name, parameter.default)
            assert value == parameter.default and not isinstance(value, (np.generic, np.ndarray, torch.Tensor)), parameter.name
