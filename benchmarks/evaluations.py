"""How long does one evaluation of a network take, and where does the time go? Ours beside diffusers', with the same weights, on one thread.

    python benchmarks/evaluations.py [--rounds 9] [--compile] [--out FILE]

The network has the shape of google/ddpm-cifar10-32: 35.7 million weights, 6.1 billion multiplications for an image of 32 x 32. Its weights are
random; diffusers saves it, and `GenerativeModel.from_diffusers` reads it, so both compute the same function, which is checked first. Packaged models
stand beside it. All ways take turns in one process; a row has the minimum and the median of the rounds, and the ratio of the first way to it.

diffusers    `UNet2DModel` as it comes: float32, and cast to bfloat16 with the channels last in memory.
ours         as `GenerativeModel` runs it (channels last): float32, float32 with the channels first, and bfloat16 by autocast.
cast         ours with the weights cast to bfloat16 once, where autocast casts them in every evaluation.
packed       ours with the weights of convolutions laid out for oneDNN once, where PyTorch does it in every evaluation.
compiled     ours by torch.compile, with --compile; its first call is timed, too.

It needs the extra `bench`. Results are written to results/evaluations.json.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffnb.model import GenerativeModel

RESULT = Path(__file__).parent / "results" / "evaluations.json"
SHAPE = {  # of google/ddpm-cifar10-32
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "block_out_channels": (128, 256, 256, 256),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}

KINDS = {  # of operations, by what the profiler calls them
    "convolutions": ("conv",),
    "matrix products": ("mm", "linear"),
    "attention": ("attention", "softmax"),
    "group norm": ("norm", "std", "var"),
    "silu": ("silu",),
}


class PackedConv(nn.Module):
    """A convolution whose weights are laid out for oneDNN once. Its operations are those that torch.compile uses, and private to PyTorch."""

    def __init__(self, conv: nn.Conv2d, shape: list[int]):
        super().__init__()
        self.how = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *self.how, shape)
        self.bias = conv.bias

    def forward(self, x):
        """Convolve."""
        return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *self.how, "none", [], "")


def packed(network, *inputs):
    """A copy of a network whose convolutions are packed for the shapes that they meet."""
    network, shapes = copy.deepcopy(network), {}
    convs = [one for one in network.modules() if isinstance(one, nn.Conv2d)]
    hooks = [one.register_forward_pre_hook(lambda module, given: shapes.setdefault(module, list(given[0].shape)) and None) for one in convs]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in shapes:
                setattr(parent, name, PackedConv(child, shapes[child]))
    return network


def of_diffusers():
    """A network of diffusers and the same one read by us."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)  # this is a script: nobody else's random numbers are concerned
    theirs = UNet2DModel(**SHAPE).eval()
    with tempfile.TemporaryDirectory() as folder:
        DDPMPipeline(theirs, DDPMScheduler(clip_sample=False)).save_pretrained(folder)
        return theirs, GenerativeModel.from_diffusers(folder, device="cpu", verbose=False)


def ways_of(model, n, theirs=None, compile=False):
    """Everything that takes turns: functions without arguments by name; the first is what others are compared with."""
    network = model.trained.network
    x = torch.randn(n, *model.shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)
    step, time_of_step = torch.full((n,), 500), torch.full((n,), 501 / 1000)  # of a thousand steps, which diffusers counts from 0
    low, level = x.bfloat16(), model.trained.sde.half_log_snr(time_of_step if theirs is not None else torch.full((n,), 0.5))

    def by_autocast():
        with torch.autocast("cpu", torch.bfloat16):
            return network(x, level)

    ways = {}
    if theirs is not None:
        cast = copy.deepcopy(theirs).to(torch.bfloat16, memory_format=torch.channels_last)
        plain = x.contiguous()
        ways["diffusers, float32"] = lambda: theirs(plain, step).sample
        ways["diffusers, bfloat16, channels last"] = lambda: cast(low, step).sample
    first = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    lowered = copy.deepcopy(network).bfloat16()
    together, lowered_together = packed(network, x, level), packed(lowered, low, level)
    ways |= {
        "ours, float32": lambda: network(x, level),
        "ours, float32, channels first": lambda: first(x.contiguous(), level),
        "ours, bfloat16 by autocast": by_autocast,
        "ours, bfloat16, cast once": lambda: lowered(low, level),
        "ours, float32, packed": lambda: together(x, level),
        "ours, bfloat16, cast once and packed": lambda: lowered_together(low, level),
    }
    if compile:
        compiled = torch.compile(network)
        ways["ours, float32, compiled"] = lambda: compiled(x, level)
    return ways


