"""Which process, schedule and sampler, at which task? Nine comparisons by `diffnb compare`, and their rows as files.

    python benchmarks/comparison.py --out DIR [--data ROOT] [--workers 2]      do what is missing, and store the rows of all that is finished
    python benchmarks/comparison.py --out DIR --only comparison_counts      one of them
    python benchmarks/comparison.py --out DIR --quick      the same with hardly any training: whether it runs; nothing is stored
    python benchmarks/comparison.py --out DIR --store      store the rows of what is finished, and do nothing

The first line of each comparison*.toml says what it spans. They share DIR, and the trainings that are in it: four hours of one core for all. The run
may be stopped and taken up at any time; what is done first is what the most of the page rests on. The last of them needs the weights of Inception.
For the models of the first, the bits per dimension of --bits images that were kept aside are bounded, and written to comparison_bits.csv.
"""

import argparse
import io
import json
import platform
from pathlib import Path

import torch
from PIL import Image

from diffnb.apps import Comparison, WorkPlan, grouped, read_rows, result_rows, rows_to_csv, run_comparison, sample_figure
from diffnb.likelihood import bits_per_dim
from diffnb.model import GenerativeModel

HERE = Path(__file__).parent
PARTS = ("", "_restoration", "_classes", "_networks", "_methods", "_counts", "_steps", "_learning", "_inception")
NAMES = tuple(f"comparison{part}" for part in PARTS)
PICTURED = ("comparison", "comparison_restoration")  # whose samples are shown


def store(name, plan):
    """Write the rows of what is finished, and a picture of each group of samples that the page shows."""
    rows = result_rows(plan)
    (HERE / "results" / f"{name}.csv").write_text(rows_to_csv(rows))
    if name in PICTURED:
        for own in grouped(rows).values():
            figure = sample_figure(own, plan.folder / "cells")
            figure.savefig(written := io.BytesIO(), format="png", dpi=80)
            Image.open(written).convert("RGB").quantize(64).save(
                HERE / "results" / f"comparison_{own[0]['data']}_{own[0]['task']}.png", optimize=True
            )
    trained = [json.loads(path.read_text()) for path in plan.folder.glob("models/*/about.json")]
    facts = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    facts |= {"cells": len(plan.cells), "finished": len(rows), "seconds_of_images": sum(row["seconds"] * row["n_generated"] for row in rows)}
    facts |= {"trainings_in_folder": len(trained), "seconds_of_training": sum(one["seconds"] for one in trained)}
    path = HERE / "results" / "comparison.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {name: facts}, indent=1) + "\n")
    print(f"{name}: {len(rows)} of {len(plan.cells)} cells")


def measure_bits(plan, n):
    """Bound the bits per dimension of n images that were kept aside, without their classes, for every model that is there; known rows are kept."""
    path = HERE / "results" / "comparison_bits.csv"
    rows = {row["digest"]: row for row in read_rows(path)} if path.is_file() else {}
    for digest, cell in plan.cells.items():
        place = plan.model_file(digest)
        name = place.parent.name
        if place.is_file() and rows.get(name, {}).get("images") != n:
            images = plan.sets_of(cell).aside.images[:n]
            bits = bits_per_dim(GenerativeModel.load(place, "cpu", verbose=False).trained.denoiser(), images, n_steps=8)
            facts = {"digest": name, "data": cell.data, "process": cell.process, "schedule": cell.schedule, "train_steps": cell.train_steps}
            rows[name] = facts | {"images": n, "bits": bits.mean, "error": bits.standard_error, "evaluations": bits.nfe}
            print(f"{cell.data} {cell.process} {cell.schedule}: {bits.mean:.3f} ± {bits.standard_error:.3f} bits per dimension", flush=True)
            path.write_text(rows_to_csv(list(rows.values())))


def main():
    """Do, or store, all that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models and cells")
    parser.add_argument("--data", help="folder of the data sets; DIFFNB_DATA without it")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--bits", type=int, default=200, help="images whose bits per dimension are bounded")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="some of the comparisons")
    parser.add_argument("--quick", action="store_true", help="try everything with little, and store nothing")
    parser.add_argument("--store", action="store_true", help="store what is finished, and do nothing")
    args = parser.parse_args()
    for name in args.only:
        settings = Comparison.of(HERE / f"{name}.toml")
        if args.quick:
            plan, failed = run_comparison(settings.quick(), args.out / "quick", root=args.data, workers=args.workers)
            print(f"{name}: {len(plan.cells) - len(plan.missing())} of {len(plan.cells)} cells", *failed.values(), sep="\n")
        else:
            plan = WorkPlan(settings, args.out, args.data)
            if not args.store:
                plan, failed = run_comparison(settings, args.out, root=args.data, workers=args.workers)
                print(*failed.values(), sep="\n")
            store(name, plan)
            if name == "comparison" and not args.store:
                measure_bits(plan, args.bits)


if __name__ == "__main__":
    main()
