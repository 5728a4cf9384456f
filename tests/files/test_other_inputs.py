"""What comes from strangers beside model files: pickled weights, sparse files, folders of a training, and who may connect to a group."""

import io
import json
import os
import pickle
import shutil
import socket
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from commands import program
from torch import nn

from diffnb.apps import Recipe, begin_run, read_settings, resume_run
from diffnb.files import BadManifest, ModelFileError, inspect
from diffnb.model import packaged_models
from diffnb.parallel import among_ourselves, run_together
from diffnb.pickles import read_pickled_weights


def deep(width, depth, inner):
    for _ in range(depth):
        inner = {str(k): inner for k in range(width)}
    return inner


def circle():
    ring = {"w": torch.ones(2)}
    ring["again"] = ring
    return ring


READ = {
    "a state dict": (nn.Linear(3, 2).state_dict(), ["bias", "weight"]),
    "an ordered one": (OrderedDict(a=torch.ones(2)), ["a"]),
    "a checkpoint": (
        {"model": {"w": torch.ones(2)}, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}, "epoch": 3},
        ["model.w", "optimizer.state.0.step"],
    ),
    "parameters": ({"w": nn.Parameter(torch.ones(2))}, ["w"]),
    "tied weights": ((lambda w: {"a": w, "b": w})(torch.ones(1000)), ["a", "b"]),
    "a view": ({"w": torch.ones(100)[:7]}, ["w"]),
    "shared eight deep": (deep(10, 8, {"w": torch.ones(2)}), None),
    "shared a hundred deep": (deep(2, 100, {"w": torch.ones(2)}), None),
    "a circle": (circle(), ["w"]),
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("as_archive", [True, False])
def test_weights_are_read_and_each_object_once(tmp_path, kind, as_archive):
    data, names = READ[kind]
    torch.save(data, tmp_path / "w.pt", _use_new_zipfile_serialization=as_archive)
    begin = time.monotonic()
    found = read_pickled_weights(tmp_path / "w.pt")
    assert time.monotonic() - begin < 1
    assert len(found) == 1 if names is None else list(found) == names
    assert all(type(tensor) is torch.Tensor and not tensor.requires_grad for tensor in found.values())


