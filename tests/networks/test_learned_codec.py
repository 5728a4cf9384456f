"""The learned codec: it starts from what is optimal among linear ones, and gains only where there is something to gain."""

import pytest
import torch

from diffnb.core import to_model, to_unit
from diffnb.data import image_set
from diffnb.denoise import Gaussian
from diffnb.networks import CODECS, CodecTraining, ConvCodec, PatchPCA, check_codec, group_averages, zero_start
from diffnb.networks.learned_codec import _Double, _Halve

D = torch.float64
SMALL = {"width": 8, "blocks": 1, "batch_size": 16, "progress": False}


@pytest.fixture(scope="module")
def emoji():
    return image_set("emoji", size=16, limit=300, verbose=False)


@pytest.fixture(scope="module")
def fitted(emoji):
    return ConvCodec.fit(emoji, 4, 8, 25, **SMALL)


def lost(codec, x):
    """Mean squared error of a patch, of images in [-1, 1]."""
    with torch.no_grad():
        return (codec.decode(codec.encode(x)) - x).square().flatten(1).sum(1).mean().item()


@pytest.mark.parametrize("groups, d", [(1, 4), (3, 12), (5, 12), (8, 48), (12, 12)])
def test_averages_are_a_projection(groups, d):
    P = group_averages(groups, d)
    torch.testing.assert_close(P @ P.mT, torch.eye(groups))
    torch.testing.assert_close((P.mT @ P).sum(0), torch.ones(d))  # constants stay what they are
    assert ((P > 0).sum(0) == 1).all()


@pytest.mark.parametrize("factor, channels, c", [(2, 1, 1), (2, 12, 3), (4, 8, 3), (8, 5, 1), (16, 32, 3)])
@pytest.mark.parametrize("h, w", [(1, 1), (2, 1), (3, 2)])
def test_shapes_and_what_an_untrained_codec_does(factor, channels, c, h, w):
    codec = ConvCodec(channels, factor, c, width=4, blocks=1)
    check_codec(codec, (c, h * factor, w * factor))
    assert codec.shape((c, h * factor, w * factor)) == (channels, h, w) and not codec.exact and not codec.is_linear and not codec.is_fitted
    z = torch.randn(2, channels, h, w, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(codec.decode(z)), z, atol=1e-5, rtol=0)
        grey = torch.full((1, c, h * factor, w * factor), 0.3)
        torch.testing.assert_close(codec.decode(codec.encode(grey)), grey)


def test_a_group_becomes_its_mean():
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    codec = ConvCodec(2, 4, 2, width=4, blocks=1)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(codec.encode(x)), x.mean((2, 3), keepdim=True).expand(x.shape), atol=1e-6, rtol=0)


def test_without_their_convolutions_halving_averages_rows_of_two_and_doubling_copies_them():
    halve, double = _Halve(2), _Double(4)
    for layer in (halve.conv, double.conv):
        zero_start(layer)
    x, z = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((3, 2, 4, 6), (3, 4, 2, 3)))
    with torch.no_grad():
        rows = x.unflatten(3, (3, 2)).mean(4).unflatten(2, (2, 2))  # (n, c, h / 2, which row, w / 2)
        torch.testing.assert_close(halve(x), rows.transpose(2, 3).flatten(1, 2))
        assert torch.equal(halve(double(z)), z)


def test_half_of_the_pictures_are_mirrored():
    images = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    training, seen = CodecTraining(images, 4, 4, 4, 1, batch_size=4000), []
    training.loss = lambda x: seen.append(x) or sum(weight.sum() for weight in training.network.parameters()) * 0.0
    training.train_step(0.0)
    is_mirrored = (seen[0] == to_model(images).flip(-1)).flatten(1).all(1)
    assert torch.equal(seen[0], torch.where(is_mirrored[:, None, None, None], to_model(images).flip(-1), to_model(images)))
    assert abs(is_mirrored.double().mean() - 0.5) < 0.03


