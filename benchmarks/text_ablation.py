"""What each part of the text network adds: python benchmarks/text_ablation.py. Half an hour on one core.

A picture has a left half and a right half, each in one of four colours. A caption says both, in either order: "red left, blue right", or
"blue right, red left". Which colour belongs to which side can be told only by reading the words together. Each variant is trained on the same
pictures with the same seeds, and draws every combination; a half is right if its mean is nearest to the colour that was asked for. Without the
text it would be one in four.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from torch import nn

from diffnb.data import ImageSet
from diffnb.model import GenerativeModel
from diffnb.networks import TextUNet, Vocabulary, first_weights
from diffnb.printing import Table

COLOURS = {"red": (220, 30, 30), "green": (30, 170, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40)}
SIDES = ("left", "right")
PAIRS = list(itertools.product(COLOURS, repeat=2))


def captions_of(pair):
    """What may be said of a picture."""
    said = [f"{colour} {side}" for colour, side in zip(pair, SIDES)]
    return ", ".join(said), ", ".join(said[::-1])


def pictures(n, generator):
    """Pictures with both captions, of random shades."""
    pairs = [PAIRS[k] for k in torch.randint(len(PAIRS), (n,), generator=generator)]
    images = torch.tensor([[COLOURS[left], COLOURS[right]] for left, right in pairs], dtype=torch.float32)
    images = images.mT[:, :, None, :].repeat_interleave(4, 3).repeat_interleave(8, 2) + 12 * torch.randn(n, 3, 1, 1, generator=generator)
    return ImageSet(images.round().clamp(0, 255).byte(), captions=[captions_of(pair) for pair in pairs])


class Unchanged(nn.Module):
    """Cross-attention that was taken away."""

    def forward(self, x, tokens, known):
        """Leave the picture as it is."""
        return x


def silence(layer):
    """Set a layer to zero for good."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter.requires_grad_(False))


def without_cross(network):
    network.cross = nn.ModuleList(Unchanged() for _ in network.cross)


def without_summary(network):
    silence(network.embed_text)


def without_positions(network):
    nn.init.zeros_(network.text.position.requires_grad_(False))


def without_layers(network):
    network.text.layers = nn.ModuleList()


VARIANTS = {
    "whole": lambda network: None,
    "without cross-attention": without_cross,
    "without the sum in the embedding": without_summary,
    "without positions of words": without_positions,
    "without self-attention among words": without_layers,
}


def right(model, captions, pairs, seed):
    """Share of halves that have the colour that was asked for."""
    images = model.generate(prompt=captions, n_steps=12, seed=seed)
    means = torch.stack([images[..., 1:3].mean((2, 3)), images[..., 5:7].mean((2, 3))], 1)  # (n, sides, 3)
    palette = torch.tensor(list(COLOURS.values())) / 255
    nearest = ((means[:, :, None] - palette) ** 2).sum(-1).argmin(-1)
    asked = torch.tensor([[list(COLOURS).index(colour) for colour in pair] for pair in pairs])
    return (nearest == asked).float().mean().item()


def measure(name, steps, seed):
    """Train a variant, and draw every caption."""
    images = pictures(2048, torch.Generator().manual_seed(seed))
    with first_weights(seed):
        network = TextUNet(3, (16, 24), 1, (1,), Vocabulary.of(itertools.chain(*images.captions)).further, 12, 32, 2, groups=8)
        VARIANTS[name](network)
    model = GenerativeModel(diffusion="edm", sampler="dpm-solver++2m", network=network, device="cpu", verbose=False)
    start = time.perf_counter()
    model.train(images, steps=steps, batch_size=64, lr=3e-3, valid_fraction=0, seed=seed)
    asked = [(pair, text) for pair in PAIRS for text in captions_of(pair) for _ in range(4)]
    share = right(model, [text for _, text in asked], [pair for pair, _ in asked], seed)
    return {"right": share, "seconds": time.perf_counter() - start}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200, help="training steps of each variant")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "text_ablation.json")
    given = parser.parse_args()
    found = {}
    for name in VARIANTS:
        runs = found[name] = [measure(name, given.steps, seed) for seed in range(given.seeds)]
        print(name, runs, flush=True)
    given.out.write_text(json.dumps({"steps": given.steps, "seeds": given.seeds, "runs": found}, indent=1) + "\n")
    rows = []
    for name, runs in found.items():
        rows.append((name, f"{100 * sum(run['right'] for run in runs) / len(runs):.0f}%", ", ".join(f"{100 * run['right']:.0f}%" for run in runs)))
    print(Table({"variant": "", "right halves": ">", "each training": ">"}, rows))


if __name__ == "__main__":
    main()
