"""Models of latents through the facade: trained, drawn from, restored, edited, kept in files; and what does not fit is told in a sentence."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from diffnb import GenerativeModel
from diffnb.apps import follow
from diffnb.core import to_model, to_unit
from diffnb.data import image_set
from diffnb.denoise import Gaussian
from diffnb.files import BadManifest, LimitExceeded, ModelFileError, UnknownComponent, WeightsMismatch, inspect, write_container
from diffnb.guidance import Grayscale, Mask
from diffnb.likelihood import bits_per_dim
from diffnb.model import METHODS, Trained, digest_of_model, encoded
from diffnb.networks import Codec, ConvCodec, IdentityCodec, PatchPCA, UNet, Wavelet
from diffnb.noise import EDM, Karras
from diffnb.training import MetricCallback, SampleCallback

D, FEW = torch.float64, {"seed": 3, "n_steps": 4}


class Zero(torch.nn.Module):
    """The exact network for standard normal data under Karras's parametrization with sigma_data 1."""

    def forward(self, x, half_log_snr):
        return 0 * x


class Bent(Codec):
    """A codec whose decoder is not linear."""

    def __init__(self):
        super().__init__(3, 12, 2)

    def analyse(self, x):
        return torch.nn.functional.pixel_unshuffle(x.clamp(-0.999, 0.999).atanh(), 2)

    def synthesise(self, z):
        return torch.nn.functional.pixel_shuffle(z.tanh(), 2)


def exact_model(codec, shape=(3, 2, 2), sde=None):
    """A model whose latents are standard normal, and whose network knows it."""
    return GenerativeModel.of(Trained(Zero(), sde or EDM(), Karras(sigma_data=1.0), shape, codec=codec), device="cpu", verbose=False)


@pytest.fixture(scope="module")
def patches():
    """Gaussian patches of 2 x 2 pixels around grey, with a spread that stays in [-1, 1]."""
    root = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=D) * 0.06
    return Gaussian(torch.full((12,), 0.1, dtype=D), root @ root.mT + 0.002 * torch.eye(12, dtype=D))


@pytest.fixture(scope="module")
def emoji():
    return image_set("emoji", size=16, limit=96, verbose=False)


@pytest.fixture(scope="module", params=["components", "wavelets"])
def model(request, emoji):
    codec = PatchPCA.fit(emoji, 2, 6) if request.param == "components" else Wavelet.fit(emoji, 1)
    made = GenerativeModel("edm", "dpm-solver++2m", network="tiny", codec=codec, device="cpu", verbose=False)
    made.train(emoji, steps=6, batch_size=16, flip=True)
    return made


def test_images_come_out_at_full_size_whatever_the_batch(model):
    images = model.generate(5, **FEW)
    assert images.shape == (5, 3, 16, 16) and 0 <= images.min() <= images.max() <= 1
    assert model.shape == (3, 16, 16) and model.trained.latent_shape == model.codec.shape((3, 16, 16))
    torch.testing.assert_close(model.generate(5, batch_size=2, **FEW), images, atol=1e-3, rtol=0)
    assert model.generate(2, size=24, **FEW).shape == (2, 3, 24, 24)


def test_previews_are_pictures(model, emoji):
    seen = []
    model.generate(2, progress_callback=lambda step, n, x0: seen.append(x0), **FEW)
    assert {tuple(x0.shape) for x0 in seen} == {(2, 3, 16, 16)}
    assert (seen[-1] - model.generate(2, **FEW)).abs().mean() < 0.1  # the last estimate is nearly the result
    model.edit(emoji.unit(slice(0, 2)), 0.4, seed=0, n_steps=2, progress_callback=lambda step, n, x0: seen.append(x0))
    assert seen[-1].shape == (2, 3, 16, 16)
    evolution = follow(model, 2, 4, seed=3)
    torch.testing.assert_close(evolution.estimates[-1], model.generate(2, **FEW), atol=1e-4, rtol=0)
    assert evolution.states.shape[1:] == (2, 3, 16, 16)


