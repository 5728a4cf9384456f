"""Does the packaged model of text draw what is asked for? Ranks of true pictures, compositions it has never seen, copies, and pictures of prompts.

The emoji that come with the package; "withheld" are pictures that the model was not trained on (see make_emoji.py). Every name is drawn once from its
caption "NAME, STYLE style", guided, and compared in the features of Inception (--weights, or DIFFNB_WEIGHTS) with the true pictures of all names in
that style. The rank of the true picture is 1 where it is the nearest. Beside it stands what one gets without a model, by copying the picture of the
same name in the other style. Writes results/text.json, and text_prompts.png and text_copies.png for the pages; with --steps or --fast, which is the
companion of few evaluations (--steps of them), only the table, results/text_STEPS.json or results/text_fast_STEPS.json. Another model's files have
its name in theirs. Pictures are compared at the size that the model draws, and those of more than 64 pixels at 64, which is the size of the packaged
ones; --side sets another for a comparison of models, and then, too, only the table is written:

    python benchmarks/text.py [--model emoji_128] [--n 200] [--scale 3] [--steps 16] [--fast] [--side 32] [--weights DIR] [--known FILE]
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import diffnb
from diffnb.apps import grid
from diffnb.data import read_emoji, resize_images
from diffnb.metrics import InceptionFeatures, kernel_distance
from diffnb.model import GenerativeModel

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "nbs" / "images"  # of the pages
COMPOSITIONS = ("blue heart", "green square", "yellow circle")  # colour and shape were both seen, together they were not
LANGUAGES = {"in Spanish": ", estilo {}", "in Chinese": "，{}风格"}  # how captions end in them
PROMPTS = ("red apple", "green heart", "blue heart", "a blue square", "yellow circle", "cat", "dog face", "grinning face", "pizza", "house")
PROMPTS += (
    "corazón verde",
    "manzana roja",
    "红苹果",
    "狗",
    "purple car",
    "green apple and red heart",
    "a sad robot",
    "fire",
    "woman with hat",
    "number seven",
)


def features(extractor, images):
    """Features of images in [0, 1], of length one."""
    return F.normalize(torch.cat([extractor(part).flatten(1) for part in images.split(64)]).float(), dim=1)


def resized(images, side):
    """Images in [0, 1], brought to another size."""
    return resize_images((images * 255).round().byte(), side).float() / 255


def ranks(found, true, at):
    """The place of the true picture among all, by cosine similarity: 1 is the nearest."""
    similarity = found @ true.T
    return 1 + (similarity > similarity.gather(1, at[:, None])).sum(1)


def in_language(captions, ending):
    """The first caption of a picture in another language; None without one."""
    style = captions[0].split()[-2]  # NAME, STYLE style
    return next((caption for caption in captions if caption.endswith(ending.format(style))), None)


def told(values):
    """A row of a table."""
    values = values.float()
    return {
        "n": len(values),
        "first": (values == 1).float().mean().item(),
        "top_10": (values <= 10).float().mean().item(),
        "median": values.median().item(),
    }


def main():
    """Draw, compare, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji", help="a packaged model, or a file")
    parser.add_argument("--n", type=int, default=200, help="withheld pictures, and as many that were trained on")
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale; the companion has learned its own")
    parser.add_argument("--steps", type=int, help="steps of the sampler; without it those of the model, and pictures are written too")
    parser.add_argument("--fast", action="store_true", help="the companion that was distilled from the packaged model")
    parser.add_argument("--side", type=int, help="side in pixels at which pictures are compared; without it that of the model, at most 64")
    parser.add_argument("--known", type=Path, help="file to keep the features of all true pictures in, which take most of the time")
    parser.add_argument("--weights", default=os.environ.get("DIFFNB_WEIGHTS"), help="folder with the weights of Inception")
    args = parser.parse_args()
    if Path(args.model).is_file():
        model = GenerativeModel.load(args.model, verbose=False)
    else:
        model = GenerativeModel.pretrained(args.model, verbose=False, fast=args.fast)
    if fast := model.distilled is not None:
        args.scale = 1.0
    extractor, side = InceptionFeatures(args.weights), args.side or min(model.shape[1], 64)
    train, held = read_emoji(), read_emoji((True,))
    names = [{own[0]: k for k, own in enumerate(images.captions)} for images in (train, held)]

    def draw(captions):
        return resized(model.generate(len(captions), args.steps, seed=0, prompt=list(captions), guidance_scale=args.scale), side)

    rows, generated, start = [], {}, time.perf_counter()
    every = read_emoji((False, True))
    pictures = resize_images(every.images, side).float() / 255
    if args.known and args.known.is_file():
        known = load_file(args.known)["known"]
    else:
        known = features(extractor, pictures)
        if args.known:
            save_file({"known": known}, args.known)
    place = {own[0]: k for k, own in enumerate(every.captions)}
    of_style = {style: [k for own, k in place.items() if own.endswith(f", {style} style")] for style in every.names}

    def row(what, captions, drawn=None):
        """Rank drawn pictures, or copies from the other style."""
        by_style = []
        for style, all_of_style in of_style.items():
            mine = [k for k, caption in enumerate(captions) if caption.endswith(f", {style} style")]
            if drawn is None:  # the picture of the same name in the other style, where there is one
                other = next(name for name in of_style if name != style)
                copies = {k: place.get(captions[k].replace(f", {style} style", f", {other} style")) for k in mine}
                mine = [k for k in mine if copies[k] is not None]
                found = known[[copies[k] for k in mine]]
            else:
                found = drawn[mine]
            at = torch.tensor([all_of_style.index(place[captions[k]]) for k in mine], dtype=torch.int64)
            by_style.append(ranks(found, known[all_of_style], at))
        rows.append({"what": what} | told(torch.cat(by_style)))

    for what, where in (("withheld", held), ("trained on", train)):
        pick = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))[: args.n].tolist()
        captions = [where.captions[k][0] for k in pick]
        images = generated[what] = draw(captions)
        row(f"{what}, drawn", captions, features(extractor, images))
        row(f"{what}, copied from the other style", captions)
        if what == "withheld":
            wrong = features(extractor, draw([captions[(k + 1) % len(captions)] for k in range(len(captions))]))
            row("withheld, drawn from another's caption", captions, wrong)
            continue
        for language, ending in LANGUAGES.items():  # the same pictures, as far as they have a name in it
            named = {captions[i]: in_language(where.captions[k], ending) for i, k in enumerate(pick)}
            named = {english: other for english, other in named.items() if other}
            row(f"{what}, drawn {language}", list(named), features(extractor, draw(named.values())))
    captions = [f"{what}, {style} style" for what in COMPOSITIONS for style in every.names]
    captions = [caption for caption in captions if caption in place]
    row("compositions, drawn", captions, features(extractor, draw(captions)))

    # a copy is nearer to its original than originals are to one another
    original = known[[place[caption] for caption in names[0]]]
    drawn = features(extractor, generated["withheld"])
    nearest = (drawn @ original.T).max(1)
    among = (original @ original.T).fill_diagonal_(-1).max(1).values
    share = (nearest.values > among.quantile(0.95)).float().mean().item()

    real = [features(extractor, resize_images(images.images[: args.n], side).float() / 255) for images in (held, train)]
    (distance, error), (floor, _) = (kernel_distance(real[0], one) for one in (drawn, real[1]))
    seconds = time.perf_counter() - start
    name = "text" + ("" if args.model == "emoji" else f"_{Path(args.model).stem}") + "_fast" * fast
    if args.steps is None and args.side is None and not fast:
        first = nearest.values.topk(8)
        pairs = [generated["withheld"][first.indices], pictures[[place[list(names[0])[k]] for k in nearest.indices[first.indices].tolist()]]]
        Image.fromarray(grid(torch.cat(pairs), 8).numpy()).resize((8 * 2 * side, 4 * side), 0).save(IMAGES / f"{name}_copies.png")
        variants = 4 if model.shape[1] <= 64 else 2
        prompts = torch.cat([model.generate(variants, seed=1, prompt=prompt, guidance_scale=args.scale) for prompt in PROMPTS])
        sheet = prompts.unflatten(0, (8 // variants, -1, variants)).transpose(0, 1).flatten(0, 2)  # columns of prompts, so many pictures each
        Image.fromarray(grid(sheet, 8).numpy()).quantize(256).save(IMAGES / f"{name}_prompts.png", optimize=True)

    about = {"diffnb": diffnb.__version__, "torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    about |= {"scale": args.scale, "n_steps": args.steps or model.n_steps, "side": side, "training": model.record, "seconds": round(seconds)}
    stored = {"about": about, "rows": rows, "names": {style: len(k) for style, k in of_style.items()}, "prompts": PROMPTS}
    stored["copies"] = {"share_nearer_than_95_percent_of_originals": share}
    stored["kernel_distance"] = {"drawn": distance, "error": error, "floor": floor}
    name += "" if args.steps is None and not fast else f"_{about['n_steps']}"
    name += "" if args.side is None else f"_at_{side}"
    (RESULTS / f"{name}.json").write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    print(f"{'':42} {'n':>4} {'first':>7} {'top 10':>7} {'median':>7}")
    for one in rows:
        print(f"{one['what']:42} {one['n']:4d} {one['first']:7.1%} {one['top_10']:7.1%} {one['median']:7.0f}")
    print(f"of {stored['names']} names; kernel distance {distance:.1e} +- {error:.0e}, floor {floor:.1e}")
    print(f"{share:.1%} nearer to a trained picture than 95% of originals are to one another")


if __name__ == "__main__":
    main()
