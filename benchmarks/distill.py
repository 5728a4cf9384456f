"""How good is a distilled model, and how much training does it take? Distance at 1, 2 and 4 evaluations, beside the teacher's at up to 20.

    python benchmarks/distill.py --teacher fashion_mnist --data fashion_mnist --time-limit 3600 --out student.safetensors [--guidance-scale 1]
                                 [--root ROOT] [--limit N] [--batch-size N] [--lr 4e-4] [--method heun] [--matching 1.5] [--gap 4]
                                 [--precision auto] [--seed 0] [--threads 1]
                                 [--checkpoints DIR [--resume]] [--snapshots DIR] [--n 2000] [--seeds 0 1 2] [--grids log-normal ...]
                                 [--teacher-evaluations 1 2 4 10 20]
    python benchmarks/distill.py ... --evaluate-only      measure the student in --out again, without training
    python benchmarks/distill.py ... --evaluate-only --snapshots DIR      the curve: what it was every ten minutes, with the first seed
    python benchmarks/distill.py ... --evaluate-only --levels 0.2 0.5 ...      where it errs: one evaluation, from real images with noise
    python benchmarks/distill.py --show      the table of what has been measured

The distance is Frechet's, in the features of the packaged classifier (--extractor names another), between n generated images (classes in turn)
and the images of DATA. The floor is the distance of n of these images, drawn at random, from all of them. The student is measured by the
consistency sampler on each of the grids, the teacher by its own sampler on its own grid and on open-karras, whichever is better at each number
of evaluations, since few evaluations want another grid than many. With a guidance scale the teacher is guided, which takes two evaluations a step.

With --checkpoints a distillation that is cut short goes on by --resume. With --snapshots the averaged weights are kept every ten minutes. A row of
--levels begins with n real images with noise of one level, so that the student's one evaluation is measured at that level alone; the teacher's
many, which end where the student should, are measured beside it for each of --teacher-evaluations. Every row is written to
results/distill.json as soon as it is measured, under the name of the student's file, and is not measured again unless its weights have changed.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file, save_file

from diffnb.core import NoiseSource, to_model, to_unit
from diffnb.data import image_set
from diffnb.guidance import ClassifierFree
from diffnb.metrics import FeatureStatistics, as_extractor, frechet_of_features, offline_extractor
from diffnb.model import GenerativeModel, digest_of_model
from diffnb.parallel import own_device
from diffnb.samplers import Consistency

RESULT = Path(__file__).parent / "results" / "distill.json"
STUDENT, TEACHER = (1, 2, 4), (1, 2, 4, 10, 20)  # evaluations
EVERY = 600.0  # seconds between two snapshots


class Snapshots(Callback):
    """Keep the averaged weights every ten minutes of training, in files that are named by the seconds."""

    order = 90  # after the average and the schedule

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def after_batch(self):
        """Write, where it is time."""
        seconds = self.learn.schedule.seconds
        last = max((float(path.stem) for path in self.folder.glob("*.safetensors")), default=0.0)
        if self.training and seconds >= last + EVERY:
            save_file(self.learn.ema.state(), self.folder / f"{seconds:.0f}.safetensors")


def load_rows():
    """What has been measured."""
    return json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []


def store(row):
    """Add a row, and write all of them at once, so that a stopped run leaves a whole file."""
    rows = [*load_rows(), row]
    RESULT.parent.mkdir(exist_ok=True)
    part = RESULT.with_suffix(".part")
    lines = ",\n  ".join(json.dumps(one) for one in rows)
    part.write_text(f'{{"metric": "frechet", "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
    os.replace(part, RESULT)


def features(extractor, images):
    """Statistics of the features of images as they would be in files of 8 bits."""
    found = FeatureStatistics()
    for batch in images:
        found.update(extractor((batch * 255).round() / 255))
    return found


def steps_for(sampler, evaluations, grid):
    """The largest number of steps that costs at most so many evaluations; None if there is none."""
    fitting = [n for n in range(1, evaluations + 1) if (cost := sampler.forecast(n, grid)) is not None and cost <= evaluations]
    return max(fitting, default=None)


def drawn(model, denoiser, sampler, grid, n_steps, n, seed, batch):
    """Yield batches of images in [0, 1], classes in turn."""
    for first in range(0, n, batch):
        k = min(batch, n - first)
        labels = {"label": torch.arange(first, first + k, device=model.device) % model.num_classes} if model.num_classes else {}
        noise = NoiseSource.of(seed, k, first, model.device)
        run = sampler(denoiser, shape=(k, *model.shape), n_steps=n_steps, grid=grid, seeds=noise, condition=labels, device=model.device)
        yield to_unit(run.x).cpu()


def levels(sde, name):
    """A grid by its name, or the times of noise levels such as 80,0.8, at the last of which the student is asked, too."""
    if "," not in name:
        return name
    kappa = torch.tensor([float(part) for part in name.split(",")], dtype=torch.float64)
    return sde.time_of_half_log_snr(-kappa.log()).clamp(sde.t_min, sde.t_max).tolist()


def settings(student, teacher, args):
    """What to measure: (who, model, denoiser, sampler, grid, evaluations asked for, steps)."""
    for evaluations in STUDENT:
        for name in args.grids:
            grid = levels(student.sde, name)
            if not isinstance(grid, str) and len(grid) != evaluations:
                continue
            yield "student", student, student.denoiser(precision=args.sampling_precision), Consistency(), grid, evaluations, evaluations
    plain = teacher.denoiser(precision=args.sampling_precision)
    scale = student.distilled["guidance_scale"]
    denoiser, cost = (plain, 1) if scale == 1 else (ClassifierFree(plain, scale), 2)
    for evaluations in args.teacher_evaluations:
        for grid in (teacher.grid or teacher.sampler.default_grid, "open-karras"):
            n_steps = steps_for(teacher.sampler, evaluations // cost, grid)
            if n_steps is not None:
                yield "teacher", teacher, denoiser, teacher.sampler, grid, evaluations, n_steps


def runs_of(student, teacher, images, args):
    """What to measure: (what a row says of it, a function of a seed that yields batches of images)."""
    if args.levels:
        own = [("student", student, Consistency(), 1), *(("teacher", teacher, teacher.sampler, n) for n in args.teacher_evaluations)]
        for kappa, (who, model, sampler, n_steps) in itertools.product(args.levels, own):
            about = {"who": who, "sampler": repr(sampler), "grid": "from real images", "kappa": kappa, "evaluations": n_steps, "steps": n_steps}
            yield about, partial(from_real, model, sampler, n_steps, kappa, images, args)
        return
    for who, model, denoiser, sampler, grid, evaluations, n_steps in settings(student, teacher, args):
        about = {"who": who, "sampler": repr(sampler), "grid": grid, "evaluations": evaluations, "steps": n_steps}
        yield about, partial(drawn, model, denoiser, sampler, grid, n_steps, args.n, batch=args.batch)


def from_real(model, sampler, n_steps, kappa, images, args, seed):
    """Yield batches of images in [0, 1], to which a model comes from real ones with noise of a level."""
    sde = model.sde
    t = sde.time_of_half_log_snr(-torch.tensor([kappa], dtype=torch.float64).log()).clamp(sde.t_min, sde.t_max)
    denoiser = model.denoiser(precision=args.sampling_precision)
    for first in range(0, args.n, args.batch):
        k = min(args.batch, args.n - first)
        noise = NoiseSource.of(seed, k, first, model.device)
        x = sde.perturb(to_model(images.unit(slice(first, first + k))), t, noise.normal(model.shape, "probe"))
        labels = {"label": images.labels[first : first + k]} if model.num_classes else {}
        yield to_unit(sampler(denoiser, x=x, n_steps=n_steps, start=t.item(), seeds=noise, condition=labels).x).cpu()


def evaluate(student, teacher, images, args, about):
    """Measure what has not been measured."""
    extractor = as_extractor(args.extractor)
    real = images.images.float() / 255
    reference = features(extractor, real.split(args.batch))
    picked = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: args.n]]
    floor = frechet_of_features(reference, features(extractor, picked.split(args.batch)))
    about = {**about, "digest": digest_of_model(student), "data": args.data, "images": len(real), "n": args.n, "extractor": args.extractor}
    print(f"{about['file']}, {about['training']['seconds']:.0f} s of training; floor {floor:.3f}", flush=True)
    for seed, (what, batches) in itertools.product(args.seeds, runs_of(student, teacher, images, args)):
        row = {**about, **what, "seed": seed}
        if any(all(old.get(key) == value for key, value in row.items()) for old in load_rows()):
            continue
        start = time.time()
        found = features(extractor, batches(seed=seed))
        row |= {"distance": frechet_of_features(reference, found), "floor": floor, "seconds_each": round((time.time() - start) / args.n, 4)}
        store(row)
        at = f"from kappa = {row['kappa']}" if "kappa" in row else f"on {row['grid']}"
        print(
            f"{row['who']} with {row['evaluations']} evaluations {at}, seed {seed}: {row['distance']:.3f} ({row['seconds_each']} s each)", flush=True
        )


def show():
    """Print a table of means over seeds: for each student, number of evaluations and grid."""
    groups, columns = {}, ("file", "data", "extractor", "n", "who", "kappa", "evaluations")
    for row in load_rows():
        minutes = round(row["training"]["seconds"] / 60)
        groups.setdefault((minutes, row["digest"], *(row.get(name, "") for name in columns)), {}).setdefault(str(row["grid"]), []).append(row)
    widths = (31, 16, 27, 6, 9, 6, 12)
    print("".join(f"{name:>{width}}" for name, width in zip(columns, widths)), f"{'minutes':>8}{'distance':>10}{'floor':>8}{'seeds':>6}  grid")
    for (minutes, _, *about), grids in groups.items():
        facts = "".join(f"{value:>{width}}" for value, width in zip(about, widths))
        for grid, rows in grids.items():
            mean = statistics.mean(row["distance"] for row in rows)
            print(facts, f"{minutes:8}{mean:10.3f}{rows[0]['floor']:8.3f}{len(rows):6}  {grid}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="fashion_mnist", help="a model file, or the name of a packaged model")
    parser.add_argument("--data", default="packaged", help="what image_set takes")
    parser.add_argument("--root", help="where known sets are")
    parser.add_argument("--limit", type=int, help="at most so many images")
    parser.add_argument("--out", type=Path, default=Path("student.safetensors"))
    parser.add_argument("--time-limit", type=float, default=3600.0)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--method", default="heun", help="step of the teacher's flow: heun or euler")
    parser.add_argument("--matching", type=float, help="weight of the comparison of sets; none: 1.5, or 0 with guidance")
    parser.add_argument("--gap", type=float, default=4.0, help="last of the two numbers that say how far apart two levels are: 4, a sixteenth")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--checkpoints", type=Path, help="folder for what is needed to go on")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true")
    parser.add_argument("--snapshots", type=Path, help="folder for the averaged weights of every ten minutes")
    parser.add_argument("--levels", type=float, nargs="+", help="noise levels sigma / alpha from which, with real images, one evaluation is measured")
    parser.add_argument("--n", type=int, default=2000, help="generated images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of generated images")
    parser.add_argument("--grids", nargs="+", default=["log-normal"], help="of the student: names, or noise levels such as 80,0.8")
    parser.add_argument("--teacher-evaluations", type=int, nargs="*", default=TEACHER, help="of the teacher; none: the student alone is measured")
    parser.add_argument("--extractor", help="what looks at the images; the packaged one for their shape if not given")
    parser.add_argument("--sampling-precision", default="float32")
    parser.add_argument("--batch", type=int, default=100, help="images generated at a time")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if args.show:
        return show()
    if args.threads:
        torch.set_num_threads(args.threads)
    is_file = Path(args.teacher).is_file()
    teacher = GenerativeModel.load(args.teacher, own_device()) if is_file else GenerativeModel.pretrained(args.teacher, own_device())
    images = image_set(args.data, root=args.root, limit=args.limit)
    if not args.evaluate_only:
        plan = {"batch_size": args.batch_size, "lr": args.lr, "method": args.method, "precision": args.precision, "seed": args.seed}
        plan |= {"matching": args.matching, "gap": (2.0, args.gap)}
        try:
            kept = [Snapshots(args.snapshots)] if args.snapshots else []
            teacher.distill(images, args.time_limit, args.guidance_scale, checkpoints=args.checkpoints, resume=args.resume, callbacks=kept, **plan)
        finally:  # an interrupt, too, leaves what was learned until then
            if teacher.last_student is not None and teacher.last_student.record:
                teacher.last_student.save(args.out)
                print({key: value for key, value in teacher.last_student.record.items() if "loss" not in key}, flush=True)
    student = GenerativeModel.load(args.out, own_device(), verbose=False)
    args.extractor = args.extractor or offline_extractor(student.shape)
    if student.distilled is None:
        raise SystemExit(f"{args.out} holds a model that was not distilled")
    training = {key: student.record[key] for key in ("seconds", "steps", "images_seen", "precision")}
    if args.evaluate_only and args.snapshots:
        args.seeds = args.seeds[:1]
        for path in sorted(args.snapshots.glob("*.safetensors"), key=lambda path: float(path.stem)):
            student.trained.network.load_state_dict(load_file(path))
            evaluate(student, teacher, images, args, {"file": args.out.name, "training": {"seconds": float(path.stem)}})
    else:
        evaluate(student, teacher, images, args, {"file": args.out.name, "training": training})
    show()


if __name__ == "__main__":
    main()
