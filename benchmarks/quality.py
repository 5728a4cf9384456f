"""How good are the samples of the packaged Fashion-MNIST model? FID of n samples in at most 20 evaluations, beside its floor.

    python benchmarks/quality.py --weights DIR --data ROOT [--n 2000] [--steps 20] [--model FILE]

DIR holds the weights of the FID's Inception (see `diffnb.extractors.find_fid_weights`); ROOT is laid out as torchvision does. The reference is
the first n test images. The floor is the distance of the first n training images from them: two real sets of that size. Features of real
images are kept in DIR, so that later runs only look at the generated ones. Inception reads some 10 images a second on one CPU core.
Prints a table and writes benchmarks/results/quality.json.
"""

import argparse
import functools
import hashlib
import json
import os
import time
import warnings
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from diffnb.data import image_set
from diffnb.extractors import FID_WEIGHTS_SHA256, InceptionFeatures
from diffnb.metrics import FeatureStatistics, FrechetDistance
from diffnb.model import GenerativeModel

RESULT = Path(__file__).parent / "results" / "quality.json"
MOST_EVALUATIONS = 20


def extract(extractor, images, what, batch_size=25, save=lambda features: None):
    """Features of uint8 images, with progress; `save` is called now and then with what there is."""
    parts, start = [], time.time()
    for batch in images.split(batch_size):
        parts.append(extractor(batch.float() / 255))
        done = sum(map(len, parts))
        if done % 500 == 0 or done == len(images):
            print(f"  {what}: {done} of {len(images)}, {done / (time.time() - start):.1f} images/s", flush=True)
            save(torch.cat(parts))
    return torch.cat(parts)


def real_features(extractor, images, split, folder):
    """Features of real images, from the folder where they have been made before: recognised by the digest of images and weights."""
    digest = hashlib.sha256(images.numpy().tobytes() + FID_WEIGHTS_SHA256.encode()).hexdigest()
    path = folder / f"fashion_mnist_{split}_{len(images)}_fid_features.safetensors"
    known = torch.empty(0, InceptionFeatures.n_features)
    if path.is_file():
        with safe_open(path, "pt") as file:
            if file.metadata().get("digest") == digest:
                known = file.get_tensor("features")
    if len(known) == len(images):
        return known

    def save(features):
        temporary = path.with_suffix(".part")
        save_file({"features": torch.cat([known, features]).contiguous()}, temporary, {"digest": digest})
        os.replace(temporary, path)

    return torch.cat([known, extract(extractor(), images[len(known) :], split, save=save)])


def generate(model, n, steps, seed):
    """Make n images as bytes, the classes in turn, in at most `MOST_EVALUATIONS` evaluations."""
    evaluations = model.sampler.evaluations(steps)
    if evaluations > MOST_EVALUATIONS:
        raise SystemExit(
            f"{type(model.sampler).__name__} spends {evaluations} evaluations in {steps} steps; at most {MOST_EVALUATIONS} are meant here"
        )
    labels = [model.labels[i % len(model.labels)] for i in range(n)] if model.labels else None
    start = time.time()
    images = model.generate(num_samples=n, class_labels=labels, seed=seed, n_steps=steps)
    print(f"  generated {n} images in {time.time() - start:.0f} s, {evaluations} evaluations each", flush=True)
    return (images * 255).round().to(torch.uint8), evaluations


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, help="folder of the Inception weights; features are kept there too")
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--n", type=int, default=2000, help="images in each set")
    parser.add_argument("--steps", type=int, default=20, help="steps of the model's sampler")
    parser.add_argument("--model", type=Path, help="model file; without it the packaged model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="fid of", category=UserWarning)  # that n is small is why the floor stands beside it

    extractor = functools.cache(lambda: InceptionFeatures(args.weights))  # not needed where all features are known
    real = {s: image_set("fashion_mnist", split=s, root=args.data, verbose=False).images[: args.n] for s in ("test", "train")}
    statistics = {s: FeatureStatistics().update(real_features(extractor, images, s, args.weights)) for s, images in real.items()}
    model = GenerativeModel.load(args.model, verbose=False) if args.model else GenerativeModel.pretrained("fashion_mnist", verbose=False)
    images, evaluations = generate(model, args.n, args.steps, args.seed)
    statistics["generated"] = FeatureStatistics().update(extract(extractor(), images, "generated"))

    distance = FrechetDistance(extractor())
    rows = {name: distance(statistics["test"], statistics[name]).value for name in ("generated", "train")}
    how = distance.config()
    print(f"\nFID ({how['extractor']}, resize of {how['resize']}) against the first {args.n} test images of Fashion-MNIST")
    print(f"  {args.n} generated images, {evaluations} evaluations, {type(model.sampler).__name__}, seed {args.seed}: {rows['generated']:8.2f}")
    print(f"  {args.n} training images (the floor): {rows['train']:8.2f}")
    result = {
        "metric": distance.name,
        **how,
        "weights_sha256": FID_WEIGHTS_SHA256,
        "reference": f"fashion_mnist test, first {args.n}",
        "n": args.n,
        "model": args.model.name if args.model else "fashion_mnist (packaged)",
        "sampler": repr(model.sampler),
        "process": repr(model.sde),
        "n_steps": args.steps,
        "nfe": evaluations,
        "guidance_scale": 1.0,
        "classes": "balanced" if model.labels else "none",
        "seed": args.seed,
        "fid": rows["generated"],
        "fid_floor": rows["train"],
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
