"""Five readers, and what strangers may put before them: a documented error in one sentence, within a second, and nothing that a terminal obeys."""

import json
import os
import time
from dataclasses import fields

import pytest
import torch
from safetensors.torch import save as as_safetensors
from test_model_files import CONTAINERS, assembled, good

from diffnb.apps import Recipe, read_settings, to_plain
from diffnb.core import tensors_to_bytes
from diffnb.data import load_shards
from diffnb.files import ModelFileError, inspect, load
from diffnb.printing import printable
from diffnb.training import CheckpointError, load_state, read_position, save_state

EVIL = "\x1b[2J\x1b]0;title\x07\r\n\u202e\u2066\u200b\ufeff\u3164\x9b2J\x7f"
DEEP = "[" * 100_000
NESTED = {"deep": "[" * 900 + "]" * 900, "deeper": "[" * 100_000 + "]" * 100_000, "objects": '{"a":' * 900 + "1" + "}" * 900}
VALUES = {  # JSON texts that may stand in the place of any value
    "null": "null",
    "true": "true",
    "a number": "7",
    "a large number": "9" * 4000,
    "a number too long for Python": "9" * 5000,
    "a negative number": "-1",
    "a real number": "1e308",
    "infinity": "Infinity",
    "beyond infinity": "1e999",
    "NaN": "NaN",
    "a text": '"x"',
    "a long text": json.dumps("x" * 1_000_000),
    "a text that steers": json.dumps(EVIL),
    "half a character": '"\\ud800"',
    "NUL": '"\\u0000"',
    "a list": "[]",
    "a list of lists": "[[], [[]]]",
    "a long list": "[" + "0," * 100_000 + "0]",
    "an object": "{}",
    "an object of strange keys": json.dumps({EVIL: {EVIL: [EVIL]}, "\ud800": 1}),
    "a key twice": '{"a": 1, "a": 2}',
    "not JSON": "{",
    "no UTF-8": "\udcff",
    **NESTED,
}


def refused(call, error, most=2.0):
    """Call; the error must be of the documented kind, one printable sentence of bounded length, and quick."""
    start = time.process_time()
    try:
        call()
    except error as found:
        text = str(found)
        assert text == printable(text, None) and 10 < len(text) < 2000, text
    assert time.process_time() - start < most


def bytes_of(text):
    return text.encode("utf-8", "surrogateescape")


def put(data, path, value):
    """A copy of plain data as a JSON text, with another JSON text at a path."""
    copy = json.loads(json.dumps(data))
    if not path:
        return value
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = "HERE"
    return json.dumps(copy).replace('"HERE"', value)


def paths(data, prefix=()):
    """The path of each value in plain data, itself first."""
    yield prefix
    for key, value in data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ():
        yield from paths(value, (*prefix, key))


# the two doors of a model file


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return good(tmp_path_factory.mktemp("model"))


MANIFEST = [(), ("version",), ("network",), ("network", "kind"), ("network", "component"), ("network", "settings"), ("network", "settings", "dim")]
MANIFEST += [("network", "settings", "num_classes"), ("process",), ("process", "settings"), ("process", "settings", "schedule"), ("parametrization",)]
MANIFEST += [
    ("parametrization", "settings", "sigma_data"),
    ("sampling",),
    ("sampling", "sampler"),
    ("sampling", "sampler", "settings", "extrapolation"),
]
MANIFEST += [("sampling", "grid"), ("sampling", "n_steps"), ("data",), ("data", "shape"), ("data", "range"), ("data", "labels"), ("data", "names")]
MANIFEST += [("data", "labels", 0), ("data", "names", 0), ("weights",), ("guidance",), ("metrics",), ("records",), ("records", 0)]


@pytest.mark.parametrize("path", MANIFEST, ids=lambda path: ".".join(map(str, path)) or "all")
def test_manifest(path, model, tmp_path):
    header, body = model
    texts = header["__metadata__"]
    for value in VALUES.values():
        changed = {**header, "__metadata__": {**texts, "diffnb.manifest": put(json.loads(texts["diffnb.manifest"]), path, value)}}
        if any("\ud800" <= c <= "\udfff" for c in changed["__metadata__"]["diffnb.manifest"]):
            continue  # no JSON in UTF-8 has it
        (tmp_path / "m").write_bytes(assembled(changed, body))
        for door in (load, lambda path: str(inspect(path))):
            refused(lambda: door(tmp_path / "m"), ModelFileError)


