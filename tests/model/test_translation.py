"""Models of pairs through the facade: exact answers where they are known, what is kept of a picture, what a file keeps, and what is refused."""

import itertools

import pytest
import torch

from diffnb import GenerativeModel
from diffnb.core import NoiseSource, to_model
from diffnb.data import ImageSet, image_set, paired, second_images
from diffnb.denoise import Denoiser, Gaussian, GaussianMixture, InformedDenoiser
from diffnb.guidance import Blur, ClassifierFree, Downsample, Grayscale, gaussian_kernel
from diffnb.model import Trained, question, with_known
from diffnb.networks import MLP, UNet, first_weights
from diffnb.noise import EDM, VP, FlowMatching, Karras
from diffnb.samplers import Heun

FEW = {"n_steps": 3, "seed": 5}
MIXTURE = GaussianMixture([[0.0, 1.0], [2.0, -1.0]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]], torch.tensor([0.3, 0.7]))


@pytest.fixture(scope="module")
def photos():
    return image_set("cifar10_samples", size=8, verbose=False)


def untrained(pairs, network=None, **settings):
    """A model of pairs after two steps, with weights for which the answers depend on everything."""
    model = GenerativeModel("edm", "dpm-solver++2m", network=network or "tiny", device="cpu", verbose=False)
    model.train(pairs, condition="image", steps=2, batch_size=8, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.trained.network.modules():  # branches that start at zero would hide a mistake
            if isinstance(getattr(layer, "weight", None), torch.nn.Parameter) and layer.weight.abs().max() < 0.05:
                layer.weight.copy_(0.2 * torch.randn(layer.weight.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def models(photos):
    return {name: untrained(paired(photos, name, verbose=False)) for name in ("grey", "small:2", "holes:0.3", "jpeg:10")}


@pytest.mark.parametrize("sde", [VP(), EDM(), FlowMatching()], ids=str)
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_the_denoiser_that_is_told_a_measurement_is_that_of_the_posterior(sde, noise):
    operator = torch.tensor([[1.0, 0.5]])
    informed = InformedDenoiser(MIXTURE, sde, operator, noise)
    x0 = MIXTURE.sample(6, seed=1)
    y = x0 @ operator.double().T + noise * NoiseSource.of(2, 6).normal((1,), "probe", dtype=torch.float64)
    for t in torch.linspace(sde.t_min, sde.t_max, 4, dtype=torch.float64):
        x = sde.perturb(x0, t, NoiseSource.of(3, 6).normal((2,), "probe", dtype=torch.float64))
        own = torch.cat([MIXTURE.posterior(operator, one, noise).posterior_mean(x[k : k + 1], sde, t) for k, one in enumerate(y)])
        torch.testing.assert_close(informed(x, t, {"image": y}).x0, own, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("operator", [Grayscale(), Downsample(2), Blur(gaussian_kernel(1.0))], ids=lambda one: type(one).__name__)
def test_samples_of_the_exact_conditional_model_have_the_moments_of_the_posterior(operator):
    """On images 3 x 2 x 2, each sample with the measurement of its own."""
    root = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    oracle, shape = Gaussian(torch.zeros(12), 0.05 * root @ root.T / 12 + 0.01 * torch.eye(12)), (3, 2, 2)
    y = operator.A(oracle.sample(2, seed=1).view(2, *shape))
    informed = InformedDenoiser(oracle, EDM(), operator, 0.1, shape)
    assert informed.null("image").shape == y.shape[1:]
    told = y.repeat_interleave(3000, 0)
    x = Heun()(informed, shape=(6000, *shape), n_steps=24, seeds=NoiseSource.of(0, 6000), condition={"image": told}, dtype=torch.float64).x
    for k, samples in enumerate(x.flatten(1).split(3000)):
        posterior = oracle.posterior(operator, y[k], 0.1, shape)
        spread = posterior.covariance.diagonal().sqrt()
        assert ((samples.mean(0) - posterior.mean) / spread).abs().max() < 5 / 3000**0.5
        assert (samples.std(0) / spread - 1).abs().max() < 0.1


def test_guidance_of_the_exact_model_is_conditional_at_one_and_unconditional_at_zero():
    operator, x = torch.tensor([[1.0, 0.5]]), torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    informed, y = InformedDenoiser(MIXTURE, EDM(), operator, 0.2), torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    t = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(ClassifierFree(informed, 1.0)(x, t, {"image": y}).x0, informed(x, t, {"image": y}).x0)
    alone = MIXTURE.denoiser(EDM())(x, t).x0
    torch.testing.assert_close(ClassifierFree(informed, 0.0)(x, t, {"image": y}).x0, alone)
    torch.testing.assert_close(informed(x, t, {"image": informed.null("image").double().expand(5, 1)}).x0, alone)
    twice = ClassifierFree(informed, {"image": 2.0})(x, t, {"image": y}).x0
    torch.testing.assert_close(twice, 2 * informed(x, t, {"image": y}).x0 - alone)


def test_guidance_of_a_network_does_the_same(models, photos):
    model = models["grey"]
    denoiser, t = model.denoiser(), torch.tensor(0.5)
    x, y = torch.randn(4, 3, 8, 8), to_model(Grayscale().A(photos.unit(slice(0, 4))))
    label = torch.full((4,), -1)
    with torch.no_grad():
        given, none = denoiser(x, t, {"label": label, "image": y}).x0, denoiser(x, t, {"label": label}).x0
        assert (given - none).abs().max() > 1e-3
        torch.testing.assert_close(ClassifierFree(denoiser, {"image": 0.0})(x, t, {"label": label, "image": y}).x0, none)
        torch.testing.assert_close(ClassifierFree(denoiser, {"image": 1.0})(x, t, {"label": label, "image": y}).x0, given)


def test_what_is_known_of_a_picture_stays_known(models, photos):
    photo = photos.unit(slice(0, 2))
    grey = Grayscale().A(photo)
    answers = models["grey"].translate(grey, variants=2, **FEW)
    torch.testing.assert_close(Grayscale().A(answers), grey.repeat_interleave(2, 0), atol=1e-6, rtol=0)
    small = Downsample(2).A(photo)
    answers = models["small:2"].translate(small, variants=2, **FEW)
    torch.testing.assert_close(Downsample(2).A(answers), small.repeat_interleave(2, 0), atol=1e-6, rtol=0)
    holed = torch.cat([photo, torch.ones(2, 1, 8, 8)], 1)
    holed[:, 3, 2:5, 2:5] = 0
    answers = models["holes:0.3"].translate(holed, variants=2, **FEW)
    known = holed[:, 3:].repeat_interleave(2, 0).bool().expand(-1, 3, -1, -1)
    assert torch.equal(answers[known], photo.repeat_interleave(2, 0)[known])
    hidden = holed.clone()
    hidden[:, :3, 2:5, 2:5] = 0.77  # what lies under a hole tells nothing
    torch.testing.assert_close(models["holes:0.3"].translate(hidden, variants=2, **FEW), answers)
    assert torch.equal(with_known(photo, photo, ""), photo) and torch.equal(with_known(photo, photo, "jpeg:10"), photo)


def test_a_pixel_that_is_half_transparent_is_known_and_one_that_is_more_so_is_not(models, photos):
    """As masks are read everywhere, alpha counts from one half on, and nothing of what lies under a hole reaches the network."""
    alpha = torch.full((1, 1, 8, 8), 0.5)
    alpha[..., :4], alpha[..., 6:] = 0.49, 1.0
    asked = question(models["holes:0.3"].trained, torch.cat([photos.unit([0]), alpha], 1))
    assert torch.equal(asked[:, 3:], (alpha >= 0.5).float())
    assert asked[:, :3, :, :4].abs().max() == 0 and torch.equal(asked[:, :3, :, 4:], photos.unit([0])[..., 4:])


def test_answers_belong_to_their_picture_and_seed(models, photos):
    model, pictures = models["jpeg:10"], photos.unit(slice(0, 3))
    together = model.translate(pictures, variants=2, **FEW)
    assert together.shape == (6, 3, 8, 8) and (together[0] - together[1]).abs().max() > 1e-3
    again = model.translate(pictures, variants=2, batch_size=1, **FEW)
    torch.testing.assert_close(together, again, atol=2e-4, rtol=0)
    own = model.translate(pictures, variants=2, n_steps=3, seed=[5, 6, 7])
    torch.testing.assert_close(own[2:4], model.translate(pictures[1], variants=2, n_steps=3, seed=6), atol=2e-4, rtol=0)
    shuffled = model.translate(pictures[[1, 0, 2]], variants=2, n_steps=3, seed=[6, 5, 7])
    torch.testing.assert_close(shuffled[:2], own[2:4], atol=2e-4, rtol=0)
    assert (model.translate(pictures[[1, 0, 2]], variants=2, **FEW) - together).abs().amax((1, 2, 3))[:4].min() > 1e-3  # the picture counts


@pytest.mark.parametrize("form", ["array", "list", "file", "pillow"])
def test_pictures_come_in_every_form(models, photos, tmp_path, form):
    from PIL import Image

    tensor = photos.unit(slice(0, 1))
    picture = Image.fromarray(photos.images[0].permute(1, 2, 0).numpy())
    picture.save(tmp_path / "one.png")
    forms = {"array": tensor[0].permute(1, 2, 0).numpy(), "list": [tensor[0]], "file": tmp_path / "one.png", "pillow": picture}
    answers = models["jpeg:10"].translate(forms[form], **FEW)
    torch.testing.assert_close(answers, models["jpeg:10"].translate(tensor, **FEW), atol=1e-4, rtol=0)


def test_coloured_pictures_have_no_tint():
    """Of flat pictures whose colour does not depend on their grey: what is added to the grey has the mean and the spread that it has in the data."""
    generator, shift = torch.Generator().manual_seed(0), torch.tensor([0.05, 0.0, -0.05])[:, None, None]
    grey, colour = 0.35 + 0.3 * torch.rand(2000, 1, 1, 1, generator=generator), 0.08 * torch.randn(2000, 3, 1, 1, generator=generator)
    images = ((grey + colour - colour.mean(1, keepdim=True) + shift).expand(-1, -1, 2, 2).clamp(0, 1) * 255).round().byte()
    pairs = paired(ImageSet(images), "grey", verbose=False)
    with first_weights(0):
        network = MLP(12, width=64, image_shape=(1, 2, 2))
    model = GenerativeModel("edm", "dpm-solver++2m", network=network, device="cpu", verbose=False)
    model.train(pairs, condition="image", steps=300, batch_size=128, lr=3e-3)
    drawn, truth = model.translate(pairs.second[:500].float() / 255, n_steps=8, seed=0), images.float() / 255
    added, wanted = (x - Grayscale().A(x) for x in (drawn, truth))
    assert (added.mean((0, 2, 3)) - wanted.mean((0, 2, 3))).abs().max() < 0.012  # a tenth of the spread is 0.007, the standard error 0.004
    assert (added.std((0, 2, 3)) / wanted.std((0, 2, 3)) - 1).abs().max() < 0.2


@pytest.mark.parametrize("name", ["grey", "small:2"])
def test_a_file_keeps_what_the_pairs_were(models, photos, tmp_path, name):
    models[name].save(tmp_path / "pairs.safetensors")
    loaded = GenerativeModel.load(tmp_path / "pairs.safetensors", "cpu", verbose=False)
    assert loaded.trained.pairing == name and loaded.trained.network.config == models[name].trained.network.config
    second = paired(photos, name, verbose=False).second[:2]
    torch.testing.assert_close(loaded.translate(second, **FEW), models[name].translate(second, **FEW), atol=1e-5, rtol=0)


def test_a_perceptron_of_pairs_is_trained_and_saved(photos, tmp_path):
    pairs = ImageSet(photos.images[:, :1], second=photos.images[:, 1:2])
    model = untrained(pairs, MLP(64, width=32, depth=1, image_shape=(1, 8, 8)))
    model.save(tmp_path / "mlp.safetensors")
    loaded = GenerativeModel.load(tmp_path / "mlp.safetensors", "cpu", verbose=False)
    torch.testing.assert_close(loaded.translate(pairs.second[:2], **FEW), model.translate(pairs.second[:2], **FEW))


def test_texts_and_second_images_go_together():
    emoji = image_set("emoji", size=8, limit=16, verbose=False)
    model = untrained(paired(emoji, lambda images: 1 - images, verbose=False))
    assert model.trained.network.condition_names == ("text", "label", "image")
    picture = emoji.unit(slice(0, 2))
    made = [model.translate(picture, prompt=text, class_labels="noto", **FEW) for text in ("red apple", "blue boat")]
    assert (made[0] - made[1]).abs().max() > 1e-4
    scaled = model.translate(picture, prompt="red apple", guidance_scale={"image": 2.0, "text": 1.5}, **FEW)
    assert scaled.shape == (2, 3, 8, 8) and bool(scaled.isfinite().all())


def test_a_model_of_pairs_is_distilled(models, photos, tmp_path):
    """The student answers pictures in one step, keeps what is known of them, and its file says what the pairs were."""
    teacher = models["grey"]
    student = teacher.distill(paired(photos, "grey", verbose=False), time_limit=None, steps=2, batch_size=8)
    assert student.trained.pairing == "grey" and student.trained.takes_image
    grey = Grayscale().A(photos.unit(slice(0, 2)))
    answers = student.translate(grey, variants=2, n_steps=1, seed=0)
    torch.testing.assert_close(Grayscale().A(answers), grey.repeat_interleave(2, 0), atol=1e-6, rtol=0)
    other = student.translate(grey.flip(0), variants=2, n_steps=1, seed=0)
    assert (other[:2] - answers[2:]).abs().max() > 1e-4 and (other - answers).abs().amax((1, 2, 3)).min() > 1e-3
    student.save(tmp_path / "student.safetensors")
    loaded = GenerativeModel.load(tmp_path / "student.safetensors", "cpu", verbose=False)
    torch.testing.assert_close(loaded.translate(grey, variants=2, n_steps=1, seed=0), answers, atol=1e-5, rtol=0)
    settings = {"time_limit": None, "steps": 2, "batch_size": 8}
    fails(lambda: teacher.distill(photos, **settings), "takes a second image, and the data has none")
    fails(lambda: teacher.distill(paired(photos, "jpeg", verbose=False), **settings), "takes second images of 1 x 8 x 8, these are 3 x 8 x 8")


def test_pictures_of_other_sizes_are_resized_where_that_is_asked_for(models, photos):
    """Each model has one size; a picture of another is answered as its resized copy is."""
    large = photos.unit(slice(0, 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    for name, side in (("jpeg:10", 8), ("small:2", 4), ("grey", 8)):
        answers = models[name].translate(large, resize=True, **FEW)
        own = second_images(large, models[name].trained.network.config["image_channels"], (side, side), resize=True)
        assert answers.shape == (2, 3, 8, 8)
        torch.testing.assert_close(answers, models[name].translate(own, **FEW), atol=1e-4, rtol=0)
        fails(lambda name=name: models[name].translate(large, **FEW), f"trained on second images of {side} x {side}; give resize=True")


def test_an_interrupted_training_keeps_what_the_pairs_were(photos, tmp_path):
    model = GenerativeModel("edm", network="tiny", device="cpu", verbose=False)
    model.train(photos, condition="grey", epochs=1, batch_size=8, checkpoints=tmp_path)
    assert GenerativeModel.load(tmp_path / "last.safetensors", "cpu", verbose=False).trained.pairing == "grey"


def test_without_a_picture_the_model_draws_what_it_knows(models):
    assert models["grey"].generate(2, **FEW).shape == (2, 3, 8, 8)


def fails(call, says, error=ValueError):
    with pytest.raises(error) as caught:
        call()
    assert says in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_bad_input_is_told_in_a_sentence(models, photos):
    grey, small, jpeg = models["grey"], models["small:2"], models["jpeg:10"]
    plain = GenerativeModel("edm", network="tiny", device="cpu", verbose=False)
    eight = torch.rand(8, 8)
    table = [
        (lambda: grey.translate(torch.rand(9, 9)), "image is 9 x 9, this model was trained on second images of 8 x 8; give resize=True"),
        (lambda: small.translate(torch.rand(3, 8, 8)), "trained on second images of 4 x 4"),
        (lambda: grey.translate(eight, variants=0), "variants must be"),
        (lambda: grey.translate(eight, n_steps=0), "n_steps must be"),
        (lambda: grey.translate(eight, seed=-1), "seed must be"),
        (lambda: grey.translate(2 * eight + 1), "values in [0, 1]"),
        (lambda: grey.translate(torch.rand(5, 8, 8)), "got 5 in shape"),
        (lambda: jpeg.translate(torch.rand(4, 8, 8)), "alpha channel"),
        (lambda: models["holes:0.3"].translate(torch.rand(3, 8, 8)), "must be transparent where this model is to fill it in"),
        (lambda: grey.translate(eight, prompt="red"), "takes no text"),
        (lambda: grey.translate(eight, class_labels="horse-fly"), "unknown label"),
        (lambda: GenerativeModel.pretrained("fashion_mnist", verbose=False).translate(eight), "needs a model that was trained on pairs"),
        (lambda: plain.train(photos, condition="image"), "has no second images"),
        (lambda: plain.train(photos, condition="sepia"), "neither a folder nor a degradation; known: grey"),
        (lambda: plain.train(photos, condition="small:3"), "needs sides that 3 divides"),
        (lambda: plain.train(photos, condition=photos.images[:3]), "40 images but 3 second images"),
        (lambda: grey.train(photos), "takes a second image, and the data has none: make pairs by diffnb.data.paired, or give condition="),
        (lambda: grey.distill(photos), "takes a second image, and the data has none: make pairs by diffnb.data.paired, or give condition="),
        (lambda: plain.train((photos.unit(slice(9)), photos.unit(slice(9))), condition="image"), "diffnb.data.paired(images, others) makes a set"),
        (lambda: grey.train(photos, condition="jpeg"), "takes second images of 1 x 8 x 8, these are 3 x 8 x 8"),
        (lambda: untrained(paired(photos, "grey", verbose=False), MLP(192, num_classes=10)), "MLP takes none"),
    ]
    for call, says in table:
        fails(call, says)
    fails(lambda: grey.translate(3), "image must be a tensor", TypeError)
    fails(lambda: plain.translate(eight), "has not been trained", RuntimeError)


def test_second_images_are_hidden_as_often_as_labels(photos):
    """A share of the batch has nothing but NaN, and each condition its own coin."""
    from diffnb.training import DiffusionCallback

    pairs = paired(photos, "grey", verbose=False)
    network = untrained(pairs).trained.network
    callback = DiffusionCallback(EDM(), label_dropout=0.5)
    callback.generators, callback.learn = [torch.Generator().manual_seed(k) for k in (0, 1)], None
    callback.model = network
    n = 400
    dropped = callback.drop({"label": torch.zeros(n, dtype=torch.int64), "image": torch.zeros(n, 1, 8, 8)})
    hidden = dropped["image"].isnan()
    assert torch.equal(hidden.all((1, 2, 3)), hidden.any(1).any(1).any(1))  # whole images
    without = {"image": hidden.all((1, 2, 3)), "label": dropped["label"] == -1}
    for a, b in itertools.product((True, False), repeat=2):
        assert 60 < ((without["image"] == a) & (without["label"] == b)).sum() < 140


def test_a_denoiser_checks_second_images_of_guidance():
    network = UNet(3, widths=(16,), blocks=1, attention_levels=(), image_channels=1)
    guided, x = ClassifierFree(Denoiser(network, EDM()), 2.0), torch.zeros(2, 3, 8, 8)
    for image in (torch.zeros(2, 3, 8, 8), torch.zeros(3, 1, 8, 8), torch.zeros(2, 1, 8), torch.zeros(2, 1, 8, 8, dtype=torch.int64)):
        fails(lambda: guided(x, 0.5, {"image": image}), "condition['image']")
    fails(lambda: guided(x, 0.5, {"image": torch.zeros(2, 1, 4, 4)}), "image must have shape (")


def test_trained_says_what_it_was_trained_on():
    assert Trained(MLP(2, image_shape=(1,)), EDM(), None, (2,)).takes_image and not Trained(MLP(2), EDM(), None, (2,)).takes_image
    assert Trained(MLP(2), EDM(), None, (2,), records=({"pairing": "grey"}, {"pairing": "jpeg:10"}, {})).pairing == "jpeg:10"


def test_pairs_are_made_for_a_distillation_as_for_a_training(models, photos):
    """The same student by condition= as from pairs."""
    teacher = models["grey"]
    settings = {"time_limit": None, "steps": 1, "batch_size": 8}
    grey = Grayscale().A(photos.unit(slice(0, 2)))
    answers = [
        student.translate(grey, n_steps=1, seed=0)
        for student in (teacher.distill(photos, condition="grey", **settings), teacher.distill(paired(photos, "grey", verbose=False), **settings))
    ]
    torch.testing.assert_close(*answers, atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape, factor, wanted", [((3, 8, 6), 2, (4, 3)), ((3, 9, 7), 2, (5, 4)), ((1, 9, 7), 4, (3, 2)), ((1, 9, 7), 1, (9, 7))])
def test_a_second_image_covers_all_of_the_first(shape, factor, wanted):
    """Where the sides are no multiples of the factor, its last blocks stick out; the network takes what this says."""
    network = UNet(shape[0], widths=(8,), blocks=1, attention_levels=(), groups=4, image_channels=2, image_factor=factor)
    found = Trained(network, EDM(), Karras(0.5), shape).second_shape
    assert found == (2, *wanted)
    with torch.no_grad():
        assert network(torch.zeros(1, *shape), torch.tensor(0.0), image=torch.zeros(1, *found)).shape == (1, *shape)