def test_callbacks_of_training_draw_pictures_and_score_them(emoji, tmp_path):
    sample, score = SampleCallback(n=2, n_steps=2, folder=tmp_path), MetricCallback("kernel", n=8, n_steps=2, every=1)
    made = GenerativeModel("edm", network="tiny", codec=PatchPCA.fit(emoji, 2, 6), device="cpu", verbose=False)
    made.train(emoji, epochs=1, batch_size=32, callbacks=[sample, score])
    assert sample.images.shape == (2, 3, 16, 16) and torch.isfinite(torch.tensor(score.scores[0]["value"]))


def test_training_goes_on_and_resumes(emoji, tmp_path):
    made = GenerativeModel("edm", network="tiny", codec=PatchPCA.fit(emoji, 2, 6), device="cpu", verbose=False)
    made.train(emoji, steps=4, batch_size=16, checkpoints=tmp_path)
    made.train(emoji, steps=2, batch_size=16)
    assert len(made.records) == 2 and 0.5 < made.parametrization.sigma_data < 1.5
    last = GenerativeModel.load(tmp_path / "last.safetensors", device="cpu", verbose=False)
    assert isinstance(last.codec, PatchPCA) and last.generate(1, **FEW).shape == (1, 3, 16, 16)


def test_a_mirrored_image_has_a_latent_of_its_own(emoji):
    # one image and its mirror image: what a batch holds is the latent of one of the two
    codec = Wavelet.fit(emoji, 1)
    found, x = encoded(emoji, codec, flip=True), 2 * emoji.unit(slice(0, 8)) - 1
    mirrored = torch.arange(8) % 2 == 0
    right = codec.encode(torch.where(mirrored[:, None, None, None], x.flip(-1), x))
    torch.testing.assert_close(found.batch(torch.arange(8), mirrored), right, atol=1e-5, rtol=0)
    wrong = torch.where(mirrored[:, None, None, None], codec.encode(x).flip(-1), codec.encode(x))
    assert (wrong - right).abs().max() > 0.5


def test_the_identity_is_no_codec(emoji):
    plain = GenerativeModel("edm", network="tiny", device="cpu", verbose=False)
    named = GenerativeModel("edm", network="tiny", device="cpu", verbose=False, codec="identity")
    for one in (plain, named):
        one.train(emoji, steps=2, batch_size=16)
    assert torch.equal(plain.generate(2, **FEW), named.generate(2, **FEW)) and isinstance(plain.codec, IdentityCodec)
    assert digest_of_model(plain) == digest_of_model(named)


# files


def test_a_file_holds_the_codec(model, tmp_path):
    for dtype in (torch.float32, torch.float16, None):
        model.save(tmp_path / "m.safetensors", dtype)
        again = GenerativeModel.load(tmp_path / "m.safetensors", device="cpu", verbose=False)
        assert type(again.codec) is type(model.codec) and again.codec.config == model.codec.config
        for name, value in model.codec.state_dict().items():  # scales are not rounded, whatever the weights are
            assert torch.equal(again.codec.state_dict()[name], value)
        tolerance = 0.05 if dtype is torch.float16 else 1e-6
        torch.testing.assert_close(again.generate(2, **FEW), model.generate(2, **FEW), atol=tolerance, rtol=0)
    text = str(inspect(tmp_path / "m.safetensors"))
    assert "codec: builtin:" in text and "weights model and codec" in text and "samples 3 x 16 x 16" in text


def test_a_calibration_belongs_to_latents(model, tmp_path):
    model.calibrate(n=8)
    model.save(tmp_path / "m.safetensors")
    again = GenerativeModel.load(tmp_path / "m.safetensors", device="cpu", verbose=False)
    assert tuple(again.trained.calibration["scale"].shape[1:]) == model.trained.latent_shape


def test_another_codec_is_another_model(emoji):
    one, other = (exact_model(Wavelet.fit(emoji.select(torch.arange(n)), 1)) for n in (40, 90))
    assert len({digest_of_model(one), digest_of_model(other), digest_of_model(exact_model(Wavelet(1)))}) == 3