def test_the_noise_of_the_training_has_the_size_of_the_latents(emoji):
    """An encoder gains nothing by larger latents: they are disturbed as much more, channel by channel, and the loss stays what it was."""
    losses = []
    for larger in (torch.ones(8), torch.tensor([3.0, 0.2, 1, 1, 50, 1, 1, 7])):
        training = CodecTraining(emoji, width=8, blocks=1, noise=0.3)
        training.network.spread /= larger  # of what is encoded; what is decoded is multiplied by it
        with torch.no_grad():
            losses.append(training.loss(to_model(emoji.unit(slice(64)))).item())
    quiet = CodecTraining(emoji, width=8, blocks=1, noise=0.0)
    with torch.no_grad():
        assert losses[0] > 1.05 * quiet.loss(to_model(emoji.unit(slice(64)))).item()
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_the_rate_rises_for_fifty_steps_and_falls_over_the_second_half(emoji):
    training = CodecTraining(emoji, width=8, blocks=1, batch_size=2, rate=1e-4)
    for step, progress, share in (
        (0, 0.0, 0.02),
        (24, 0.1, 0.5),
        (49, 0.2, 1.0),
        (100, 0.5, 1.0),
        (100, 0.75, 0.501),
        (100, 0.95, 0.101),
        (100, 1.0, 1e-3),
    ):
        training.step = step
        training.train_step(progress)
        assert training.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * share), (step, progress)


def test_several_features_count_as_their_mean(emoji):
    """One function of images, or twice the same in a list: one loss, which is added to that of the pixels."""
    found, x = [], to_model(emoji.unit(slice(16)))
    for features in (None, lambda x: 10 * x, lambda x: [10 * x, 10 * x]):
        training = CodecTraining(emoji, width=8, blocks=1, noise=0.0, features=features)
        with torch.no_grad():
            found.append(training.loss(x).item())
    assert found[1] == pytest.approx(11 * found[0]) and found[2] == pytest.approx(found[1])


def test_training_begins_at_principal_components_and_gains(emoji, fitted):
    x, linear = to_model(emoji.unit(slice(None))), PatchPCA.fit(emoji, 4, 8)
    start = CodecTraining(emoji, 4, 8, 8, 1).codec()
    assert lost(start, x) == pytest.approx(lost(linear, x), rel=1e-5)
    assert lost(fitted, x) < 0.97 * lost(linear, x)


def test_latents_are_standardised(emoji, fitted):
    z = fitted.encode(to_model(emoji.unit(slice(None)))).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(1), torch.ones(8), atol=1e-3, rtol=0)
    assert fitted.is_fitted and not any(p.requires_grad for p in fitted.parameters())


def test_nothing_is_gained_where_linear_codecs_are_optimal():
    root = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=D) * torch.logspace(0, -1, 16)[:, None] * 0.05
    data = Gaussian(torch.zeros(16, dtype=D), root @ root.mT)
    images, fresh = (data.sample(n, seed=seed).view(n, 1, 4, 4).float().clamp(-1, 1) for n, seed in ((4000, 0), (4000, 1)))
    learned = ConvCodec.fit(to_unit(images), 4, 4, 60, **SMALL | {"batch_size": 64}, noise=0.0, rate=5e-4)
    assert 0.97 < lost(learned, fresh) / lost(PatchPCA.fit(to_unit(images), 4, 4), fresh) < 1.1


def test_noise_has_the_size_of_each_channel(emoji):
    # without branches the expected error is known: what is left out, and noise^2 times what is kept
    images = to_model(emoji.unit(slice(None)).double())
    training, values = CodecTraining(emoji.unit(slice(None)).double(), 4, 8, 4, 1, noise=0.3), PatchPCA.fit(to_unit(images), 4, None).scale.square()
    caught = []
    training.network.decode = lambda z: caught.append(type(training.network).decode(training.network, z)) or caught[0]
    training.loss(images)
    error = (caught[0] - images).square().sum().item() / (len(images) * 16)
    assert error == pytest.approx((values[8:].sum() + 0.09 * values[:8].sum()).item(), rel=0.02)


def test_parts_of_a_picture_are_decoded_as_in_the_whole(fitted):
    z = torch.randn(1, 8, 4, 40, generator=torch.Generator().manual_seed(0))
    whole, left = fitted.decode(z), fitted.decode(z[..., :30])
    assert torch.allclose(whole[..., :80], left[..., :80], atol=1e-5) and not torch.allclose(whole[..., 116:120], left[..., 116:], atol=1e-5)


def test_the_same_seed_gives_the_same_codec_and_torch_is_left_alone(emoji):
    before = torch.random.get_rng_state()
    a, b, c = (ConvCodec.fit(emoji, 4, 4, 4, seed=seed, **SMALL) for seed in (0, 0, 1))
    assert all(torch.equal(one, b.state_dict()[name]) for name, one in a.state_dict().items())
    assert not torch.equal(a.encoder[1].weight, c.encoder[1].weight)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_training_goes_on(emoji):
    whole, first, second = (CodecTraining(emoji, 4, 4, 8, 1, 16) for _ in range(3))
    for step in range(6):
        whole.train_step(step / 6)
    for step in range(3):
        first.train_step(step / 6)
    second.load_state_dict(first.state_dict())
    for step in range(3, 6):
        second.train_step(step / 6)
    assert second.step == 6
    for name, one in whole.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], one, atol=1e-6, rtol=0)