def timed(ways, rounds):
    """Seconds of every way in every round, and of its first call."""
    first, times = {}, {name: [] for name in ways}
    for name, way in ways.items():
        start = time.perf_counter()
        way()
        first[name] = time.perf_counter() - start
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return first, times


def parts_of(way, rounds=3):
    """The share of each kind of operation in the time of the way, largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(rounds):
            way()
    kinds = {
        "convolutions": ("conv",),
        "matrix products": ("mm", "linear"),
        "attention": ("attention", "softmax"),
        "group norm": ("norm", "std", "var"),
    }
    shares = {"convolutions": 0.0, "matrix products": 0.0, "attention": 0.0, "group norm": 0.0, "silu": 0.0, "the rest": 0.0}
    for event in found.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, words in kinds.items() if any(word in name for word in words)), "silu" if "silu" in name else "the rest")
        shares[kind] += event.self_cpu_time_total
    return {kind: round(share / sum(shares.values()), 3) for kind, share in shares.items()}


def peak(dtype, side=1024, rounds=9):
    """Billions of operations a second in a product of two large matrices: what the processor can do at most."""
    a, b = (torch.rand(side, side).to(dtype) for _ in range(2))
    times = timed({"product": lambda: a @ b}, rounds)[1]["product"]
    return 2 * side**3 / min(times) / 1e9


def measured(name, model, n, rounds, theirs=None, compile=False):
    """Rows of one network and number of images."""
    with torch.inference_mode():
        ways = ways_of(model, n, theirs, compile)
        with FlopCounterMode(display=False) as counter:
            ways["ours, float32"]()
        want = ways["ours, float32"]()
        off = {way: (run().float() - want).abs().max().item() for way, run in ways.items()}
        wrong = [way for way, error in off.items() if error > (0.1 if "bfloat16" in way else 1e-4) * float(want.abs().max())]
        if wrong:
            raise SystemExit(f"{name}: {', '.join(wrong)} compute something else")
        first, times = timed(ways, rounds)
        parts = {way: parts_of(ways[way]) for way in ("ours, float32", "ours, bfloat16, cast once")}
    reference = next(iter(times.values()))
    for way, own in times.items():
        ratios = sorted(a / b for a, b in zip(reference, own))
        yield {
            "network": name,
            "images": n,
            "way": way,
            "min": min(own),
            "median": statistics.median(own),
            "first_call": first[way],
            "ratio": min(reference) / min(own),
            "median_ratio": statistics.median(ratios),
            "difference": off[way],
            "gflop": counter.get_total_flops() / 1e9,
            "parts": parts.get(way),
        }


def main():
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns of every way, at least 7 for a figure that is told to others")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too: a minute for each network")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="diffusers")
    theirs, ours = of_diffusers()
    rows = []
    for name, model, other in (("ddpm-cifar10-32", ours, theirs), ("fashion_mnist", None, None), ("cifar10", None, None)):
        model = model or GenerativeModel.pretrained(name, device="cpu", verbose=False)
        for n in (1, 16):
            rounds = args.rounds if n == 1 or other is None else max(3, args.rounds // 2)
            for row in measured(name, model, n, rounds, other, args.compile and n == 1):
                rows.append(row)
                text = f"{row['min'] * 1e3:8.1f} ms, median {row['median'] * 1e3:8.1f}: x{row['ratio']:.2f} (median x{row['median_ratio']:.2f})"
                print(f"{name:16s} {n:3d}  {row['way']:38s} {text}", flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "load": round(os.getloadavg()[0], 2), "rounds": args.rounds}
    about["processor"] = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    about["bfloat16"] = " ".join(sorted(f for f in ("avx512_bf16", "amx_bf16") if f in Path("/proc/cpuinfo").read_text())) or "none"
    about["product_gflops"] = {"float32": peak(torch.float32), "bfloat16": peak(torch.bfloat16)}
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
