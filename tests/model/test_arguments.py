"""Every argument takes what stands for its number or image, or says in one sentence what it wants."""

import inspect
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from diffnb import GenerativeModel
from diffnb.data import image_set
from diffnb.model import Labels, Trained, generate_shards
from diffnb.networks import UNet
from diffnb.noise import VE, X0
from diffnb.samplers import Heun


class Exact(nn.Module):
    """The exact denoiser of grey pixels N(m_label, 0.1^2) under VE, for X0(sigma_data=0.5)."""

    condition_names, num_classes = ("label",), 2

    def forward(self, x, half_log_snr, label):
        sigma = torch.exp(-half_log_snr).view(-1, 1, 1, 1)
        x = x * torch.sqrt(0.25 + sigma**2)
        mean = torch.tensor([-0.4, 0.4, 0.0], dtype=x.dtype)[label].view(-1, 1, 1, 1)
        return mean + 0.01 / (0.01 + sigma**2) * (x - mean)


@pytest.fixture
def model():
    return GenerativeModel.of(Trained(Exact(), VE(), X0(0.5), (1, 8, 8), Labels((3, 7))), sampler="heun", device="cpu", verbose=False)


IMAGE = torch.linspace(0, 1, 64).view(1, 1, 8, 8)
MASK = torch.zeros(8, 8)
MASK[:4] = 1
QUICK = {"n_steps": 3, "seed": 1}
DDNM = {**QUICK, "method": "ddnm"}


