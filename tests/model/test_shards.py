"""Large sets of images: the same bytes from any number of processes, through interruptions, in both forms."""

import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from diffnb.data import image_set, load_shards
from diffnb.model import GenerativeModel, generate_shards
from diffnb.parallel import run_together

HOW = dict(seed=11, n_steps=3, class_labels=["bag", 7, "dress"], batch_size=2, shard_size=4, progress=False)


@pytest.fixture(scope="module")
def model():
    """The packaged model."""
    torch.set_num_threads(1)
    return GenerativeModel.pretrained("fashion_mnist", device="cpu", verbose=False)


@pytest.fixture(scope="module")
def expected(model):
    """The images as one run of `generate` makes them, in batches of two; and their labels."""
    images = model.generate(14, n_steps=3, seed=11, class_labels=[8, 7, 3] * 4 + [8, 7], batch_size=2)
    return (images * 255).round().byte(), [8, 7, 3] * 4 + [8, 7]


def files(folder):
    """Contents of all files under a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_any_number_of_processes_writes_the_same_bytes(model, expected, tmp_path):
    assert generate_shards(model, tmp_path / "one", 14, **HOW) == (14, 0)
    found = load_shards(tmp_path / "one")
    assert torch.equal(found.images, expected[0]) and [found.values[i] for i in found.labels.tolist()] == expected[1]
    again = image_set(tmp_path / "one", verbose=False)  # as any other folder of images
    assert torch.equal(again.images, expected[0]) and [again.values[i] for i in again.labels.tolist()] == expected[1]
    assert again.names == model.label_names and again.num_classes == 10
    bags = image_set(tmp_path / "one", classes=["bag"], size=14, verbose=False)
    assert bags.shape == (1, 14, 14) and len(bags) == expected[1].count(8)
    for world in (2, 3):
        made = run_together(generate_shards_of, world, args=[model, tmp_path / f"{world}"])
        assert made == {2: [(8, 0), (6, 0)], 3: [(6, 0), (4, 0), (4, 0)]}[world]
        assert files(tmp_path / f"{world}") == files(tmp_path / "one")


def generate_shards_of(model, folder, **changes):
    """Make the set; the share is that of this process."""
    return generate_shards(model, folder, 14, **HOW | changes)


def killed_at(model, folder, kind, replaces):
    """Make the set, and die when so many files have been put in place."""
    replace_file, count = os.replace, []

    def dying(*paths):
        count.append(paths)
        if len(count) > replaces:
            os.kill(os.getpid(), signal.SIGKILL)
        replace_file(*paths)

    os.replace = dying
    generate_shards(model, folder, 14, **HOW | {"kind": kind})


@pytest.mark.parametrize("kind", ["tensors", "folders"])
def test_a_set_goes_on_after_a_kill(model, tmp_path, kind):
    generate_shards(model, tmp_path / "whole", 14, **HOW | {"kind": kind})
    killed = {"tensors": 3, "folders": 8}[kind]  # settings and two shards; settings, a shard of five files, and two of the next
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        run_together(killed_at, 1, args=[model, tmp_path / "cut", kind, killed])
    already = {"tensors": 8, "folders": 4}[kind]
    assert generate_shards(model, tmp_path / "cut", 14, **HOW | {"kind": kind}) == (14 - already, already)
    left = {name: data for name, data in files(tmp_path / "cut").items() if not name.endswith(".part")}  # the one being written
    assert left == files(tmp_path / "whole")
    assert generate_shards(model, tmp_path / "cut", 14, **HOW | {"kind": kind, "seed": None}) == (0, 14)


def test_class_folders_are_what_image_folder_reads(model, expected, tmp_path):
    from torchvision.datasets import ImageFolder

    generate_shards(model, tmp_path, 14, **HOW | {"kind": "folders"})
    folder = ImageFolder(tmp_path)
    assert folder.classes == ["Bag", "Dress", "Sneaker"] and len(folder) == 14
    for path, label in folder.samples:
        assert model.label_names[expected[1][int(Path(path).stem)]] == folder.classes[label]
    ours = image_set(tmp_path, verbose=False)
    order = torch.tensor([k for value in (8, 3, 7) for k in range(14) if expected[1][k] == value])
    assert torch.equal(ours.images, expected[0][order]) and ours.names == ["Bag", "Dress", "Sneaker"]


def test_other_settings_are_refused_by_name(model, tmp_path):
    generate_shards(model, tmp_path, 4, **HOW)
    before = files(tmp_path)
    other = GenerativeModel.pretrained("fashion_mnist", device="cpu", verbose=False)
    other.trained.network.head.bias.data += 1e-3
    heun = GenerativeModel.pretrained("fashion_mnist", device="cpu", verbose=False)
    heun.sampler = "heun"
    changes = [
        ({"n_steps": 4}, model, "n_steps 3 there, 4 asked for"),
        ({"seed": 12}, model, "seed 11 there, 12 asked for"),
        ({"class_labels": ["bag"]}, model, r"labels \[8, 7, 3\] there, \[8\] asked for"),
        ({"batch_size": 4}, model, "batch_size 2 there, 4 asked for"),
        ({"guidance_scale": 2.0}, model, "guidance_scale 1.0 there, 2.0 asked for"),
        ({"kind": "folders"}, model, "kind .tensors. there, .folders. asked for"),
        ({}, other, r"settings \(model "),
        ({}, heun, "there, .Heun"),
        ({}, model.under("vp"), "process .*VP"),
    ]
    for change, one, message in changes:
        with pytest.raises(ValueError, match=message):
            generate_shards(one, tmp_path, 4, **HOW | change)
    assert files(tmp_path) == before


def test_a_set_grows_and_its_beginning_stays(model, expected, tmp_path):
    assert generate_shards(model, tmp_path, 6, **HOW) == (6, 0)
    first = (tmp_path / "shard_00000.safetensors").read_bytes()
    assert generate_shards(model, tmp_path, 14, **HOW) == (10, 4)  # the second shard was not full
    assert (tmp_path / "shard_00000.safetensors").read_bytes() == first
    assert torch.equal(load_shards(tmp_path).images, expected[0])


def test_a_full_disk_leaves_what_is_there(model, tmp_path, monkeypatch):
    sync = os.fsync

    def full(descriptor):
        if any(path.name.startswith(".shard_00001") for path in tmp_path.iterdir()):  # the second one is being written
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        generate_shards(model, tmp_path, 8, **HOW)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["settings.json", "shard_00000.safetensors"]
    assert generate_shards(model, tmp_path, 8, **HOW) == (4, 4)


def test_what_is_damaged_or_missing_is_said(model, tmp_path):
    generate_shards(model, tmp_path, 12, **HOW)
    middle = tmp_path / "shard_00001.safetensors"
    whole = middle.read_bytes()
    middle.write_bytes(whole[:200])
    with pytest.raises(ValueError, match="shard_00001.safetensors is damaged"):
        generate_shards(model, tmp_path, 12, **HOW)
    middle.unlink()
    with pytest.raises(ValueError, match="images 4 to 7 are missing before shard_00002"):
        load_shards(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no shard"):
        load_shards(tmp_path / "nowhere")
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="settings.json is not what"):
        generate_shards(model, tmp_path, 12, **HOW)


def test_arguments_that_do_not_fit_are_refused(model, tmp_path):
    for change, message in (
        ({"shard_size": 5}, "whole number of batches, got 5 images in batches of 2"),
        ({"class_labels": ["hat"]}, "unknown label"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_shards(model, tmp_path, 8, **HOW | change)
    with pytest.raises(ValueError, match="n must be a whole number"):
        generate_shards(model, tmp_path, 0, **HOW)
    with pytest.raises(ValueError, match="one set only under one seed"):
        generate_shards(model, tmp_path, 8, share=(1, 2), **HOW | {"seed": None})
    labels = replace(model.trained.labels, values=(*range(9), "a/b"), names=None)
    odd = GenerativeModel.of(replace(model.trained, labels=labels), sampler="heun", device="cpu", verbose=False)
    generate_shards(odd, tmp_path / "odd", 1, **HOW | {"class_labels": "a/b", "kind": "folders"})
    assert (tmp_path / "odd" / "a_b" / "000000.png").is_file()


@pytest.mark.slow  # the tutorial on several processes shares such work in the environment that a launcher makes, and tests/training has its launcher
def test_the_command_shares_the_work_under_torchrun(expected, tmp_path):
    line = f"generate fashion_mnist --labels bag,7,dress --steps 3 --seed 11 --batch-size 2 --shard-size 4 --shards --num 14 --out {tmp_path / 'set'}"
    program = tmp_path / "run.py"
    program.write_text(f"import sys\nsys.argv = ['diffnb', *{line.split()!r}]\nfrom diffnb.apps import main\nmain()\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-3000:]
    assert "process 0 of 2 made 8 of 14 images" in result.stdout and "process 1 of 2 made 6 of 14 images" in result.stdout
    assert torch.equal(load_shards(tmp_path / "set").images, expected[0])


def test_what_users_get_wrong_is_one_line(tmp_path, monkeypatch, capsys):
    from diffnb.apps import main

    for line, message in (
        ("--shards --files", "--files and --shards exclude each other"),
        ("--shards --folders", "--shards and --folders exclude each other"),
        ("--shards --columns 4", "--columns lays out a grid"),
        ("--shard-size 4", "--shard-size goes with"),
        (f"--shards --out {tmp_path / 'one.png'}", "needs a folder"),
        (f"--shards --batch-size 3 --shard-size 4 --out {tmp_path}", "whole number of batches"),
    ):
        monkeypatch.setattr(sys, "argv", ["diffnb", "generate", "fashion_mnist", *line.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.startswith("diffnb: ") and err.count("\n") == 1 and message in err, (line, err)
