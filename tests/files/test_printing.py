"""Nothing printed steers a terminal: labels, names of files, folders, classes and fields, messages; in every command, error and report."""

import json
import re
import sys

import pytest
import torch
from PIL import Image
from test_model_files import assembled, parts, tiny

from diffnb.apps.commands import app
from diffnb.apps.shell import sentence, tell
from diffnb.data import image_set
from diffnb.documents import canonical_json
from diffnb.files import (
    BadManifest,
    CodeNotTrusted,
    ComponentCrashed,
    ComponentSource,
    ModelFileError,
    TrustError,
    TrustStore,
    inspect,
    load,
    save,
)
from diffnb.model import GenerativeModel, Labels
from diffnb.networks import UNet
from diffnb.printing import printable
from diffnb.training import load_state

EVIL = "bag\x1b[2J\x1b]0;title\x07\r\u202e\u2066\u200b\ufeff\u3164\x9b2J\x7f"
EVIL_NAME = EVIL.replace("\r", "\r\n")  # as a name of a file: all but the slash and NUL


def clean(text):
    """Whether each line is what `printable` leaves of it."""
    return all(line == printable(line, None) for line in text.split("\n"))


@pytest.fixture
def model(tmp_path):
    """A model whose labels steer a terminal, in a file whose name does."""
    network = UNet(1, (8, 8), 1, groups=4, num_classes=2)
    (folder := tmp_path / EVIL_NAME).mkdir()
    save(
        tiny(network=network, shape=(1, 8, 8), labels=(EVIL, "\x1b[1A"), names=(EVIL_NAME, "b\nc"), version=EVIL), folder / f"{EVIL_NAME}.safetensors"
    )
    return folder / f"{EVIL_NAME}.safetensors"


@pytest.fixture
def pictures(tmp_path):
    """Two classes of pictures, of names that steer; and files that are none."""
    for name in (EVIL_NAME, f"{EVIL_NAME}2"):
        (folder := tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), i).save(folder / f"{i}.png")
        (folder / f"{EVIL_NAME}.png").write_bytes(b"none")
    return tmp_path / "set"


