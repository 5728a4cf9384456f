"""How much of a picture is left after a codec's round trip? PSNR on images that the codec has not seen.

    python benchmarks/codecs.py [--sets emoji FOLDER] [--sizes 64 128] [--codecs NAME ...]
    python benchmarks/codecs.py --codecs "ConvCodec, 8 channels" --train-minutes 180 [--run FOLDER]
    python benchmarks/codecs.py --show      the table of what has been measured

A tenth of each set is held out, and the codec is fitted to the rest. Emoji come with the package; a folder of pictures is any set of one's own, and
its rows have the name of the folder. The PSNR of an image is -10 log10 of the mean squared error of its round trip, in units where images lie in [0,
1], with what comes back clamped to [0, 1]; the table has its mean over the images held out, and that of the pooled error. "numbers kept" is the size
of a latent as a share of the size of an image. A learned codec is trained for --train-minutes of CPU time on one core, and its row says for how long;
its state is kept in --run, from which a training that was ended goes on (see train_codec.py). Rows are written to results/codecs.json as soon as they
are measured.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from train_codec import trained

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
LEARNED = {"ConvCodec, 4 channels": 4, "ConvCodec, 8 channels": 8, "ConvCodec, 16 channels": 16}  # channels of each


@torch.no_grad()
def errors(codec, images):
    """Mean squared error of the round trip of each image, (n,) float64."""
    found = []
    for rows in torch.arange(len(images)).split(256):
        x = images.unit(rows)
        found.append((to_unit(codec.decode(codec.encode(to_model(x)))) - x).double().square().flatten(1).mean(1))
    return torch.cat(found)


def fitted(name, kept, options):
    """One codec, and what its row says of how it was fitted."""
    if name not in LEARNED:
        start = time.perf_counter()
        return CODECS[name](kept), {"seconds_to_fit": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as scratch:
        training, minutes = trained(kept, LEARNED[name], options.train_minutes, options.run or Path(scratch))
    numbers = sum(p.numel() for p in training.network.parameters())
    return training.codec(), {"minutes_trained": minutes, "steps": training.step, "parameters": numbers}


def measured(name, kept, aside, options):
    """The row of one codec."""
    codec, facts = fitted(name, kept, options)
    error = errors(codec, aside).clamp(min=1e-12)
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
    } | facts


def show(rows):
    """Print the table."""
    print("| set | size | codec | latent | numbers kept | PSNR, dB | pooled, dB | trained, minutes |\n|---|---|---|---|---|---|---|---|")
    for key, row in rows.items():
        name, size, codec = key.split("/")
        latent = " x ".join(map(str, row["latent"]))
        exact = row["psnr_pooled"] > 100  # but for rounding
        psnr, pooled = ("exact",) * 2 if exact else (f"{row['psnr']:.1f} ± {row['standard_error']:.1f}", f"{row['psnr_pooled']:.1f}")
        print(f"| {name} | {size} | {codec} | {latent} | {row['kept']:.3f} | {psnr} | {pooled} | {row.get('minutes_trained', 0):.1f} |")


def main():
    """Measure what has not been measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["emoji"], help="names of sets, or folders")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64], help="sides of the images")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=[*CODECS, *LEARNED], help="which codecs")
    parser.add_argument("--train-minutes", type=float, default=180.0, help="minutes of computing for a learned codec")
    parser.add_argument("--run", type=Path, help="folder for the state of a training; none: it is not kept")
    parser.add_argument("--show", action="store_true", help="print the table, and measure nothing")
    options = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name in () if options.show else options.sets:
        for size in options.sizes:
            images = image_set(name, size=size, verbose=False)
            kept, aside = images.split(0.1, seed=0)
            for codec in options.codecs:
                rows[f"{Path(name).name}/{size}/{codec}"] = measured(codec, kept, aside, options)
                RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
