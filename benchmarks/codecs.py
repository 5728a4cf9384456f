"""How much of a picture is left after a codec's round trip? PSNR on images that the codec has not seen, for the codecs in closed form.

    python benchmarks/codecs.py [--sets emoji FOLDER] [--sizes 64 128] [--codecs NAME ...]
    python benchmarks/codecs.py --show      the table of what has been measured

A tenth of each set is held out, and the codec is fitted to the rest. Emoji come with the package; a folder of pictures is any set of one's own, and
its rows have the name of the folder. The PSNR of an image is -10 log10 of the mean squared error of its round trip, in units where images lie in [0,
1], with what comes back clamped to [0, 1]; the table has its mean over the images held out, and that of the pooled error. "numbers kept" is the size
of a latent as a share of the size of an image. Rows are written to results/codecs.json as soon as they are measured.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from diffnb.core import to_model, to_unit
from diffnb.data import image_set
from diffnb.networks import PatchPCA, Wavelet

RESULT = Path(__file__).parent / "results" / "codecs.json"
CODECS = {  # name: how it is fitted
    "PatchPCA, 4 channels": lambda images: PatchPCA.fit(images, 4, 4),
    "PatchPCA, 8 channels": lambda images: PatchPCA.fit(images, 4, 8),
    "PatchPCA, 16 channels": lambda images: PatchPCA.fit(images, 4, 16),
    "PatchPCA, all channels": lambda images: PatchPCA.fit(images, 4, None),
    "Wavelet, 1 level": lambda images: Wavelet.fit(images, 1),
    "Wavelet, 2 levels": lambda images: Wavelet.fit(images, 2),
}


@torch.no_grad()
def errors(codec, images):
    """Mean squared error of the round trip of each image, (n,) float64."""
    found = []
    for rows in torch.arange(len(images)).split(256):
        x = images.unit(rows)
        found.append((to_unit(codec.decode(codec.encode(to_model(x)))) - x).double().square().flatten(1).mean(1))
    return torch.cat(found)


def measured(name, kept, aside):
    """The row of one codec."""
    start = time.perf_counter()
    codec = CODECS[name](kept)
    seconds, error = time.perf_counter() - start, errors(codec, aside).clamp(min=1e-12)
    psnr = -10 * error.log10()
    latent = codec.shape(aside.shape)
    share = torch.Size(latent).numel() / torch.Size(aside.shape).numel()
    return {
        "latent": list(latent),
        "kept": share,
        "psnr": psnr.mean().item(),
        "standard_error": (psnr.std() / len(psnr) ** 0.5).item(),
        "psnr_pooled": -10 * error.mean().log10().item(),
        "images": [len(kept), len(aside)],
        "seconds_to_fit": seconds,
    }


def show(rows):
    """Print the table."""
    print("| set | size | codec | latent | numbers kept | PSNR, dB | pooled, dB |\n|---|---|---|---|---|---|---|")
    for key, row in rows.items():
        name, size, codec = key.split("/")
        latent = " x ".join(map(str, row["latent"]))
        exact = row["psnr_pooled"] > 100  # but for rounding
        psnr, pooled = ("exact",) * 2 if exact else (f"{row['psnr']:.1f} ± {row['standard_error']:.1f}", f"{row['psnr_pooled']:.1f}")
        print(f"| {name} | {size} | {codec} | {latent} | {row['kept']:.3f} | {psnr} | {pooled} |")


def main():
    """Measure what has not been measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["emoji"], help="names of sets, or folders")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64], help="sides of the images")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=CODECS, help="which codecs")
    parser.add_argument("--show", action="store_true", help="print the table, and measure nothing")
    options = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name in () if options.show else options.sets:
        for size in options.sizes:
            images = image_set(name, size=size, verbose=False)
            kept, aside = images.split(0.1, seed=0)
            for codec in options.codecs:
                rows[f"{Path(name).name}/{size}/{codec}"] = measured(codec, kept, aside)
                RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
