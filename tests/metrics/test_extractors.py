"""Feature extractors against their originals: PIL, torchvision, torch-fidelity, and published numbers."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import diffnb
import diffnb.metrics.classifiers as classifiers
import diffnb.metrics.inception as inception
from diffnb.data import image_set
from diffnb.metrics import (
    EXTRACTORS,
    FID_RELEASE,
    FID_WEIGHTS,
    FID_WEIGHTS_SHA256,
    RESIZES,
    RESNET20_SHA256,
    RESNET20_WEIGHTS,
    Classifier,
    FashionClassifier,
    InceptionFeatures,
    ResNet20,
    TorchvisionClassifier,
    as_classifier,
    as_extractor,
    check_extractor,
    fetch_fid_weights,
    find_fid_weights,
)


def noise(*shape, seed=0):
    """Random bytes as floats in [0, 1]."""
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).float() / 255


def weights_folder(file):
    """The folder of the weights, or a skip."""
    folder = os.environ.get("DIFFNB_WEIGHTS")
    if not folder or not (Path(folder) / file).is_file():
        pytest.skip(f"set DIFFNB_WEIGHTS to a folder with {file}")
    return Path(folder)


def data_set(name, place, **some):
    """The test images of a set, or a skip."""
    root = os.environ.get("DIFFNB_DATA")
    if not root or not (Path(root) / place).is_dir():
        pytest.skip(f"set DIFFNB_DATA to a folder with {place}")
    return image_set(name, split="test", root=root, verbose=False, **some)


def accuracy(classifier, images):
    """Share of images that get their label."""
    return (classifier.probabilities(images.images.float() / 255).argmax(1) == images.labels).double().mean().item()


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """No weights in the environment or the cache."""
    monkeypatch.delenv("DIFFNB_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


# the packaged classifier


def test_fashion_classifier_is_small_and_knows_its_clothes():
    file = Path(diffnb.__file__).parent / "assets" / "fashion_mnist_classifier.safetensors"
    assert file.stat().st_size <= 600_000
    assert all(tensor.dtype == torch.float16 for tensor in load_file(file).values())
    classifier, packaged = FashionClassifier(), image_set("packaged", verbose=False)
    assert classifier.classes == packaged.names
    assert accuracy(classifier, packaged.select(torch.arange(3000))) > 0.92
    assert classifier.config()["weights"] == hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def test_fashion_classifier_on_images_it_has_never_seen():
    assert accuracy(FashionClassifier(), data_set("fashion_mnist", "FashionMNIST")) > 0.925


def test_fashion_classifier_does_not_care_for_batches_colour_or_the_generator():
    before = torch.get_rng_state()
    classifier, x = FashionClassifier(), noise(601, 1, 28, 28)
    features = classifier(x)
    assert features.shape == (601, classifier.n_features) and features.dtype == torch.float32
    assert torch.allclose(features[[0, 300, 600]], classifier(x[[0, 300, 600]]), atol=1e-5)
    assert torch.allclose(features[:4], classifier(x[:4].expand(-1, 3, -1, -1)), atol=1e-4)
    colour = noise(4, 3, 28, 28)
    grey = 0.299 * colour[:, 0] + 0.587 * colour[:, 1] + 0.114 * colour[:, 2]  # the luminance of Rec. 601
    assert torch.allclose(classifier(colour), classifier(grey[:, None]), atol=1e-4)
    assert torch.allclose(classifier.logits(features).softmax(1), classifier.probabilities(x), atol=1e-6)
    assert torch.equal(before, torch.get_rng_state())
    assert not any(p.requires_grad or p.is_meta for p in classifier.parameters())


# resizes


def test_clean_fid_resize_is_that_of_pil():
    Image = pytest.importorskip("PIL.Image")
    for size in ((1, 1), (28, 28), (32, 48), (299, 299), (300, 301), (512, 640)):
        x = noise(2, 3, *size)
        got = RESIZES["clean-fid"](x) * 128 + 128
        for image, ours in zip(255 * x, got):
            for channel, mine in zip(image, ours):
                theirs = Image.fromarray(channel.numpy()).resize((299, 299), Image.Resampling.BICUBIC)
                assert np.abs(np.asarray(theirs).clip(0, 255) - mine.numpy()).max() < 5e-4, size
    assert RESIZES["clean-fid"](torch.ones(1, 1, 5, 5)).max() <= 127 / 128


def test_pytorch_fid_resize_in_numpy():
    x = noise(1, 1, 17, 40)[0, 0].double().numpy()

    def along(values, n):
        place = np.clip((np.arange(299) + 0.5) * n / 299 - 0.5, 0, n - 1)
        return np.stack([np.interp(place, np.arange(n), line) for line in values])

    want = 2 * along(along(x, 40).T, 17).T - 1
    assert np.abs(RESIZES["pytorch-fid"](torch.from_numpy(x)[None, None])[0, 0].numpy() - want).max() < 1e-6


def test_tensorflow_resize_is_that_of_torch_fidelity():
    compatible = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow")
    for size in ((28, 28), (32, 500), (299, 299)):
        x = noise(2, 3, *size)
        want = compatible.interpolate_bilinear_2d_like_tensorflow1x(255 * x, size=(299, 299), align_corners=False)
        assert (RESIZES["tensorflow"](x) * 128 + 128 - want).abs().max() < 0.02  # its sample places are in float32


# the Inception of the FID

# features 0, 128, ..., 1920 of the image below, and the norm of all, from the published TorchScript network
PUBLISHED = [0.0206999, 0.4615524, 1.1330013, 0.0256965, 0.0104420, 0.0, 0.1464983, 0.0, 0.0067058, 0.0, 0.2319388, 0.8462511]
PUBLISHED += [0.1424337, 0.1919622, 0.3221991, 0.7133002, 27.7252750]


def pattern():
    """A smooth image of 299 pixels, which no resize changes."""
    i, j = torch.arange(299, dtype=torch.float64)[:, None], torch.arange(299, dtype=torch.float64)
    return torch.stack([0.5 + 0.5 * torch.sin(0.05 * i * (c + 1) + 0.07 * j) for c in range(3)])[None].float()


def test_inception_equals_the_original():
    network = InceptionFeatures(weights_folder(FID_WEIGHTS) / FID_WEIGHTS)
    got = network(pattern())[0]
    assert torch.allclose(torch.stack([*got[::128], got.norm()]), torch.tensor(PUBLISHED), rtol=1e-4, atol=1e-5)
    small = noise(3, 1, 28, 28)
    together = network(small)
    assert together.shape == (3, network.n_features)
    assert torch.allclose(together[1:2], network(small[1:2].expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-5)
    assert network.config() == {"extractor": "inception-2015", "resize": "pytorch-fid"}
    assert not network.has_logits
    with pytest.raises(FileNotFoundError, match="fashion-classifier"):
        network.probabilities(small[:1])


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A stand-in for the published file: the true backbone, and a last layer of our own."""
    tensors = load_file(weights_folder(FID_WEIGHTS) / FID_WEIGHTS)
    for name in [name for name in tensors if name.endswith("bn.bias")]:
        tensors[name.replace("bias", "weight")] = torch.ones_like(tensors[name])
        tensors[name.replace("bias", "num_batches_tracked")] = torch.tensor(0)
    generator = torch.Generator().manual_seed(0)
    tensors["fc.weight"] = 0.05 * torch.randn(1008, 2048, generator=generator)
    tensors["fc.bias"] = torch.randn(1008, generator=generator)
    assert len(tensors) == 566  # as many as in the published file
    path = tmp_path / FID_RELEASE
    torch.save(tensors, path)
    monkeypatch.setattr(inception, "FID_RELEASE_SHA256", inception.sha256_of(path))
    return path