def rewritten(path, change):
    """Write a model file anew with another manifest or other tensors."""
    with safe_open(path, "pt") as file:
        texts, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    texts.pop("diffnb.digest")
    manifest = json.loads(texts["diffnb.manifest"])
    change(manifest, tensors)
    write_container(path, tensors, texts | {"diffnb.manifest": json.dumps(manifest, sort_keys=True, separators=(",", ":"))})


BROKEN = {
    "an unknown codec": (lambda m, t: m["codec"].update(component="builtin:jpeg"), UnknownComponent, "there is no such codec"),
    "a codec that is code": (lambda m, t: m["codec"].update(component="python:Mine-123"), BadManifest, "codec is code"),
    "a codec that is a program": (lambda m, t: m["codec"].update(component="program:Mine-123"), BadManifest, "is a program"),
    "a network for a codec": (lambda m, t: m["codec"].update(kind="network"), BadManifest, "must be of kind codec"),
    "a codec for a process": (lambda m, t: m.update(process=m["codec"]), BadManifest, "must be of kind process"),
    "a codec in the settings of a network": (lambda m, t: m["network"]["settings"].update(attributes=[m["codec"]]), BadManifest, "stands in no"),
    "settings that it does not have": (lambda m, t: m["codec"]["settings"].update(colour=3), BadManifest, "colour"),
    "settings of another codec": (lambda m, t: m["codec"]["settings"].update(image_channels=1), ModelFileError, "PatchPCA|shape|channels"),
    "settings that are too large": (lambda m, t: m["codec"]["settings"].update(patch=10**9), ModelFileError, "larger than anything in the file"),
    "settings that make it huge": (lambda m, t: m["codec"]["settings"].update(patch=65_000, channels=65_000), WeightsMismatch, "shape"),
    "no numbers": (lambda m, t: t.pop("codec.basis"), WeightsMismatch, "weights of patch-pca are missing: basis"),
    "more numbers": (lambda m, t: t.update({"codec.more": torch.ones(1)}), WeightsMismatch, "have no place"),
    "no weights of a codec": (lambda m, t: m.update(weights=["model"]), BadManifest, "then 'codec'"),
    "weights without a codec": (lambda m, t: m.pop("codec"), BadManifest, "weights"),
    "images that it does not take": (lambda m, t: m["data"].update(shape=[3, 15, 16]), BadManifest, "does not take the images"),
    "images that are too large": (lambda m, t: m["data"].update(shape=[3, 5000, 5000]), LimitExceeded, "75,000,000 numbers; the limit is"),
    "images of other channels": (lambda m, t: m["data"].update(shape=[1, 16, 16]), BadManifest, "does not take the images"),
    "numbers that are none": (lambda m, t: t["codec.basis"].fill_(float("nan")), ModelFileError, "not a number|finite"),
}


@pytest.fixture(scope="module")
def kept(emoji, tmp_path_factory):
    """The file of a model of six components; each test that changes it, or loads and trains it, has a copy of its own."""
    made = GenerativeModel("edm", network="tiny", codec=PatchPCA.fit(emoji, 2, 6), device="cpu", verbose=False)
    made.train(emoji, steps=1, batch_size=16)
    made.save(path := tmp_path_factory.mktemp("kept") / "m.safetensors")
    return path


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name, kept, tmp_path):
    change, error, words = BROKEN[name]
    path = shutil.copy(kept, tmp_path / "m.safetensors")
    rewritten(path, change)
    with pytest.raises(error, match=words) as caught:
        GenerativeModel.load(path, device="cpu", verbose=False)
    assert "\n" not in str(caught.value)


# restoration


OPERATORS = {"mask": Mask(torch.tensor([[0.0, 1.0], [1.0, 0.0]])), "grey": Grayscale()}