# what is called, with a plain argument and with what stands for it
SAME = [
    ("generate", {"num_samples": 2}, {"num_samples": np.int64(2)}),
    ("generate", {"num_samples": 2}, {"num_samples": torch.tensor(2)}),
    ("generate", {"n_steps": 4}, {"n_steps": np.uint8(4)}),
    ("generate", {"seed": 5}, {"seed": np.uint64(5)}),
    ("generate", {"seed": 5}, {"seed": torch.tensor(5)}),
    ("generate", {"size": 16}, {"size": np.int64(16)}),
    ("generate", {"size": (8, 16)}, {"size": np.array([8, 16])}),
    ("generate", {"size": (8, 16)}, {"size": torch.Size([8, 16])}),
    ("generate", {"batch_size": 1, "num_samples": 2}, {"batch_size": np.int32(1), "num_samples": 2}),
    ("generate", {"first": 3}, {"first": np.int64(3)}),
    ("generate", {"class_labels": 7}, {"class_labels": np.int64(7)}),
    ("generate", {"class_labels": 7}, {"class_labels": torch.tensor(7)}),
    ("generate", {"class_labels": [7, 3], "num_samples": 2}, {"class_labels": np.array([7, 3]), "num_samples": 2}),
    ("generate", {"class_labels": 7, "guidance_scale": 2.0}, {"class_labels": 7, "guidance_scale": np.float64(2)}),
    ("generate", {"class_labels": 7, "guidance_scale": 2.0}, {"class_labels": 7, "guidance_scale": torch.tensor(2.0)}),
    ("generate", {"class_labels": 7, "guidance_scale": 0.5}, {"class_labels": 7, "guidance_scale": Fraction(1, 2)}),
    ("generate", {"class_labels": 7}, {"class_labels": 7, "guidance_scale": None}),
    ("generate", {}, {"num_samples": None, "batch_size": None, "callback_frequency": None, "precision": "float32", "first": None}),
    (
        "generate",
        {"class_labels": [3, 7], "guidance_scale": [1.0, 2.0], "num_samples": 2},
        {"class_labels": [3, 7], "guidance_scale": np.array([1.0, 2.0]), "num_samples": np.int64(2)},
    ),
    ("imputation", {"image": IMAGE, "mask": MASK, **DDNM}, {"image": IMAGE.numpy(), "mask": MASK.numpy(), **DDNM}),
    ("imputation", {"image": IMAGE, "mask": MASK, **DDNM}, {"image": IMAGE.double(), "mask": MASK.bool().numpy(), **DDNM}),
    ("imputation", {"image": IMAGE, "mask": MASK, **DDNM}, {"image": IMAGE[0, 0].numpy()[..., None], "mask": (MASK * 255).byte().numpy(), **DDNM}),
    ("imputation", {"image": IMAGE.flip(-1), "mask": MASK.flip(0), **DDNM}, {"image": IMAGE.numpy()[..., ::-1], "mask": MASK.numpy()[::-1], **DDNM}),
    ("imputation", {"image": IMAGE, "mask": MASK, **DDNM}, {"image": [IMAGE[0].numpy()], "mask": [MASK], **DDNM}),
    ("imputation", {"image": IMAGE, "mask": MASK, **DDNM}, {"image": IMAGE, "mask": MASK.expand(1, 1, 8, 8), **DDNM, "variants": np.int64(1)}),
    ("denoise", {"image": IMAGE, "noise": 0.25, **DDNM}, {"image": IMAGE, "noise": np.float32(0.25), **DDNM}),
    ("denoise", {"image": IMAGE, "noise": 0.25, **DDNM}, {"image": IMAGE, "noise": torch.tensor(0.25), **DDNM, "resize": np.False_}),
    ("deblur", {"image": IMAGE, "blur": 1.0, **DDNM}, {"image": IMAGE, "blur": np.float64(1), **DDNM}),
    ("deblur", {"image": IMAGE, "blur": torch.ones(3, 3) / 9, **DDNM}, {"image": IMAGE, "blur": np.ones((3, 3)) / 9, **DDNM}),
    ("upscale", {"image": IMAGE[..., ::2, ::2], **DDNM}, {"image": IMAGE.numpy()[..., ::2, ::2], **DDNM, "noise": None}),
    ("reconstruct", {"image": IMAGE, "t": 0.5, **QUICK}, {"image": IMAGE, "t": np.float64(0.5), **QUICK}),
    ("edit", {"image": IMAGE, "strength": 0.5, **QUICK}, {"image": IMAGE, "strength": torch.tensor(0.5), **QUICK}),
    ("edit", {"image": IMAGE, "strength": 0, **QUICK}, {"image": IMAGE, "strength": np.float64(0), **QUICK}),
    ("encode", {"image": IMAGE, "n_steps": 3}, {"image": IMAGE.numpy(), "n_steps": np.int64(3), "t": None}),
    ("decode", {"latent": 50 * IMAGE, "n_steps": 3}, {"latent": 50 * IMAGE.numpy(), "n_steps": 3}),
    ("interpolate", {"a": IMAGE, "b": IMAGE.flip(-1), "n": 3, "n_steps": 3}, {"a": IMAGE, "b": IMAGE.flip(-1), "n": np.int64(3), "n_steps": 3}),
]


@pytest.mark.parametrize(("method", "plain", "other"), SAME, ids=lambda value: value if isinstance(value, str) else "")
def test_what_stands_for_a_number_or_an_image_is_taken(model, method, plain, other):
    usual = {"n_steps": 3, "seed": 1} if method == "generate" else {}
    assert torch.equal(getattr(model, method)(**{**usual, **plain}), getattr(model, method)(**{**usual, **plain, **other}))


