"""Compare whole network evaluations with PyTorch's group norm and with ours, interleaved in one process on one thread.

    python benchmarks/group_norm.py [--rounds 9]

The two packaged models, 1, 16 and 64 images at a time; minimum and median of the rounds, as ratios: above 1 ours is the faster.
"""

import argparse
import statistics
import time

import torch

from diffnb import GenerativeModel
from diffnb.networks import unet

EVALUATIONS = {1: 12, 16: 3, 64: 1}  # in a round, by the number of images


def seconds(denoiser, x, t, small_map, times):
    """Time of one evaluation, where maps of fewer pixels than `small_map` are normalised our way."""
    unet.SMALL_MAP = small_map
    denoiser(x, t)
    start = time.perf_counter()
    for _ in range(times):
        denoiser(x, t)
    return (time.perf_counter() - start) / times


def main():
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    for name in ("fashion_mnist", "cifar10"):
        model = GenerativeModel.pretrained(name, device="cpu", verbose=False)
        denoiser = model.denoiser()
        for n, times in EVALUATIONS.items():
            x, t = torch.randn(n, *model.shape), torch.full((n,), 0.5)
            with torch.inference_mode():
                found = [[seconds(denoiser, x, t, small_map, times) for small_map in (0, 1024)] for _ in range(rounds)]
            theirs, ours = zip(*found)
            ratios = [statistic(theirs) / statistic(ours) for statistic in (min, statistics.median)]
            milliseconds = "PyTorch's {:6.1f} ms, ours {:6.1f} ms".format(*(1e3 * min(one) for one in (theirs, ours)))
            print(f"{name:14s} {n:3d} images  {milliseconds}: x{ratios[0]:.2f} (medians x{ratios[1]:.2f})", flush=True)


if __name__ == "__main__":
    main()
