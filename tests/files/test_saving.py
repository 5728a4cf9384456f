"""Saving: what stands at the place, its permissions and links, and weights that would not load again. Nothing is written that cannot be read."""

import os
import socket
import stat
from dataclasses import replace

import pytest
import torch
from test_model_files import tiny
from torch import nn
from torch.nn.utils import parametrizations, prune

from diffnb.apps import reporting, tell, write_picture
from diffnb.core import write_atomically
from diffnb.files import load, save
from diffnb.training import CheckpointError, save_state

posix = pytest.mark.skipif(os.name != "posix", reason="kinds of files and permissions are POSIX's")


def device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def bound(path):
    place = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is short
    place.bind(path.name)
    os.chdir(here)


def loop(path):
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def linked(path):
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


PLACES = {
    "a device": (device, "a device"),
    "a pipe": (os.mkfifo, "a pipe"),
    "a socket": (bound, "a socket"),
    "a folder": (os.mkdir, "a folder"),
    "a link to itself": (loop, "a link that leads to itself"),
    "a link to a pipe": (linked, "a pipe"),
}
WRITERS = {
    "write_atomically": lambda path: write_atomically(path, b"new"),
    "save": lambda path: save(tiny(), path),
    "save_state": lambda path: save_state(path, {"a": torch.ones(1)}),
}


@posix
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
def test_what_is_no_file_stays(place, writer, tmp_path):
    make, what = PLACES[place]
    make(tmp_path / "m")
    before = {p.name: p.lstat() for p in tmp_path.iterdir()}
    with pytest.raises(OSError, match=f"{what} stands there"):
        WRITERS[writer](tmp_path / "m")
    after = {p.name: p.lstat() for p in tmp_path.iterdir()}
    assert {name: (s.st_ino, s.st_mode) for name, s in before.items()} == {name: (s.st_ino, s.st_mode) for name, s in after.items()}


def test_a_checkpoint_says_why(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(CheckpointError, match="could not write .*a folder stands there"):
        save_state(tmp_path / "m", {})


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o400])
@pytest.mark.parametrize("writer", WRITERS)
def test_permissions_are_kept(writer, mode, tmp_path):
    (tmp_path / "m").touch()
    (tmp_path / "m").chmod(mode)
    WRITERS[writer](tmp_path / "m")
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == mode


@posix
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_what_the_mask_leaves(mask, tmp_path):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "m", b"new")
        write_atomically(tmp_path / "private", b"new", 0o600)
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("m", "private")] == [0o666 & ~mask, 0o600]


@posix
def test_a_file_is_never_more_open_than_it_was(tmp_path, monkeypatch):
    """Not even while it is written."""
    (tmp_path / "m").touch(mode=0o600)
    seen = []

    def pieces():
        seen.extend(stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir())
        yield b"new"

    write_atomically(tmp_path / "m", pieces())
    assert seen == [0o600, 0o600]


@posix
@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_is_followed(there, tmp_path):
    (tmp_path / "disk").mkdir()
    target, link, second = tmp_path / "disk" / "real", tmp_path / "m", tmp_path / "n"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("disk/real")
    second.symlink_to(link)
    write_atomically(second, b"new")
    assert link.is_symlink() and second.is_symlink() and target.read_bytes() == b"new"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["disk", "m", "n", "real"]


class Own(nn.Module):
    """A network of one's own, one layer of which has the name that wrappers use."""

    condition_names = ()

    def __init__(self, width=3):
        super().__init__()
        self.config = {"width": width}
        self.module = nn.Linear(width, width)

    def forward(self, x, half_log_snr):
        return self.module(x)


def compiled_inside(network):
    network.stem = torch.compile(network.stem)
    return network


def parallel(network):
    return nn.DataParallel(network)


