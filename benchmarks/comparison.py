"""Which process, schedule and sampler, at which task? Three comparisons by `diffnb compare`, and their rows as files.

    python benchmarks/comparison.py --out DIR [--data ROOT] [--workers 2]      do what is missing, and store the rows of all that is finished
    python benchmarks/comparison.py --out DIR --quick      the same with hardly any training: whether it runs; nothing is stored
    python benchmarks/comparison.py --out DIR --store      store the rows of what is finished, and do nothing

comparison.toml spans processes, schedules, samplers and two tasks; comparison_learning.toml trainings of three lengths; comparison_counts.toml
numbers of images. They share DIR, and the trainings that are in it. The run may be stopped and taken up at any time.
"""

import argparse
import io
import json
import platform
from pathlib import Path

import torch
from PIL import Image

from diffnb.apps import Comparison, WorkPlan, grouped, result_rows, rows_to_csv, run_comparison, sample_figure

HERE = Path(__file__).parent
NAMES = ("comparison", "comparison_learning", "comparison_counts")


def store(name, plan):
    """Write the rows of what is finished, and for the large comparison a picture of each group of samples."""
    rows = result_rows(plan)
    (HERE / "results" / f"{name}.csv").write_text(rows_to_csv(rows))
    if name == "comparison":
        for own in grouped(rows).values():
            figure = sample_figure(own, plan.folder / "cells")
            figure.savefig(written := io.BytesIO(), format="png", dpi=80)
            Image.open(written).convert("L").quantize(16).save(HERE / "results" / f"comparison_{own[0]['data']}_{own[0]['task']}.png", optimize=True)
    trained = [json.loads(path.read_text()) for path in plan.folder.glob("models/*/about.json")]
    facts = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    facts |= {"cells": len(plan.cells), "finished": len(rows), "seconds_of_images": sum(row["seconds"] * row["n_generated"] for row in rows)}
    facts |= {"trainings_in_folder": len(trained), "seconds_of_training": sum(one["seconds"] for one in trained)}
    path = HERE / "results" / "comparison.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {name: facts}, indent=1) + "\n")
    print(f"{name}: {len(rows)} of {len(plan.cells)} cells")


def main():
    """Do, or store, all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for models and cells")
    parser.add_argument("--data", help="folder of the data sets; DIFFNB_DATA without it")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="try everything with little, and store nothing")
    parser.add_argument("--store", action="store_true", help="store what is finished, and do nothing")
    args = parser.parse_args()
    for name in NAMES:
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


if __name__ == "__main__":
    main()
