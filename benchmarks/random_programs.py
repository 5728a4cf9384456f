"""Run random valid programs: none may take more memory or time than it stated before the run, or end in anything but a result or a documented error.

    python benchmarks/random_programs.py --count 100000 --seed 0

Each program is a step of 5 to 200 random operations that fit, on a state of a random shape and type. Memory is the peak that torch's profiler sees,
time that of this thread's processor: at most 100 ns an element that the operations go through, 1 ms an operation, and 50 ms for the profiler.
Program number i depends on the seed and on i alone. Prints the largest share of the stated memory and time that any program took, and ends with
status 1 if one took more.
"""

import argparse
import json
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "files"))

from random_programs import measured, random_program, state_of  # noqa: E402

from diffnb.core import NoiseSource  # noqa: E402
from diffnb.files import ComponentBadResult, component_of  # noqa: E402
from diffnb.noise import VP  # noqa: E402
from diffnb.samplers import State  # noqa: E402

SHAPES = ((1, 1, 8, 8), (3, 2, 16, 16), (2, 3, 48, 48), (7, 5), (1, 2**15), (4, 1, 64, 64))


class Same:
    """A denoiser that needs nothing: what is measured is the program's."""

    sde = VP()

    def x0(self, x, t, condition):
        """Take the noisy images for clean ones."""
        return x


def main():
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/random_programs.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    levels, outcomes, memory, seconds, beyond, start = VP().levels(torch.tensor([0.9, 0.5])), {"result": 0, "no result": 0}, 0.0, 0.0, [], time.time()
    measured(lambda: torch.ones(1))  # the profiler takes its time when it is first used
    for i in range(arguments.count):
        choose = random.Random(f"{arguments.seed}/{i}")
        program, shape = random_program(choose.randrange(2**40), choose.randrange(5, 200)), choose.choice(SHAPES)
        sampler, x, bound = component_of(program), state_of(shape, choose.choice((torch.float32, torch.float64)), i), program.bound(shape)

        def call():
            try:
                sampler.step(Same(), State(x), *levels, NoiseSource.of(i, len(x)))
                outcomes["result"] += 1
            except ComponentBadResult:
                outcomes["no result"] += 1

        peak, took = measured(call)
        allowed = 1e-7 * bound.work + 1e-3 * bound.operations + 0.05
        memory, seconds = max(memory, peak / bound.memory), max(seconds, took / allowed)
        if peak > bound.memory or took > allowed:
            beyond.append(i)
            print(
                f"BEYOND {i}: {peak:,} of {bound.memory:,} bytes, {took:.3f} s for {bound.work:,} elements, {bound.operations} operations", flush=True
            )
        if (i + 1) % 1000 == 0:
            print(f"{i + 1} programs: at most {memory:.2f} of the stated memory, {seconds:.2f} of the time", flush=True)
    result = {
        "command": f"python benchmarks/random_programs.py --count {arguments.count} --seed {arguments.seed}",
        "outcomes": outcomes,
        "beyond": beyond,
        "most_of_memory": round(memory, 3),
        "most_of_time": round(seconds, 3),
        "seconds": round(time.time() - start, 1),
    }
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
    sys.exit(int(bool(beyond)))


if __name__ == "__main__":
    main()