class Harm:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def repacked(path, change):
    """The archive of some zeros, written again by a function of (archive, name, data)."""
    torch.save({"w": torch.zeros(2**20)}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for part in old.infolist():
            change(new, part.filename, old.read(part))


def compressed(archive, name, data):
    archive.writestr(name, data, zipfile.ZIP_DEFLATED, 9)


def crowded(path):
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(65_540):
            archive.writestr(str(k), b"")


def overlapping(path):
    """Many entries of the directory that mean the same bytes."""
    repacked(path, lambda archive, name, data: archive.writestr(name, data))
    with zipfile.ZipFile(path, "a") as archive:
        big = max(archive.infolist(), key=lambda part: part.file_size)
        for k in range(50):
            twin = zipfile.ZipInfo(f"archive/data/{k + 100}")
            twin.file_size = twin.compress_size = big.file_size
            twin.header_offset, twin.CRC, twin.create_system = big.header_offset, big.CRC, big.create_system
            archive.filelist.append(twin)
        archive._didModify = True


ATTACKS = {
    "compressed": lambda path: repacked(path, compressed),
    "compressed by another way": lambda path: repacked(path, lambda archive, name, data: archive.writestr(name, data, zipfile.ZIP_BZIP2)),
    "overlapping": overlapping,
    "many parts": crowded,
    "a stride of zero": lambda path: torch.save({"w": torch.ones(1).expand(2**40)}, path),
    "windows that overlap": lambda path: torch.save({"w": torch.arange(2.0**10).unfold(0, 512, 1)}, path),
    "one storage many times": lambda path: torch.save({str(k): w for k in range(50) for w in [BIG]}, path),
    "sparse": lambda path: torch.save({"w": torch.sparse_coo_tensor([[0]], [1.0], (2**40,))}, path),
    "meta": lambda path: torch.save({"w": torch.empty(2**40, device="meta")}, path),
    "code": lambda path: torch.save({"w": Harm(path.parent / "canary")}, path),
    "a plain pickle of code": lambda path: path.write_bytes(pickle.dumps(Harm(path.parent / "canary"))),
    "a whole module": lambda path: torch.save(nn.Linear(2, 2), path),
    "no tensors": lambda path: torch.save({"epoch": 3}, path),
    "too many tensors": lambda path: torch.save({str(k): torch.empty(0) for k in range(66_000)}, path),
    "cut short": lambda path: (torch.save({"w": torch.zeros(10_000)}, path), os.truncate(path, 20_000)),
    "noise": lambda path: path.write_bytes(b"noise" * 1000),
    "empty": lambda path: path.touch(),
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": os.mkdir,
}
BIG = torch.zeros(1000)


@pytest.mark.parametrize("kind", ATTACKS)
def test_weights_larger_than_their_file_are_refused(tmp_path, kind):
    import resource

    path = tmp_path / "w.pt"
    ATTACKS[kind](path)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(ValueError) as told:
        read_pickled_weights(path)
    limit = 20 if kind in ("many parts", "too many tensors") else 2  # which have megabytes of names to be read
    assert time.monotonic() - begin < limit and "\n" not in str(told.value) and not (tmp_path / "canary").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


def sparse_file(path, size, digest=None):
    """A model file whose one tensor is a hole on the disk."""
    raw = Path(packaged_models()["fashion_mnist"]).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"] | ({} if digest is None else {"diffnb.digest": digest})
    head = json.dumps({"__metadata__": metadata, "model.w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + size)


def test_a_sparse_file_of_gigabytes_is_described_in_no_time(tmp_path):
    sparse_file(tmp_path / "m.safetensors", 6 * 2**30)
    text = (
        "import resource, sys, time\nfrom diffnb.files import inspect\n"
        "before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()\n"
        "print(inspect(sys.argv[1]))\nprint(time.monotonic() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    _, out, err = program(text, tmp_path / "m.safetensors")
    seconds, kilobytes = map(float, out.splitlines()[-1].split())
    assert seconds < 1 and kilobytes < 200_000
    assert "6,442,450,944 numbers" in out and ", as the file states; load compares it with the contents" in out, err
    assert not inspect(tmp_path / "m.safetensors").is_checked and inspect(packaged_models()["fashion_mnist"]).is_checked
    with pytest.raises(ModelFileError):
        from diffnb.files import load

        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("digest", ["", "00", "z" * 64, "\x1b[2J" * 16, "A" * 64])
def test_a_digest_that_is_none_is_not_shown(tmp_path, digest):
    sparse_file(tmp_path / "m.safetensors", 2**27, digest)
    with pytest.raises(BadManifest, match="its digest must be 64 hexadecimal digits"):
        inspect(tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """The folder of a short training."""
    folder = tmp_path_factory.mktemp("one") / "run"
    network = {"widths": (32,), "blocks": 1, "attention_levels": ()}
    recipe = Recipe("packaged", limit=40, size=8, network=network, epochs=1, batch_size=16, sample_every=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFNB_DATA", str(folder.parent / "data"))
        begin_run(recipe, folder, device="cpu", progress=False)
    return folder


@pytest.fixture
def run(one_epoch, tmp_path, monkeypatch, no_pictures):
    """A copy of that folder, whose settings a stranger may change."""
    monkeypatch.setenv("DIFFNB_DATA", str(tmp_path / "data"))
    shutil.copytree(one_epoch, tmp_path / "run")

    def changed(**facts):
        settings = json.loads((tmp_path / "run" / "settings.json").read_text())
        settings["recipe"] |= facts
        (tmp_path / "run" / "settings.json").write_text(json.dumps(settings))
        return tmp_path / "run"

    return changed


@pytest.mark.parametrize("logger", ["wandb", "tensorboard", "anything", "http://example.org", None])
def test_a_folder_does_not_start_a_logger(run, monkeypatch, capsys, logger):
    started = []
    monkeypatch.setattr("diffnb.apps.runs.log_callbacks", lambda *arguments: started.append(arguments[0]) or [])
    folder = run(log_to=logger)
    resume_run(folder, epochs=2, device="cpu", progress=False)
    said = capsys.readouterr().err
    assert started == []
    assert (f"asks to log to {logger}, which is not done because a folder asks" in said) == (logger is not None)
    assert read_settings(folder)["recipe"].log_to is None  # and the next start does not ask either
    resume_run(folder, epochs=3, device="cpu", progress=False, log_to="tensorboard")
    assert started == ["tensorboard"]


@pytest.mark.parametrize("place", ["a set", "outside", "home", "through a link", "inside"])
def test_where_the_images_come_from_is_said_before_they_are_read(run, tmp_path, monkeypatch, capsys, place):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    names = {"a set": "packaged", "outside": str(tmp_path / "secret"), "home": "~/photos", "through a link": str(tmp_path / "run" / "link")}
    name = names.get(place, str(tmp_path / "run" / "own"))
    folder = run(data=name)
    (folder / "own").mkdir()
    (folder / "link").symlink_to(tmp_path)
    order = []
    monkeypatch.setattr(
        "diffnb.apps.runs.recipe_images", lambda *a, **k: order.append(capsys.readouterr().err) or (_ for _ in ()).throw(OSError("stop"))
    )
    with pytest.raises(OSError, match="stop"):
        resume_run(folder, device="cpu", progress=False)
    expected = {"a set": "the set 'packaged' under", "home": f"the folder {tmp_path / 'home' / 'photos'}"}.get(place, f"the folder {name}")
    assert (f"names the images to train on: {expected}" in order[0]) == (place != "inside")


def listening():
    """Addresses on which this computer process listens, as /proc has them."""
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    return sorted({row[1].rsplit(":", 1)[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own})


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs Linux")
def test_a_group_on_one_machine_listens_to_nobody_else():
    for answer in run_together(listening, 3):
        assert set(answer) <= LOOPBACK


CASES = [
    ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, True),
    ({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, False),
    ({"WORLD_SIZE": "2"}, False),
    ({}, False),
    ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "eth7"}, False),
]


@pytest.mark.parametrize(("environment", "is_ours"), CASES)
def test_the_interface_is_chosen_only_where_all_run_here(monkeypatch, environment, is_ours):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    with among_ourselves():
        assert os.environ.get("GLOO_SOCKET_IFNAME") == (next(n for _, n in socket.if_nameindex() if n in ("lo", "lo0")) if is_ours else before)
    assert os.environ.get("GLOO_SOCKET_IFNAME") == before
