"""What a recipe costs: calls of schedules beside the classes they were lowered from, and steps of a sampler with the packaged model.

    python benchmarks/recipes.py

Native and recipe take turns in one process on one thread; the ratio of the minima and of the medians is printed.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "files"))

import recipe_corpus as corpus  # noqa: E402

from diffnb.files import (
    lower,  # noqa: E402
    settings_of,  # noqa: E402
)
from diffnb.model import GenerativeModel  # noqa: E402


def timed(function, repeats: int) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def compare(native, recipe, rounds: int, repeats: int) -> dict:
    """Seconds of both, in turns."""
    times = [(timed(native, repeats), timed(recipe, repeats)) for _ in range(rounds)]
    a, b = zip(*times)
    return {
        "native_us": round(min(a) * 1e6, 2), "recipe_us": round(min(b) * 1e6, 2), "ratio_of_minima": round(min(b) / min(a), 3),
        "median_of_ratios": round(statistics.median(y / x for x, y in times), 3),
    }  # fmt: skip


def main():
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--out", default="benchmarks/results/recipes.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result, t = {"command": "python benchmarks/recipes.py", "calls": {}, "lowering_ms": {}}, torch.rand(64)
    for cls in corpus.SCHEDULES:
        start = time.perf_counter()
        recipe = lower(cls)
        result["lowering_ms"][cls.__name__] = round((time.perf_counter() - start) * 1e3, 1)
        native, made = cls(), recipe(**settings_of(cls()))
        for name in ("beta", "integral"):
            one, other = (native.beta, made.beta) if name == "beta" else (native.integral, made.integral)
            row = compare(lambda: one(t), lambda: other(t), arguments.rounds, 20)
            result["calls"][f"{cls.__name__}.{name}"] = row
            print(f"{cls.__name__ + '.' + name:30} native {row['native_us']:6.1f} us, recipe {row['recipe_us']:6.1f} x{row['ratio_of_minima']:.2f}")
    start = time.perf_counter()
    text = lower(corpus.SigmoidSchedule).text
    from diffnb.files import RecipeGraph

    result["reading_ms"] = round(timed(lambda: RecipeGraph(text)(), 50) * 1e3, 3)
    print(f"reading a recipe and making its component: {result['reading_ms']:.2f} ms")
    model, rows = GenerativeModel.pretrained("fashion_mnist", "cpu", verbose=False), {}
    denoiser = model.denoiser()
    for cls in (corpus.MyDPM2M, corpus.TutorialEuler, corpus.MyHeun):
        native, made = cls(), lower(cls)(**settings_of(cls()))
        steps, pairs = 3, []
        for _ in range(7):
            pairs.append(tuple(timed(lambda: s(denoiser, shape=(1, 1, 28, 28), n_steps=steps, seeds=0), 1) for s in (native, made)))
        a, b = min(x for x, _ in pairs), min(y for _, y in pairs)
        # what the interpreter adds, measured where the network costs nothing, against a step with the network
        idle = _Idle(denoiser.sde)
        free = compare(
            lambda: native(idle, shape=(1, 1, 28, 28), n_steps=20, seeds=0), lambda: made(idle, shape=(1, 1, 28, 28), n_steps=20, seeds=0), 15, 1
        )
        added = (free["recipe_us"] - free["native_us"]) / 20
        rows[cls.__name__] = {
            "step_ms_native": round(a / steps * 1e3, 3), "step_ms_recipe": round(b / steps * 1e3, 3), "added_us_a_step": round(added, 1),
            "share_of_a_step": round(added / (a / steps * 1e6), 5),
        }  # fmt: skip
        row = rows[cls.__name__]
        print(f"{cls.__name__:30} {row['step_ms_native']:.1f} ms a step; the recipe adds {added:.0f} us, {100 * row['share_of_a_step']:.2f}%")
    result["sampling"] = rows
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


class _Idle:
    """A denoiser that costs nothing."""

    def __new__(cls, sde):
        from diffnb.denoise import BaseDenoiser

        class Idle(BaseDenoiser):
            def x0(self, x, t, condition):
                return x

        idle = Idle()
        idle.sde = sde
        return idle


if __name__ == "__main__":
    main()
