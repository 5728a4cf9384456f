"""All metrics on a model, for several samplers, numbers of steps and guidance scales, each beside the floor of real images.

    python benchmarks/evaluate.py --data ROOT [--n 2000] [--model FILE] [--samplers A,B] [--steps 5,10,20] [--guidance 1,2]
                                  [--extractor NAME] [--metrics A,B] [--bpd 64] [--threads N] [--minutes M] [--out FILE]

Real images are the training split of Fashion-MNIST, in the layout of torchvision under ROOT (without --data the 10,000 packaged ones); the floor is
of other real images, the test split (without --data a part of the packaged ones). Every configuration is written to the file of results,
benchmarks/results/evaluate.json, as soon as it is done; a second run goes on where the first ended, and evaluates anew what another model file, n,
seed, extractor or list of metrics makes another configuration. Bits per dimension are of the model alone: one row, of `--bpd` images of the second
set. `--minutes` ends a run after the configuration that exceeds it.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import torch

import diffnb
from diffnb.data import image_set
from diffnb.metrics import BitsPerDim, Evaluator, sampled
from diffnb.model import GenerativeModel, digest_of_model, packaged_models

RESULT = Path(__file__).parent / "results" / "evaluate.json"
METRICS = "frechet,frechet infinity,kernel,prdc,is,vendi,memorisation,agreement"


def sets(root):
    """Real images, and others for the floor."""
    if root is None:
        return image_set("packaged", verbose=False).split(0.2, seed=0)
    return tuple(image_set("fashion_mnist", split=split, root=root, verbose=False) for split in ("train", "test"))


def write(results, path):
    """Replace the file of results: a reader sees the old one or the new one."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def configurations(args):
    """What is to be evaluated, cheap ones first."""
    found = [(s, int(k), float(g)) for s in args.samplers.split(",") for k in args.steps.split(",") for g in args.guidance.split(",")]
    return sorted(found, key=lambda c: c[1] * (1 if c[2] == 1 else 2))


def main():
    """Evaluate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data sets; without it the packaged images")
    parser.add_argument("--model", type=Path, help="model file; without it the packaged model")
    parser.add_argument("--n", type=int, default=2000, help="images of each configuration")
    parser.add_argument("--samplers", default="dpm-solver++2m,heun,ddim", help="names, separated by commas")
    parser.add_argument("--steps", default="5,10,20", help="numbers of steps, separated by commas")
    parser.add_argument("--guidance", default="1,2", help="guidance scales, separated by commas")
    parser.add_argument("--extractor", default="fashion-classifier", help="name of a feature extractor")
    parser.add_argument("--metrics", default=METRICS, help="names, separated by commas")
    parser.add_argument("--cache", type=Path, help="folder for features of real images; without it the user's cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bpd", type=int, default=64, help="real images for bits per dimension; 0: none")
    parser.add_argument("--out", type=Path, default=RESULT, help="file of results")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no configuration after so many minutes")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", category=UserWarning)  # that n is small is why the floor stands beside it

    file = args.model or Path(packaged_models()["fashion_mnist"])
    model, (real, others) = GenerativeModel.load(file, verbose=False), sets(args.data)
    digest = digest_of_model(model)
    evaluator = Evaluator(real, args.metrics.split(","), extractor=args.extractor, floor=others, cache=args.cache, seed=args.seed)
    results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {}
    start = time.time()
    for sampler, n_steps, guidance in configurations(args):
        key = f"{file.stem} {digest}, {sampler}, {n_steps} steps, guidance {guidance:g}, n {args.n}, seed {args.seed}, {args.extractor}, "
        key += f"{args.metrics}, {'fashion_mnist' if args.data else 'packaged'}, diffnb {diffnb.__version__}"
        if key not in results:
            if time.time() - start > 60 * args.minutes:
                break
            model.sampler, begun = sampler, time.time()
            scores = evaluator(sampled(model, args.n, n_steps=n_steps, seed=args.seed, guidance_scale=guidance))
            results[key] = scores.to_dict() | {"seconds": round(time.time() - begun, 1), "threads": torch.get_num_threads()}
            write(results, args.out)
            print(f"\n{scores}", flush=True)
    key = f"{file.stem} {digest}, bits per dimension of {args.bpd} images, diffnb {diffnb.__version__}"
    if args.bpd and key not in results and time.time() - start <= 60 * args.minutes:
        scores = Evaluator(others, [BitsPerDim(model.denoiser(), n=args.bpd)])(sampled(model, 2))
        results[key] = scores.to_dict()
        write(results, args.out)
        print(f"\n{scores}", flush=True)
    print()
    for key, result in results.items():
        numbers = [f"{m['name'].split('[')[0]} {m['value']:.3g} (floor {m['floor']['value']:.3g})" for m in result["metrics"] if m["floor"]]
        print(f"{key.split(', fashion')[0]}: {', '.join(numbers)}")


if __name__ == "__main__":
    main()