@pytest.mark.parametrize("key", ["diffnb.version", "diffnb.manifest", "diffnb.sources", "diffnb.digest", "more"])
def test_metadata(key, model, tmp_path):
    header, body = model
    for value in [*VALUES.values(), *map(json.dumps, VALUES.values())]:
        changed = {**header, "__metadata__": {**header["__metadata__"], key: value}}
        if any("\ud800" <= c <= "\udfff" for c in value):
            continue
        (tmp_path / "m").write_bytes(assembled(changed, body, fit=key != "diffnb.digest"))
        for door in (load, lambda path: str(inspect(path))):
            refused(lambda: door(tmp_path / "m"), ModelFileError)


# the state of a training

TREE = {"model": {"w": torch.ones(2)}, "step": 3, "list": [1, [2]]}


@pytest.mark.parametrize("name", [name for name, (data, _) in CONTAINERS.items() if len(data) < 2**20])
def test_containers(name, tmp_path):
    """The hostile containers of model files, before the readers of other files."""
    (tmp_path / "shard_00000.safetensors").write_bytes(CONTAINERS[name][0])
    with pytest.raises(CheckpointError):
        load_state(tmp_path / "shard_00000.safetensors")
    with pytest.raises(ValueError, match="is no whole shard"):
        load_shards(tmp_path)
    refused(lambda: load_state(tmp_path / "shard_00000.safetensors"), CheckpointError)
    refused(lambda: load_shards(tmp_path), ValueError)


def test_state(tmp_path):
    save_state(tmp_path / "s", TREE)
    assert load_state(tmp_path / "s")["step"] == 3
    trees = list(VALUES.values())
    trees += [f'{{"map": {value}}}' for value in VALUES.values()] + [f'{{"map": {{"a": {value}}}}}' for value in VALUES.values()]
    trees += [f'{{"map": {{"a": {{"tensor": {value}}}}}}}' for value in VALUES.values()]
    trees += ['{"map":' * 300 + "{}" + "}" * 300, '{"map": {"a":' * 400 + "1" + "}}" * 400, "[" * 990 + "]" * 990]
    for tree in trees:
        if not any("\ud800" <= c <= "\udfff" for c in tree):
            (tmp_path / "s").write_bytes(tensors_to_bytes({"/model/w": torch.ones(1)}, {"tree": tree}))
            refused(lambda: load_state(tmp_path / "s"), CheckpointError)
            try:
                assert isinstance(load_state(tmp_path / "s"), dict)
            except CheckpointError:
                pass


LONG = {"lists": '{"map": {"a": [' + "[]," * 6_000_000 + "[]]}}", "depth": "[" * 17_000_000, "spaces": " " * 17_000_000}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_tree(kind, tmp_path):
    """Refused by its length, before anything is made of it; and not written either."""
    text = LONG[kind]
    (tmp_path / "s").write_bytes(tensors_to_bytes({"/model/w": torch.ones(1)}, {"tree": text}))
    for read in (load_state, read_position):
        with pytest.raises(CheckpointError):
            refused(lambda: read(tmp_path / "s"), ())
    with pytest.raises(CheckpointError, match="keep long lists as tensors"):
        save_state(tmp_path / "new", {"text": text})
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name != "posix", reason="empty parts of files are POSIX's")
def test_a_state_that_is_nearly_empty_on_the_disk(tmp_path):
    """Six gigabytes that were never written are not read into memory; a state that was, is."""
    n = 6 * 2**30
    header = json.dumps({"__metadata__": {"tree": '{"map": {}}', "sha256": "0"}, "w": {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}}).encode()
    with open(tmp_path / "s", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + n)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        refused(lambda: load_state(tmp_path / "s"), ())
    save_state(tmp_path / "zeros", {"w": torch.zeros(2**25)})
    assert load_state(tmp_path / "zeros")["w"].shape == (2**25,)


# shards

FACTS = {"first": 0, "n": 2, "seed": 1, "values": [3, 7], "names": ["shirt", "bag"], "model": "0", "torch": "2"}