def test_published_file_gives_the_same_features_and_the_probabilities_of_torch_fidelity(release, nowhere, monkeypatch):
    x = noise(2, 3, 32, 32)
    network = InceptionFeatures(release, resize="torch-fidelity")
    assert network.has_logits and network.resize == "tensorflow" and len(network.classes) == 1008
    features = network(x)
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
    reference = theirs("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(release))
    with torch.inference_mode():
        want, logits = reference((255 * x).round().byte())
    assert torch.allclose(features, want, rtol=1e-3, atol=1e-4)
    assert torch.allclose(network.probabilities(x), logits.softmax(1), rtol=1e-2, atol=1e-6)
    monkeypatch.setenv("DIFFNB_WEIGHTS", str(release.parent))
    assert find_fid_weights() == find_fid_weights(logits=True) == release
    assert as_classifier().name == "inception-2015"


def test_missing_or_other_weights_are_an_error(nowhere):
    for call in (find_fid_weights, InceptionFeatures, lambda: as_extractor("inception")):
        with pytest.raises(FileNotFoundError, match=FID_WEIGHTS_SHA256) as caught:
            call()
        for part in ("`diffnb weights`", "`diffnb weights --release`", "DIFFNB_WEIGHTS", "fashion-classifier"):
            assert part in str(caught.value)
    for name in (FID_WEIGHTS, FID_RELEASE):
        (nowhere / name).write_bytes(b"not the weights")
        with pytest.raises(ValueError, match="sha256"):
            InceptionFeatures(nowhere)
        (nowhere / name).unlink()
    with pytest.raises(FileNotFoundError, match=RESNET20_SHA256):
        ResNet20(nowhere)
    assert ResNet20().config()["extractor" if "extractor" in ResNet20().config() else "name"] is not None  # a copy is packaged
    assert as_classifier().name == "fashion-classifier"


def test_fetching_keeps_only_the_right_file(nowhere, monkeypatch):
    served = nowhere / "served"
    served.write_bytes(b"the network")
    monkeypatch.setattr(inception, "FID_RELEASE_URL", served.as_uri())
    with pytest.raises(ValueError, match="thrown away"):
        fetch_fid_weights(nowhere / "here")
    assert not list((nowhere / "here").iterdir())
    monkeypatch.setattr(inception, "FID_RELEASE_SHA256", inception.sha256_of(served))
    path = fetch_fid_weights()
    assert path.read_bytes() == b"the network" and path == find_fid_weights(logits=True)
    monkeypatch.setattr(inception, "FID_RELEASE_URL", (nowhere / "gone").as_uri())
    assert fetch_fid_weights() == path  # what is there is not fetched again
    with pytest.raises(ConnectionError, match="diffnb weights"):
        fetch_fid_weights(nowhere / "elsewhere")
    assert not list((nowhere / "elsewhere").iterdir())


def test_weights_cannot_run_code(nowhere, monkeypatch):
    class Surprise:
        def __reduce__(self):
            return (os.mkdir, (str(nowhere / "surprise"),))

    torch.save({"fc.weight": Surprise()}, nowhere / FID_RELEASE)
    torch.save({"state_dict": Surprise()}, nowhere / RESNET20_WEIGHTS)
    monkeypatch.setattr(inception, "FID_RELEASE_SHA256", inception.sha256_of(nowhere / FID_RELEASE))
    monkeypatch.setattr(classifiers, "RESNET20_SHA256", inception.sha256_of(nowhere / RESNET20_WEIGHTS))
    for extractor in (InceptionFeatures, ResNet20):
        with pytest.raises(Exception, match="[Ww]eights.only"):
            extractor(nowhere)
    assert not (nowhere / "surprise").exists()


def test_backbone_has_the_names_and_shapes_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = models.inception_v3(weights=None, init_weights=False, aux_logits=False).state_dict()
        ours = inception._backbone().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items() if not k.startswith("fc.")}