WRONG = [
    ("generate", {"num_samples": True}, "num_samples must be a whole number or None, got True"),
    ("generate", {"num_samples": 2.5}, "num_samples must be a whole number or None, got 2.5"),
    ("generate", {"num_samples": "4"}, "num_samples must be a whole number or None, got '4'"),
    ("generate", {"num_samples": 0}, "num_samples must be a whole number of at least 1, got 0"),
    ("generate", {"seed": -1}, r"seed must be a whole number from 0 to \d+, got -1"),
    ("generate", {"seed": 2**64}, r"seed must be a whole number from 0 to \d+, got 18446744073709551616"),
    ("generate", {"seed": "x"}, "seed must be a whole number or None, got 'x'"),
    ("generate", {"n_steps": 1.0}, "n_steps must be a whole number or None, got 1.0"),
    ("generate", {"size": 2.5}, "size must be a whole number or a list of whole numbers or None, got 2.5"),
    ("generate", {"size": (8, "8")}, r"size must be a whole number or a list of whole numbers or None, got \(8, '8'\)"),
    ("generate", {"size": (8, 8, 8)}, r"size must be a positive integer or \(height, width\)"),
    ("generate", {"guidance_scale": "strong"}, "guidance_scale must be a number or a list of numbers or numbers by name, got 'strong'"),
    ("generate", {"guidance_scale": True}, "guidance_scale must be a number or a list of numbers or numbers by name, got True"),
    ("generate", {"callback_frequency": 0}, "callback_frequency must be a whole number of at least 1, got 0"),
    ("imputation", {"image": IMAGE, "mask": torch.ones(2, 8, 8)}, r"mask of shape \(2, 8, 8\) does not fit images of shape"),
    ("imputation", {"image": IMAGE, "mask": torch.zeros(8, 8)}, "keeps every pixel of the picture, so that there is nothing to generate"),
    ("imputation", {"image": IMAGE.expand(2, -1, -1, -1), "mask": torch.stack([MASK, 0 * MASK])[:, None]}, "mask 1 of 2 .* nothing to generate"),
    ("imputation", {"image": IMAGE, "mask": np.array(["a"])}, "mask must hold numbers, got an array of <U1"),
    ("imputation", {"image": "no such file.png", "mask": MASK}, "no such file.png"),
    ("imputation", {"image": 3, "mask": MASK}, "image must be a tensor, an array, a Pillow image, a file name or a list of these, got int"),
    ("imputation", {"image": IMAGE, "mask": MASK, "resize": "no"}, "resize must be True or False, got 'no'"),
    ("denoise", {"image": IMAGE, "noise": None}, "noise must be a number, got None"),
    ("denoise", {"image": IMAGE, "noise": "low"}, "noise must be a number, got 'low'"),
    ("denoise", {"image": IMAGE, "noise": 0.1, "seed": [-1]}, r"seed must be a whole number from 0 to \d+, got -1"),
    ("edit", {"image": IMAGE, "strength": "half"}, "strength must be a number, got 'half'"),
    ("edit", {"image": IMAGE, "strength": -0.1}, "t must lie in"),
    ("train", {"dataset": IMAGE.expand(4, -1, -1, -1), "seed": -1}, r"seed must be a whole number from 0 to \d+, got -1"),
    ("train", {"dataset": IMAGE.expand(4, -1, -1, -1), "epochs": 1.5}, "epochs must be a whole number or None, got 1.5"),
]


