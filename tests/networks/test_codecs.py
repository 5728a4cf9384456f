"""Codecs: what is exact is exact, what is lost is what theory says, and what does not fit is refused by a sentence."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffnb.core import NoiseSource
from diffnb.data import ImageSet, image_set
from diffnb.denoise import Gaussian
from diffnb.networks import CODECS, Codec, IdentityCodec, PatchPCA, Wavelet, check_codec, in_model_range
from diffnb.noise import EDM, VP, FlowMatching
from diffnb.samplers import DPMSolverPP2M, EulerMaruyama, Heun, PredictorCorrector

D = torch.float64


def gaussian(d, seed=0, mean=0.0):
    """A Gaussian whose covariance is no multiple of one."""
    root = NoiseSource.of(seed, d).normal((d,), "probe", dtype=D) * 0.4 / d**0.5
    return Gaussian(torch.full((d,), mean, dtype=D), root @ root.mT + 0.01 * torch.eye(d, dtype=D))


def matrix(function, shape):
    """The linear part of a function of images, as a matrix (m, d)."""
    d = math.prod(shape)
    return (function(torch.eye(d, dtype=D).view(d, *shape)) - function(torch.zeros(1, *shape, dtype=D))).flatten(1).mT


@pytest.fixture(scope="module")
def emoji():
    return image_set("emoji", size=32, limit=400, verbose=False)


class Mapped(NoiseSource):
    """Random numbers of latents, which are those of images, encoded."""

    codec: Codec

    def normal(self, shape, stream, draw=0, dtype=torch.float32):
        return self.codec.encode(super().normal(self.codec.image_shape(shape), stream, draw, dtype))


def rotation():
    """Principal components of 2 x 2 patches whose scales are one: nothing but a rotation."""
    codec = PatchPCA.of(torch.zeros(12, dtype=D), gaussian(12, 1).covariance, 2, None)
    codec.scale.fill_(1)
    return codec


@pytest.mark.parametrize("sde", [EDM(), VP(), FlowMatching()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("sampler", [Heun(), DPMSolverPP2M(), EulerMaruyama(), PredictorCorrector()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("codec", [Wavelet(2), rotation()], ids=["wavelets", "components"])
def test_an_orthonormal_codec_changes_no_image(sde, sampler, codec):
    shape, data = (3, 4, 4), gaussian(48)
    E = matrix(codec.encode, shape)
    torch.testing.assert_close(E @ E.mT, torch.eye(48, dtype=D), atol=1e-13, rtol=0)
    latent, mapped = Gaussian(torch.zeros(48, dtype=D), E @ data.covariance @ E.mT), Mapped([7] * 3, range(3))
    mapped.codec = codec
    x = sampler(data.denoiser(sde), shape=(3, *shape), seeds=NoiseSource.of(7, 3), n_steps=9, dtype=D).x
    z = sampler(latent.denoiser(sde), shape=(3, *codec.shape(shape)), seeds=mapped, n_steps=9, dtype=D).x
    assert (codec.decode(z) - x).abs().max() < 1e-12 * x.abs().max().clamp(min=1)  # few steps of some samplers end far out


@pytest.mark.parametrize("channels", [1, 4, 8, 16, 47, 48])
def test_what_is_lost_are_the_eigenvalues_that_are_left_out(channels, emoji):
    images = emoji.unit(slice(None)).double()
    x, codec, all_of_them = 2 * images - 1, PatchPCA.fit(images, channels=channels), PatchPCA.fit(images, channels=None)
    lost = (codec.decode(codec.encode(x)) - x).square().sum() / (len(x) * 64)
    assert lost.item() == pytest.approx(all_of_them.scale[channels:].square().sum().item(), rel=1e-9, abs=1e-20)
    z = codec.encode(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z @ z.mT / z.shape[1], torch.eye(channels, dtype=D), atol=1e-8, rtol=0)
    assert codec.exact == (channels == 48)


@pytest.mark.parametrize("channels", [1, 5, 12])
def test_gaussian_latents_decode_to_what_was_kept_of_the_covariance(channels):
    data = gaussian(12, 3, 0.2)
    codec = PatchPCA.of(data.mean, data.covariance, 2, channels)
    decoder = matrix(codec.decode, (channels, 1, 1))
    values, vectors = torch.linalg.eigh(data.covariance)
    P, kept = vectors.mT.flip(0)[:channels], values.flip(0)[:channels]
    torch.testing.assert_close(decoder @ decoder.mT, P.mT @ kept.diag() @ P, atol=1e-13, rtol=0)
    white = Gaussian(torch.zeros(channels, dtype=D), torch.eye(channels, dtype=D))  # and sampling them gives it
    z = Heun()(white.denoiser(EDM()), shape=(20_000, channels, 1, 1), n_steps=60, seeds=0, dtype=D).x
    x = codec.decode(z).flatten(1) - data.mean
    assert (x.mT @ x / len(x) - P.mT @ kept.diag() @ P).abs().max() < 0.04 * data.covariance.abs().max()


@pytest.mark.parametrize("make", [lambda e: Wavelet.fit(e, 1), lambda e: Wavelet.fit(e, 2), lambda e: PatchPCA.fit(e, 2, None)])
def test_density_and_volume(make, emoji):
    codec = make(emoji).double()
    shape = (3, 4, 4)
    data = gaussian(48, 5, 0.1)
    E = matrix(codec.encode, shape)
    constant = codec.encode(torch.zeros(1, *shape, dtype=D)).flatten(1)[0]
    latent = Gaussian(E @ data.mean + constant, E @ data.covariance @ E.mT)
    x = data.sample(6).view(6, *shape)
    torch.testing.assert_close(latent.log_prob(codec.encode(x)) + codec.log_det(shape), data.log_prob(x), atol=1e-6, rtol=0)
    assert codec.log_det(shape) == pytest.approx(E.slogdet()[1].item(), abs=1e-6)


def test_latents_are_standardised_and_there_is_no_way_around_it(emoji):
    for codec in (Wavelet.fit(emoji, 2), PatchPCA.fit(emoji, channels=8), PatchPCA.fit(emoji, channels=None)):
        z = codec.encode(2 * emoji.unit(slice(None)) - 1).transpose(0, 1).flatten(1)
        assert z.mean(1).abs().max() < 1e-3 and (z.std(1) - 1).abs().max() < 2e-2
        back = codec.decode(codec.encode(2 * emoji.unit(slice(0, 4)) - 1))
        forgotten = codec.synthesise(codec.encode(2 * emoji.unit(slice(0, 4)) - 1))  # what a forgotten scale would make of it
        assert (back - forgotten).abs().max() > 0.3


def test_colours_do_not_drift(emoji):
    # a round trip keeps the mean colour of a set, whatever is lost
    x = 2 * emoji.unit(slice(None)).double() - 1
    for channels in (3, 8, 48):
        codec = PatchPCA.fit(emoji.unit(slice(None)).double(), channels=channels)
        torch.testing.assert_close(codec.decode(codec.encode(x)).mean((0, 2, 3)), x.mean((0, 2, 3)), atol=1e-9, rtol=0)


def test_there_are_no_seams_that_the_codec_makes(emoji):
    # an image that is decoded in two parts is the image decoded as a whole: what a codec does is local
    for codec in (Wavelet.fit(emoji, 2), PatchPCA.fit(emoji)):
        z = codec.encode(2 * emoji.unit(slice(0, 4)) - 1)
        parts = torch.cat([codec.decode(z[..., :4]), codec.decode(z[..., 4:])], 3)
        torch.testing.assert_close(parts, codec.decode(z), atol=1e-6, rtol=0)


def test_the_same_images_give_the_same_codec(emoji):
    a, b = PatchPCA.fit(emoji), PatchPCA.fit(emoji.select(torch.arange(len(emoji)).flip(0)))
    torch.testing.assert_close(a.basis, b.basis, atol=1e-5, rtol=0)
    forms = [emoji, emoji.images, emoji.unit(slice(None)), emoji.unit(slice(None)).numpy()]
    for images in forms:
        torch.testing.assert_close(PatchPCA.fit(images).scale, a.scale, atol=1e-5, rtol=1e-5)
    assert PatchPCA.fit(emoji.unit(slice(None)).double()).basis.dtype == D


def test_a_channel_that_does_not_vary_is_not_blown_up():
    grey = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    for codec in (PatchPCA.fit(grey, 2, None), Wavelet.fit(grey, 1)):
        assert codec.encode(2 * grey - 1).abs().max() < 10
        check_codec(codec, (3, 4, 4), tolerance=1e-3)


@pytest.mark.parametrize("codec", [IdentityCodec(), Wavelet(1), Wavelet(3), PatchPCA(48), PatchPCA(8), PatchPCA(3, 1)], ids=lambda one: str(one))
def test_a_codec_is_what_it_says(codec):
    check_codec(codec, (3, 16, 8))
    shape = codec.shape((3, 16, 8))
    assert codec.image_shape(shape) == (3, 16, 8) and codec.encode(torch.zeros(2, 3, 16, 8)).shape[1:] == shape
    assert CODECS[CODECS.name_of(codec)](**codec.config).config == codec.config  # made again of its settings


class Scaled(Wavelet):
    """A codec that does not say by how much it changes volumes."""

    def analyse(self, x):
        return 2 * super().analyse(x)

    def synthesise(self, z):
        return super().synthesise(z) / 2


class Bent(PatchPCA):
    """A codec that calls itself linear and is not."""

    def synthesise(self, z):
        return super().synthesise(z.tanh())


class Mixing(PatchPCA):
    """A codec whose latents depend on the other images of a batch."""

    def analyse(self, x):
        return super().analyse(x - x.mean(0))


@pytest.mark.parametrize("codec, words", [(Scaled(1), "log_det fails"), (Bent(8), "linear fails"), (Mixing(8), "batch fails")])
def test_a_codec_that_is_not_what_it_says_is_found_out(codec, words):
    with pytest.raises(AssertionError, match=words):
        check_codec(codec, (3, 8, 8))


SMALL = ImageSet(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
WRONG = {
    "grey images": (lambda: PatchPCA(8).encode(torch.zeros(1, 1, 8, 8)), "made for images of 3 channels, and these have 1"),
    "images of another size": (lambda: PatchPCA(8).encode(torch.zeros(1, 3, 9, 8)), "multiples of 4, got 9 x 8; 8 x 8 would do"),
    "an image that is too small": (lambda: Wavelet(3).encode(torch.zeros(1, 3, 2, 2)), "multiples of 8, got 2 x 2; 8 x 8 would do"),
    "no images": (lambda: Wavelet(1).shape((3, 8)), r"takes images \(channels, height, width\)"),
    "latents of another codec": (lambda: PatchPCA(8).decode(torch.zeros(1, 12, 2, 2)), "are not of this PatchPCA, whose latents have 8 channels"),
    "latents of no wavelet": (lambda: Wavelet(2).decode(torch.zeros(1, 8, 2, 2)), "a multiple of 16 channels"),
    "a density where there is none": (lambda: PatchPCA(8).log_det((3, 8, 8)), "loses something"),
    "too many channels": (lambda: PatchPCA(49), "channels must be at most 48"),
    "no channels": (lambda: PatchPCA(0), "channels must be a whole number of at least 1"),
    "too many levels": (lambda: Wavelet(9), "levels must be a whole number from 1 to 8"),
    "no levels": (lambda: Wavelet(0), "levels must be a whole number from 1 to 8"),
    "images in [-1, 1]": (lambda: PatchPCA.fit(torch.rand(4, 3, 8, 8) * 2 - 1), r"numbers in \[0, 1\], got values in \[-"),
    "bytes as numbers": (lambda: Wavelet.fit(torch.rand(4, 3, 8, 8) * 255), r"numbers in \[0, 1\]"),
    "one image without its batch": (lambda: Wavelet.fit(torch.rand(3, 8, 8)), "must have the shape"),
    "sides that do not fit": (lambda: PatchPCA.fit(torch.rand(4, 3, 8, 9)), "multiples of 4, got 8 x 9"),
    "an empty set": (lambda: PatchPCA.fit(torch.rand(0, 3, 8, 8)), "n of at least 1"),
    "a covariance of another size": (lambda: PatchPCA.of(torch.zeros(12), torch.eye(13), 2), "covariance be square"),
    "a patch that does not fit the mean": (lambda: PatchPCA.of(torch.zeros(10), torch.eye(10), 2), "multiple of 4 numbers"),
    "an unknown name": (lambda: CODECS.resolve("jpeg", Codec), "unknown codec 'jpeg'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_in_a_sentence(name):
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_texts_and_other_things_are_no_images():
    with pytest.raises(TypeError, match="image_set"):
        next(in_model_range("emoji"))
    for wrong, words in ((7, "images must be a tensor"), ([SMALL], "images must be a tensor")):
        with pytest.raises(TypeError, match=words):
            PatchPCA.fit(wrong)


def test_the_first_band_is_the_small_copy():
    x = NoiseSource.of(0, 2).normal((3, 16, 16), "probe", dtype=D)
    for levels in (1, 2, 3):
        torch.testing.assert_close(Wavelet(levels).encode(x)[:, :3], 2**levels * F.avg_pool2d(x, 2**levels), atol=1e-12, rtol=0)


def test_the_bands_of_one_block():
    """Sum, differences from left to right and from above to below, and the rest, each divided by two; files depend on their order."""
    x = torch.tensor([[[[1.0, 2.0], [3.0, 5.0]]]], dtype=D)
    assert Wavelet(1).encode(x).flatten().tolist() == [5.5, -1.5, -2.5, 0.5]


# sets by their names


def grey_folder(folder):
    """A folder with four pictures of two sizes."""
    from PIL import Image

    for i, size in enumerate([(20, 16), (16, 24)] * 2):
        Image.effect_noise(size, 40 + 30 * i).convert("RGB").save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("told", ["a name", "a folder", "a folder as text", "a set", "a tensor"])
def test_images_are_read_by_name(told, tmp_path):
    """A name, a folder, and a size for whatever is given."""
    named = {"a name": "emoji", "a set": image_set("emoji", size=24, limit=50, verbose=False), "a tensor": torch.rand(6, 3, 20, 20)}
    given = named.get(told) or grey_folder(tmp_path) if told != "a tensor" else named[told]
    given = str(given) if told == "a folder as text" else given
    read = image_set(given, size=16, verbose=False)
    assert torch.equal(PatchPCA.fit(given, 2, 4, size=16).basis, PatchPCA.fit(read, 2, 4).basis)
    assert torch.equal(Wavelet.fit(given, 2, size=16).scale, Wavelet.fit(read, 2).scale)
    assert torch.equal(PatchPCA.fit(given, 2, 4, size=(8, 16)).scale, PatchPCA.fit(image_set(given, size=(8, 16), verbose=False), 2, 4).scale)
    if told == "a name":
        assert torch.equal(Wavelet(1, 3).standardise(given).scale, Wavelet.fit(image_set(given, verbose=False), 1).scale)


@pytest.mark.parametrize(
    "call, kind, words",
    [
        (lambda: PatchPCA.fit("emojis"), (ValueError, FileNotFoundError), "emojis"),
        (lambda: PatchPCA.fit("no/such/folder"), (ValueError, FileNotFoundError), "no/such/folder"),
        (lambda: PatchPCA.fit("emoji", size=18), ValueError, "multiples of 4, got 18 x 18"),
        (lambda: PatchPCA.fit("emoji", size=0), ValueError, "size"),
        (lambda: PatchPCA.fit("emoji", size="large"), (ValueError, TypeError), "size"),
        (lambda: PatchPCA.fit(None), TypeError, "images"),
    ],
)
def test_names_that_do_not_fit_are_told(call, kind, words):
    with pytest.raises(kind, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
