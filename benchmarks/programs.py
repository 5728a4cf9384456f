"""What a program costs: calls of schedules beside the classes that they were traced from, and steps of a sampler with the packaged model.

    python benchmarks/programs.py

Class and program take turns in one process on one thread; the ratios of the minima and of the medians are printed. Ends with status 1 if a schedule
call costs more than twice its class, or a step of a sampler with the packaged model more than 1% more.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "files"))

import component_corpus as corpus  # noqa: E402

from diffnb.denoise import BaseDenoiser  # noqa: E402
from diffnb.files import Program, component_of, program_of  # noqa: E402
from diffnb.model import GenerativeModel  # noqa: E402


class Idle(BaseDenoiser):
    """A denoiser that costs nothing."""

    def __init__(self, sde):
        self.sde = sde

    def x0(self, x, t, condition):
        """Take the noisy images for clean ones."""
        return x


def timed(function, repeats: int) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def compare(native, program, rounds: int, repeats: int) -> dict:
    """Microseconds of both, in turns."""
    times = [(timed(native, repeats), timed(program, repeats)) for _ in range(rounds)]
    (a, b), (c, d) = map(min, zip(*times)), map(statistics.median, zip(*times))
    return {"native_us": round(a * 1e6, 2), "program_us": round(b * 1e6, 2), "ratio_of_minima": round(b / a, 4), "ratio_of_medians": round(d / c, 4)}


def main():
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", default="benchmarks/results/programs.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result, t = {"command": "python benchmarks/programs.py", "calls": {}, "saving_ms": {}}, torch.rand(64)
    for cls in corpus.SCHEDULES:
        start = time.perf_counter()
        text = program_of(cls()).text
        result["saving_ms"][cls.__name__] = round((time.perf_counter() - start) * 1e3, 1)
        native, made = cls(), component_of(Program(text))
        for name in ("beta", "integral"):
            row = compare(lambda: getattr(native, name)(t), lambda: getattr(made, name)(t), arguments.rounds, 20)
            result["calls"][f"{cls.__name__}.{name}"] = row
            found = f"native {row['native_us']:6.1f} us, program {row['program_us']:6.1f}, x{row['ratio_of_minima']:.2f}"
            print(f"{cls.__name__ + '.' + name:30} {found} (medians x{row['ratio_of_medians']:.2f})")
    text = program_of(corpus.MyHeun()).text
    result["reading_ms"] = round(timed(lambda: component_of(Program(text)), 50) * 1e3, 3)
    print(f"reading the program of Heun's method and making its component: {result['reading_ms']:.2f} ms")
    model, result["steps"] = GenerativeModel.pretrained("fashion_mnist", "cpu", verbose=False), {}
    denoiser = model.denoiser()
    for cls in (corpus.MyDPM2M, corpus.TutorialEuler, corpus.MyHeun):
        native, made, how = cls(), component_of(program_of(cls())), {"shape": (1, 1, 28, 28), "seeds": 0}
        row = compare(lambda: native(denoiser, n_steps=4, **how), lambda: made(denoiser, n_steps=4, **how), 9, 1)
        # the difference of two runs with a network is noise; what the program adds is seen where the network costs nothing
        idle = Idle(denoiser.sde)
        free = compare(lambda: native(idle, n_steps=20, **how), lambda: made(idle, n_steps=20, **how), 15, 1)
        added, step = (free["program_us"] - free["native_us"]) / 19, row["native_us"] / 4
        result["steps"][cls.__name__] = row | {"added_us_a_step": round(added, 1), "share_of_a_step": round(added / step, 5)}
        took = f"{step / 1e3:.1f} ms a step with the packaged model, x{row['ratio_of_minima']:.3f} so (medians x{row['ratio_of_medians']:.3f})"
        print(f"{cls.__name__:30} {took}; it adds {added:.0f} us, {100 * added / step:.2f}%")
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    worst = max(row["ratio_of_minima"] for row in result["calls"].values())
    share = max(row["share_of_a_step"] for row in result["steps"].values())
    print(f"worst schedule call x{worst:.2f}, worst step +{100 * share:.2f}%")
    sys.exit(int(worst > 2 or share > 0.01))


if __name__ == "__main__":
    main()
