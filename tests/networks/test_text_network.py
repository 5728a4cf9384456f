"""The parts of a network that reads texts, against what their formulas say, written out."""

import pytest
import torch
import torch.nn.functional as F

from diffnb.networks import AttributeEmbedding, CrossAttention, TextEncoder, summary, word_vectors

D = torch.float64


def randomised(layer):
    """The same layer in float64, with weights that are all different."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in layer.double().parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 3)
    return layer


def test_a_text_is_summed_up_by_its_beginning_and_the_mean_of_its_words():
    tokens = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [100.0, 100.0]], [[2.0, 1.0], [4.0, 3.0], [6.0, 5.0]]])
    known = torch.tensor([[True, True, False], [True, True, True]])
    assert summary(tokens, known).tolist() == [[1.0 + 2.0, 0.0 + 2.0], [2.0 + 4.0, 1.0 + 3.0]]


def test_a_word_is_its_vector_and_its_place():
    """Without layers: those with vectors, those that are learned, and the filling, each read by one matrix; then the place is added."""
    encoder, vectors = randomised(TextEncoder(2, length=5, width=6, depth=0)), word_vectors().vectors.double()
    ids = torch.tensor([[1, 2, 3, 4, 0], [1, 4, 6, 0, 0]])
    rows = [[encoder.learned.weight[i] if i < 4 else vectors[i - 4] for i in row] for row in ids.tolist()]
    x = torch.stack([torch.stack(row) for row in rows]) @ encoder.read.weight.T + encoder.read.bias + encoder.position
    expected = F.layer_norm(x, (6,), encoder.norm.weight, encoder.norm.bias)
    with torch.no_grad():
        tokens, known = encoder(ids)
    torch.testing.assert_close(tokens, expected.detach(), atol=1e-6, rtol=0)  # the vectors are float32
    assert known.tolist() == [[True, True, True, True, False], [True, True, True, False, False]]


def test_a_pixel_attends_to_the_words_of_a_text():
    layer, (n, c, h, w, words, heads) = randomised(CrossAttention(8, 6, groups=2, head_width=4, zero_init=False)), (2, 8, 2, 3, 4, 2)
    generator = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(n, c, h, w, generator=generator, dtype=D), torch.randn(n, words, 6, generator=generator, dtype=D)
    known = torch.arange(words) < torch.tensor([[2], [4]])
    with torch.no_grad():
        normed = F.group_norm(x, 2, layer.norm.weight, layer.norm.bias).flatten(2).mT  # (n, pixels, c)
        q = normed @ layer.q.weight[:, :, 0, 0].T + layer.q.bias
        k, v = layer.kv(tokens).chunk(2, -1)
        q, k, v = (part.view(n, -1, heads, c // heads).transpose(1, 2) for part in (q, k, v))
        weights = (q @ k.mT / (c // heads) ** 0.5).masked_fill(~known[:, None, None], -torch.inf).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(n, h * w, c)
        expected = x + (y @ layer.out.weight[:, :, 0, 0].T + layer.out.bias).mT.reshape(x.shape)
        torch.testing.assert_close(layer(x, tokens, known), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("known", [(True, True), (True, False), (False, False)])
def test_an_attribute_is_centred_and_scaled_and_zero_where_it_is_not_known(known):
    layer = randomised(AttributeEmbedding([("age", 40.0, 15.0), ("height", 170.0, 10.0)], 4))
    values = torch.tensor([[55.0, 165.0]], dtype=D)
    given = torch.where(torch.tensor([known]), values, torch.nan)
    scaled = [one if there else 0.0 for one, there in zip((1.0, -0.5), known)]
    with torch.no_grad():
        torch.testing.assert_close(layer(given), layer.layers(torch.tensor([[*scaled, *map(float, known)]], dtype=D)))
