"""Networks: what model files rely on, and what holds for every size."""

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffnb.denoise import Denoiser
from diffnb.networks import MLP, NETWORKS, SIZES, GroupNorm, HalfLogSNREmbedding, UNet, attend, build_network, check_network, network_settings
from diffnb.noise import EDM

SMALL = dict(widths=(16, 32), blocks=1, groups=8, num_classes=3, unshuffle=2, zero_init=False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_parameter_names_and_shapes_of_the_packaged_network_stay():
    network = build_network("small", (1, 28, 28), 10)
    layout = [(name, tuple(value.shape)) for name, value in network.state_dict().items()]
    assert len(layout) == 185
    assert hashlib.sha256(repr(layout).encode()).hexdigest().startswith("ba49a41bd6c71769"), "model files with this network could no longer be read"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 17, 23)])
def test_every_size_starts_silent_and_reaches_every_parameter(size, shape):
    settings = network_settings(size, shape, 2) | dict(
        widths=tuple(w // 8 for w in SIZES[size]["widths"]), groups=4, head_width=4, embedding_width=16
    )
    x, level, label = torch.randn(2, *shape), torch.tensor([-1.0, 1.0]), torch.tensor([0, -1])
    assert torch.equal(UNet(**settings)(x, level, label), torch.zeros_like(x))
    network = UNet(**settings, zero_init=False)
    network(x, level, label).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@pytest.mark.parametrize(
    "network", [UNet(**SMALL), UNet(channels=3, widths=(8,), attention_levels=()), MLP(2, width=32, num_classes=3)], ids=["unet", "flat", "mlp"]
)
def test_config_rebuilds_the_network(network):
    cls = NETWORKS[NETWORKS.name_of(network)]
    twin = cls(**json.loads(json.dumps(network.config)))
    twin.load_state_dict(network.state_dict(), strict=True)
    assert twin.config == network.config and twin.condition_names == network.condition_names


def test_the_embedding_turns_from_once_in_64_to_once_in_1():
    """Of each frequency a cosine and a sine, the frequencies in geometric progression."""
    embed, level = HalfLogSNREmbedding(14), torch.linspace(-9, 9, 50)
    points = torch.complex(*embed(level).double().chunk(2, 1))
    torch.testing.assert_close(points.abs(), torch.ones(50, 7, dtype=torch.float64), rtol=0, atol=1e-5)
    for k in range(7):
        turn = 64 ** (1 - k / 6)
        for part, factor in {1.0: 1, 0.5: -1, 0.25: 1j, -0.25: -1j}.items():
            moved = torch.complex(*embed(level + part * turn).double().chunk(2, 1))[:, k]
            torch.testing.assert_close(moved, points[:, k] * factor, rtol=0, atol=1e-4)


def test_memory_format_and_inference_mode_change_nothing():
    network, x, level = UNet(**SMALL).eval(), torch.randn(3, 1, 20, 28), torch.tensor([-2.0, 0.0, 4.0])
    with torch.inference_mode():
        plain = network(x, level, torch.tensor([0, 1, -1]))
        network.to(memory_format=torch.channels_last)
        last = network(x.contiguous(memory_format=torch.channels_last), level, torch.tensor([0, 1, -1]))
    torch.testing.assert_close(plain, last, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spread", [1.0, 3e-3, 0.0])
def test_the_norm_is_the_same_in_both_layouts(spread):
    """Also where values hardly differ, so that it is what is added to their variance that decides."""
    norm, generator = GroupNorm(4, 12), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in norm.parameters():
            weight.copy_(torch.randn(12, generator=generator))
    x, scale, shift = 0.25 + spread * torch.randn(2, 12, 3, 5, generator=generator), *torch.randn(2, 2, 12, generator=generator)
    expected = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-5)
    expected = expected * (1 + scale[..., None, None]) + shift[..., None, None]
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(norm(x.contiguous(memory_format=layout), scale, shift).double(), expected, atol=1e-3, rtol=1e-3)


def test_both_attention_kernels_compute_the_definition():
    for tokens in (16, 300):
        q, k, v = torch.randn(3, 2, 2, tokens, 8, generator=torch.Generator().manual_seed(0)).double()
        weights = (torch.einsum("nhid,nhjd->nhij", q, k) / 8**0.5).softmax(-1)
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
            got = attend(q.to(dtype), k.to(dtype), v.to(dtype))
            torch.testing.assert_close(got.double(), weights @ v, atol=tolerance, rtol=tolerance)


def test_build_network_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b = build_network("tiny", (1, 8, 8), seed=4), build_network("tiny", (1, 8, 8), seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert not torch.equal(a.stem.weight, build_network("tiny", (1, 8, 8), seed=5).stem.weight)


def test_dropout_is_silent_in_evaluation():
    network = UNet(**SMALL, dropout=0.3)
    x, level = torch.randn(2, 1, 8, 8), torch.zeros(2)
    network.eval()
    state = torch.get_rng_state()
    assert torch.equal(network(x, level), network(x, level)) and torch.equal(torch.get_rng_state(), state)
    network.train()
    assert not torch.equal(network(x, level), network(x, level))


def test_denoiser_refuses_a_label_for_a_network_without_classes():
    denoiser = Denoiser(UNet(**SMALL | dict(num_classes=0)), EDM(), "karras")
    with pytest.raises(ValueError, match="takes no condition"):
        denoiser(torch.zeros(1, 1, 8, 8), 0.5, {"label": torch.tensor([0])})


def test_eight_images_are_soon_learned_by_heart():
    network, x = UNet(**SMALL), torch.randn(8, 1, 12, 12)
    target, level, label = torch.randn(8, 1, 12, 12), torch.linspace(-3, 3, 8), torch.arange(8) % 3
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        loss = (network(x, level, label) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(activation="tanh"), "activation must be one of"),
        (dict(widths=(32, -1)), r"widths\[1\] must be a positive integer"),
        (dict(widths=[]), "widths must give"),
        (dict(blocks=0), "blocks must be a positive integer"),
        (dict(attention_levels=(5,)), "attention_levels names level 5"),
        (dict(embedding_width=31), "embedding_width must be even"),
        (dict(dropout=-0.1), "dropout must lie"),
    ],
)
def test_impossible_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**arguments)