@pytest.mark.parametrize(("method", "arguments", "message"), WRONG, ids=[f"{m} {list(a)[-1]} {n}" for n, (m, a, _) in enumerate(WRONG)])
def test_what_stands_for_nothing_is_told_in_a_sentence(model, method, arguments, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as told:
        getattr(model, method)(**arguments)
    assert "\n" not in str(told.value)


PICTURES = {"colorize": "gray", "upscale": "image", "deblur": "image", "denoise": "image", "imputation": "image", "reconstruct": "image"}
PICTURES |= {"edit": "image", "encode": "image", "round_trip_error": "image", "interpolate": "image", "calibrate": "images", "log_prob": "image"}
PICTURES |= {"translate": "image"}
MORE = {"deblur": {"blur": 1.0}, "denoise": {"noise": 0.1}, "interpolate": {"b": IMAGE}, "imputation": {"mask": MASK}}


@pytest.mark.parametrize("method", PICTURES)
def test_a_picture_that_is_not_there_is_told_alike_by_all_that_take_one(model, method):
    if method == "colorize":
        model = GenerativeModel.of(Trained(UNet(3, (4,), 1, (), groups=2), VE(), X0(0.5), (3, 8, 8)), device="cpu", verbose=False)
    if method == "translate":
        network = UNet(1, (4,), 1, (), groups=2, image_channels=1)
        model = GenerativeModel.of(Trained(network, VE(), X0(0.5), (1, 8, 8)), device="cpu", verbose=False)
    with pytest.raises(FileNotFoundError, match=f"^{PICTURES[method]}: there is no file no such.png; give the path of a picture$"):
        getattr(model, method)("no such.png", **MORE.get(method, {}))


def test_every_method_that_takes_a_picture_is_asked():
    """By its first argument: what else is called so is restored from numbers, or trains."""
    first = {name: list(inspect.signature(method).parameters)[1:2] for name, method in inspect.getmembers(GenerativeModel, inspect.isfunction)}
    assert {name for name, own in first.items() if own and own[0] in ("image", "images", "gray", "a")} == {*PICTURES, "impute"}


def test_an_edit_of_no_strength_returns_the_picture(model):
    assert torch.equal(model.edit(IMAGE, 0), IMAGE)
    assert torch.equal(model.edit(IMAGE, 0, class_labels=7, from_labels=3), IMAGE)
    assert torch.equal(model.edit([IMAGE, IMAGE.flip(-1)], 0.0, variants=2), torch.cat([IMAGE, IMAGE, IMAGE.flip(-1), IMAGE.flip(-1)]))
    with pytest.raises(ValueError, match="unknown label 9"):
        model.edit(IMAGE, 0, class_labels=9)


def test_settings_of_a_model_take_numbers_of_other_libraries(model, tmp_path):
    model.n_steps = np.int64(3)
    assert model.n_steps == 3 and type(model.n_steps) is int
    model.grid = np.array([1.0, 0.5, 0.1])
    assert model.n_steps == 3
    made, _ = generate_shards(model, tmp_path, np.int64(2), seed=np.int64(0), size=np.int64(8), guidance_scale=np.float64(1), progress=False)
    assert made == 2
    assert (Heun()(model.denoiser(class_labels=[3]), shape=(1, 1, 8, 8), n_steps=np.int64(3), seeds=np.int64(0), start=np.float64(1)).x).shape == (
        1,
        1,
        8,
        8,
    )


STATES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64 by default": lambda: _default(torch.float64),
    "bfloat16 by default": lambda: _default(torch.bfloat16),
    "autocast off": lambda: torch.autocast("cpu", enabled=False),
}


class _default:
    """A default dtype inside a `with` block."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error):
        torch.set_default_dtype(self.before)


@pytest.mark.parametrize("state", STATES)
def test_the_state_of_torch_does_not_matter(state):
    def everything():
        torch.manual_seed(0)
        model = GenerativeModel(
            "edm", "heun", network=UNet(channels=1, num_classes=2, widths=(32,), blocks=1, attention_levels=()), device="cpu", verbose=False
        )
        images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        model.train((images, torch.arange(12) % 2), epochs=1, batch_size=4)
        made = model.generate(2, n_steps=3, seed=0, class_labels=[0, 1], guidance_scale=2.0)
        filled = [model.imputation(images[:1], MASK, n_steps=2, seed=0, method=method) for method in ("mmps", "dps", "ddnm", "calibrated")]
        return model.record["train_loss"], torch.cat([made, *filled])

    losses, pictures = everything()
    with STATES[state]():
        own_losses, own = everything()
    assert own.dtype == torch.float32 and own_losses == pytest.approx(losses, rel=1e-3)
    assert torch.allclose(own, pictures, atol=1e-2)  # rounding, through a network that has learned nothing yet


class Items(Dataset):
    """A data set of ten items that a function makes."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 10

    def __getitem__(self, i):
        if i >= 10:
            raise IndexError
        return self.make(i)


