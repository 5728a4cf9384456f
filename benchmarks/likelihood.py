"""How many bits does a pixel of Fashion-MNIST cost? The packaged model's likelihood, beside PNG and LZMA of the same images.

    python benchmarks/likelihood.py --data ROOT [--images 500] [--steps 8] [--device cpu] [--threads N]

with the test split of Fashion-MNIST, in the layout of torchvision, under ROOT. Images are taken evenly from it, with their classes given to the
model. Columns: bits per pixel, mean over images, and the standard error of that mean. results/likelihood.json also keeps the bits of each image
and the position of each in the test split. 500 images take a quarter of an hour on one core, in float32.
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

RESULT = Path(__file__).parent / "results" / "likelihood.json"


def png(image):
    """Bytes of one image as an optimised PNG."""
    file = io.BytesIO()
    Image.fromarray(image[0].numpy()).save(file, "PNG", optimize=True)
    return len(file.getvalue())


def coder(name, lengths, n_pixels):
    """Row of a general coder, from the bytes that it needs for each image."""
    values = 8 * torch.tensor(lengths, dtype=torch.float64) / n_pixels
    return {"coder": name, "bits": values.mean().item(), "error": (values.std() / len(values) ** 0.5).item(), "values": values.tolist()}


def store(about, rows):
    """Write what there is, numbers with four decimals."""

    def short(value):
        return [short(v) for v in value] if isinstance(value, list) else round(value, 4) if isinstance(value, float) else value

    lines = ",\n  ".join(json.dumps({k: short(v) for k, v in row.items()}) for row in rows)
    RESULT.write_text(f'{{"about": {json.dumps(about)},\n "rows": [\n  {lines}\n]}}\n')


def main():
    """Measure, print, and write down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=8, help="steps of six evaluations")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args()
    n, n_steps, device = args.images, args.steps, args.device
    if args.threads:
        torch.set_num_threads(args.threads)
    model = GenerativeModel.pretrained("fashion_mnist", device=device, verbose=False)
    test = image_set("fashion_mnist", split="test", root=args.data, verbose=False)
    pick = torch.linspace(0, len(test.images) - 1, n).round().long()
    images, labels = test.images[pick], test.labels[pick]
    pixels = images[0].numel()
    rows = [
        coder("PNG, one file an image", [png(i) for i in images], pixels),
        coder("LZMA, one stream an image", [len(lzma.compress(i.numpy().tobytes(), preset=9)) for i in images], pixels),
        {"coder": "LZMA, all images in one stream", "bits": 8 * len(lzma.compress(images.numpy().tobytes(), preset=9)) / (n * pixels)},
    ]
    about = {"images": n, "n_steps": n_steps, "torch": torch.__version__, "device": device, "seed": 0, "positions": pick.tolist()}
    denoiser = model.trained.denoiser()
    for dequantization in ("uniform", "truncated-normal"):
        start = time.perf_counter()
        bits = bits_per_dim(
            denoiser, images, n_steps=n_steps, condition={"label": labels}, dequantization=dequantization, batch_size=50, device=device
        )
        row = {"coder": f"packaged model, {dequantization} noise", "bits": bits.mean, "error": bits.standard_error, "nfe": bits.nfe}
        rows.append(row | {"seconds": round(time.perf_counter() - start, 1), "values": bits.values.tolist()})
        store(about, rows)
    print(f"{'bits per pixel of ' + str(n) + ' test images':42s} {'bits':>7s} {'error':>7s}")
    for row in rows:
        print(f"{row['coder']:42s} {row['bits']:7.3f}" + (f" {row['error']:7.3f}" if "error" in row else ""))


if __name__ == "__main__":
    main()
