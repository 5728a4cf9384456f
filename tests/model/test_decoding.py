"""What is sampled is decoded in bounded memory: some images at a time, large ones in tiles, which have no seam where a pixel sees only so far."""

import math

import pytest
import torch
from torch import nn

from diffnb.model import LARGEST, decode_in_parts, decode_in_tiles
from diffnb.networks import Codec, ConvCodec, DiffusersAutoencoder, DiffusersTinyAutoencoder, IdentityCodec, PatchPCA, Wavelet, first_weights

D = torch.float64


def with_weights(codec, low=-1.0):
    """A codec that is not at its start, where its decoder gives nothing: weights of about the size of trained ones, in float64."""
    generator = torch.Generator().manual_seed(0)
    for p in codec.parameters():
        fan = math.prod(p.shape[1:]) if p.ndim > 1 else 10
        p.data = (low + (1 - low) * torch.rand(p.shape, generator=generator)) * (3 / fan) ** 0.5
    return codec.double().requires_grad_(False)


LOCAL = {
    "components": lambda **_: PatchPCA(5, 2).double(),
    "wavelets": lambda **_: Wavelet(2),
    **{f"conv, factor {f}, {b} blocks": lambda f=f, b=b, **low: with_weights(ConvCodec(4, f, 3, 4, b), **low) for f, b in ((2, 2), (4, 1), (8, 2))},
    **{
        f"tiny, blocks {d}": lambda d=d, **low: with_weights(DiffusersTinyAutoencoder(4, 3, 2, 2, (1,) * len(d), d), **low)
        for d in ((0, 0), (1, 2), (2, 1, 1))
    },
}


def latents(codec, h, w, n=2):
    channels = codec.channels or 3 * codec.patch**2
    return torch.randn(n, channels, h, w, generator=torch.Generator().manual_seed(1), dtype=D)


@pytest.mark.parametrize("name", LOCAL)
def test_the_reach_is_how_far_a_pixel_sees(name):
    """Where all weights are positive nothing cancels, and the derivative says which latent pixels count."""
    codec, p = LOCAL[name](low=0.1), LOCAL[name]().patch
    side = 2 * codec.reach + 5
    z, middle = (0.01 * latents(codec, 1, side, 1).abs()).requires_grad_(), side // 2
    codec.requires_grad_(True)
    row = codec.decode(z)[0, :, :, p * middle : p * (middle + 1)].sum(1)
    counts = torch.zeros(side, dtype=torch.bool)
    for channel in row:
        for pixel in channel:
            counts |= (torch.autograd.grad(pixel, z, retain_graph=True)[0].abs().sum((0, 1, 2)) > 0).detach()
    far = counts.nonzero().flatten() - middle
    assert (-far.min().item(), far.max().item()) == (codec.reach, codec.reach)


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("h, w, step", [(9, 14, 4), (5, 3, 16), (7, 7, 1)])
def test_tiles_are_the_whole(name, h, w, step):
    codec = LOCAL[name]()
    z = latents(codec, h, w)
    whole, tiled = codec.decode(z), decode_in_tiles(codec, z, 2 * codec.reach + step)
    assert tiled.shape == whole.shape and whole.std() > 0.1
    torch.testing.assert_close(tiled, whole, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(decode_in_tiles(codec, z, 2 * codec.reach + step + 6, codec.reach + 3), whole, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", [name for name in LOCAL if "," in name])
def test_a_margin_that_is_too_small_shows(name):
    codec = LOCAL[name](low=0.1)
    z = 0.1 * latents(codec, 4, 4 * codec.reach).abs()
    tiled = decode_in_tiles(codec, z, 3 * codec.reach, codec.reach - 1)
    assert (tiled - codec.decode(z)).abs().max() > 1e-9


class Counted(Wavelet):
    """A codec that notes how many pixels it decodes at a time."""

    def decode(self, z):
        made = super().decode(z)
        self.pixels.append(len(z) * math.prod(made.shape[2:]))
        return made


@pytest.mark.parametrize("n, h, w", [(7, 4, 8), (3, 64, 40), (1, 100, 8)])
def test_memory_is_bounded_for_many_and_for_large(n, h, w, monkeypatch):
    assert LARGEST == 2**20
    monkeypatch.setattr("diffnb.model.latents.LARGEST", 400)
    monkeypatch.setattr("diffnb.model.latents.chunk_of", lambda shape: max(1, 400 // math.prod(shape[1:])))
    codec, z = Counted(1), torch.randn(n, 12, h, w)
    codec.pixels = []
    made = decode_in_parts(codec, z)
    assert max(codec.pixels) <= 400 and sum(codec.pixels) == made[:, 0].numel()
    assert torch.equal(made, Wavelet(1).decode(z))


def test_what_is_not_local_is_decoded_whole(monkeypatch):
    monkeypatch.setattr("diffnb.model.latents.LARGEST", 64)
    with first_weights(0):
        codec = with_weights(DiffusersAutoencoder(4, 3, (8, 8), 1, 4))
    z = latents(codec, 12, 12, 1)
    assert codec.reach is None and torch.equal(decode_in_parts(codec, z), codec.decode(z))
    assert decode_in_parts(IdentityCodec(), z) is z and Codec.reach is None
    with pytest.raises(ValueError, match="of a DiffusersAutoencoder depends on the whole latent, so that its tiles have seams; give margin="):
        decode_in_tiles(codec, z, 8)
    for side, margin, says in ((8, 4, "side must be"), (0, 0, "side must be"), (8, -1, "margin must be")):
        with pytest.raises(ValueError, match=says):
            decode_in_tiles(codec, z, side, margin)
    with pytest.raises(ValueError, match="whose latents have 4 channels"):
        decode_in_tiles(codec, z[:, :3], 8, 1)


def test_norms_and_attention_alone_make_the_large_autoencoder_see_everything():
    """With each norm replaced by what it does to a picture whose statistics do not change, its tiles are the whole, and with it they are not."""
    with first_weights(0):
        codec = with_weights(DiffusersAutoencoder(4, 3, (8, 8), 1, 4, attention=False))
    z = latents(codec, 40, 6, 1)
    z[:, :, 20:] *= 3  # a picture whose halves differ
    assert (decode_in_tiles(codec, z, 34, 14) - codec.decode(z)).abs().max() > 0.05
    for name, module in list(codec.decoder.named_modules()):
        if isinstance(module, nn.GroupNorm):
            where, _, own = name.rpartition(".")
            setattr(codec.decoder.get_submodule(where), own, nn.Identity())
    torch.testing.assert_close(decode_in_tiles(codec, z, 34, 14), codec.decode(z), atol=1e-10, rtol=1e-10)
