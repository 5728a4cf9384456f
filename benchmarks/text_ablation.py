"""What does each part of the network of texts add? One part is left out at a time, on pictures in which each of them is needed.

    python benchmarks/text_ablation.py [--steps 4000] [--seeds 0 1] [--only NAME ...] [--out FILE]
    python benchmarks/text_ablation.py --show      the table of what has been measured

A picture of 16 x 16 pixels has a coloured square on its left and one on its right. Its caption names both in either order, such as "a red square on
the left, blue on the right" or "blue on the right, a red square on the left", so that words have to be put together by what stands beside them.
Two pairs of colours are in no training picture. The colours of a drawn picture are read off its halves. Asked for are

seen        pairs of colours of training
unseen      the two that are withheld: are sides and colours put together?
synonyms    pairs of training in other words for the colours, which are in no caption: do the word vectors carry over?

A cell is the share of drawn squares, two in a picture, that have the colour that was asked for; by chance it is a quarter. Variants are trained with
the same pictures, captions, times and noise. Cells are written to results/text_ablation.json as soon as they are measured, and not measured again.
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
COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.7, 0.2), "blue": (0.15, 0.25, 0.95), "yellow": (0.95, 0.85, 0.1)}
SYNONYMS = {"red": "crimson", "green": "olive", "blue": "navy", "yellow": "golden"}
WITHHELD = {("red", "green"), ("yellow", "blue")}  # left and right
PAIRS = [pair for pair in itertools.product(COLOURS, COLOURS) if pair[0] != pair[1]]
PICTURES, EACH = 2000, 8  # in training, and drawn for each pair


def caption(left, right, turned):
    """A text for a pair of colours, by the order in which they are named."""
    return f"{right} on the right, a {left} square on the left" if turned else f"a {left} square on the left, {right} on the right"


def picture(left, right, generator):
    """Two squares on white, each somewhere in its half."""
    image = torch.ones(3, 16, 16)
    for start, colour in ((0, left), (8, right)):
        x, y = (int(torch.randint(most, (1,), generator=generator)) for most in (4, 11))
        image[:, 1 + y : 6 + y, start + x : start + x + 5] = torch.tensor(COLOURS[colour])[:, None, None]
    return image


def training_set():
    """Pictures with two captions each."""
    generator, pairs = torch.Generator().manual_seed(0), [pair for pair in PAIRS if pair not in WITHHELD]
    kinds = [pairs[i] for i in torch.randint(len(pairs), (PICTURES,), generator=generator).tolist()]
    images = torch.stack([picture(*pair, generator) for pair in kinds])
    return ImageSet((images * 255).round().byte(), captions=[(caption(*pair, False), caption(*pair, True)) for pair in kinds])


def colours_of(images):
    """The names of the colours in the left and right halves."""
    table = torch.tensor(list(COLOURS.values()))
    for half in images.split(8, 3):
        covered = 1 - half.amin(1, keepdim=True)
        mean = (half * covered).sum((2, 3)) / covered.sum((2, 3)).clamp(min=1e-3)
        yield [list(COLOURS)[k] for k in torch.cdist(mean, table).argmin(1).tolist()]


class Nothing(nn.Module):
    """Cross-attention that looks at no word."""

    def forward(self, x, tokens, known):
        """Leave the features alone."""
        return x


def without_vectors(network):
    """Random vectors in the place of those that are known for words, of the same size."""
    frozen = network.text.frozen
    network.text.frozen = frozen.float().std() * torch.randn(frozen.shape, generator=torch.Generator().manual_seed(1))


def without_positions(network):
    """Words without their places."""
    network.text.position = nn.Parameter(torch.zeros_like(network.text.position), requires_grad=False)


def without_cross(network):
    """The text by its summary in the embedding alone."""
    network.cross = nn.ModuleList(Nothing() for _ in network.cross)


def without_summary(network):
    """The text by cross-attention alone."""
    nn.init.zeros_(network.embed_text.weight).requires_grad_(False)
    nn.init.zeros_(network.embed_text.bias).requires_grad_(False)


VARIANTS = {  # settings of the network, and what is changed in it
    "full": ({}, None),
    "no attention among words": ({"text_depth": 0}, None),
    "no positions": ({}, without_positions),
    "random word vectors": ({}, without_vectors),
    "no cross-attention": ({}, without_cross),
    "no summary in the embedding": ({}, without_summary),
}


def measured(name, seed, steps):
    """A row: shares of squares that are as asked for."""
    settings, change = VARIANTS[name]
    data = training_set()
    with first_weights(seed):
        network = TextUNet(3, (32, 64), 1, (1,), unshuffle=2, text_width=64, **({"text_depth": 2} | settings))
        if change:
            change(network)
    model = GenerativeModel("edm", "dpm-solver++2m", network=network, device="cpu", verbose=False)
    start = time.process_time()
    record = model.train(data, steps=steps, batch_size=48, lr=1e-3, seed=seed, precision="float32")
    row = {"variant": name, "seed": seed, "steps": steps, "seconds": time.process_time() - start, "loss": record["train_loss"][-1]}
    asked = {"seen": [p for p in PAIRS if p not in WITHHELD], "unseen": sorted(WITHHELD), "synonyms": [p for p in PAIRS if p not in WITHHELD]}
    for kind, pairs in asked.items():
        right = []
        for place, (left, far) in enumerate(pairs):
            said = (SYNONYMS[left], SYNONYMS[far]) if kind == "synonyms" else (left, far)
            each = EACH if len(pairs) > 2 else 4 * EACH
            texts = [caption(*said, turned=i % 2 == 1) for i in range(each)]
            drawn = model.generate(each, 12, seed=100 + place, prompt=texts, guidance_scale=2.0)
            right += [colour == want for half, want in zip(colours_of(drawn), (left, far)) for colour in half]
        row[kind] = statistics.fmean(right)
    return row


def show(rows):
    """Print means over seeds, and the range where there are several."""
    print(f"{'':30s}{'seeds':>6s}{'loss':>8s}" + "".join(f"{kind:>16s}" for kind in ("seen", "unseen", "synonyms")))
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        if own:
            cells = [
                (statistics.fmean(r[kind] for r in own), *(f(r[kind] for r in own) for f in (min, max))) for kind in ("seen", "unseen", "synonyms")
            ]
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
