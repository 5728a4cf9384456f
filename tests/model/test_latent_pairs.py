"""Pairs through a codec: second images on the grid of latents, training and sampling as in pixels, files and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diffnb import GenerativeModel
from diffnb.core import NoiseSource, to_model, to_unit
from diffnb.data import ImageSet, image_loaders, image_set, paired
from diffnb.denoise import Gaussian, InformedDenoiser
from diffnb.files import ModelFileError
from diffnb.guidance import ClassifierFree, Downsample, Grayscale
from diffnb.model import Trained, encoded, image_settings, second_in_latents, second_seen
from diffnb.networks import ConvCodec, PatchPCA, Wavelet
from diffnb.noise import EDM, X0
from diffnb.samplers import EulerMaruyama, Heun

D, FEW, SHAPE, DIM = torch.float64, {"n_steps": 3, "seed": 5}, (3, 4, 4), 48


def gaussian(d, seed):
    """A mean of zero, and a covariance that is no multiple of one."""
    root = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=D) * 0.3 / d**0.5
    return Gaussian(torch.zeros(d, dtype=D), root @ root.mT + 0.01 * torch.eye(d, dtype=D))


def rotation():
    """All principal components of patches, as they come: orthonormal."""
    codec = PatchPCA.of(torch.zeros(12, dtype=D), gaussian(12, 3).covariance, 2, None)
    codec.scale.fill_(1)
    return codec


CODECS = {"wavelet": Wavelet, "all components": rotation}


@pytest.fixture(scope="module")
def photos():
    found = image_set("cifar10_samples", size=8, limit=40, verbose=False)
    return ImageSet(found.images)


@pytest.mark.parametrize("made", CODECS.values(), ids=list(CODECS))
@pytest.mark.parametrize("kind", ["colours", "grey"])
def test_batches_of_latents_are_batches_of_pictures_through_the_codec(made, kind, photos):
    """Order, mirroring and second images: all that a training sees is the encoded form of what a training in pixels sees."""
    codec = made().float()
    pairs = paired(photos, (lambda images: 1 - images) if kind == "colours" else "grey", verbose=False)
    settings = {"batch_size": 8, "flip": True, "seed": 3, "device": "cpu"}
    both = [image_loaders(one, **settings).train for one in (pairs, encoded(pairs, codec, flip=True))]
    for (x, told, rows), (z, told_z, same) in zip(*both):
        assert torch.equal(rows, same)
        torch.testing.assert_close(z, codec.encode(x), atol=1e-5, rtol=0)
        y = told["image"]
        torch.testing.assert_close(told_z["image"], codec.encode(y) if kind == "colours" else F.pixel_unshuffle(y, 2), atol=1e-5, rtol=0)
    part = encoded(pairs, codec, flip=True).select(torch.tensor([7, 2]))
    torch.testing.assert_close(part.second_batch(torch.tensor([1])), encoded(pairs, codec).second_batch(torch.tensor([2])))


@pytest.mark.parametrize("made", CODECS.values(), ids=list(CODECS))
def test_a_linear_network_learns_in_latents_what_it_learns_in_pixels(made, photos):
    """Steepest descent does not see an orthonormal codec: the weights of one training are those of the other, rotated."""
    codec, shape, d = made(), (3, 8, 8), 192
    Q = codec.double().encode(torch.eye(d, dtype=D).view(d, *shape)).flatten(1).mT
    whole = torch.block_diag(Q, Q)
    pairs = paired(photos, lambda images: 1 - images.flip(2), verbose=False)
    settings = {"batch_size": 8, "flip": True, "device": "cpu"}
    learned = []
    for images, turned in ((pairs, torch.eye(d, dtype=D)), (encoded(pairs, codec.float(), flip=True), Q)):
        weight = torch.zeros(d, 2 * d, dtype=D)
        for step, (x, told, _) in enumerate(image_loaders(images, **settings).train):
            noise = NoiseSource.of(step, len(x)).normal((d,), "training", dtype=D) @ turned.mT
            seen = torch.cat([x.flatten(1).double() + 0.5 * noise, told["image"].flatten(1).double()], 1)
            weight -= 0.05 * 2 * (seen @ weight.mT - x.flatten(1).double()).mT @ seen / len(x) / d
        learned.append(weight)
    assert learned[0].abs().max() > 1e-3
    torch.testing.assert_close(learned[1], Q @ learned[0] @ whole.mT, atol=1e-5, rtol=0)


class Told(nn.Module):
    """The network that gives what an oracle says of the latents of Gaussian images that are told y = B x + noise."""

    condition_names = ("image",)

    def __init__(self, oracle, second_shape):
        super().__init__()
        self.oracle, self.shape = oracle, second_shape
        self.config = {"image_channels": second_shape[0], "image_factor": 1}

    def null(self, condition):
        return torch.full((self.shape[0], 1, 1), torch.nan)

    def forward(self, x, half_log_snr, image=None):
        sigma = (-half_log_snr.double()).exp()
        noisy = x.double() * (1 + sigma**2).sqrt().view(-1, 1, 1, 1)  # what the parametrization divided by
        t = self.oracle.sde.time_of_half_log_snr(half_log_snr.double()).clamp(self.oracle.sde.t_min, self.oracle.sde.t_max)
        told = {} if image is None else {"image": image.expand(len(x), *self.shape[:1], *image.shape[2:]).double()}
        if told and told["image"].shape[1:] != self.shape:
            told["image"] = told["image"].expand(len(x), *self.shape)
        return self.oracle.x0(noisy, t, told).to(x)


class Turned(NoiseSource):
    """Random numbers of images, which are those of latents, decoded."""

    def normal(self, shape, stream, draw=0, dtype=torch.float32):
        return self.codec.decode(super().normal(self.codec.shape(shape), stream, draw, dtype))


@pytest.mark.parametrize("sampler", [Heun(), EulerMaruyama()], ids=["heun", "euler-maruyama"])
@pytest.mark.parametrize("kind", ["colours", "grey"])
@pytest.mark.parametrize("made", CODECS.values(), ids=list(CODECS))
def test_answers_in_latents_are_answers_in_pixels(made, kind, sampler):
    """The exact denoiser of Gaussian images that is told a second one, through the facade with a codec, and in pixels without."""
    codec, data, sde, noise = made().double(), gaussian(DIM, 0), EDM(0.01, 4.0), 0.1
    Q = codec.encode(torch.eye(DIM, dtype=D).view(DIM, *SHAPE)).flatten(1).mT
    if kind == "colours":  # y is an image, and is encoded: Q y = (Q B Q^T) z + noise
        B = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1), dtype=D) / DIM**0.5
        second_shape, of_latents = SHAPE, Q @ B @ Q.mT
    else:  # y has one channel, and its blocks become channels: P y = (P B Q^T) z + noise
        B = Grayscale().A(torch.eye(DIM, dtype=D).view(DIM, *SHAPE)).flatten(1).mT
        P = F.pixel_unshuffle(torch.eye(16, dtype=D).view(16, 1, 4, 4), 2).flatten(1).mT
        second_shape, of_latents = (1, 4, 4), P @ B @ Q.mT
    latent = Gaussian(torch.zeros(DIM, dtype=D), Q @ data.covariance @ Q.mT)
    network = Told(InformedDenoiser(latent, sde, of_latents, noise), second_seen(codec, SHAPE, second_shape))
    trained = Trained(network, sde, X0(sigma_data=1.0), SHAPE, codec=codec.float(), records=({"second_shape": list(second_shape)},))
    model = GenerativeModel.of(trained, sampler=sampler, device="cpu", verbose=False)
    picture = torch.rand(2, *second_shape, generator=torch.Generator().manual_seed(2))
    pixels, told = InformedDenoiser(data, sde, B, noise), {"image": to_model(picture.double()).flatten(1).repeat_interleave(2, 0)}
    seeds = Turned([4] * 4, range(4))
    seeds.codec = codec.double()
    for scale in (1.0, 2.0):
        answers = model.translate(picture, variants=2, seed=4, n_steps=6, guidance_scale=scale)
        told_twice = pixels if scale == 1 else ClassifierFree(pixels, scale)
        x = sampler(told_twice, shape=(4, *SHAPE), n_steps=6, seeds=seeds, condition=told, dtype=D).x
        torch.testing.assert_close(answers.double(), to_unit(x), atol=1e-5, rtol=0)
    assert (answers[0] - answers[1]).abs().max() > 0.01 and (answers[0] - answers[2]).abs().max() > 0.01


@pytest.mark.parametrize("second_shape, patch, settings", [
    ((3, 24, 12), 2, (12, 1)),  # as the images: encoded
    ((1, 24, 12), 2, (4, 1)),  # blocks of 2 x 2
    ((4, 24, 12), 4, (64, 1)),
    ((3, 12, 6), 4, (12, 1)),  # twice smaller beside latents that are four times smaller
    ((3, 6, 3), 2, (3, 2)),  # smaller than the latents
    ((5, 8, 4), 2, (20, 3)),  # three times and two times: both divide six
    ((2, 12, 6), 2, (2, 1)),  # of the size of the latents
])  # fmt: skip
def test_any_number_of_channels_finds_its_place_without_loss(second_shape, patch, settings):
    codec = Wavelet(int(math.log2(patch)))
    seen = second_seen(codec, (3, 24, 12), second_shape)
    assert image_settings(codec, (3, 24, 12), second_shape) == dict(zip(("image_channels", "image_factor"), settings))
    y = torch.rand(2, *second_shape)
    told = second_in_latents(y, codec, (3, 24, 12))
    assert told.shape[1:] == seen and seen[1] * settings[1] * patch == 24 and told.numel() == y.numel()
    back = codec.decode(told) if second_shape == (3, 24, 12) else F.pixel_shuffle(told, second_shape[1] // seen[1])
    torch.testing.assert_close(back, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [3, 1])
def test_what_is_not_known_stays_not_known(channels):
    """A block of which a pixel is not known has no known number, and the others are what they were."""
    for codec in (Wavelet(1), rotation().float()):
        y = torch.rand(1, channels, 8, 8)
        holed = y.clone()
        holed[:, :, 3, 4] = torch.nan
        known, told = (second_in_latents(one, codec, (3, 8, 8)) for one in (y, holed))
        missing = told.isnan().any(1)[0]
        assert missing.nonzero().tolist() == [[1, 2]] and torch.equal(told[..., ~missing], known[..., ~missing])
    learned = ConvCodec(6, 2, 3, width=4, blocks=1)
    assert second_in_latents(holed.expand(1, 3, 8, 8), learned, (3, 8, 8))[0, :, 1, 2].isnan().all()
    assert second_in_latents(torch.full((1, 3, 8, 8), torch.nan), learned, (3, 8, 8)).isnan().all()


def trained_on(pairs, codec):
    """A model after two steps, with weights for which the answers depend on everything."""
    model = GenerativeModel("edm", "dpm-solver++2m", network="tiny", codec=codec, device="cpu", verbose=False)
    model.train(pairs, condition="image", steps=2, batch_size=8, flip=True)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.trained.network.modules():
            if isinstance(getattr(layer, "weight", None), nn.Parameter) and layer.weight.abs().max() < 0.05:
                layer.weight.copy_(0.2 * torch.randn(layer.weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def models(photos):
    codecs = PatchPCA.fit(photos, 2, 6), ConvCodec.fit(photos, 2, 6, 1, width=4, blocks=1, batch_size=8, progress=False), Wavelet.fit(photos, 1)
    kinds = ("grey", "jpeg:10", "small:4")
    return {name: trained_on(paired(photos, name, verbose=False), codec) for name, codec in zip(kinds, codecs)}


TAKEN = {"grey": (4, 1), "jpeg:10": (6, 1), "small:4": (3, 2)}


@pytest.mark.parametrize("name", TAKEN)
def test_a_model_of_latents_answers_and_its_file_does(name, models, photos, tmp_path):
    model, second = models[name], paired(photos, name, verbose=False).second[:2]
    config = model.trained.network.config
    assert (config["image_channels"], config["image_factor"]) == TAKEN[name] and model.trained.second_shape == tuple(second.shape[1:])
    answers = model.translate(second, variants=2, **FEW)
    assert answers.shape == (4, 3, 8, 8) and bool(answers.isfinite().all()) and (answers[0] - answers[1]).abs().max() > 1e-3
    assert (model.translate(second.flip(0), variants=2, **FEW)[2:] - answers[2:]).abs().max() > 1e-4  # the picture counts
    model.save(tmp_path / "pairs.safetensors")
    loaded = GenerativeModel.load(tmp_path / "pairs.safetensors", "cpu", verbose=False)
    assert torch.equal(loaded.translate(second, variants=2, **FEW), answers)
    if name == "grey":
        torch.testing.assert_close(Grayscale().A(answers), (second / 255).repeat_interleave(2, 0), atol=1e-6, rtol=0)
    if name == "small:4":
        torch.testing.assert_close(Downsample(4).A(answers), (second / 255).repeat_interleave(2, 0), atol=1e-6, rtol=0)


def test_guidance_leaves_the_second_image_out(models, photos):
    """What stands for none has no known number in latents either, and a scale of 0 is the model that is told nothing."""
    model = models["jpeg:10"]
    denoiser, t = model.denoiser(), torch.tensor(0.5)
    y = model.trained.second_to_latents(paired(photos, "jpeg:10", verbose=False).second[:4] / 255)
    x = torch.randn(4, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        given, none = denoiser(x, t, {"image": y}).x0, denoiser(x, t, {}).x0
        assert (given - none).abs().max() > 1e-3
        torch.testing.assert_close(ClassifierFree(denoiser, {"image": 0.0})(x, t, {"image": y}).x0, none)
        torch.testing.assert_close(denoiser(x, t, {"image": torch.full_like(y, torch.nan)}).x0, none)


def test_a_student_answers_as_its_teacher_was_asked(models, photos):
    student = models["jpeg:10"].distill(paired(photos, "jpeg:10", verbose=False), time_limit=None, steps=2, batch_size=8, flip=True)
    assert student.trained.second_shape == (3, 8, 8) and student.translate(photos.unit([0]), n_steps=1, seed=0).shape == (1, 3, 8, 8)


def fails(call, says, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_bad_input_is_told_in_a_sentence(models, photos, tmp_path):
    jpeg, small = models["jpeg:10"], models["small:4"]
    plain = GenerativeModel("edm", network="tiny", codec=PatchPCA.fit(photos, 2, 3), device="cpu", verbose=False)
    plain.train(photos, condition="jpeg", steps=1, batch_size=8)
    parts = jpeg.trained.network, jpeg.sde, jpeg.parametrization
    told = ({"second_shape": [3, 8, 8]},)
    table = [
        (lambda: jpeg.translate(torch.rand(3, 9, 8)), "image is 9 x 8, this model was trained on second images of 8 x 8; give resize=True"),
        (lambda: small.translate(torch.rand(3, 8, 8)), "trained on second images of 2 x 2"),
        (lambda: jpeg.train(photos), "takes a second image, and the data has none"),
        (
            lambda: jpeg.train(photos, condition="grey"),
            "images of 6 x 4 x 4, these are 1 x 8 x 8, and 4 x 4 x 4 beside latents of a ConvCodec",
        ),
        (lambda: plain.train(photos, condition="small:2"), "this model was trained on second images of 3 x 8 x 8, these are 3 x 4 x 4"),
        (lambda: Trained(*parts, (3, 16, 16), codec=jpeg.codec, records=told), "makes second images of 3 x 8 x 8, and the network takes 6 x 8 x 8"),
        (lambda: Trained(*parts, (3, 12, 12), codec=jpeg.codec, records=told), "second images must be as large as the images"),
        (lambda: Trained(*parts, (3, 8, 8), codec=jpeg.codec, records=({"second_shape": [1, 8, 8]},)), "they belong to different models"),
        (lambda: Trained(*parts, (3, 8, 8), codec=PatchPCA(6, 3), records=told), "multiples of 3, got 8 x 8"),
        (lambda: Trained(*parts, (3, 8, 8), codec=jpeg.codec).second_shape, "no record of this model says which shape second images have"),
        (lambda: Trained(*parts, (3, 8, 8), codec=jpeg.codec, records=({"second_shape": "all"},)).second_shape, "no record of this model says"),
        (lambda: second_seen(Wavelet(1), (3, 8, 8), (1, 3, 8)), "second images must be as large as the images"),
    ]
    for call, says in table:
        fails(call, says)
    model = GenerativeModel.of(Trained(*parts, (3, 8, 8), codec=jpeg.codec, records=told), device="cpu", verbose=False)
    object.__setattr__(model.trained, "records", ({"second_shape": [1, 8, 8]},))
    model.save(tmp_path / "broken.safetensors")
    fails(lambda: GenerativeModel.load(tmp_path / "broken.safetensors", "cpu", verbose=False), "they belong to different models", ModelFileError)
