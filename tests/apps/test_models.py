"""A model is named in the same ways wherever a command takes one: a file, the folder of a training, a packaged name."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from diffnb.apps import model_file
from diffnb.model import GenerativeModel, packaged_models

FILE = Path(packaged_models()["fashion_mnist"])


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder with one model in three forms, and things that are none."""
    (tmp_path / "run").mkdir()
    for name in ("mine.safetensors", "without-ending", "run/model.safetensors"):
        shutil.copy(FILE, tmp_path / name)
    (tmp_path / "fashion_mnist").mkdir()  # somebody's pictures
    Image.new("L", (28, 28), 99).save(tmp_path / "fashion_mnist" / "a.png")
    Image.new("LA", (28, 28), (99, 0)).save(tmp_path / "a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    for i in range(8):
        Image.new("L", (28, 28), 30 * i).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


COMMANDS = {
    "generate": "generate {} --num 1 --steps 1 --overwrite --out out",
    "inspect": "inspect {}",
    "trust add": "trust add {}",
    "score": "score photos {} --num 4 --steps 1 --metrics kernel",
    "impute": "impute a.png --model {} --method replacement --steps 1 --overwrite --out out",
}
NAMED = ["mine.safetensors", "./mine.safetensors", "without-ending", "run", "run/model.safetensors", "fashion_mnist"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_finds_every_model(diffnb, places, command):
    for name in NAMED:
        if command == "score" and name in ("run", "fashion_mnist"):
            continue  # a folder is a folder of images there, see below
        code, out, err = diffnb(*COMMANDS[command].format(name).split())
        if command == "trust add":  # no file has a source of its own, and so nobody has to be there to be asked
            assert code == 0 and "nothing to confirm" in out + err, (name, err)
        else:
            assert code == 0 and out, (name, err)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["fashion_mnst", "nowhere.safetensors", "a.png", "empty", "empty/model.safetensors"])
def test_what_is_no_model_is_one_sentence(diffnb, places, command, name):
    code, out, err = diffnb(*COMMANDS[command].format(name).split())
    assert code == 2 and out == "" and err.startswith("diffnb: ") and err.count("\n") == 1, err
    assert not (places / "out").exists()


def test_the_second_of_two_sets_is_the_model_where_a_name_is_both(diffnb, places):
    shutil.rmtree("fashion_mnist")
    code, out, err = diffnb("score", "photos", "fashion_mnist", "--num", 4, "--steps", 1, "--metrics", "kernel")
    assert code == 0 and "stands for the packaged model" in err
    code, out, err = diffnb("score", "photos", "fashion_mnist", "--root", "empty", "--split-generated", "test")
    assert code == 2 and "model" not in err  # the set, which is not there


def test_files_come_before_names(places):
    shutil.copy(FILE, "cifar10")
    assert model_file("cifar10") == Path("cifar10")
    assert model_file("fashion_mnist") == FILE  # a folder of that name holds no model
    assert GenerativeModel.load(model_file("cifar10"), verbose=False).shape == (1, 28, 28)
