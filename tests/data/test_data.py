"""Data: real sets where they are, torchvision's and fastai's own loaders, folders as they are found, whole runs of fastai."""

import math
import os
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

import diffnb.data.loaders
from diffnb.data import DATA_SETS, ImageLoader, ImageSet, image_loaders, image_set, resize_images

ROOT = Path(os.environ.get("DIFFNB_DATA", "nowhere"))
PACKAGED = ("packaged", "cifar10_samples", "emoji", "emoji_pairs")  # sets that come with the package


def needs(path):
    return pytest.mark.skipif(not (ROOT / path).exists(), reason=f"DIFFNB_DATA has no {path}")


def read(*args, **kwargs):
    return image_set(*args, verbose=False, **kwargs)


@pytest.fixture(scope="module")
def packaged():
    return read("packaged")


# known sets


@needs("MNIST/raw")
def test_mnist_is_mnist():
    train, both = read("mnist"), read("mnist", split="train+test")
    assert train.shape == (1, 28, 28) and len(train) == 60_000 and len(both) == 70_000
    assert [train.values[i] for i in train.labels[:5]] == [5, 0, 4, 1, 9]
    assert torch.equal(both.images[:60_000], train.images) and torch.equal(both.images[60_000:], read("MNIST", split="test").images)
    assert abs(train.unit(slice(None)).mean().item() - 0.1307) < 1e-4  # the mean that every tutorial normalises by


@needs("MNIST/raw")
def test_threes_and_sevens_stay_threes_and_sevens():
    some = read("mnist", classes=[7, 3], limit=500)
    assert some.values == [3, 7] and some.names == ["3", "7"] and len(some) == 500
    full = read("mnist")
    sevens = full.images[full.labels == 7]
    assert all((sevens == image).flatten(1).all(1).any() for image in some.images[some.labels == 1][:5])


@needs("FashionMNIST/raw")
def test_packaged_images_are_the_first_of_fashion_mnist(packaged):
    full = read("fashion_mnist")
    assert torch.equal(full.images[:10_000], packaged.images) and torch.equal(full.labels[:10_000], packaged.labels)
    assert full.names == packaged.names


@needs("cifar10/test")
def test_cifar10_from_folders():
    some = read("cifar10", split="test", classes=["cat", "dog"])
    assert some.values == [3, 5] and some.names == ["cat", "dog"] and some.shape == (3, 32, 32)
    assert torch.bincount(some.labels).tolist() == [1000, 1000]
    sample = read("cifar10", limit=2000)
    mean = sample.unit(slice(None)).mean((0, 2, 3))
    assert len(sample) == 2000 and (mean - torch.tensor([0.4914, 0.4822, 0.4465])).abs().max() < 0.01
    assert torch.bincount(sample.labels).min() > 160  # a limit takes from everywhere


@needs("flowers64")
def test_a_folder_of_photos():
    flowers = read(ROOT / "flowers64", size=32, limit=300)
    assert flowers.names == ["daisy", "dandelion", "roses", "sunflowers", "tulips"] and flowers.shape == (3, 32, 32) and len(flowers) == 300
    assert torch.equal(read(str(ROOT / "flowers64"), size=32, limit=300).images, flowers.images)


def fake_torchvision(monkeypatch, name, answer):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, name, answer)


class Photos:
    """What torchvision's photo sets look like from outside."""

    def __init__(self, root, split, download, target_type=None):
        assert download
        self.split, self.labelled = split, target_type is None
        if self.labelled:
            self.classes = ["rose", "lily", "iris"]

    def __len__(self):
        return 6

    def __getitem__(self, i):
        red = {"train": 0, "trainval": 0, "val": 50, "valid": 50, "test": 100}[self.split]
        return Image.new("RGB", (100 + i, 70), (red + i, 0, 0)), i % 2 if self.labelled else None


