"""What does each part of the network of texts add? One part is left out at a time, on pictures in which each of them is needed.

    python benchmarks/text_ablation.py [--steps 4000] [--seeds 0 1] [--only NAME ...] [--out FILE]
    python benchmarks/text_ablation.py --show      the table of what has been measured

A picture of 2 x 2 pixels has one thing on its left and one on its right, each a patch of one colour; it is so small that noise soon hides it. Its
caption names both after words that say nothing, such as "look here left dog and right tree". Their number is drawn anew for every caption, so that
no word has a place of its own. In a quarter of the captions of training the right side comes first: a thing belongs to the side that stands before
it, and words have to be put together. Two pairs of things are in no training picture. What a drawn picture shows is read off the colours of its
halves, as the nearest. Asked for are

usual       pairs of things of training, the left side first
turned      the same, the right side first: are sides and things put together?
unseen      the two pairs that are withheld, in either order
similar     pairs of training in other words, such as puppy for dog, which are in no caption: do the word vectors carry over?

A cell is the share of halves that show what was asked for; by chance it is a quarter, and a half where it is known which two things there are and
not where. Variants are trained with the same pictures, captions, times and noise. Rows are written to results/text_ablation.json as soon as they
are measured, and not measured again.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from diffnb.data import ImageSet
from diffnb.model import GenerativeModel
from diffnb.networks import TextUNet, first_weights

RESULT = Path(__file__).parent / "results" / "text_ablation.json"
THINGS = {"car": (0.9, 0.1, 0.1), "tree": (0.1, 0.7, 0.2), "fish": (0.15, 0.25, 0.95), "dog": (0.95, 0.85, 0.1)}
SIMILAR = {"car": "truck", "tree": "pine", "fish": "salmon", "dog": "puppy"}
WITHHELD = {("car", "tree"), ("dog", "fish")}  # left and right
PAIRS = [pair for pair in itertools.product(THINGS, THINGS) if pair[0] != pair[1]]
KINDS = ("usual", "turned", "unseen", "similar")
PICTURES, CAPTIONS, EACH = 2000, 8, 8  # in training, for each of them, and drawn for each pair
OPENING = "look here now you see".split()  # words that say nothing


def caption(left, right, turned, generator):
    """A text for a pair of things, the right side first or not, after any number of words that say nothing."""
    most = int(torch.randint(len(OPENING) + 1, (1,), generator=generator))
    opening = [OPENING[i] for i in torch.randperm(len(OPENING), generator=generator)[:most].tolist()]
    return " ".join([*opening, " and ".join([f"left {left}", f"right {right}"][:: 1 - 2 * turned])])


def picture(left, right, generator):
    """Two halves, a little lighter or darker each time."""
    halves = [torch.tensor(THINGS[thing])[:, None, None].expand(3, 2, 1) for thing in (left, right)]
    return (torch.cat(halves, 2) + 0.1 * torch.randn(1, generator=generator)).clamp(0, 1)


def training_set():
    """Pictures with several captions each."""
    generator, pairs = torch.Generator().manual_seed(0), [pair for pair in PAIRS if pair not in WITHHELD]
    kinds = [pairs[i] for i in torch.randint(len(pairs), (PICTURES,), generator=generator).tolist()]
    images = torch.stack([picture(*pair, generator) for pair in kinds])
    return ImageSet((images * 255).round().byte(), captions=[tuple(caption(*pair, i % 4 == 3, generator) for i in range(CAPTIONS)) for pair in kinds])


def seen_in(images):
    """What the left and right halves show."""
    table = torch.tensor(list(THINGS.values()))
    for half in images.split(1, 3):
        yield [list(THINGS)[k] for k in torch.cdist(half.mean((2, 3)), table).argmin(1).tolist()]


class Nothing(nn.Module):
    """Cross-attention that looks at no word."""

    def forward(self, x, tokens, known):
        """Leave the features alone."""
        return x


class Silence(nn.Module):
    """A layer that adds nothing to the embedding."""

    def forward(self, text):
        """Return zero, which is added to every channel."""
        return text.new_zeros(len(text), 1)


def without_vectors(network):
    """Random vectors in the place of those that are known for words, of the same size."""
    frozen = network.text.frozen
    network.text.frozen = frozen.float().std() * torch.randn(frozen.shape, generator=torch.Generator().manual_seed(1))


def without_positions(network):
    """Words without their places; as a buffer, since fastai trains every parameter."""
    zero = torch.zeros_like(network.text.position)
    del network.text.position
    network.text.register_buffer("position", zero)


def without_cross(network):
    """The text by its summary in the embedding alone."""
    network.cross = nn.ModuleList(Nothing() for _ in network.cross)


def without_summary(network):
    """The text by cross-attention alone."""
    network.embed_text = Silence()


VARIANTS = {  # settings of the network, and what is changed in it
    "full": ({}, None),
    "no attention among words": ({"text_depth": 0}, None),
    "no positions": ({}, without_positions),
    "random word vectors": ({}, without_vectors),
    "no cross-attention": ({}, without_cross),
    "no summary in the embedding": ({}, without_summary),
}


def measured(name, seed, steps):
    """A row: shares of halves that are as asked for."""
    settings, change = VARIANTS[name]
    data = training_set()
    with first_weights(seed):
        network = TextUNet(3, (64,), 1, (0,), text_width=64, length=12, **({"text_depth": 2} | settings))
        if change:
            change(network)
    model = GenerativeModel("edm", "dpm-solver++2m", network=network, device="cpu", verbose=False)
    start = time.process_time()
    record = model.train(data, steps=steps, batch_size=64, lr=1e-3, seed=seed, precision="float32")
    row = {"variant": name, "seed": seed, "steps": steps, "seconds": time.process_time() - start, "loss": record["train_loss"][-1]}
    seen = [pair for pair in PAIRS if pair not in WITHHELD]
    for kind, pairs in {"usual": seen, "turned": seen, "unseen": sorted(WITHHELD), "similar": seen}.items():
        right = []
        for place, (left, far) in enumerate(pairs):
            said = (SIMILAR[left], SIMILAR[far]) if kind == "similar" else (left, far)
            each = EACH if len(pairs) > 2 else 4 * EACH
            turned = {"usual": 0, "turned": 1}.get(kind)
            texts = [caption(*said, i % 2 if turned is None else turned, torch.Generator().manual_seed(1000 * place + i)) for i in range(each)]
            drawn = model.generate(each, 12, seed=100 + place, prompt=texts, guidance_scale=2.0)
            right += [thing == want for half, want in zip(seen_in(drawn), (left, far)) for thing in half]
        row[kind] = statistics.fmean(right)
    return row


def show(rows):
    """Print means over seeds, and the range where there are several."""
    print(f"{'':30s}{'seeds':>6s}{'loss':>8s}" + "".join(f"{kind:>16s}" for kind in KINDS))
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        if own:
            cells = [(statistics.fmean(r[kind] for r in own), *(f(r[kind] for r in own) for f in (min, max))) for kind in KINDS]
            text = "".join(f"{mean:>6.0%} {f'({low:.0%}-{high:.0%})':>9s}" for mean, low, high in cells)
            print(f"{name:30s}{len(own):6d}{statistics.fmean(r['loss'] for r in own):8.4f}{text}")


def main():
    """Measure what has not been measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for seed, name in itertools.product(args.seeds, args.only) if not args.show else ():
        if not any((row["variant"], row["seed"], row["steps"]) == (name, seed, args.steps) for row in rows):
            rows.append(measured(name, seed, args.steps))
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
            args.out.write_text(json.dumps({"about": {"torch": torch.__version__, "pictures": PICTURES}, "rows": rows}, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