def test_check_network_says_what_is_wrong():
    class Scalar(nn.Module):
        def forward(self, x, half_log_snr):
            return x.mean()

    with pytest.raises(ValueError, match=r"must return a tensor of the shape of its input, \(3, 1, 8, 8\)"):
        check_network(Scalar(), (1, 8, 8))
    with pytest.raises(ValueError, match="x has 1 channels, but this network takes 3"):
        check_network(UNet(channels=3), (1, 8, 8))
    with pytest.raises(TypeError, match="an nn.Module, got <class"):
        build_network(UNet, (1, 8, 8))
    network = UNet(**SMALL).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    check_network(network, (1, 8, 8), 3)
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_the_maps_of_an_image_are_those_of_the_way_down(levels):
    """The last map of each level and the first of the middle, as they arise when the network is run without conditions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(2, widths=(8, 12, 16)[:levels], blocks=2, attention_levels=(0,), num_classes=3, groups=4, zero_init=False).eval()
        x, noise = torch.randn(2, 2, 9, 9), torch.tensor([0.3, -1.0])
    met = []
    for module in (*(stage.attention[-1] for stage in network.down), network.middle[0]):
        module.register_forward_hook(lambda _, given, out: met.append(out))
    network(x, noise)
    wanted = list(met)
    found = network.maps(x, noise)
    assert len(found) == len(wanted) == levels + 1 and all(torch.equal(a, b) for a, b in zip(found, wanted))
    assert not torch.equal(found[-1], network.maps(x, noise + 1)[-1])
