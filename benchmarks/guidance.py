"""Which guidance scale? Distance and label agreement over scales and intervals, on the packaged Fashion-MNIST model.

n images a setting, classes in turn, the same noise for all, 10 steps of DPM-Solver++(2M). Distances are Fréchet distances of the packaged
classifier's features to 4,000 packaged real images; the floor is that of n others. Prints a table, writes results/guidance.json and
results/guidance.png:

    python benchmarks/guidance.py [n]
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import diffnb
from diffnb.core import NoiseSource
from diffnb.data import image_set
from diffnb.guidance import ClassifierFree
from diffnb.metrics import FashionClassifier, frechet_of_features, label_agreement
from diffnb.model import GenerativeModel
from diffnb.samplers import DPMSolverPP2M

SCALES, INTERVAL, STEPS, N_REAL = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0), (0.2, 3.0), 10, 4000
RESULTS = Path(__file__).parent / "results"


def generate(model, scale, interval, labels):
    """Images of the asked-for classes, chunk by chunk."""
    denoiser, parts = ClassifierFree(model.denoiser(), scale, interval), []
    for first in range(0, len(labels), 100):
        own = labels[first : first + 100]
        noise = NoiseSource.of(0, len(own), first)
        parts.append(DPMSolverPP2M()(denoiser, shape=(len(own), *model.shape), n_steps=STEPS, seeds=noise, condition={"label": own}).x)
    return ((torch.cat(parts) + 1) / 2).clamp(0, 1)


def rows(model, n):
    """One row for each setting."""
    extractor, labels = FashionClassifier(), torch.arange(n) % 10
    real = image_set("packaged", verbose=False).images.float() / 255
    reference = extractor(real[:N_REAL])
    yield {"what": "real images", "scale": None, "distance": frechet_of_features(reference, extractor(real[N_REAL : N_REAL + n]))}
    for interval in (None, INTERVAL):
        for scale in SCALES if interval is None else [scale for scale in SCALES if scale > 1]:
            start = time.perf_counter()
            images = generate(model, scale, interval, labels)
            seconds = time.perf_counter() - start
            agreement, error, _ = label_agreement(extractor.probabilities(images), labels)
            yield {
                "what": "all levels" if interval is None else f"{interval[0]} to {interval[1]}",
                "scale": scale,
                "distance": frechet_of_features(reference, extractor(images)),
                "agreement": agreement,
                "agreement_error": error,
                "seconds": round(seconds, 1),
            }


def draw(table, path):
    """Distance and agreement against the scale."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(7.5, 3), dpi=100, layout="constrained")
    for what in dict.fromkeys(row["what"] for row in table if row["scale"] is not None):
        own = [row for row in table if row["what"] == what]
        for ax, key in zip(axes, ("distance", "agreement")):
            ax.plot([row["scale"] for row in own], [row[key] for row in own], "o-", ms=4, label=what)
    axes[0].axhline(table[0]["distance"], color="0.5", lw=1, ls="--", label="real images")
    axes[0].set(xlabel="guidance scale", ylabel="Fréchet distance", yscale="log")
    axes[1].set(xlabel="guidance scale", ylabel="label agreement")
    axes[0].legend(fontsize=8)
    fig.savefig(path)


def main():
    """Print the table, write it down, draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n", nargs="?", type=int, default=1000, help="images a setting")
    n = parser.parse_args().n
    model, table = GenerativeModel.pretrained("fashion_mnist", verbose=False), []
    print(f"{'guided at noise levels':24s} {'scale':>6s} {'distance':>9s} {'agreement':>10s} {'seconds':>8s}")
    for row in rows(model, n):
        table.append(row)
        agreement = f"{row['agreement']:.1%}" if "agreement" in row else ""
        print(
            f"{row['what']:24s} {'' if row['scale'] is None else row['scale']:>6} {row['distance']:9.4f} {agreement:>10s} {row.get('seconds', ''):>8}"
        )
    about = {"diffnb": diffnb.__version__, "torch": torch.__version__, "machine": platform.machine(), "n": n, "n_real": N_REAL, "n_steps": STEPS}
    about |= {"model": "fashion_mnist", "training_runs": len(model.trained.records)}
    (RESULTS / "guidance.json").write_text(json.dumps({"about": about, "rows": table}, indent=1) + "\n")
    draw(table, RESULTS / "guidance.png")


if __name__ == "__main__":
    main()
