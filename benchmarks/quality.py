"""How good are the samples of a trained model? Frechet and kernel distance of n samples in at most 20 evaluations, beside their floors.

    python benchmarks/quality.py --weights DIR --data ROOT [--set fashion_mnist] [--n 2000] [--steps 20] [--model FILE] [--size 32]
                                 [--guidance-scale 1] [--fast]

DIR holds the weights of the FID's Inception (see `diffnb.metrics.find_fid_weights`); ROOT is laid out as torchvision does, or holds a folder
named like the set. The reference is n test images. The floor is the distance of n training images from them: two real sets of that size. A set
without a test split is halved at random, and n is at most a half. Where images lie class by class they are taken evenly spaced. Features of
real images are kept in DIR, so that later runs only look at the generated ones. Inception reads some 10 images a second on one CPU core.
Prints a table and writes benchmarks/results/quality.json (the packaged Fashion-MNIST model) or quality_SET.json; with guidance,
which takes two evaluations a step, ..._guided_SCALE.json; with --fast, of the packaged companion of few evaluations, ..._fast_STEPS.json.
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

from diffnb.apps import grid, write_png
from diffnb.data import image_set
from diffnb.metrics import FID_WEIGHTS_SHA256, FeatureStatistics, FrechetDistance, InceptionFeatures, KernelDistance
from diffnb.model import GenerativeModel

RESULTS = Path(__file__).parent / "results"
MOST_EVALUATIONS = 20


def real_images(name, root, n, size):
    """The first n images of the test and of the training set, or n that are evenly spaced where classes lie one after another."""
    folder = Path(root) / name
    if name in ("fashion_mnist", "mnist", "cifar10"):
        sets = {split: image_set(name, split=split, root=root, size=size, verbose=False) for split in ("test", "train")}
    else:
        train, test = image_set(folder, size=size, verbose=False).split(0.5, seed=0)
        sets = {"test": test, "train": train}
    n = min(n, *(len(s) for s in sets.values()))

    def pick(s):
        sorted_by_class = s.labels is not None and bool((s.labels.diff() >= 0).all())
        return s.images[torch.linspace(0, len(s) - 1, n).long() if sorted_by_class else torch.arange(n)]

    return {split: pick(s) for split, s in sets.items()}, n


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


def real_features(extractor, images, name, folder):
    """Features of real images, from the folder where they have been made before: recognised by the digest of images and weights."""
    digest = hashlib.sha256(images.numpy().tobytes() + FID_WEIGHTS_SHA256.encode()).hexdigest()
    path = folder / f"{name}_{len(images)}_fid_features.safetensors"
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

    return torch.cat([known, extract(extractor(), images[len(known) :], name, save=save)])


def generate(model, n, steps, seed, guidance_scale):
    """Make n images as bytes, the classes in turn, in at most `MOST_EVALUATIONS` evaluations."""
    evaluations = model.sampler.evaluations(steps)
    if evaluations is not None and guidance_scale != 1:
        evaluations *= 2  # with and without the class
    if evaluations is None or evaluations > MOST_EVALUATIONS:
        guided = "" if guidance_scale == 1 else ", two a step as it is guided"
        spent = f"{type(model.sampler).__name__} spends {evaluations} evaluations in {steps} steps{guided}"
        raise SystemExit(f"{spent}; at most {MOST_EVALUATIONS} are meant here: give fewer --steps")
    labels = [model.labels[i % len(model.labels)] for i in range(n)] if model.labels else None
    start = time.time()
    images = model.generate(num_samples=n, class_labels=labels, seed=seed, n_steps=steps, guidance_scale=guidance_scale)
    print(f"  generated {n} images in {time.time() - start:.0f} s, {evaluations} evaluations each", flush=True)
    return (images * 255).round().to(torch.uint8), evaluations


def distances(features, extractor):
    """Frechet and kernel distance of the generated and of other real images from the reference."""
    frechet, kernel = FrechetDistance(extractor), KernelDistance(extractor)
    statistics = {name: FeatureStatistics().update(f) for name, f in features.items()}
    rows = {"fid": frechet(statistics["test"], statistics["generated"]), "fid_floor": frechet(statistics["test"], statistics["train"])}
    rows |= {"kid": kernel.from_features(features["test"], features["generated"])}
    rows |= {"kid_floor": kernel.from_features(features["test"], features["train"])}
    return {k: r.value for k, r in rows.items()} | {f"{k}_error": r.error for k, r in rows.items() if r.error is not None}, frechet.config()


def main():
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, help="folder of the Inception weights; features are kept there too")
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--set", default="fashion_mnist", help="fashion_mnist, mnist, cifar10, or a folder of images under ROOT")
    parser.add_argument("--size", type=int, help="side to which real images are resized")
    parser.add_argument("--n", type=int, default=2000, help="images in each set")
    parser.add_argument("--steps", type=int, default=20, help="steps of the model's sampler")
    parser.add_argument("--model", type=Path, help="model file; without it the packaged model of that name")
    parser.add_argument("--fast", action="store_true", help="the companion that was distilled from the packaged model; --steps: its evaluations")
    parser.add_argument("--guidance-scale", type=float, default=1.0, help="strength of the class; 1: none beyond the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--real-only", action="store_true", help="only make the features of the real images")
    args = parser.parse_args()
    if args.model and args.fast:
        parser.error("--fast is the companion of a packaged model; leave out --model")
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="fid of", category=UserWarning)  # that n is small is why the floor stands beside it

    extractor = functools.cache(lambda: InceptionFeatures(args.weights))  # not needed where all features are known
    real, n = real_images(args.set, args.data, args.n, args.size)
    features = {split: real_features(extractor, images, f"{args.set}_{split}", args.weights) for split, images in real.items()}
    if args.real_only:
        return
    model = GenerativeModel.load(args.model, verbose=False) if args.model else GenerativeModel.pretrained(args.set, verbose=False, fast=args.fast)
    images, evaluations = generate(model, n, args.steps, args.seed, args.guidance_scale)
    features["generated"] = extract(extractor(), images, "generated")
    rows, how = distances(features, extractor())
    print(f"\n{how['extractor']}, resize of {how['resize']}, against {n} test images of {args.set}")
    made = f"{n} generated images, {evaluations} evaluations, {type(model.sampler).__name__}, guidance {args.guidance_scale:g}, seed {args.seed}"
    print(f"  {made}: FID {rows['fid']:.2f}, KID {rows['kid']:.5f} +- {rows['kid_error']:.5f}")
    print(f"  {n} training images (the floor): FID {rows['fid_floor']:.2f}, KID {rows['kid_floor']:.5f} +- {rows['kid_floor_error']:.5f}")
    result = {
        **how,
        "weights_sha256": FID_WEIGHTS_SHA256,
        "reference": f"{args.set} test, {n} images",
        "n": n,
        "model": args.model.name if args.model else f"{args.set}{' fast' * args.fast} (packaged)",
        "images_seen": sum(record["images_seen"] for record in model.records),
        "records": [dict(record) for record in model.records] if args.model else None,  # of packaged ones they are in the package
        "sampler": repr(model.sampler),
        "process": repr(model.sde),
        "n_steps": args.steps,
        "nfe": evaluations,
        "guidance_scale": args.guidance_scale,
        "classes": "balanced" if model.labels else "none",
        "seed": args.seed,
        **rows,
    }
    RESULTS.mkdir(exist_ok=True)
    name = "quality" if args.set == "fashion_mnist" and not (args.model or args.fast) else f"quality_{args.set}"
    name += f"_fast_{args.steps}" * args.fast
    name += "" if args.guidance_scale == 1 else f"_guided_{args.guidance_scale:g}"
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    write_png(grid(images[:40].float() / 255, 20), RESULTS / f"{name}.png", scale=2 if images.shape[-1] < 64 else 1)


if __name__ == "__main__":
    main()