# the ResNet of CIFAR-10


def test_resnet20_classifies_cifar10():
    classifier = ResNet20(weights_folder(RESNET20_WEIGHTS))
    assert sum(p.numel() for p in classifier.network.parameters()) == 269_722  # "0.27M" in the paper's table 6
    images = data_set("cifar10", "cifar10/test", limit=500)
    assert images.names == classifier.classes and len(images) == 500
    assert accuracy(classifier, images) > 0.88


# torchvision's, and functions


def save_random(model, path):
    """A network of torchvision with random weights, which are written to a file too."""
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.get_model(model, weights=None).eval()
    torch.save(network.state_dict(), path)
    return network


def test_torchvision_classifier_is_the_network_in_two_parts(tmp_path):
    whole = save_random("shufflenet_v2_x0_5", tmp_path / "random.pth")
    before = torch.get_rng_state()
    ours = TorchvisionClassifier("shufflenet_v2_x0_5", tmp_path / "random.pth")
    assert torch.equal(before, torch.get_rng_state())
    x = noise(2, 1, 40, 40)
    with torch.inference_mode():
        want = whole(ours.prepare(x)).softmax(1)
    assert torch.allclose(ours.probabilities(x), want, atol=1e-6)
    assert ours(x).shape == (2, ours.n_features) == (2, whole.fc.in_features)
    assert ours.name == "torchvision-shufflenet_v2_x0_5-random.pth" and ours.classes[207] == "golden retriever"