def shard(facts, images=None, labels=None):
    tensors = {"images": torch.zeros(2, 1, 2, 2, dtype=torch.uint8) if images is None else images}
    tensors |= {"labels": torch.tensor([0, 1]) if labels is None else labels}
    return as_safetensors(tensors, {"diffnb.shard": facts})


@pytest.mark.parametrize("path", list(paths(FACTS)), ids=lambda path: ".".join(map(str, path)) or "all")
def test_shards(path, tmp_path):
    (tmp_path / "shard_00000.safetensors").write_bytes(shard(json.dumps(FACTS)))
    assert len(load_shards(tmp_path)) == 2
    for value in VALUES.values():
        text = put(FACTS, path, value)
        if not any("\ud800" <= c <= "\udfff" for c in text):
            (tmp_path / "shard_00000.safetensors").write_bytes(shard(text))
            refused(lambda: repr(load_shards(tmp_path)), ValueError)


IMAGES = {
    "floats": {"images": torch.zeros(2, 1, 2, 2)},
    "three dimensions": {"images": torch.zeros(2, 2, 2, dtype=torch.uint8)},
    "no images": {"images": torch.zeros(0, 1, 2, 2, dtype=torch.uint8)},
    "other images than it says": {"images": torch.zeros(3, 1, 2, 2, dtype=torch.uint8)},
    "labels beyond the last": {"labels": torch.tensor([0, 2])},
    "labels below zero": {"labels": torch.tensor([-1, 0])},
    "labels that are floats": {"labels": torch.tensor([0.0, 1.0])},
    "too few labels": {"labels": torch.tensor([0])},
    "labels in two dimensions": {"labels": torch.tensor([[0], [1]])},
}


@pytest.mark.parametrize("name", IMAGES)
def test_shards_of_other_tensors(name, tmp_path):
    (tmp_path / "shard_00000.safetensors").write_bytes(shard(json.dumps(FACTS), **IMAGES[name]))
    with pytest.raises(ValueError, match="is no whole shard"):
        load_shards(tmp_path)


def test_shards_that_do_not_fit_each_other(tmp_path):
    (tmp_path / "shard_00000.safetensors").write_bytes(shard(json.dumps(FACTS)))
    second = shard(json.dumps(FACTS | {"first": 2}), torch.zeros(2, 1, 3, 3, dtype=torch.uint8))
    (tmp_path / "shard_00001.safetensors").write_bytes(second)
    with pytest.raises(ValueError, match="holds other images than the shards before it"):
        load_shards(tmp_path)


# the settings of a run


def settings_of_a_run():
    return {"diffnb": "0.1", "root": "/data", "recipe": to_plain(Recipe("packaged"))}


RUN = [(), ("diffnb",), ("root",), ("recipe",), ("recipe", "training"), *[("recipe", f.name) for f in fields(Recipe)]]


@pytest.mark.parametrize("path", RUN, ids=lambda path: ".".join(path) or "all")
def test_settings(path, tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(settings_of_a_run()))
    assert read_settings(tmp_path)["recipe"] == Recipe("packaged")
    for value in VALUES.values():
        for text in (
            put(settings_of_a_run(), path, value),
            put(settings_of_a_run(), path, f'{{"kind": {value}, "name": {value}, "settings": {value}}}'),
        ):
            (tmp_path / "settings.json").write_bytes(bytes_of(text))
            refused(lambda: read_settings(tmp_path), ValueError)


# what is no file

READERS = {
    "load": (load, ModelFileError),
    "inspect": (inspect, ModelFileError),
    "load_state": (load_state, CheckpointError),
    "load_shards": (lambda path: load_shards(path.parent), ValueError),
    "read_settings": (lambda path: read_settings(path.parent), ValueError),
}
NAMES = {"load_shards": "shard_00000.safetensors", "read_settings": "settings.json"}


@pytest.mark.skipif(os.name != "posix", reason="kinds of files are POSIX's")
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["a folder", "a pipe", "a device"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file(reader, make, tmp_path):
    read, error = READERS[reader]
    make(tmp_path / NAMES.get(reader, "m"))
    with pytest.raises(error):
        read(tmp_path / NAMES.get(reader, "m"))


@pytest.mark.parametrize("reader", READERS)
def test_what_is_not_there(reader, tmp_path):
    with pytest.raises((FileNotFoundError, CheckpointError)):
        READERS[reader][0](tmp_path / NAMES.get(reader, "m"))
