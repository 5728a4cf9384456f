"""How fast, how close and how large: distances between sets of features against scipy's matrix root and torch-fidelity.

    python benchmarks/metrics.py [--repeats 7] [--threads 1] [--only kernel subsets real falling white few]
    python benchmarks/metrics.py --features FILE_A FILE_B --only real

Needs torch-fidelity (`pip install diffnb[bench]`). Every measurement runs in a process of its own, contenders in turn, on the same features:
10,000 vectors of 2048 dimensions. "falling": deviations along common principal axes that fall over three decades; "white": random axes
for each set; "real": features of Inception, from two files that `torch.save` wrote, each {"features": (n, 2048)} with more than 2048 vectors
(`InceptionFeatures()(images)` of the training and the test split of Fashion-MNIST, say). The time of general eigenvalues depends on which.

Times are seconds of the processor, which with one thread are those of an idle machine's clock, and which other programs hardly disturb; the clock's
stand in the file. Memory is the peak of the process during the call, above what it held before. Prints a table and writes
benchmarks/results/metrics.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "metrics.json"
N, D = 10_000, 2048


def features(n, which, kind="falling"):
    """Features, float32: "falling" with common axes and deviations over three decades, "white" each set with random axes, "real" from a file."""
    import torch

    if kind == "real":
        return torch.load(os.environ["DIFFNB_BENCH_FEATURES"].split(os.pathsep)[which], weights_only=True)["features"].float()
    generator = torch.Generator().manual_seed(which)
    x = torch.randn(n, D, generator=generator)
    if kind == "white":
        return x @ torch.randn(D, D, generator=generator) / D**0.5
    axes = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(7)))[0]
    return 0.4 + x * 10 ** torch.linspace(0, -3, D) * (1 + 0.05 * which) @ axes


def moments(x):
    """Mean and covariance by numpy, in float64."""
    import numpy as np

    x = x.double().numpy()
    return x.mean(0), np.cov(x, rowvar=False)


def pytorch_fid(a, b):
    """The formula of pytorch-fid 0.3."""
    import numpy as np
    from scipy.linalg import sqrtm

    (mean_a, cov_a), (mean_b, cov_b) = a, b
    root = sqrtm(cov_a.dot(cov_b))
    if not np.isfinite(root).all():
        offset = np.eye(len(cov_a)) * 1e-6
        root = sqrtm((cov_a + offset).dot(cov_b + offset))
    return float((mean_a - mean_b) @ (mean_a - mean_b) + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(np.real(root)))


def torch_fidelity_fid(a, b):
    """What torch-fidelity computes from moments."""
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    left, right = ({"mu": mean, "sigma": cov} for mean, cov in (a, b))
    return fid_statistics_to_metric(left, right, verbose=False)["frechet_inception_distance"]


def torch_fidelity_kid(a, b, subsets, size):
    """What torch-fidelity computes from features."""
    from torch_fidelity.metric_kid import kid_features_to_metric

    out = kid_features_to_metric(a, b, kid_subsets=subsets, kid_subset_size=size, rng_seed=2020, verbose=False)
    return out["kernel_inception_distance_mean"]


def contender(name):
    """The call to measure, with its input made."""
    import torch

    from diffnb.metrics import frechet_distance, frechet_of_features, kernel_distance, kernel_distance_of_blocks, kernel_distance_of_subsets

    task, who, *option = name.split()
    n = int(option[0]) if option and option[0].isdigit() else N
    kind = next((k for k in ("white", "real") if k in option), "falling")
    a, b = (features(n, which, kind) for which in (0, 1))
    if task == "kernel" and who == "torch-fidelity-once":
        return lambda: torch_fidelity_kid(a, b, 1, n)
    if task == "kernel" and who == "torch-fidelity-default":
        return lambda: torch_fidelity_kid(a, b, 100, 1000)
    if task == "kernel":
        calls = {
            "diffnb": lambda: kernel_distance(a, b)[0],
            "diffnb-float32": lambda: kernel_distance(a, b, products=torch.float32)[0],
            "diffnb-blocks": lambda: kernel_distance_of_blocks(a, b, 1000)[0],
            "diffnb-subsets": lambda: kernel_distance_of_subsets(a, b, 100, 1000)[0],
        }
        return calls[who]
    if who == "diffnb" and len(a) <= D:
        return lambda: frechet_of_features(a, b)
    a, b = moments(a), moments(b)
    if who == "diffnb":
        tensors = [torch.from_numpy(t) for t in (*a, *b)]
        return lambda: frechet_distance(*tensors)
    return (lambda: pytorch_fid(a, b)) if who == "sqrtm" else (lambda: torch_fidelity_fid(a, b))


def memory(field):
    """A line of /proc/self/status in MB: VmRSS now, VmHWM the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure(name, threads):
    """Run one contender in this process and print what it took."""
    import torch

    torch.set_num_threads(threads)
    call = contender(name)
    small = torch.rand(64, 64).double()
    torch.linalg.svdvals(small @ small.mT)  # libraries are loaded and threads started before the clock is
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        pass
    before, start, clock = memory("VmRSS"), time.process_time(), time.perf_counter()
    value = call()
    seconds, clock = time.process_time() - start, time.perf_counter() - clock
    print(json.dumps({"value": value, "seconds": seconds, "clock": clock, "megabytes": memory("VmHWM") - before}))


