"""The transformer by name: through the facade, a model file, guidance and the command line."""

import pytest
import torch
import torch.nn.functional as F

from diffnb.data import ImageSet
from diffnb.model import GenerativeModel
from diffnb.networks import DiT, TransformerBlock, check_network, dit_settings, named_network, patch_positions, summary


@pytest.fixture(scope="module")
def images():
    """Small pictures with captions and classes."""
    pixels = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, torch.arange(12) % 2, captions=[["a red heart", "corazón rojo"], ["blue"]] * 6, values=(0, 1), names=("heart", "other"))


def test_a_patch_has_sines_and_cosines_of_its_row_and_of_its_column():
    """At one radian a patch and at a hundredth of that, where a token has eight numbers."""
    place = torch.tensor([[[row, row / 100, column, column / 100] for column in range(3)] for row in range(2)]).view(6, 2, 2)
    torch.testing.assert_close(patch_positions(2, 3, 8), torch.cat([place.sin(), place.cos()], 2).flatten(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize("some", [False, True], ids=["all tokens", "some tokens"])
def test_a_block_is_that_of_the_paper(some):
    """Figure 3 of Peebles and Xie, written out: each branch has a shift, a scale and a gate of its own."""
    generator = torch.Generator().manual_seed(0)
    block, n, tokens, width, heads = TransformerBlock(12, 4, zero_init=False).double(), 2, 5, 12, 3
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 3)
    x, emb = (torch.randn(*shape, generator=generator).double() for shape in ((n, tokens, width), (n, width)))
    known = torch.arange(tokens) < torch.tensor([[3], [5]]) if some else None
    with torch.no_grad():
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(emb).view(n, 6, 1, width).unbind(1)
        h = F.layer_norm(x, (width,), eps=1e-6) * (1 + scale1) + shift1
        q, k, v = (part.view(n, tokens, heads, width // heads).transpose(1, 2) for part in block.qkv(h).chunk(3, -1))
        scores = q @ k.mT / (width // heads) ** 0.5
        weights = (scores if known is None else scores.masked_fill(~known[:, None, None], -torch.inf)).softmax(-1)
        middle = x + gate1 * block.out((weights @ v).transpose(1, 2).reshape(n, tokens, width))
        h = F.layer_norm(middle, (width,), eps=1e-6) * (1 + scale2) + shift2
        expected = middle + gate2 * block.narrow(F.gelu(block.wide(h), approximate="tanh"))
        torch.testing.assert_close(block(x, emb, known), expected, atol=1e-10, rtol=1e-10)


def test_a_text_is_read_twice(images):
    """Its words are further tokens, and their sum joins the noise level and the class in what modulates every block."""
    network, seen = named_network("dit", images), []
    level, text, label = torch.tensor([0.3, -1.0]), network.encode(["red heart", ""]), torch.tensor([0, 1])
    network.blocks[0].register_forward_pre_hook(lambda block, given: seen.extend(given))
    with torch.no_grad():
        network(torch.zeros(2, 3, 8, 8), level, text, label)
        words, are_words = network.text(text)
        emb = network.embed_noise(level) + network.embed_label(label) + summary(words, are_words)
    torch.testing.assert_close(seen[1], F.silu(emb))
    assert torch.equal(seen[0][:, 64:], words) and torch.equal(seen[2][:, 64:], are_words) and bool(seen[2][:, :64].all())


@pytest.mark.parametrize("side, patch", [(1, 1), (16, 1), (17, 2), (32, 2), (33, 4), (64, 4), (256, 16)])
def test_patches_are_so_large_that_a_side_has_at_most_sixteen(side, patch):
    assert dit_settings((3, 1, side)) == dit_settings((3, side, side)) == {"channels": 3, "patch": patch}


def test_a_model_by_name_is_trained_guided_saved_and_loaded(images, tmp_path):
    model = GenerativeModel(network="dit", verbose=False)
    model.train(images, steps=3, batch_size=4, valid_fraction=0)
    assert isinstance(model.trained.network, DiT) and model.takes_text and model.num_classes == 2
    asked = dict(prompt=["red heart", None], class_labels=["heart", "other"], guidance_scale=2.0, n_steps=3, seed=1)
    made = model.generate(**asked)
    assert made.shape == (2, 3, 8, 8) and bool(made.isfinite().all())
    model.save(tmp_path / "dit.safetensors")
    again = GenerativeModel.load(tmp_path / "dit.safetensors", verbose=False)
    assert again.generate(**asked).equal(made)
    assert again.generate(2, n_steps=3, seed=1).equal(model.generate(2, n_steps=3, seed=1))


def test_it_takes_what_a_set_knows(images):
    for known, names in (
        (images, ("text", "label")),
        (ImageSet(images.images), ()),
        (ImageSet(images.images, attributes={"age": list(range(12))}), ("attributes",)),
    ):
        network = named_network("dit", known)
        assert network.condition_names == names
        check_network(network, known.shape, known.num_classes)


@pytest.mark.parametrize("side", [(5, 7), (8, 8), (33, 20)])
def test_it_takes_images_of_any_size(side):
    network = DiT(1, patch=4, width=16, depth=1, head_width=8)
    out = network(torch.randn(2, 1, *side), torch.tensor(0.0))
    assert out.shape == (2, 1, *side)
