"""Compare whole network evaluations with PyTorch's group norm and with ours, interleaved in one process on one thread.

    python benchmarks/group_norm.py [--rounds 9] [--precision bfloat16] [--training]

The two packaged models, 1, 16 and 64 images at a time; with --training, a forward and a backward pass of 16 and 64. Minimum and median of the rounds,
as ratios: above 1 ours is the faster. In bfloat16 the network runs under autocast, as it does in generation and training.
"""

import argparse
import contextlib
import statistics
import time

import torch

from diffnb.model import GenerativeModel
from diffnb.networks import unet

EVALUATIONS = {1: 12, 16: 3, 64: 1}  # in a round, by the number of images


def seconds(way, small_map, times):
    """Time of one call, where maps of fewer pixels than `small_map` are normalised our way."""
    unet.SMALL_MAP = small_map
    way()
    start = time.perf_counter()
    for _ in range(times):
        way()
    return (time.perf_counter() - start) / times


def way_of(network, shape, n, precision, is_training):
    """An evaluation of the network, or a training step without its optimizer."""
    x, level = torch.randn(n, *shape).contiguous(memory_format=torch.channels_last), torch.full((n,), 0.5)
    with_gradients = contextlib.nullcontext if is_training else torch.inference_mode

    def way():
        with with_gradients(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            out = network(x, level)
        if is_training:
            out.float().square().mean().backward()

    return way


def main():
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--training", action="store_true", help="forward and backward")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("fashion_mnist", "cifar10"):
        model = GenerativeModel.pretrained(name, device="cpu", verbose=False)
        network = model.trained.network.requires_grad_(args.training)
        for n, times in EVALUATIONS.items():
            if args.training and n == 1:
                continue
            way = way_of(network, model.shape, n, args.precision, args.training)
            found = [[seconds(way, small_map, times) for small_map in (0, 1024)] for _ in range(args.rounds)]
            theirs, ours = zip(*found)
            ratios = [statistic(theirs) / statistic(ours) for statistic in (min, statistics.median)]
            milliseconds = "PyTorch's {:6.1f} ms, ours {:6.1f} ms".format(*(1e3 * min(one) for one in (theirs, ours)))
            print(f"{name:14s} {n:3d} images  {milliseconds}: x{ratios[0]:.2f} (medians x{ratios[1]:.2f})", flush=True)


if __name__ == "__main__":
    main()