WRAPPERS = {
    "torch.compile": torch.compile,
    "DataParallel": parallel,
    "DataParallel, compiled": lambda network: torch.compile(parallel(network)),
    "compiled, DataParallel": lambda network: parallel(torch.compile(network)),
    "a compiled layer": compiled_inside,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_are_taken_off(wrapper, tmp_path):
    plain = tiny()
    raw = {name: value + 1 for name, value in plain.network.state_dict().items()}
    digest = save(replace(plain, raw=raw), tmp_path / "plain")
    network = WRAPPERS[wrapper](tiny().network)
    wrapped_raw = {name: value + 1 for name, value in network.state_dict().items()}
    assert save(replace(plain, network=network, raw=wrapped_raw), tmp_path / "m") == digest
    assert all(value.equal(raw[name]) for name, value in load(tmp_path / "m").raw.items())


def test_a_layer_may_be_called_module(tmp_path):
    network = Own()
    save(tiny(network=network, labels=(), names=None, raw=network.state_dict()), tmp_path / "m")
    assert load(tmp_path / "m", components={"Own": Own}).network.module.weight.equal(network.module.weight)


def normed(network):
    parametrizations.weight_norm(network.stem)


def old_normed(network):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(network.stem)


def spectral(network):
    parametrizations.spectral_norm(network.head)


def pruned(network):
    prune.l1_unstructured(network.stem, "weight", 0.5)


def added(network):
    network.more = nn.Linear(2, 2)


def removed(network):
    del network.head


def widened(network):
    network.head = nn.Linear(8, 5)


def without_bias(network):
    network.head.bias = None


def another_type(network):
    network.head = nn.Embedding(8, 4)
    network.head.weight = nn.Parameter(torch.ones(4, 8, dtype=torch.int32), requires_grad=False)


def a_buffer(network):
    network.register_buffer("mean", torch.zeros(3))


def settings_changed(network):
    network.config["depth"] = 2


CHANGES = [normed, old_normed, spectral, pruned, added, removed, widened, without_bias, another_type, a_buffer, settings_changed]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("own", [False, True], ids=["diffnb's", "one's own"])
def test_what_would_not_load_is_not_saved(change, own, tmp_path):
    (tmp_path / "m").write_bytes(b"old")
    base = tiny()
    if own:
        base.network.__class__ = type("Mine", (type(base.network),), {"__module__": __name__})
    change(base.network)
    with pytest.raises(ValueError, match="would not take them, so the file could not be loaded"):
        save(base, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_setting_that_a_reader_refuses_is_not_saved(tmp_path):
    deep = []
    for _ in range(40):
        deep = [deep]
    for changes in ({"records": ({"deep": deep},)}, {"shape": (0, 2, 2)}, {"labels": ("x" * 2000, 1)}, {"value_range": (1.0, 0.0)}):
        with pytest.raises(ValueError, match="the file could not be loaded: "):
            save(tiny(**changes), tmp_path / "m")
    assert not list(tmp_path.iterdir())


NO_FILES = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/null"),
    "a folder": os.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
}
COMMANDS = {
    "a picture": (".png", lambda path: write_picture(torch.zeros(2, 2, 1, dtype=torch.uint8), path)),
    "a picture with loss": (".jpg", lambda path: write_picture(torch.zeros(2, 2, 3, dtype=torch.uint8), path)),
    "what a command tells": (".json", lambda path: told(path)),
}


def told(path):
    """What `--json FILE` does."""
    with reporting(str(path)):
        tell("n", n=1)


@pytest.mark.skipif(os.name != "posix", reason="kinds of files are POSIX's")
@pytest.mark.parametrize("writer", COMMANDS)
@pytest.mark.parametrize("place", NO_FILES)
def test_commands_write_into_files_only(writer, place, tmp_path):
    """As `save` does: what is no file stays, a link is followed, and an earlier file is there until the new one is whole."""
    ending, write = COMMANDS[writer]
    path = tmp_path / f"out{ending}"
    NO_FILES[place](path)

    def state():
        found = os.lstat(path)  # without the time at which it was last read, which following a link changes
        return found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns

    before = state()
    with pytest.raises((OSError, ValueError), match="which is not replaced by a file; give another place|must be a file in a folder that is there"):
        write(path)
    assert state() == before
    write(tmp_path / f"new{ending}")
    (tmp_path / f"link{ending}").symlink_to(tmp_path / f"new{ending}")
    write(tmp_path / f"link{ending}")
    assert (tmp_path / f"link{ending}").is_symlink() and (tmp_path / f"new{ending}").stat().st_size > 5
