"""How long does an image take? One and many, by the default sampler and by the 500-step Euler-Maruyama, on this machine.

Prints a table and writes results/speed.json:  python benchmarks/speed.py [device]
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import diffnb
from diffnb import GenerativeModel

LIMITS = {("default", 1): 1.0, ("euler-maruyama", 1): 10.0}  # seconds a run may take on two cores


def seconds(model, n, repeats, **settings):
    """Median time of a call that makes n images."""
    times = []
    for seed in range(repeats):
        start = time.perf_counter()
        model.generate(n, seed=seed, class_labels=0, **settings)  # its result is on the CPU, so the device has finished
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def rows(model):
    """Measure; the first call of all, which loads what PyTorch loads late, stands alone."""
    default = model.sampler
    start = time.perf_counter()
    model.generate(1, seed=0)
    yield {"sampler": "default", "what": "first call of a process", "images": 1, "seconds": time.perf_counter() - start}
    for n, repeats in ((1, 5), (16, 3), (100, 1)):
        yield {
            "sampler": "default",
            "what": f"{type(default).__name__}, {default.n_steps_default} steps",
            "images": n,
            "seconds": seconds(model, n, repeats),
        }
    model.sampler = "euler-maruyama"
    yield {"sampler": "euler-maruyama", "what": "EulerMaruyama, 500 steps", "images": 1, "seconds": seconds(model, 1, 3)}
    model.sampler = default


def main():
    """Print the table and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", nargs="?", default="cpu")
    device = parser.parse_args().device
    model = GenerativeModel.pretrained("fashion_mnist", device=device, verbose=False)
    table = []
    print(f"{'28 x 28 images':34s} {'number':>6s} {'seconds':>8s} {'a piece':>8s} {'limit':>6s}")
    for row in rows(model):
        limit = LIMITS.get((row["sampler"], row["images"]))
        row |= {"seconds": round(row["seconds"], 4), "limit": limit}
        table.append(row)
        each = row["seconds"] / row["images"]
        print(f"{row['what']:34s} {row['images']:6d} {row['seconds']:8.3f} {each:8.3f} {limit or '':>6}")
    about = {
        "diffnb": diffnb.__version__,
        "torch": torch.__version__,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    out = Path(__file__).parent / "results" / "speed.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n")
    slow = [row["what"] for row in table if row["limit"] and row["seconds"] > row["limit"]]
    print(f"over the limit: {', '.join(slow)}" if slow else "all inside the limits")


if __name__ == "__main__":
    main()
