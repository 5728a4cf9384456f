"""Draw the samples of the packaged colour model that come with the package: `image_set("cifar10_samples")` reads them.

    python benchmarks/colour_samples.py [--seed 0] [--steps 18] [--rows 4]

Writes diffnb/assets/cifar10_samples.png: a row of all classes in turn, --rows times, in the order of the model's labels. The sampler is the
model's own. How the images were made (model, sampler, steps, seed, names of the classes) stands in the file, as a text chunk "diffnb.samples"
of JSON.
The file is made anew when the packaged model changes; the same model, seed and steps give the same images.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import diffnb
from diffnb.apps import grid
from diffnb.model import GenerativeModel, digest_of_model

PLACE = Path(diffnb.__file__).parent / "assets" / "cifar10_samples.png"
LARGEST = 100_000  # bytes


def main():
    """Generate, and write the grid."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=18)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--out", type=Path, default=PLACE)
    args = parser.parse_args()
    model = GenerativeModel.pretrained("cifar10", device="cpu", verbose=False)
    classes = model.num_classes
    images = model.generate(args.rows * classes, args.steps, args.seed, list(model.labels) * args.rows, batch_size=classes)
    facts = {"names": model.label_names, "rows": args.rows, "model": digest_of_model(model), "sampler": repr(model.sampler)}
    facts |= {"n_steps": args.steps, "seed": args.seed, "torch": torch.__version__, "licence": "MIT, as diffnb; generated, no image of CIFAR-10"}
    text = PngInfo()
    text.add_text("diffnb.samples", json.dumps(facts))
    Image.fromarray(grid(images, classes, gap=0).numpy()).save(args.out, pnginfo=text, optimize=True)
    size = args.out.stat().st_size
    print(f"{args.out}: {len(images)} images, {size:,} bytes")
    if size > LARGEST:
        raise SystemExit(f"that is more than {LARGEST:,} bytes; take fewer rows")


if __name__ == "__main__":
    main()
