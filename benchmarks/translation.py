"""Where does training on pairs pay? Spoiled pictures of clothes, answered by a small network of pairs and by the methods without training.

For each spoiling a network of 0.8 million parameters learns from the other packaged pictures for --steps steps. Pictures that were kept aside are
answered by it, and, where the spoiling is a linear operator, by the packaged model of 4 million parameters, which was trained on other pictures of
the same kind and knows nothing of the spoiling. Printed for --n pictures with --variants answers each: decibels (PSNR) of the mean of the answers and
of single answers, the distance of single answers from the truth in the features of the packaged classifier of clothes (1 - cosine), the share of
pixels whose true value lies between the lowest and the highest answer (a perfect posterior has (v - 1) / (v + 1) of them, here among pixels whose
answers differ by more than 4 of 255), and seconds an answer, without those of training. Writes results/translation.json:

    python benchmarks/translation.py [--tasks small:4,jpeg:5] [--steps 250] [--n 8] [--variants 5]
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import diffnb
from diffnb import GenerativeModel
from diffnb.data import ImageSet, image_set, paired
from diffnb.metrics import as_extractor
from diffnb.networks import UNet

RESULTS = Path(__file__).parent / "results"
TASKS = "small:4,blur:1.5,holes:0.3,jpeg:5"
N_STEPS = 12  # of the sampler, for both


def without_training(model, task, second, settings):
    """Answers of the packaged model; None where no operator describes the spoiling."""
    kind, _, number = task.partition(":")
    if kind == "small":
        return model.upscale(second, **settings)
    if kind == "blur":
        return model.deblur(second, float(number), noise=1 / 255, **settings)
    if kind == "holes":
        return model.imputation(second, **settings)
    return None


def told(answers, truth, features, seconds):
    """A row of the table."""
    answers = answers.unflatten(0, (len(truth), -1))
    variants = answers.shape[1]

    def decibels(x):
        return -10 * (x - truth).square().mean((1, 2, 3)).log10().mean().item()

    low, high = answers.amin(1), answers.amax(1)
    doubtful = high - low > 4 / 255
    inside = ((truth >= low) & (truth <= high))[doubtful].float().mean().item() if bool(doubtful.any()) else None
    distance = 1 - F.cosine_similarity(features(answers.flatten(0, 1)), features(truth).repeat_interleave(variants, 0)).mean().item()
    singles = sum(decibels(one) for one in answers.unbind(1)) / variants
    return {"mean_db": decibels(answers.mean(1)), "answer_db": singles, "feature_distance": distance, "inside": inside, "seconds": seconds}


def timed(call, answers):
    """What a call returns, and its seconds for each answer."""
    start = time.perf_counter()
    made = call()
    return made, (time.perf_counter() - start) / answers


def store(args, rows):
    """Write what is known so far, so that a run that is cut short has not been for nothing."""
    facts = {"diffnb": diffnb.__version__, "torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads()}
    settings = {"steps": args.steps, "n": args.n, "variants": args.variants, "sampler_steps": N_STEPS}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "translation.json").write_text(json.dumps(facts | settings | {"tasks": rows}, indent=1) + "\n")


def main():
    """Train, answer, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=TASKS, help="degradations, separated by commas")
    parser.add_argument("--steps", type=int, default=250, help="of training, 16 pairs each")
    parser.add_argument("--n", type=int, default=8, help="pictures that are answered")
    parser.add_argument("--variants", type=int, default=5, help="answers to each")
    args = parser.parse_args()

    clothes = ImageSet(image_set("packaged", verbose=False).images)
    aside = torch.arange(args.n) * (len(clothes) // args.n)
    rest = torch.ones(len(clothes), dtype=torch.bool).index_fill(0, aside, False)
    train, test = clothes.select(rest.nonzero()[:, 0]), clothes.select(aside)
    truth, extractor = test.unit(slice(None)), as_extractor("fashion-classifier")
    prior = GenerativeModel.pretrained("fashion_mnist", verbose=False)
    settings = {"variants": args.variants, "seed": 0, "n_steps": N_STEPS}
    rows = {}
    for task in args.tasks.split(","):
        pairs, second = paired(train, task, verbose=False), paired(test, task, verbose=False).second.float() / 255
        network = UNet(1, widths=(32, 64), blocks=1, attention_levels=(1,), unshuffle=4, groups=8, **pairs.second_settings)
        model = GenerativeModel("edm", "dpm-solver++2m", network=network, verbose=False)
        record = model.train(pairs, condition="image", steps=args.steps, batch_size=16, lr=2e-3)
        ours = timed(lambda: model.translate(second, **settings), args.n * args.variants)
        rows[task] = {"trained on pairs": told(ours[0], truth, extractor, ours[1]) | {"training_seconds": record["seconds"]}}
        if task.partition(":")[0] in ("small", "blur", "holes"):
            free = timed(lambda: without_training(prior, task, second, settings), args.n * args.variants)
            rows[task]["without training"] = told(free[0], truth, extractor, free[1])
        for name, row in rows[task].items():
            inside = "none" if row["inside"] is None else f"{row['inside']:.0%}"
            print(
                f"{task:10} {name:17} mean {row['mean_db']:5.1f} dB  answer {row['answer_db']:5.1f} dB  features {row['feature_distance']:.3f}  "
                f"inside {inside:>4} of {(args.variants - 1) / (args.variants + 1):.0%}  {row['seconds']:.2f} s"
                + (f"  (training {row['training_seconds']:.0f} s)" if "training_seconds" in row else ""),
                flush=True,
            )
        store(args, rows)


if __name__ == "__main__":
    main()
