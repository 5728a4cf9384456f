"""How do time and memory grow with the number of images, steps and pixels, and what do a cold start and a small machine allow?

    python benchmarks/scaling.py [--rounds 7] [--out FILE]

Each row varies one of them, for generation by the packaged Fashion-MNIST model and for training steps of a small network, on one thread. All sizes
of a row take turns in one process; its slope is that of a straight line through the logarithms of the smallest times, where 1 is proportional. Memory
is the largest resident set of a process that does nothing else. Cold starts are whole commands. Prints tables and writes results/scaling.json.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from diffnb.model import GenerativeModel
from diffnb.networks import UNet

RESULT = Path(__file__).parent / "results" / "scaling.json"
MODEL = "from diffnb import GenerativeModel; GenerativeModel"
DRAW = f"{MODEL}.pretrained('fashion_mnist', 'cpu', False).generate"
MEMORY = {  # what a process of its own does
    "import diffnb": "from diffnb import GenerativeModel",
    "16 images": f"{DRAW}(16, seed=0)",
    "64 images": f"{DRAW}(64, seed=0)",
    "64 images, 100 steps": f"{DRAW}(64, 100, 0)",
    "64 images, 4 at a time": f"{DRAW}(64, seed=0, batch_size=4)",
    "20 training steps": f"{MODEL}(network='small', device='cpu', verbose=False).train('packaged', steps=20)",
}
COLD = {  # a command and its arguments
    "diffnb --help": ["--help"],
    "diffnb generate": ["generate", "fashion_mnist", "-n", "1", "--seed", "0"],
    "diffnb draw": ["draw", "a heart", "--seed", "0"],
}


def slope(sizes, times):
    """Of the straight line through the logarithms, by least squares."""
    x, y = ([math.log(v) for v in values] for values in (sizes, times))
    a, b = statistics.fmean(x), statistics.fmean(y)
    return sum((p - a) * (q - b) for p, q in zip(x, y)) / sum((p - a) ** 2 for p in x)


def in_turns(ways, rounds):
    """Seconds of every way in every round; the first is not counted."""
    times = {size: [] for size in ways}
    for turn in range(rounds + 1):
        for size, way in ways.items():
            start = time.perf_counter()
            way()
            times[size] += [time.perf_counter() - start] * (turn > 0)
    return times


def training_step(n, side):
    """A step of the optimizer on n random images of side x side pixels."""
    network = UNet(1, (32, 64), 1, (1,)).to(memory_format=torch.channels_last)
    opt = torch.optim.AdamW(network.parameters(), 1e-4, fused=True)
    x, level = torch.randn(n, 1, side, side).contiguous(memory_format=torch.channels_last), torch.zeros(n)

    def step():
        opt.zero_grad()
        network(x, level).square().mean().backward()
        opt.step()

    return step


def rows_of(rounds):
    """What grows, its sizes, and what is done at each."""
    model = GenerativeModel.pretrained("fashion_mnist", "cpu", verbose=False)
    generate = model.generate
    yield "images generated at once", in_turns({n: lambda n=n: generate(n, 3, 0, batch_size=n) for n in (1, 2, 4, 8, 16, 32, 64)}, rounds)
    yield "images generated, 8 at a time", in_turns({n: lambda n=n: generate(n, 3, 0, batch_size=8) for n in (8, 16, 32, 64)}, rounds)
    yield "steps of a sampler, 1 image", in_turns({n: lambda n=n: generate(1, n, 0) for n in (5, 10, 20, 40, 80)}, rounds)
    yield "pixels generated, 4 images", in_turns({s * s: lambda s=s: generate(4, 3, 0, size=s) for s in (16, 24, 32, 48, 64)}, rounds)
    yield "images of a training step", in_turns({n: training_step(n, 28) for n in (2, 4, 8, 16, 32)}, rounds)
    yield "pixels of a training step, 4 images", in_turns({s * s: training_step(4, s) for s in (16, 32, 64)}, rounds)


def memory_of(code):
    """The largest resident set of a process that runs the code, in megabytes."""
    after = "print(open('/proc/self/status').read())"  # VmHWM: getrusage would count what this process held when it made the other
    run = subprocess.run([sys.executable, "-c", f"{code}\n{after}"], capture_output=True, text=True, check=True)
    return int(run.stdout.rpartition("VmHWM:")[2].split()[0]) / 1024


def cold(arguments, rounds):
    """Seconds of a whole command."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            out = [] if "--help" in arguments else ["--out", str(Path(folder) / f"{turn}.png")]
            start = time.perf_counter()
            subprocess.run([Path(sys.executable).with_name("diffnb"), *arguments, *out], capture_output=True, check=True)
            times += [time.perf_counter() - start] * (turn > 0)
    return times


def main():
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns, at least 7 for a figure that is told to others")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    rows, memory, starts = [], {}, {}
    for what, times in rows_of(args.rounds):
        least = [min(own) for own in times.values()]
        rows.append({"what": what, "sizes": list(times), "min": least, "median": [statistics.median(own) for own in times.values()]})
        rows[-1]["slope"] = slope(list(times), least)
        rows[-1]["last_slope"] = slope(list(times)[-2:], least[-2:])
        print(
            f"{what:38s} slope {rows[-1]['slope']:.2f}, at the end {rows[-1]['last_slope']:.2f}   " + "  ".join(f"{one * 1e3:.0f}" for one in least),
            flush=True,
        )
    for what, code in MEMORY.items():
        memory[what] = memory_of(code)
        print(f"{what:38s} {memory[what]:6.0f} MB", flush=True)
    for what, arguments in COLD.items():
        own = cold(arguments, max(3, args.rounds // 2))
        starts[what] = {"min": min(own), "median": statistics.median(own)}
        print(f"{what:38s} {min(own):5.2f} s, median {statistics.median(own):5.2f} s", flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "rounds": args.rounds, "load": round(os.getloadavg()[0], 2)}
    args.out.write_text(json.dumps({"about": about, "scaling": rows, "memory": memory, "cold": starts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