@pytest.mark.parametrize(
    ("method", "channels", "operator"),
    [
        ("calibrated", 5, "mask"),
        ("calibrated", 12, "grey"),
        ("conditioned", 5, "grey"),
        ("conditioned", 12, "mask"),
        ("mmps", 5, "mask"),
        ("mmps", 12, "grey"),
    ],
)
def test_restoration_draws_from_the_posterior(method, channels, operator, patches):
    """Each method with each operator, and with a codec that loses something as well as with one that does not."""
    operator = OPERATORS[operator]
    codec = PatchPCA.of(patches.mean, patches.covariance, 2, channels).float()
    model = exact_model(codec)
    truth = codec.decode(torch.randn(1, channels, 1, 1, generator=torch.Generator().manual_seed(1)))
    y = operator.A(truth)
    mean, covariance = patches.mean, (codec.basis.double().mT * codec.scale.double() ** 2) @ codec.basis.double()
    noise = 0.05
    right = Gaussian(mean, covariance).posterior(operator, y.double(), noise, (3, 2, 2))
    observed, n = (y + operator.A(torch.ones(1, 3, 2, 2))) / 2, 3000  # as a measurement of values in [0, 1]
    settings = {"calibrated": {"n_steps": 12}, "conditioned": {"n_steps": 200}, "mmps": {"n_steps": 200}}[method]
    drawn = to_model(model.restore(observed, operator, noise / 2, seed=0, method=method, variants=n, **settings)).flatten(1).double()
    std = right.covariance.diagonal().clamp(min=1e-4).sqrt()
    assert ((drawn.mean(0) - right.mean) / std).abs().max() < 0.2
    assert (drawn.mT.cov() - right.covariance).abs().max() < 0.25 * right.covariance.diagonal().max()


def test_what_is_known_stays_what_it_is(model, emoji):
    images, mask = emoji.unit(slice(0, 2)), torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    filled = model.imputation(images, mask, seed=0, n_steps=3)
    assert torch.equal(filled[..., :4], images[..., :4]) and filled.shape == images.shape
    grey = Grayscale().A(images)
    torch.testing.assert_close(Grayscale().A(model.colorize(grey, seed=0, n_steps=3)), grey, atol=1e-5, rtol=0)
    small = torch.nn.functional.avg_pool2d(images, 2)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(model.upscale(small, seed=0, n_steps=3), 2), small, atol=1e-4, rtol=0)
    for made in (model.deblur(images, 1.0, seed=0, n_steps=3), model.denoise(images, 0.1, seed=0, n_steps=3)):
        assert made.shape == images.shape


@pytest.mark.parametrize("method", [name for name in METHODS.names() if name != "dps"])
def test_a_decoder_that_is_not_linear_says_what_works(method):
    model, x = exact_model(Bent(), (3, 4, 4)), torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match="is not linear; method='dps' goes through it by its gradient"):
        model.imputation(x, torch.tensor([[0.0, 1.0, 1.0, 0.0]]).expand(4, 4), method=method, seed=0)


def test_dps_goes_through_any_decoder():
    model = exact_model(Bent(), (3, 4, 4))
    operator, y = Grayscale(), torch.full((1, 1, 4, 4), 0.7)
    made = model.restore(y, operator, 0.01, method="dps", seed=0, n_steps=100, variants=4)
    free = model.generate(4, seed=0, n_steps=100)
    assert (operator.A(made) - y).abs().mean() < 0.3 * (operator.A(free) - y).abs().mean()


# editing and likelihood


@pytest.mark.parametrize("model", ["components"], indirect=True)  # what follows knows of no codec
def test_editing_goes_through_the_codec(model, emoji):
    images = emoji.unit(slice(0, 2))
    noise = model.encode(images, 0.6, 30)
    assert noise.shape[1:] == model.trained.latent_shape
    kept = model.trained.to_pictures(model.trained.to_latents(images))  # what the codec keeps
    error = (model.decode(noise, 0.6, 30) - kept).abs().mean()
    assert error < 0.02
    assert torch.equal(model.edit(images, 0.0), images)
    assert model.edit(images, 0.5, seed=0, n_steps=3, variants=2).shape == (4, 3, 16, 16)
    way = model.interpolate(images[:1], images[1:], 3, n_steps=20)
    assert way.shape == (3, 3, 16, 16)
    assert (model.reconstruct(images, 0.02, seed=0, n_steps=5) - kept).abs().mean() < 0.1