def test_interrupting_keeps_what_there_is(emoji):
    seen = []

    def features(x):
        seen.append(len(x))
        if len(seen) == 6:  # two calls a step
            raise KeyboardInterrupt
        return [x.diff(dim=3), x.diff(dim=2)]

    with pytest.warns(UserWarning, match="ended after 2 steps"):
        codec = ConvCodec.fit(emoji, 4, 4, 50, features=features, **SMALL)
    check_codec(codec, (3, 8, 8))


def test_a_time_limit_ends_it(emoji):
    assert ConvCodec.fit(emoji, 4, 4, time_limit=0.5, **SMALL).is_fitted


def test_a_set_by_its_name(emoji):
    named, given = (
        ConvCodec.fit(images, 4, 4, 3, **SMALL, **size)
        for images, size in (("emoji", {"size": 16}), (image_set("emoji", size=16, verbose=False), {}))
    )
    assert all(torch.equal(one, given.state_dict()[name]) for name, one in named.state_dict().items())
    assert CodecTraining("emoji", 4, 4, 8, 1).images.shape[1] == 3
    with pytest.raises((ValueError, FileNotFoundError), match="emojis"):
        ConvCodec.fit("emojis", size=16)


def test_other_images(emoji):
    grey = emoji.unit(slice(None)).double().mean(1, keepdim=True)
    codec = ConvCodec.fit(grey, 2, 2, 2, **SMALL)
    assert codec.config["image_channels"] == 1 and codec.mean.dtype == D
    assert CODECS[CODECS.name_of(codec)](**codec.config).config == codec.config
    check_codec(codec, (1, 6, 10))


WRONG = {
    "a factor that is no power of two": (lambda e: ConvCodec.fit(e, 3), "factor must be 2, 4, 8, 16 or 32, got 3"),
    "too many channels": (lambda e: ConvCodec.fit(e, 2, 13), "channels must be at most 12"),
    "no channels": (lambda e: ConvCodec.fit(e, 2, 0), "channels must be a whole number of at least 1"),
    "no steps": (lambda e: ConvCodec.fit(e, steps=0), "steps must be a whole number of at least 1"),
    "no time": (lambda e: ConvCodec.fit(e, time_limit=0), "time_limit must be a positive number of seconds"),
    "time in words": (lambda e: ConvCodec.fit(e, time_limit="long"), "time_limit must be a number"),
    "an odd width": (lambda e: ConvCodec.fit(e, width=7), "width must be even, got 7"),
    "no blocks": (lambda e: ConvCodec.fit(e, blocks=0), "blocks must be a whole number from 1 to 64"),
    "no images a step": (lambda e: ConvCodec.fit(e, batch_size=0), "batch_size must be a whole number of at least 1"),
    "no rate": (lambda e: ConvCodec.fit(e, rate=0), "rate must be a number above 0"),
    "less than no noise": (lambda e: ConvCodec.fit(e, noise=-1), "noise must be a number of at least 0"),
    "a seed below 0": (lambda e: ConvCodec.fit(e, seed=-1), "seed must be a whole number from 0"),
    "sides that do not fit": (lambda e: ConvCodec.fit(torch.rand(4, 3, 18, 16)), "multiples of 4, got 18 x 16"),
    "images in [-1, 1]": (lambda e: ConvCodec.fit(torch.rand(4, 3, 8, 8) * 2 - 1), r"numbers in \[0, 1\]"),
    "no images at all": (lambda e: ConvCodec.fit(torch.rand(0, 3, 8, 8)), "n of at least 1"),
    "a density": (lambda e: ConvCodec(8).log_det((3, 16, 16)), "loses something"),
    "grey images": (lambda e: ConvCodec(8).encode(torch.zeros(1, 1, 8, 8)), "made for images of 3 channels"),
    "latents of another codec": (lambda e: ConvCodec(8).decode(torch.zeros(1, 4, 2, 2)), "latents have 8 channels"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_in_a_sentence(name, emoji):
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words) as caught:
        call(emoji)
    assert "\n" not in str(caught.value)


def test_a_training_that_goes_astray_says_so(emoji):
    training = CodecTraining(emoji, 4, 4, 8, 1, features=lambda x: x * torch.nan)
    before = training.network.encoder[1].weight.clone()
    with pytest.raises(FloatingPointError, match="the loss of the codec is nan at step 0; a rate below 0.002 would do"):
        training.train_step(0.0)
    assert torch.equal(before, training.network.encoder[1].weight)