class Stream(IterableDataset):
    """Items that can only be gone through."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return ((torch.full((1, 4, 4), i / 255), i % 2) for i in range(self.n))


def grey(i):
    return torch.full((1, 4, 4), i, dtype=torch.uint8)


DATA = {
    "one-hot tensors": Items(lambda i: (grey(i), torch.eye(2)[i % 2])),
    "one-hot lists": Items(lambda i: (grey(i), [1 - i % 2, i % 2])),
    "one-hot rows beside a tensor": (torch.stack([grey(i) for i in range(10)]), torch.eye(2)[torch.arange(10) % 2]),
    "one label in a row": (torch.stack([grey(i) for i in range(10)]), np.arange(10)[:, None] % 2),
    "dictionaries": Items(lambda i: {"image": grey(i), "label": i % 2}),
    "dictionaries of another kind": Items(lambda i: {"img": Image.new("L", (4, 4), i), "fine_label": np.int64(i % 2), "caption": "a"}),
    "a dictionary of arrays": {"images": np.stack([grey(i).numpy() for i in range(10)]), "labels": [i % 2 for i in range(10)]},
    "a dictionary of splits": {"train": Items(lambda i: (grey(i), i % 2)), "test": Items(lambda i: (grey(0), 0))},
    "a set without length": Stream(10),
    "a generator": ((Image.new("L", (4, 4), i), i % 2) for i in range(10)),
    "a list of pairs": [(grey(i), i % 2) for i in range(10)],
    "arrays with channels last": Items(lambda i: (np.full((4, 4, 1), i, np.uint8), i % 2)),
    "reversed arrays": (np.stack([grey(i).numpy() for i in range(10)])[::-1], (np.arange(10) % 2)[::-1]),
}


@pytest.mark.parametrize("kind", DATA)
def test_sets_of_many_forms_are_read(kind):
    read = image_set(DATA[kind], verbose=False)
    order = slice(None, None, -1) if kind == "reversed arrays" else slice(None)
    assert read.images[:, 0, 0, 0].tolist() == list(range(10))[order]
    assert read.labels.tolist() == [i % 2 for i in range(10)][order] and read.values == [0, 1]


REFUSED = {
    "several classes": (Items(lambda i: (grey(i), [1, 1, 0])), r"labels of several numbers must be one-hot, .* got \[1, 1, 0\]"),
    "attributes": (Items(lambda i: (grey(i), torch.rand(40))), "must be one-hot"),
    "no known key": (Items(lambda i: {"picture": grey(i)}), "the entries picture has no image by a name that is known: image, images"),
    "no end": (Stream(10**7), "a set that has no length has given 1,000,000 items and goes on; limit= says how many"),
    "texts": (["a", "b"], "items must be images or"),
    "nothing": ([], "there is no image in the data"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_sets_of_other_forms_are_refused_in_a_sentence(kind, monkeypatch):
    data, message = REFUSED[kind]
    if kind == "no end":  # as it would be after a million
        monkeypatch.setattr("diffnb.data.readers._MOST_ITEMS", 50)
        message = message.replace("1,000,000", "50")
    with pytest.raises(ValueError, match=message):
        image_set(data, verbose=False)


def test_a_limit_ends_a_set_without_end():
    assert len(image_set(Stream(10**9), limit=7, verbose=False)) == 7


@pytest.mark.parametrize(
    ("images", "settings"), [(1, {}), (1, {"valid_fraction": 0}), (2, {"valid_fraction": 0.0}), (3, {"valid_fraction": np.float64(0)})]
)
def test_a_few_images_can_be_trained_on(images, settings):
    network = UNet(channels=1, widths=(32,), blocks=1, attention_levels=())
    model = GenerativeModel("edm", "heun", network=network, device="cpu", verbose=False)
    record = model.train(torch.rand(images, 1, 8, 8), epochs=np.int64(2), **settings)
    assert record["steps"] == 2 and len(record["valid_loss"]) == 2
