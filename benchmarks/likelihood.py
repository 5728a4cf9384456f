"""How many bits does a pixel of Fashion-MNIST cost? The packaged model's likelihood, beside PNG and LZMA of the same images.

Prints a table and writes results/likelihood.json:  python benchmarks/likelihood.py --data ROOT [--images 500] [--steps 8] [--device cpu]
with the test split of Fashion-MNIST, in the layout of torchvision, under ROOT.
"""

import argparse
import io
import json
import lzma
import time
from pathlib import Path

import torch
from PIL import Image

from diffnb import GenerativeModel
from diffnb.data import image_set
from diffnb.likelihood import bits_per_dim


def png(image):
    """Bytes of one image as an optimised PNG."""
    file = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(file, "PNG", optimize=True)
    return len(file.getvalue())


def main():
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=8, help="steps of six evaluations")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    n, n_steps, device = args.images, args.steps, args.device
    model = GenerativeModel.pretrained("fashion_mnist", device=device, verbose=False)
    test = image_set("fashion_mnist", split="test", root=args.data, verbose=False)
    pick = torch.linspace(0, len(test.images) - 1, n).round().long()
    images, labels = test.images[pick], test.labels[pick]
    pixels = images[0].numel()
    rows = [
        {"coder": "PNG, one file an image", "bits": 8 * sum(map(png, images)) / (n * pixels)},
        {"coder": "LZMA, one stream an image", "bits": 8 * sum(len(lzma.compress(i.numpy().tobytes(), preset=9)) for i in images) / (n * pixels)},
        {
            "coder": "LZMA, all images in one stream",
            "bits": 8 * len(lzma.compress(images.numpy().tobytes(), preset=9)) / (n * pixels),
        },
    ]
    denoiser = model.trained.denoiser()
    for dequantization in ("uniform", "truncated-normal"):
        start = time.perf_counter()
        bits = bits_per_dim(
            denoiser, images, n_steps=n_steps, condition={"label": labels}, dequantization=dequantization, batch_size=50, device=device
        )
        row = {"coder": f"packaged model, {dequantization} noise", "bits": bits.mean, "error": bits.standard_error, "nfe": bits.nfe}
        rows.append(row | {"seconds": round(time.perf_counter() - start, 1)})
        print(rows[-1], flush=True)
    print(f"{'bits per pixel of ' + str(n) + ' test images':42s} {'bits':>7s} {'error':>7s}")
    for row in rows:
        print(f"{row['coder']:42s} {row['bits']:7.3f} {row.get('error', 0):7.3f}")
    about = {"images": n, "n_steps": n_steps, "torch": torch.__version__, "device": device, "seed": 0}
    out = Path(__file__).parent / "results" / "likelihood.json"
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
