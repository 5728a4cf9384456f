"""How much of a picture is left after a codec's round trip? PSNR and kernel distance on images that the codec has not seen.

    python benchmarks/codecs.py [--sets emoji FOLDER] [--sizes 64 128] [--codecs NAME ...] [--pictures 256]
    python benchmarks/codecs.py --codecs "ConvCodec, 8 channels" --train-minutes 180 [--run FOLDER]
    python benchmarks/codecs.py --show      the table of what has been measured

A tenth of each set is held out, and the codec is fitted to the rest. Emoji come with the package; a folder of pictures is any set of one's own, and
its rows have the name of the folder. The PSNR of an image is -10 log10 of the mean squared error of its round trip, in units where images lie in [0,
1], with what comes back clamped to [0, 1]; the table has its mean over the images held out, and that of the pooled error. "numbers kept" is the size
of a latent as a share of the size of an image. A learned codec is trained for --train-minutes of CPU time on one core, and its row says for how long;
its state is kept in --run, from which a training that was ended goes on (see train_codec.py). Rows are written to results/codecs.json as soon as they
are measured.

The kernel distance says what the loss does to the look of a set, where the PSNR counts pixels: --pictures of those held out, after the round trip,
against as many others, which the codec was fitted to, as they are. It is taken in the features of Inception where DIFFNB_WEIGHTS has them, which is
the KID, else in those of the packaged ResNet-20 of CIFAR-10; the row names the features. The floor is the distance of the same held-out pictures
without the round trip. Both distances have the same other pictures in common, so that their difference is known far better than each of them.

The packaged emoji have 64 pixels a side. Emoji of 128 pixels are these, enlarged, and easier for a codec than drawings of that size would be: an
enlargement has no fine detail.
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
from diffnb.metrics import make_metric
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
def round_trip(codec, images, rows):
    """Some images, decoded from what they are encoded as, in [0, 1]."""
    return to_unit(codec.decode(codec.encode(to_model(images.unit(rows)))))


def errors(codec, images):
    """Mean squared error of the round trip of each image, (n,) float64."""
    parts = torch.arange(len(images)).split(256)
    return torch.cat([(round_trip(codec, images, rows) - images.unit(rows)).double().square().flatten(1).mean(1) for rows in parts])


class Distances:
    """The kernel distance of round trips from other images, and that of the same images without one; features of real images are computed once."""

    def __init__(self, kept, aside, n):
        """Choose n images of each part; fewer where a part has fewer."""
        self.aside = aside.select(chosen(len(aside), n))
        self.metric = make_metric("kid", None, aside.shape, len(self.aside))
        self.reference = self.metric.features(kept.select(chosen(len(kept), n)).images)
        self.floor = self.metric.from_features(self.reference, self.metric.features(self.aside.images))

    def __call__(self, codec):
        """What the row of a codec says of it."""
        rows = torch.arange(len(self.aside)).split(64)
        features = torch.cat([self.metric.features(round_trip(codec, self.aside, some)) for some in rows])
        found = self.metric.from_features(self.reference, features)
        facts = {"kernel": found.value, "kernel_error": found.error, "kernel_floor": self.floor.value, "kernel_floor_error": self.floor.error}
        return facts | {"kernel_images": [found.n_real, found.n_generated], "features": self.metric.config()["extractor"]}


def chosen(total, n):
    """Which n of so many, at random and always the same ones."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:n]


def fitted(name, kept, options):
    """One codec, and what its row says of how it was fitted."""
    if name not in LEARNED:
        start = time.perf_counter()
        return CODECS[name](kept), {"seconds_to_fit": time.perf_counter() - start}
    with tempfile.TemporaryDirectory() as scratch:
        training, minutes = trained(kept, LEARNED[name], options.train_minutes, options.run or Path(scratch))
    numbers = sum(p.numel() for p in training.network.parameters())
    return training.codec(), {"minutes_trained": minutes, "steps": training.step, "parameters": numbers}


def measured(name, kept, aside, distances, options):
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
    } | (facts if distances is None else facts | distances(codec))


def show(rows):
    """Print the table."""
    heads = ["set", "size", "codec", "latent", "numbers kept", "PSNR, dB", "pooled, dB", "kernel distance", "floor", "features", "trained, minutes"]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for key, row in rows.items():
        name, size, codec = key.split("/")
        latent = " x ".join(map(str, row["latent"]))
        exact = row["psnr_pooled"] > 100  # but for rounding
        cells = [name, size, codec, latent, f"{row['kept']:.3f}"]
        cells += ["exact"] * 2 if exact else [f"{row['psnr']:.1f} ± {row['standard_error']:.1f}", f"{row['psnr_pooled']:.1f}"]
        if "features" in row:
            cells += [f"{row[which]:.4f} ± {row[f'{which}_error']:.4f}" for which in ("kernel", "kernel_floor")] + [row["features"]]
        else:
            cells += [""] * 3
        print("| " + " | ".join([*cells, f"{row.get('minutes_trained', 0):.1f}"]) + " |")


def main():
    """Measure what has not been measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["emoji"], help="names of sets, or folders")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64], help="sides of the images")
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), choices=[*CODECS, *LEARNED], help="which codecs")
    parser.add_argument("--pictures", type=int, default=256, help="held-out pictures whose kernel distance is taken; 0: none")
    parser.add_argument("--train-minutes", type=float, default=180.0, help="minutes of computing for a learned codec")
    parser.add_argument("--run", type=Path, help="folder for the state of a training; none: it is not kept")
    parser.add_argument("--show", action="store_true", help="print the table, and measure nothing")
    options = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for name in () if options.show else options.sets:
        for size in options.sizes:
            images = image_set(name, size=size, verbose=False)
            kept, aside = images.split(0.1, seed=0)
            distances = Distances(kept, aside, options.pictures) if options.pictures else None
            for codec in options.codecs:
                rows[f"{Path(name).name}/{size}/{codec}"] = measured(codec, kept, aside, distances, options)
                RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
