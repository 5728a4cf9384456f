"""Do the headline rows of few_steps.py hold in other features? The same samplers, looked at by the Inception of the FID.

    python benchmarks/few_steps_fid.py --weights DIR [--n 2000]

DIR holds the weights of the FID's Inception (`diffnb weights DIR`); features of real images are kept there. The quick features
of few_steps.py belong to a classifier of Fashion-MNIST, and samplers were compared by them; Inception has never seen such pictures. Reported: the
kernel distance of n generated images (its mean does not depend on how many they are) and the Frechet distance (which does, alike in all rows) to
2,000 of the packaged images, for a few samplers and numbers of evaluations, for the packaged student ("consistency"), and for n other packaged
images: the floor. Each row is written to results/few_steps_fid.json as soon as it is there; rows that are there are not measured again.
"""

import argparse
import functools
import json
import os
from pathlib import Path

import torch
from few_steps import generate, make_denoiser, named, steps_for
from quality import extract, real_features

from diffnb.data import image_set
from diffnb.metrics import FrechetDistance, InceptionFeatures, KernelDistance
from diffnb.model import GenerativeModel, digest_of_model

RESULT = Path(__file__).parent / "results" / "few_steps_fid.json"
ROWS = [
    ("ddim", 100),
    ("dpm-solver++2m", 20),
    ("dpm-solver++2m", 10),
    ("dpm-solver++2m, lowered", 10),
    ("unipc-2", 10),
    ("unipc, lowered", 10),
    ("sde-dpm-solver++2m", 10),
    ("dpm-solver++2m", 5),
    ("sde-dpm-solver++2m", 5),
    ("ipndm", 5),
    ("consistency", 4),
    ("consistency", 2),
    ("consistency", 1),
]


def images_of(denoiser, name, evaluations, n):
    """Generated images as bytes, and the evaluations they took."""
    sampler = named(name)
    parts = list(generate(sampler, denoiser, n, 0, steps_for(sampler, evaluations), sampler.default_grid, 100))
    return torch.cat([(images * 255).round().to(torch.uint8) for images, _ in parts]), parts[0][1]


def main():
    """Measure what is not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, help="folder of the Inception weights")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.is_file() else []
    extractor = InceptionFeatures(args.weights)
    packaged = image_set("packaged", verbose=False).images
    reference = real_features(lambda: extractor, packaged[:2000], "packaged", args.weights)
    teacher = functools.cache(lambda: make_denoiser(GenerativeModel.pretrained("fashion_mnist", verbose=False), "bfloat16", True))
    student = GenerativeModel.pretrained("fashion_mnist", fast=True, verbose=False)
    for name, evaluations in [("real images", 0), *ROWS]:
        key = {"name": name, "evaluations": evaluations, "n": args.n} | ({"student": digest_of_model(student)} if name == "consistency" else {})
        if any(key.items() <= row.items() for row in rows):
            continue
        rows = [row for row in rows if (row["name"], row["evaluations"], row["n"]) != (name, evaluations, args.n)]  # of an earlier student
        denoiser = student.denoiser(precision="bfloat16") if name == "consistency" else teacher() if evaluations else None
        images, nfe = images_of(denoiser, name, evaluations, args.n) if evaluations else (packaged[2000 : 2000 + args.n], 0)
        features = extract(extractor, images, f"{name}, {nfe} evaluations")
        frechet, kernel = (metric(extractor).from_features(reference, features) for metric in (FrechetDistance, KernelDistance))
        rows.append({**key, "nfe": nfe, "fid": frechet.value, "kid": kernel.value})
        rows[-1]["kid_error"] = kernel.error
        RESULT.with_suffix(".part").write_text(json.dumps({"reference": "2,000 packaged images", "rows": rows}, indent=1) + "\n")
        os.replace(RESULT.with_suffix(".part"), RESULT)
    print(f"{'sampler':20s}{'evaluations':>12s}{'FID':>9s}{'KID':>9s}{'+-':>8s}")
    for row in rows:
        print(f"{row['name']:20s}{row['nfe'] or '':>12}{row['fid']:9.2f}{row['kid']:9.4f}{row['kid_error']:8.4f}")


if __name__ == "__main__":
    main()
