"""How good is a distilled model, and how much training does it take? Distance at 1, 2 and 4 evaluations, beside the teacher's at up to 20.

    python benchmarks/distill.py --teacher fashion_mnist --data fashion_mnist --time-limit 3600 --out student.safetensors [--guidance-scale 1]
                                 [--root ROOT] [--limit N] [--batch-size N] [--lr 4e-4] [--method heun] [--matching 1.5] [--precision auto]
                                 [--seed 0] [--threads 1]
                                 [--checkpoints DIR [--resume]] [--n 2000] [--seeds 0 1 2] [--grids log-normal ...]
                                 [--teacher-evaluations 1 2 4 10 20]
    python benchmarks/distill.py ... --evaluate-only      measure the student in --out again, without training
    python benchmarks/distill.py --show      the table of what has been measured

The distance is Frechet's, in the features of the packaged classifier (--extractor names another), between n generated images (classes in turn)
and the images of DATA. The floor is the distance of n of these images, drawn at random, from all of them. The student is measured by the
consistency sampler on each of the grids, the teacher by its own sampler on its own grid and on open-karras, whichever is better at each number
of evaluations, since few evaluations want another grid than many. With a guidance scale the teacher is guided, which takes two evaluations a step.

With --checkpoints a distillation that is cut short goes on by --resume. Every row is written to results/distill.json as soon as it is measured,
under the name of the student's file, and is not measured again unless its weights have changed.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

from diffnb.core import NoiseSource, to_unit
from diffnb.data import image_set
from diffnb.guidance import ClassifierFree
from diffnb.metrics import FeatureStatistics, as_extractor, frechet_of_features, offline_extractor
from diffnb.model import GenerativeModel, digest_of_model
from diffnb.parallel import own_device
from diffnb.samplers import Consistency

RESULT = Path(__file__).parent / "results" / "distill.json"
STUDENT, TEACHER = (1, 2, 4), (1, 2, 4, 10, 20)  # evaluations


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


def evaluate(student, teacher, images, args):
    """Measure what has not been measured."""
    extractor = as_extractor(args.extractor)
    real = images.images.float() / 255
    reference = features(extractor, real.split(args.batch))
    picked = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[: args.n]]
    floor = frechet_of_features(reference, features(extractor, picked.split(args.batch)))
    about = {"file": args.out.name, "digest": digest_of_model(student), "data": args.data, "images": len(real)}
    about |= {"n": args.n, "extractor": args.extractor}
    training = {key: student.record[key] for key in ("seconds", "steps", "images_seen", "precision")}
    print(f"floor {floor:.3f}", flush=True)
    for seed in args.seeds:
        for who, model, denoiser, sampler, grid, evaluations, n_steps in settings(student, teacher, args):
            row = {**about, "who": who, "sampler": repr(sampler), "grid": grid, "evaluations": evaluations, "steps": n_steps, "seed": seed}
            if any(all(old.get(key) == value for key, value in row.items()) for old in load_rows()):
                continue
            start = time.time()
            found = features(extractor, drawn(model, denoiser, sampler, grid, n_steps, args.n, seed, args.batch))
            seconds = round((time.time() - start) / args.n, 4)
            row |= {"distance": frechet_of_features(reference, found), "floor": floor, "seconds_each": seconds, "training": training}
            store(row)
            print(f"{who} with {evaluations} evaluations on {grid}, seed {seed}: {row['distance']:.3f} ({seconds:.3f} s each)", flush=True)


def show():
    """Print a table of means over seeds: for each file, the best grid of each number of evaluations."""
    groups = {}
    for row in load_rows():
        groups.setdefault((row["file"], row["digest"], row["n"], row["who"], row["evaluations"]), {}).setdefault(str(row["grid"]), []).append(row)
    print(f"{'file':28}{'who':>9}{'evaluations':>12}{'distance':>10}{'floor':>8}{'seeds':>6}  grid")
    for (file, _, _, who, evaluations), grids in groups.items():
        grid, rows = min(grids.items(), key=lambda item: statistics.mean(row["distance"] for row in item[1]))
        mean = statistics.mean(row["distance"] for row in rows)
        print(f"{file:28}{who:>9}{evaluations:12}{mean:10.3f}{rows[0]['floor']:8.3f}{len(rows):6}  {grid}")


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
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of training")
    parser.add_argument("--checkpoints", type=Path, help="folder for what is needed to go on")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--evaluate-only", action="store_true")
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
        plan["matching"] = args.matching
        try:
            teacher.distill(images, args.time_limit, args.guidance_scale, checkpoints=args.checkpoints, resume=args.resume, **plan)
        finally:  # an interrupt, too, leaves what was learned until then
            if teacher.last_student is not None and teacher.last_student.record:
                teacher.last_student.save(args.out)
                print({key: value for key, value in teacher.last_student.record.items() if "loss" not in key}, flush=True)
    student = GenerativeModel.load(args.out, own_device(), verbose=False)
    args.extractor = args.extractor or offline_extractor(student.shape)
    if student.distilled is None:
        raise SystemExit(f"{args.out} holds a model that was not distilled")
    evaluate(student, teacher, images, args)
    show()


if __name__ == "__main__":
    main()