def compare(names, repeats, threads):
    """Measure contenders in turn, each in a process of its own."""
    environment = os.environ | {v: str(threads) for v in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    runs = {name: [] for name in names}
    for _ in range(repeats):
        for name in names:
            command = [sys.executable, __file__, "--measure", name, "--threads", str(threads)]
            out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
            runs[name].append(json.loads(out.splitlines()[-1]))
    return {
        name: {
            "value": some[0]["value"],
            "seconds_min": min(r["seconds"] for r in some),
            "seconds_median": statistics.median(r["seconds"] for r in some),
            "clock_min": min(r["clock"] for r in some),
            "megabytes": statistics.median(r["megabytes"] for r in some),
            "repeats": len(some),
        }
        for name, some in runs.items()
    }


GROUPS = {
    "kernel": ["kernel diffnb", "kernel torch-fidelity-once", "kernel diffnb-float32"],
    "subsets": ["kernel diffnb-subsets", "kernel diffnb-blocks", "kernel torch-fidelity-default"],
    "real": ["frechet diffnb real", "frechet sqrtm real", "frechet torch-fidelity real"],
    "falling": ["frechet diffnb", "frechet sqrtm", "frechet torch-fidelity"],
    "white": ["frechet diffnb white", "frechet sqrtm white", "frechet torch-fidelity white"],
    "few": ["frechet diffnb 256", "frechet sqrtm 256", "frechet diffnb 512", "frechet sqrtm 512"],
}
RIVALS = {
    "frechet diffnb": ["frechet sqrtm", "frechet torch-fidelity"],
    "frechet diffnb real": ["frechet sqrtm real", "frechet torch-fidelity real"],
    "frechet diffnb white": ["frechet sqrtm white", "frechet torch-fidelity white"],
    "frechet diffnb 256": ["frechet sqrtm 256"],
    "frechet diffnb 512": ["frechet sqrtm 512"],
    "kernel diffnb": ["kernel torch-fidelity-once"],
    "kernel diffnb-float32": ["kernel torch-fidelity-once"],
    "kernel diffnb-subsets": ["kernel torch-fidelity-default"],
}


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--features", nargs=2, metavar="FILE", help="two files of features, for the group real")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(GROUPS), help="groups; without it all that can be measured")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(args.measure, args.threads)
    if args.features:
        os.environ["DIFFNB_BENCH_FEATURES"] = os.pathsep.join(args.features)
    groups = args.only or [group for group in GROUPS if group != "real" or args.features]
    if "real" in groups and not args.features:
        parser.error("the group real needs --features FILE FILE")
    known = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    rows, ratios = known.get("rows", {}), known.get("ratios", {})
    for group in groups:
        rows |= compare(GROUPS[group], args.repeats, args.threads)
        for name in GROUPS[group]:
            row = rows[name]
            print(
                f"{name:32s} {row['seconds_min']:8.2f} s min {row['seconds_median']:8.2f} s median {row['megabytes']:7.0f} MB  {row['value']:.12g}",
                flush=True,
            )
        for ours in (name for name in GROUPS[group] if name in RIVALS):
            for theirs in RIVALS[ours]:
                a, b = rows[ours], rows[theirs]
                ratio = ratios[f"{ours} : {theirs}"] = {
                    "faster_min": b["seconds_min"] / a["seconds_min"],
                    "faster_median": b["seconds_median"] / a["seconds_median"],
                    "memory": a["megabytes"] / b["megabytes"],
                    "difference": a["value"] - b["value"],
                    "relative_difference": a["value"] / b["value"] - 1,
                }
                faster = f"{ratio['faster_min']:.1f} times as fast (median {ratio['faster_median']:.1f})"
                differ = f"difference {ratio['difference']:.1e} (relative {ratio['relative_difference']:.1e})"
                print(f"  {ours} : {theirs}: {faster}, memory {ratio['memory']:.2f}, {differ}", flush=True)
        import scipy
        import torch
        import torch_fidelity

        about = {
            "n": N,
            "d": D,
            "threads": args.threads,
            "processor": platform.machine(),
            "python": platform.python_version(),
        }
        about |= {"torch": torch.__version__, "scipy": scipy.__version__, "torch_fidelity": torch_fidelity.__version__}
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps({"about": about, "rows": rows, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