@pytest.mark.parametrize("make", [lambda p: PatchPCA.of(p.mean, p.covariance, 2, None), lambda p: PatchPCA.of(p.mean, p.covariance, 2, None).float()])
def test_the_density_is_that_of_the_gaussian_in_pixels(make, patches):
    model = exact_model(make(patches), sde=EDM(1e-4, 200.0))
    x = patches.sample(5).view(5, 3, 2, 2)
    torch.testing.assert_close(model.log_prob(to_unit(x), n_steps=64), patches.log_prob(x), atol=5e-3, rtol=0)
    torch.testing.assert_close(model.log_prob(to_unit(x), n_steps=64, batch_size=2), patches.log_prob(x), atol=5e-3, rtol=0)


def test_bits_are_those_of_the_pixels(patches):
    model = exact_model(PatchPCA.of(patches.mean, patches.covariance, 2, None))
    x = (to_unit(patches.sample(8).view(8, 3, 2, 2)) * 255).round() / 255
    in_pixels = bits_per_dim(patches.denoiser(EDM()), x, n_steps=32, dtype=D, exact=True)
    through = bits_per_dim(model.denoiser(), x, n_steps=32, dtype=D, exact=True, codec=model.codec)
    torch.testing.assert_close(through.values, in_pixels.values, atol=2e-2, rtol=0)
    row = model.score(x.float(), x.float(), metrics=["bpd"]).rows[0]
    assert abs(row.result.value - in_pixels.mean) < 0.2


def test_the_likelihood_of_a_model_without_codec_is_what_it_was(patches):
    model = exact_model(IdentityCodec(), (3, 2, 2), EDM(1e-4, 200.0))
    white = Gaussian(torch.zeros(12, dtype=D), torch.eye(12, dtype=D))
    x = white.sample(3).view(3, 3, 2, 2).clamp(-1, 1)
    torch.testing.assert_close(model.log_prob(to_unit(x), n_steps=64), white.log_prob(x), atol=5e-3, rtol=0)


def test_a_student_has_the_codec_of_its_teacher(emoji):
    teacher = GenerativeModel("edm", network="tiny", codec=PatchPCA.fit(emoji, 2, 6), device="cpu", verbose=False)
    teacher.train(emoji, steps=2, batch_size=16)
    student = teacher.distill(emoji, time_limit=None, steps=2, batch_size=16, flip=True)
    assert student.generate(2, seed=0).shape == (2, 3, 16, 16) and isinstance(student.codec, PatchPCA)


# what does not fit

