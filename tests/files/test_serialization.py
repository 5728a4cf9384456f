"""Components as names and numbers, and weights in half precision."""

import json

import pytest
import torch

from diffnb.files import KINDS, Context, Parts
from diffnb.files.model_file import _cast as cast
from diffnb.networks import CODECS, NETWORKS
from diffnb.noise import VP, Cosine, Karras
from diffnb.samplers import DDIM

SMALL = {  # settings that make networks small, where they are not those of a U-Net
    "mlp": dict(dim=2),
    "dit": dict(channels=3, width=8, depth=1, head_width=4),
    "frozen-text-unet": dict(features=4, tokens=3, widths=(8, 8), groups=4),
}


def journey(component):
    """The component that its description makes, after a way through text."""
    return Context().revive(json.loads(json.dumps(Parts().describe(component))), None, "it")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("network", "codec")])
def test_every_registered_component_survives_json(kind):
    for name in KINDS[kind].names():
        component = KINDS[kind][name]()
        assert journey(component) == component


def test_settings_survive_exactly():
    for component in (VP(Cosine(s=0.1 + 0.2, beta_max=1e3 / 7)), DDIM(eta=1 / 3), Karras(2**-0.5)):
        assert journey(component) == component


def test_networks_are_registered_with_their_settings():
    for name in NETWORKS.names():
        network = NETWORKS[name](**SMALL.get(name, dict(widths=(8, 8), groups=4)))
        assert journey(network).config == network.config


SMALL_CODECS = {"diffusers-autoencoder": dict(widths=(8, 8), groups=4), "diffusers-tiny-autoencoder": dict(encoder_width=4, decoder_width=4)}


def test_codecs_are_registered_with_their_settings():
    for name in CODECS.names():
        codec = CODECS[name](**SMALL_CODECS.get(name, {}))
        assert journey(codec).config == codec.config


def test_half_precision_rounds_and_refuses():
    x = torch.tensor([1 / 3, -1e-5, 65504.0])
    half = cast({"x": x, "n": torch.tensor([2**40])}, torch.float16)
    assert torch.equal(half["x"], x.half()) and half["n"].dtype == torch.int64
    with pytest.raises(ValueError, match="too large"):
        cast({"x": torch.tensor([7e4])}, torch.float16)
    with pytest.raises(ValueError, match="floating point type"):
        cast({"x": x}, torch.int8)
    assert cast({"x": torch.tensor([float("inf")])}, torch.float16)["x"].isinf().all()