COMMANDS = {
    "inspect": lambda m, p: ["inspect", m],
    "inspect what is none": lambda m, p: ["inspect", p / EVIL_NAME / f"{EVIL_NAME}.png"],
    "inspect what is not there": lambda m, p: ["inspect", f"{m}x"],
    "generate": lambda m, p: ["generate", m, "-n", 1, "--steps", 1, "--out", p / EVIL_NAME / "out"],
    "generate an unknown label": lambda m, p: ["generate", m, "--labels", "hat", "--out", p / "out"],
    "generate an evil label": lambda m, p: ["generate", m, "--labels", f"x{EVIL}", "--out", p / "out"],
    "generate folders": lambda m, p: ["generate", m, "-n", 1, "--steps", 1, "--folders", "--out", p / EVIL_NAME / "out"],
    "no such model": lambda m, p: ["generate", f"{EVIL}x"],
    "score": lambda m, p: ["score", p, p, "--metrics", EVIL],
    "score by class": lambda m, p: ["score", p, p, "--by-class", "--metrics", "kernel"],
    "train on unknown classes": lambda m, p: ["train", p, "--classes", "hat", "--out", p / "run"],
    "train what is not there": lambda m, p: ["train", f"{p}{EVIL}", "--out", p / "run"],
    "resume what is none": lambda m, p: ["train", "--resume", p / EVIL_NAME],
    "denoise": lambda m, p: ["denoise", p / EVIL_NAME, "--model", m, "--noise", 0.1, "--steps", 1, "--out", p / EVIL_NAME / "out"],
    "colorize": lambda m, p: ["colorize", p / EVIL_NAME / f"{EVIL_NAME}.png", "--model", m, "--out", p / "out"],
    "edit an unknown label": lambda m, p: ["edit", p / EVIL_NAME / "0.png", "--model", m, "--labels", f"hat{EVIL}", "--out", p / "out"],
    "trust without a terminal": lambda m, p: ["trust", "add", m],
    "trust revoke": lambda m, p: ["trust", "revoke", f"{EVIL}{EVIL}"],
    "an unknown command": lambda m, p: [EVIL],
    "an unknown option": lambda m, p: ["inspect", f"--{EVIL}"],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name, model, pictures, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    app([str(part) for part in COMMANDS[name](model, pictures)], standalone_mode=False)
    said = capsys.readouterr()
    out, err = (re.sub(r"\r *\d+%\|.*?\]|\r +\r", "", text) for text in said)  # without bars of progress
    assert out + err and clean(out) and clean(err), (out, err)
    assert not [line for line in (out + err).split("\n") if line.startswith("\\u202e")], (out, err)  # what follows a line break in a name


@pytest.mark.parametrize("family", [ModelFileError, BadManifest, TrustError, CodeNotTrusted, ComponentCrashed])
def test_errors_escape_whatever_they_are_given(family):
    assert clean(str(family(EVIL_NAME))) and "\n" not in str(family(EVIL_NAME)) and "bag" in str(family(EVIL_NAME))


def test_labels():
    labels = Labels((EVIL, 2), (EVIL_NAME, "b"))
    with pytest.raises(ValueError) as unknown:
        labels.index("hat")
    assert clean(str(labels)) and clean(str(unknown.value))
    for values, names in (((EVIL, EVIL), None), ((1, 2), (EVIL_NAME, EVIL_NAME))):
        with pytest.raises(ValueError) as same:
            Labels(values, names)
        assert clean(str(same.value)) and "\n" not in str(same.value)
    many = Labels(tuple("x" * 10_000 + str(i) for i in range(100)))
    assert len(str(many)) < 5000


def test_the_report_and_the_model(model):
    assert clean(str(inspect(model))) and clean(repr(GenerativeModel.load(model, "cpu", verbose=False)))


@pytest.mark.parametrize("field", ["kind", "name", "base"])
def test_fields_of_a_source(field, tmp_path):
    """A kind, a class and a base are names, or there is no such source."""
    save(tiny(), tmp_path / "m")
    header, body = parts(tmp_path / "m")
    fields = {"kind": "schedule", "name": "Flat", "base": "NoiseSchedule", "text": f"class Flat: pass  # {EVIL}"}
    for value in (EVIL, f"Flat{EVIL}", "Flat\nconfirmed", "", "Fl\u0430t"):
        source = ComponentSource(**fields | {field: value})
        row = {"kind": source.kind, "name": source.name, "base": source.base, "api": 1, "text": source.text, "sha256": source.digest}
        header["__metadata__"]["diffnb.sources"] = canonical_json({"Flat-1": row})
        (tmp_path / "m").write_bytes(assembled(header, body))
        for door in (load, inspect):
            with pytest.raises(BadManifest) as error:
                door(tmp_path / "m")
            assert clean(str(error.value)) and "\n" not in str(error.value)


def test_the_trust_store_is_listed_in_lines(tmp_path):
    store = TrustStore(tmp_path / "config" / "trust.json")
    assert clean(str(store.add(ComponentSource(EVIL_NAME, EVIL_NAME, EVIL_NAME, EVIL_NAME)))) and "\n" not in str(store.list()[0])


@pytest.mark.filterwarnings("ignore")
def test_sets_of_images(pictures):
    found = image_set(str(pictures), verbose=False)
    assert clean(repr(found))
    with pytest.raises(ValueError) as error:
        image_set(str(pictures), classes=["hat"], verbose=False)
    assert clean(str(error.value))


def test_states(tmp_path):
    from diffnb.core import tensors_to_bytes

    (tmp_path / "s").write_bytes(tensors_to_bytes({EVIL: torch.ones(1)}, {"tree": json.dumps({"map": {EVIL: {"tensor": "none"}}})}))
    with pytest.raises(OSError) as error:
        load_state(tmp_path / "s")
    assert clean(str(error.value))


def test_telling(capsys):
    tell("a", f"b\n{EVIL}")
    assert capsys.readouterr().out.split("\n") == ["a", "b\\n" + printable(EVIL, None), ""]
    assert clean(sentence(ValueError(EVIL_NAME))) and "\n" not in sentence(OSError(2, "No such file", EVIL_NAME))