def test_torchvision_errors(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(FileNotFoundError, match="sha256 begins with f37072fd") as caught:
        as_extractor("torchvision:resnet18")
    assert "download.pytorch.org" in str(caught.value) and "fashion-classifier" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        TorchvisionClassifier("resnet18", tmp_path / "none.pth")
    with pytest.raises(ValueError, match="no classifier 'resnet17'"):
        as_extractor("torchvision:resnet17")
    with pytest.raises(ValueError, match="torchvision:resnet18"):
        as_extractor("torchvision")
    save_random("squeezenet1_1", tmp_path / "squeeze.pth")
    with pytest.raises(ValueError, match="no linear layer"):
        TorchvisionClassifier("squeezenet1_1", tmp_path / "squeeze.pth")


def flat(images):
    """Pixels."""
    return images.flatten(1)


def test_functions_become_extractors_under_their_own_name():
    x = noise(5, 1, 3, 4)
    extractor = as_extractor(flat)
    assert extractor.config() == {"extractor": "flat", "resize": None}
    assert torch.equal(extractor(x), x.flatten(1)) and extractor.n_features == 12
    assert as_extractor(extractor) is extractor
    assert as_extractor(lambda images: images.flatten(1), name="pixels").name == "pixels"
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    network.probabilities = lambda images: network(images).softmax(1)
    classifier = as_classifier(network)
    assert torch.allclose(classifier.probabilities(x), network(x).softmax(1)) and classifier.classes == ["0", "1", "2"]
    with pytest.raises(ValueError, match="no class probabilities"):
        as_classifier(flat)
    with pytest.raises(ValueError, match="softmax"):
        as_extractor(flat, probabilities=flat).probabilities(x)
    with pytest.raises(ValueError, match="2 classes but 3"):
        as_extractor(flat, probabilities=network.probabilities, classes="ab").probabilities(x)
    with pytest.raises(ValueError, match="training mode"):
        as_extractor(nn.Flatten())
    with pytest.raises(ValueError, match="give one"):
        as_extractor(lambda images: images)
    with pytest.raises(TypeError, match="describe a function"):
        as_extractor("fashion", name="mine")


def test_bad_images_and_features_are_one_sentence_each():
    fashion, x = FashionClassifier(), noise(2, 1, 28, 28)
    for bad, message in (
        (2 * x - 1, r"got \[-1, 1\]"),
        ((255 * x).byte(), "divide bytes by 255"),
        (x[0], r"\(n, 1 or 3, h, w\)"),
        (x.expand(-1, 2, -1, -1), r"\(n, 1 or 3, h, w\)"),
        (x * torch.nan, "nan"),
        (x.numpy(), "ndarray"),
    ):
        with pytest.raises(ValueError, match=message):
            fashion(bad)
        with pytest.raises(ValueError, match=message):
            fashion.probabilities(bad)
    with pytest.raises(ValueError, match="not finite for 1 of 2 images"):
        as_extractor(lambda images: images.flatten(1) / images.flatten(1).sum(1, keepdim=True), name="share")(
            x * torch.tensor([1.0, 0.0])[:, None, None, None]
        )
    with pytest.raises(ValueError, match=r"must return features \(2, d\)"):
        as_extractor(lambda images: images, name="identity")(x)


def test_check_extractor_finds_what_is_wrong():
    for extractor in (FashionClassifier(), as_extractor(flat)):
        assert max(check_extractor(extractor, (1, 28, 28)).values()) < 1e-5
    centred = as_extractor(lambda images: images.flatten(1) - images.flatten(1).mean(0), name="centred")
    with pytest.raises(AssertionError, match="centred: batch off by"):
        check_extractor(centred)
    calls = iter(range(9))
    with pytest.raises(AssertionError, match="counts: repeat off by"):
        check_extractor(as_extractor(lambda images: images.flatten(1) + next(calls), name="counts"))
    before = torch.get_rng_state()
    with pytest.raises(AssertionError, match="random generator"):
        check_extractor(as_extractor(lambda images: images.flatten(1) + 0 * torch.rand(1), name="lucky"))
    torch.set_rng_state(before)


def test_names():
    assert EXTRACTORS.names()[:4] == ["fashion-classifier", "inception-2015", "cifar10-resnet20", "torchvision"]
    assert EXTRACTORS["Inception"] is InceptionFeatures and EXTRACTORS["fashion"] is FashionClassifier
    assert as_extractor("fashion").name == as_extractor(FashionClassifier).name == "fashion-classifier"
    assert issubclass(InceptionFeatures, Classifier)
    with pytest.raises(ValueError, match="did you mean 'inception-2015'"):
        as_extractor("inceptio")
    with pytest.raises(ValueError, match="unknown resize"):
        as_extractor("inception:bilinear")
    with pytest.raises(ValueError, match="no option"):
        as_extractor("fashion:28")
