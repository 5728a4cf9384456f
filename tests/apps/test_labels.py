"""Labels on the command line: names first, text always; and folders named by class."""

import pytest
import torch
from PIL import Image
from torch import nn

from diffnb import GenerativeModel
from diffnb.apps import comma_list
from diffnb.data import image_set
from diffnb.model import Labels, Trained, folder_names
from diffnb.networks import UNet
from diffnb.noise import EDM, Karras


def model_of(path, values, names):
    """A model that tells its classes apart by brightness, in a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(channels=1, num_classes=len(values), widths=(32,), blocks=1, attention_levels=())
        for weights in network.parameters():  # an untrained network does not look at the label
            nn.init.normal_(weights, std=0.2)
    GenerativeModel.of(Trained(network, EDM(), Karras(), (1, 8, 8), Labels(values, names)), sampler="heun", device="cpu").save(path)
    return path


NUMBERED = ((0, 1, 2, 3), ("1", "2", "3", "other"))
# what is typed, the classes of the model, and the indices that are meant
TYPED = [
    ("1", NUMBERED, [0]),
    ("3,1", NUMBERED, [2, 0]),
    ("OTHER", NUMBERED, [3]),
    ("0", NUMBERED, [0]),  # no name, but a value
    ("7", ((3, 7), None), [1]),
    ("-1", ((-1, 1), None), [0]),
    ("03", ((3, "03"), None), [1]),
    ('"red, ripe",green', ((0, 1), ("red, ripe", "green")), [0, 1]),
    (' "red, ripe" , green', ((0, 1), ("red, ripe", "green")), [0, 1]),
    ('"the ""big"" one"', ((0, 1), ('the "big" one', "green")), [0]),
    ("T-shirt/top", ((0, 1), ("T-shirt/top", "Bag")), [0]),
    ("bäume", ((0, 1), ("Bäume", "Bag")), [0]),
]


@pytest.mark.parametrize(("text", "classes", "meant"), TYPED)
def test_what_is_typed_is_the_class_that_is_meant(text, classes, meant):
    assert Labels(*classes).indices(comma_list(text)).tolist() == meant


UNKNOWN = [
    ("03", ((3, 4), ("a", "b"))),
    ("1.0", ((1, 2), None)),
    ("red", ((0, 1), ("red, ripe", "green"))),
    ("+1", ((1, 2), None)),
    ("1 2", ((1, 2), None)),
]


@pytest.mark.parametrize(("text", "classes"), UNKNOWN)
def test_what_is_no_class_is_said(text, classes):
    with pytest.raises(ValueError, match="unknown label .*; this model knows "):
        Labels(*classes).indices(comma_list(text))


def test_the_commands_draw_the_class_that_is_named(diffnb, tmp_path):
    file = model_of(tmp_path / "m.safetensors", *NUMBERED)
    model = GenerativeModel.load(file, "cpu", verbose=False)
    code, out, err = diffnb(
        "generate", file, "--labels", "1", "--num", 1, "--steps", 2, "--seed", 3, "--files", "--out", tmp_path / "out", "--device", "cpu"
    )
    assert code == 0, err
    drawn = image_set(tmp_path / "out", verbose=False).images
    expected = [(model.generate(1, n_steps=2, seed=3, class_labels=k) * 255).round().byte() for k in (0, 1)]
    assert torch.equal(drawn, expected[0]) and not torch.equal(*expected)
    code, out, err = diffnb("generate", file, "--labels", "01", "--out", tmp_path / "no")
    assert code == 2 and err.startswith("diffnb: unknown label '01'; this model knows 0 (1), 1 (2), 2 (3), 3 (other)")
    picture = tmp_path / "in.png"
    Image.new("L", (8, 8), 90).save(picture)
    code, out, err = diffnb(
        "edit", picture, "--model", file, "--labels", "1", "--steps", 2, "--seed", 3, "--out", tmp_path / "edited", "--device", "cpu"
    )
    assert code == 0, err
    made = (model.edit(picture, class_labels=0, n_steps=2, seed=[3]) * 255).round().byte()
    assert torch.equal(image_set(tmp_path / "edited", verbose=False).images, made)


def test_folders_are_named_by_class_and_come_back_as_such(diffnb, tmp_path):
    file = model_of(tmp_path / "m.safetensors", (0, 1, 2), ("T-shirt/top", "red, ripe", ".git"))
    line = ["generate", file, "--folders", "--num", 6, "--steps", 1, "--seed", 0, "--batch-size", 2, "--out", tmp_path / "set", "--device", "cpu"]
    code, out, err = diffnb(*line)
    assert code == 0, err
    assert sorted(p.name for p in (tmp_path / "set").iterdir() if p.is_dir()) == ["T-shirt_top", "git", "red, ripe"]
    found = image_set(tmp_path / "set")
    assert found.names == ["T-shirt_top", "git", "red, ripe"] and len(found) == 6
    assert diffnb(*line)[0] == 0  # which finds all there
    model = GenerativeModel.load(file, "cpu", verbose=False).set_labels(["a", "b", "c"])
    model.save(file)
    code, out, err = diffnb(*line)
    assert code == 2 and 'folders ["T-shirt_top", "red, ripe", "git"] there, ["a", "b", "c"] asked for' in err


NAMES = [
    (["a", "b"], ["a", "b"]),
    (["a/b", "a:b", "a\\b"], ["a_b", "a_b 2", "a_b 3"]),
    (["A", "a"], ["A", "a 2"]),  # one and the same to some file systems
    ([".hidden", "@eaDir", "..", ""], ["hidden", "_eaDir", "_", "_ 2"]),
    ([1, -1], ["1", "-1"]),
    (["ä ö", "\x1b[31m", "a\nb"], ["ä ö", "__31m", "a_b"]),
    (["a_b 2", "a/b", "a:b"], ["a_b 2", "a_b", "a_b 3"]),
]


@pytest.mark.parametrize(("classes", "folders"), NAMES)
def test_every_class_has_a_folder_of_its_own(classes, folders):
    assert folder_names(classes) == folders


def test_classes_of_a_set_are_chosen_by_what_is_typed(tmp_path):
    for name in ("1", "2", "other"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "a.png")
    for text, names in (("1", ["1"]), ("2,other", ["2", "other"]), ("OTHER", ["other"])):
        assert image_set(tmp_path, classes=comma_list(text), verbose=False).names == names
    numbers = (torch.rand(3, 1, 4, 4), [3, 7, 8])
    assert image_set(numbers, classes=comma_list("7,3"), verbose=False).values == [3, 7]
    for text in ("03", "1.0", "4"):
        with pytest.raises(ValueError, match=f"unknown class '{text}'"):
            image_set(numbers, classes=comma_list(text), verbose=False)
