"""A network of latents that begins with the layers of a network of pixels, in benchmarks/train_emoji.py."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "train_emoji.py"


@pytest.fixture(scope="module")
def bridged():
    """The function of the script."""
    spec = importlib.util.spec_from_file_location("train_emoji", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.bridged


def test_layers_read_and_write_latents_as_they_did_pixels(bridged):
    """Pictures of one colour each, whose latents are a linear function of it: stem(A z + b) is the new stem of z, and B head(y) the new head of y."""
    draw = torch.Generator().manual_seed(0)
    colours = torch.randint(256, (64, 3), generator=draw)
    into = torch.randn(8, 3, generator=draw, dtype=torch.float64)  # from colours in [-1, 1] to latents
    shift = torch.randn(8, generator=draw, dtype=torch.float64)
    flat = colours / 127.5 - 1
    latents = (flat.double() @ into.mT + shift).float()[:, :, None, None].expand(-1, -1, 4, 4)
    sheets = colours.byte()[:, :, None, None].expand(-1, -1, 16, 16).contiguous()
    emoji = SimpleNamespace(train=[(k, "flat") for k in range(64)], latents={"flat": latents}, sheets={"flat": sheets})
    emoji.pictures = lambda pairs: torch.stack([latents[k] for k, _ in pairs])

    weights = {"stem.weight": torch.randn(5, 12, 3, 3, generator=draw), "stem.bias": torch.randn(5, generator=draw)}
    weights |= {"head.weight": torch.randn(12, 5, 3, 3, generator=draw), "head.bias": torch.randn(12, generator=draw)}
    new = bridged(weights, emoji)

    def layer(of, name, x):
        return F.conv2d(x, of[f"{name}.weight"], of[f"{name}.bias"])

    pixels = flat[:, :, None, None].expand(-1, -1, 6, 6)
    seen = latents[:, :, :1, :1].expand(-1, -1, 6, 6)
    old, now = (layer(of, "stem", F.pixel_unshuffle(x, 2)) for of, x in ((weights, pixels), (new, seen)))
    assert torch.allclose(now, old, rtol=1e-4, atol=1e-3)

    y = torch.randn(2, 5, 3, 3, generator=draw)
    drawn, written = (F.pixel_shuffle(layer(of, "head", y), 2) for of in (weights, new))
    assert torch.allclose(written, torch.einsum("kc,ncij->nkij", into.float(), drawn), rtol=1e-4, atol=1e-3)