@pytest.mark.parametrize(("name", "cls", "splits"), [("flowers102", "Flowers102", 3), ("pets", "OxfordIIITPet", 2), ("celeba", "CelebA", 3)])
def test_photo_sets_come_at_64_pixels_and_join(monkeypatch, tmp_path, name, cls, splits):
    fake_torchvision(monkeypatch, cls, Photos)
    joined = read(name, split="all", root=tmp_path)
    assert joined.shape == (3, 64, 64) and len(joined) == 6 * splits
    assert joined.images[:, 0, 0, 0].tolist()[-6:] == [100, 101, 102, 103, 104, 105]
    assert (joined.names, joined.num_classes) == (
        (None, 0) if name == "celeba" else (["rose", "lily", "iris"], 3)
    )  # no iris was seen, and it stays a class
    assert read(name, size=(20, 30), root=tmp_path, limit=4).images.shape == (4, 3, 20, 30)
    with pytest.raises(ValueError, match="has no split 'dev'; known: train"):
        read(name, split="dev", root=tmp_path)


@pytest.mark.parametrize("name", [name for name in DATA_SETS.names() if name not in PACKAGED])
def test_a_set_that_cannot_be_had_says_what_to_put_where(monkeypatch, tmp_path, name):
    import torchvision.datasets

    def fail(*args, **kwargs):
        print("mirror 1 failed")
        raise OSError("no route to host")

    for cls in ("MNIST", "FashionMNIST", "CIFAR10", "Flowers102", "OxfordIIITPet", "CelebA"):
        monkeypatch.setattr(torchvision.datasets, cls, fail)
    monkeypatch.setenv("DIFFNB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"cannot be downloaded \(no route to host\); put .* there") as caught:
        read(name)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# folders


def picture(path, colour=(9, 9, 9), size=(8, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_folders_named_by_numbers_are_labels(tmp_path):
    for digit in (10, 7, 3):
        picture(tmp_path / str(digit) / "a.png", (digit,) * 3)
    found = read(tmp_path)
    assert found.values == [3, 7, 10] and found.images[:, 0, 0, 0].tolist() == [3, 7, 10]
    assert read(tmp_path, classes=[7]).images[0, 0, 0, 0] == 7
    assert read(tmp_path, classes="10").values == [10]


def test_splits_of_a_folder(tmp_path):
    for i, split in enumerate(("train", "test")):
        for j, name in enumerate(("cat", "dog")):
            picture(tmp_path / split / name / "x.png", (10 * i + j,) * 3)
    assert read(tmp_path).images[:, 0, 0, 0].tolist() == [0, 1]
    assert read(tmp_path, split="test").images[:, 0, 0, 0].tolist() == [10, 11]
    with pytest.raises(ValueError, match="no subfolder 'valid'"):
        read(tmp_path, split="valid")


def test_sizes_and_scales_of_what_is_read_by_hand():
    ramp = (torch.arange(4)[:, None] * 16 + torch.arange(12)).to(torch.uint8)[None, None]  # 4 x 12
    assert torch.equal(resize_images(ramp, 4), ramp[..., 4:8])  # the centre
    assert torch.equal(resize_images(ramp.mT, 4), ramp.mT[..., 4:8, :])
    assert torch.equal(resize_images(ramp, (4, 7)), ramp[..., 2:9])
    assert torch.equal(
        resize_images(ramp.repeat_interleave(2, 2).repeat_interleave(2, 3), (4, 4)).float().mean((2, 3)), ramp[..., 4:8].float().mean((2, 3))
    )
    images = torch.tensor([[0, 255], [64, 191]], dtype=torch.uint8).view(2, 1, 1, 2)
    assert ImageSet(images).rms == pytest.approx(math.sqrt((1 + 1 + (64 / 127.5 - 1) ** 2 + (191 / 127.5 - 1) ** 2) / 4))
    assert ImageSet(images).unit(1).flatten().tolist() == pytest.approx([64 / 255, 191 / 255])
    given = torch.tensor([0.0, 0.0019, 0.00197, 0.5, 0.9979, 1.0]).view(1, 1, 2, 3)
    assert read(given).images.flatten().tolist() == [0, 0, 1, 128, 254, 255]  # to the nearest
    few, rest = ImageSet(torch.zeros(55, 1, 2, 2, dtype=torch.uint8)).split(0.2)[::-1]
    assert (len(few), len(rest)) == (11, 44)


def test_a_limit_takes_from_everywhere_and_keeps_the_order():
    images = torch.arange(200, dtype=torch.uint8).view(200, 1, 1, 1)
    taken = read(images, limit=20).images.flatten().tolist()
    assert taken == sorted(set(taken)) == read(images, limit=20).images.flatten().tolist() and len(taken) == 20
    assert all(min(abs(place - one) for one in taken) < 30 for place in range(200))


def test_broken_files_are_named_and_counted(tmp_path):
    picture(tmp_path / "good.png")
    picture(tmp_path / "deep.png", 30_000, mode="I;16")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no image, and not meant to be one")
    with pytest.warns(UserWarning, match="3 of 4 pictures .* skipped") as caught:
        found = read(tmp_path)
    assert len(found) == 1 and all(name in str(caught[0].message) for name in ("cut.png", "empty.jpg", "deep.png (its pixels have more than 8 bits"))
    assert str(tmp_path) not in found.source  # a path of the user is nobody's business but theirs
    (tmp_path / "good.png").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="there is no image"):
        read(tmp_path)


def test_gray_and_colour_transparency_and_rotation(tmp_path):
    picture(tmp_path / "a.png", 50, mode="L")
    picture(tmp_path / "b.png", (10, 20, 30))
    picture(tmp_path / "c.png", (0, 0, 0, 0), mode="RGBA")
    found = read(tmp_path)
    assert found.images[:, :, 0, 0].tolist() == [[50, 50, 50], [10, 20, 30], [255, 255, 255]]
    turned = Image.new("RGB", (16, 8))
    turned.paste((255, 0, 0), (0, 0, 8, 8))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: left is up
    (tmp_path / "turned").mkdir()
    turned.save(tmp_path / "turned" / "d.png", exif=exif)
    image = read(tmp_path / "turned").images[0]
    assert image.shape == (3, 16, 8) and image[0, :8].min() == 255 and image[0, 8:].max() == 0


def test_sizes_that_differ_need_size(tmp_path):
    picture(tmp_path / "a.png", size=(8, 8))
    picture(tmp_path / "b.png", size=(9, 8))
    with pytest.raises(ValueError, match=r"images differ in shape \(3 x 8 x 8, 3 x 8 x 9\); size= crops"):
        read(tmp_path)
    assert read(tmp_path, size=8).shape == (3, 8, 8)
    with pytest.raises(ValueError, match="has no image"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty")


# what others made


def test_torchvision_datasets_and_subsets(tmp_path):
    from torchvision.datasets import FakeData, ImageFolder
    from torchvision.transforms import Compose, Normalize, ToTensor

    plain, tensors = FakeData(10, (3, 12, 12), 4), FakeData(10, (3, 12, 12), 4, transform=ToTensor())
    assert torch.equal(read(plain).images, read(tensors).images)
    assert torch.equal(read(Subset(plain, [4, 2])).images, read(plain).images[[4, 2]])
    for name in ("x", "y", "z"):
        picture(tmp_path / name / "1.png")
    folder = read(ImageFolder(tmp_path), classes=["x", "z"], limit=1)
    assert folder.names == ["x", "z"] and len(folder) == 1
    normal = FakeData(4, (3, 12, 12), 4, transform=Compose([ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)]))
    for data in (normal, DataLoader(normal, batch_size=2)):
        with pytest.raises(ValueError, match=r"floats must lie in \[0, 1\]: undo a normalisation"):
            read(data)


def test_loaders_keep_labels_of_any_value():
    x = torch.rand(7, 1, 5, 5)
    for y, values in ((torch.tensor([7, 3, 3, 7, 7, 3, 9]), [3, 7, 9]), (torch.tensor([0, 1, 1, 0, 1, 1, 1]), [0, 1])):
        found = read(DataLoader(TensorDataset(x, y), batch_size=3))
        assert found.values == values and [found.values[i] for i in found.labels] == y.tolist()
        assert torch.equal(found.images, read((x, y)).images)
    assert read(DataLoader(x, batch_size=4)).labels is None
    assert read(DataLoader(TensorDataset(x), batch_size=4)).labels is None


def test_fastai_dataloaders(tmp_path):
    from fastai.vision.all import ImageDataLoaders, Normalize, imagenet_stats

    for i in range(12):
        picture(tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png", (20 * i,) * 3)
    loaders = ImageDataLoaders.from_folder(tmp_path, valid_pct=0.25, seed=0, bs=4, num_workers=0)
    train, valid = read(loaders), read(loaders, split="valid")
    assert len(train) == 9 and len(valid) == 3 and train.names == ["cat", "dog"]
    for images in (train, valid):
        assert all((int(image[0, 0, 0]) // 20 % 2 == 1) == (images.names[label] == "cat") for image, label in zip(images.images, images.labels))
    normal = ImageDataLoaders.from_folder(tmp_path, valid_pct=0.25, bs=4, num_workers=0, batch_tfms=Normalize.from_stats(*imagenet_stats))
    with pytest.raises(ValueError, match=r"floats must lie in \[0, 1\]"):
        read(normal)


def test_nothing_is_guessed():
    x = torch.rand(4, 1, 6, 6)
    for data, message in (
        (x * 2 - 1, "undo a normalisation"),
        (x * 255, "divide by 255"),
        (x.long(), "dtype torch.int64"),
        (x[0, 0], r"shape \(n, c, h, w\) or \(n, h, w\), got \(6, 6\)"),
        (x[:0], "there is no image"),
        ((x, [1, 2]), "4 images but 2 labels"),
        ((x, [1, 2, "a", 3]), "all integers or all strings, found integer and string"),
        ((x, torch.ones(4, 2)), "one-hot, a single 1 among zeros"),
        ("no such thing", "neither a folder nor a known data set"),
    ):
        with pytest.raises(ValueError, match=message):
            read(data)
    with pytest.raises(TypeError, match="got int"):
        read(3)
    with pytest.raises(ValueError, match="no labels"):
        read(x, classes=[1])


# loaders


def test_flips_are_by_sample_and_repeatable(packaged):
    loader = ImageLoader(packaged, 500, flip=True, seed=7)
    first = torch.cat([x for x, _, _ in loader])
    straight = packaged.unit(slice(None)) * 2 - 1
    kept, mirrored = ((first == candidate).flatten(1).all(1) for candidate in (straight, straight.flip(-1)))
    assert bool((kept | mirrored).all()) and 4800 < int(mirrored.sum()) < 5200
    second = torch.cat([x for x, _, _ in loader])
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat([x for x, _, _ in ImageLoader(packaged, 500, flip=True, seed=7)]))
    assert not torch.equal(first, torch.cat([x for x, _, _ in ImageLoader(packaged, 500, flip=True, seed=8)]))


def test_loaders_are_what_fastai_takes(packaged, tmp_path):
    from fastai.learner import Learner

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, label):
            return x * self.scale - x

    loaders = image_loaders(packaged.select(torch.arange(600)), batch_size=32, device="cpu", seed=2)
    assert (len(loaders.train), len(loaders.valid)) == (16, 2)  # 540 = 16 x 32 + 28, the rest left out; 60 = 32 + 28
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import fastai.callback.schedule  # noqa: F401  (gives Learner its lr_find)
    learner = Learner(loaders, Net(), loss_func=lambda out, index: out.square().mean(), path=tmp_path)
    with learner.no_bar(), learner.no_logging():
        found = learner.lr_find(num_it=20, show_plot=False)
        learner.fit(2, lr=0.05)
        loss = learner.validate()[0]
    assert 0 < found.valley < 100 and loss < 0.68 * 0.5  # at the start: the mean square of the images, 0.68
    assert torch.equal(loaders.valid.one_batch()[2], torch.arange(32))
    loaders.to("cpu")
    assert torch.device(loaders.device) == torch.device("cpu") == loaders.train.device


def test_a_batch_larger_than_the_set_is_refused_and_none_fits_it(packaged):
    few = packaged.select(torch.arange(20))
    loaders = image_loaders(few, device="cpu")
    assert [len(list(loader)) for loader in loaders] == [1, 1] and loaders.train.bs == 16
    assert image_loaders(packaged, device="cpu").train.bs == 128
    with pytest.raises(ValueError, match="batch_size=19 is more than the 18 images to train on"):
        image_loaders(few, batch_size=19, device="cpu")
    with pytest.raises(ValueError, match="must agree in shape and classes"):
        image_loaders(packaged, packaged.only([1]))
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        ImageLoader(packaged, 0)


def test_an_epoch_is_taken_up_at_any_batch(packaged):
    def batches(start):
        loader = ImageLoader(packaged.select(torch.arange(100)), 8, shuffle=True, drop_last=True, flip=True, seed=3)
        loader.epoch = 4
        return list(loader.batches(start)), loader.epoch

    whole, rest = batches(0), batches(9)
    assert (len(whole[0]), len(rest[0]), whole[1], rest[1]) == (12, 3, 5, 5)
    for one, other in zip(whole[0][9:], rest[0]):
        assert all(torch.equal(a, b) for a, b in zip(one, other))


def test_whoever_registers_a_set_may_return_anything(monkeypatch):
    registry = diffnb.core.Registry("data set")
    monkeypatch.setattr(diffnb.data.loaders, "DATA_SETS", registry)

    @registry.register("noise")
    def noise(request):
        return torch.rand(6, 8, 8), ["a", "b"] * 3

    assert read("Noise", classes="b", limit=2).images.shape == (2, 1, 8, 8)
    assert isinstance(read("noise"), ImageSet)


def test_class_names_in_any_case(packaged):
    assert packaged.only(["bag", "SANDAL"]).names == ["Sandal", "Bag"]
    both = ImageSet(packaged.images[:4], torch.tensor([0, 1, 0, 1]), values=["bag", "Bag"])
    assert both.only(["Bag"]).values == ["Bag"]  # the exact spelling first


def test_the_samples_of_the_colour_model_come_with_the_package():
    import importlib.resources
    import json

    from PIL import Image

    from diffnb.model import GenerativeModel, digest_of_model

    place = importlib.resources.files("diffnb") / "assets" / "cifar10_samples.png"
    samples = image_set("cifar10_samples", verbose=False)
    assert len(place.read_bytes()) <= 100_000
    assert (samples.shape, samples.labels.tolist(), samples.values) == ((3, 32, 32), list(range(10)) * 4, list(range(10)))
    with place.open("rb") as file, Image.open(file) as sheet:
        facts, box = json.loads(sheet.text["diffnb.samples"]), sheet.crop((3 * 32, 2 * 32, 4 * 32, 3 * 32))
    pixels = torch.frombuffer(bytearray(box.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1)
    assert torch.equal(samples.images[23], pixels)  # the fourth of the third row
    model = GenerativeModel.pretrained("cifar10", device="cpu", verbose=False)
    assert facts["model"] == digest_of_model(model), "the packaged model has changed: python benchmarks/colour_samples.py"
    assert samples.names == facts["names"] == model.label_names
    again = model.generate(10, facts["n_steps"], facts["seed"], list(model.labels), batch_size=10)
    assert (again * 255 - samples.images[:10]).abs().max() < 4  # the same but for the rounding of another machine
    with pytest.raises(ValueError, match="has no split 'test'"):
        image_set("cifar10_samples", split="test", verbose=False)