TINY = UNet(3, widths=(8,), blocks=1, attention_levels=(), groups=4)
WRONG = {
    "grey images": (lambda m: GenerativeModel(codec=m.codec, verbose=False).train(torch.rand(8, 1, 16, 16)), "3 channels, and these have 1"),
    "sides that do not fit": (lambda m: GenerativeModel(codec=m.codec, verbose=False).train(torch.rand(8, 3, 15, 16)), "multiples of 2, got 15 x 16"),
    "a network for pixels": (lambda m: GenerativeModel(codec=m.codec, network=TINY, verbose=False).train(torch.rand(8, 3, 16, 16)), "channels"),
    "the codec of another model": (
        lambda m: Trained(m.trained.network, m.sde, m.parametrization, (3, 16, 16), codec=PatchPCA(5, 2)),
        "makes latents of 5 channels, and the network takes 6: they belong to different models",
    ),
    "an unknown codec": (lambda m: GenerativeModel(codec="jpeg"), "unknown codec 'jpeg'"),
    "a codec that was not fitted": (lambda m: GenerativeModel(codec="pca"), "has not been fitted to images; PatchPCA.fit"),
    "an object that was not fitted": (lambda m: GenerativeModel(codec=PatchPCA(6, 2)), "has not been fitted to images; PatchPCA.fit"),
    "a size that the codec does not take": (lambda m: m.generate(1, size=17), "multiples of 2, got 17 x 17; 16 x 16 would do"),
    "latents of another model": (lambda m: m.decode(torch.zeros(1, 12, 8, 8)), "not of this PatchPCA, whose latents have 6 channels"),
    "images for latents": (lambda m: m.decode(torch.zeros(1, 3, 16, 16)), "whose latents have 6 channels"),
    "a density where there is none": (lambda m: m.log_prob(torch.rand(1, 3, 16, 16)), "loses something"),
    "bits where there are none": (lambda m: m.score(torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16), ["bpd"]), "loses something"),
    "an exported file": (lambda m: m.export("m.pt2"), "works on latents of a PatchPCA; model.save"),
    "further training on other images": (lambda m: m.train(torch.rand(8, 3, 32, 32), steps=1), "trained on images of shape"),
    "a codec of one's own in a file": (lambda m: exact_model(Bent(), (3, 4, 4)).save("m.safetensors"), "is of your own"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_told_in_a_sentence(name, kept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = GenerativeModel.load(kept, device="cpu", verbose=False)
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words) as caught:
        call(model)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_no_codec_is_refused():
    for wrong in (3, torch.nn.Identity(), UNet):
        with pytest.raises(TypeError, match="a codec is a name, a subclass of Codec or an instance"):
            GenerativeModel(codec=wrong)


def test_sampling_a_decode_of_pure_noise_is_what_the_prior_is(patches):
    # decodes of latents that no model has touched are Gaussian images, and nothing else: a model that learned nothing shows it
    model = exact_model(PatchPCA.of(patches.mean, patches.covariance, 2, None).float())
    x = to_model(model.generate(4000, seed=0, n_steps=60)).flatten(1).double()
    torch.testing.assert_close(x.mean(0), patches.mean, atol=0.02, rtol=0)
    assert (x.mT.cov() - patches.covariance).abs().max() < 0.1 * patches.covariance.abs().max()


# a codec that was learned


@pytest.fixture(scope="module")
def learned(emoji):
    codec = ConvCodec.fit(emoji, 2, 6, 3, width=4, blocks=1, batch_size=8, progress=False)
    made = GenerativeModel("edm", "dpm-solver++2m", network="tiny", codec=codec, device="cpu", verbose=False)
    made.train(emoji, steps=2, batch_size=16)
    return made


def test_a_file_holds_what_was_learned(learned, tmp_path):
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 0.05)):
        learned.save(tmp_path / "m.safetensors", dtype)
        again = GenerativeModel.load(tmp_path / "m.safetensors", device="cpu", verbose=False)
        assert isinstance(again.codec, ConvCodec) and again.codec.config == learned.codec.config
        for name, value in learned.codec.named_buffers():  # what was measured is not rounded
            assert torch.equal(dict(again.codec.named_buffers())[name], value)
        torch.testing.assert_close(again.generate(2, **FEW), learned.generate(2, **FEW), atol=tolerance, rtol=0)


def test_a_learned_codec_has_no_density_and_is_restored_by_its_gradient(learned, emoji):
    x = emoji.unit(slice(0, 1))
    with pytest.raises(ValueError, match="this ConvCodec loses something"):
        learned.log_prob(x)
    with pytest.raises(ValueError, match="method='dps' goes through it by its gradient"):
        learned.colorize(Grayscale().A(x), seed=0, method="mmps")
    assert learned.colorize(Grayscale().A(x), seed=0, n_steps=2, method="dps").shape == x.shape


def test_a_codec_that_was_not_learned_is_refused():
    for wrong in ("conv-codec", ConvCodec(8)):
        with pytest.raises(ValueError, match=r"has not been fitted to images; ConvCodec.fit"):
            GenerativeModel(codec=wrong)
