"""The commands, as a shell sees them."""

import csv
import errno
import inspect
import json
import re
import sys
from typing import get_args

import pytest
import torch
from commands import diffnb
from PIL import Image
from typer.main import get_command
from typer.models import OptionInfo

from diffnb import GenerativeModel
from diffnb.apps import app
from diffnb.training import InverseSqrtRate, LogNormal, MinSNR, PowerLaw, load_state, snapshots


def pixels(path):
    """A gray picture as floats in [0, 1]."""
    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width) / 255


def test_help_is_complete():
    code, out, _ = diffnb("--help")
    assert "..." not in out.replace("[ARGS]...", "")  # whole sentences
    assert code == 0 and all(command in out for command in ("demo", "train", "generate"))
    assert diffnb()[1] == out
    wanted = {
        "train": "--out --resume --recipe --size --classes --epochs --batch-size --lr --limit --network --diffusion --sampler --noise-schedule --flip"
        " --ema --snapshots --snapshot-every --rate --warmup --max-norm --accumulate --precision --compile --weight --times --quantiles --patience"
        " --metric --metric-every --metric-images --sample-every --log-to --save-every --time-limit --seed DATA",
        "generate": "--out --num --steps --sampler --seed --labels --guidance-scale --grid --files MODEL",
        "demo": "--out --train-seconds --seed",
    }
    for command, options in wanted.items():
        code, out, _ = diffnb(command, "--help")
        assert code == 0 and all(option in out for option in options.split()), command


def test_generate_writes_what_python_makes(tmp_path):
    code, out, _ = diffnb("generate", "fashion_mnist", "--num", 3, "--labels", "bag,7", "--seed", 5, "--steps", 6, "--files", "--out", tmp_path)
    assert code == 0 and "seed 5" in out
    model = GenerativeModel.pretrained("fashion_mnist", verbose=False)
    expected = model.generate(3, n_steps=6, seed=5, class_labels=["bag", 7, "bag"])
    for i in range(3):
        assert (pixels(tmp_path / f"000{i}.png") - expected[i, 0]).abs().max() < 1 / 255
    code, _, _ = diffnb(
        "generate", "fashion_mnist", "--num", 3, "--labels", "bag,7", "--seed", 5, "--steps", 6, "--columns", 3, "--out", tmp_path / "a" / "b.png"
    )
    assert code == 0
    assert torch.equal(pixels(tmp_path / "a" / "b.png")[:, 30:58], pixels(tmp_path / "0001.png"))


def test_a_folder_of_class_folders_becomes_a_model_that_knows_them(tmp_path):
    for label, level in (("3", 20), ("7", 220)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(20):
            Image.new("L", (20, 16), level + i).save(tmp_path / "data" / label / f"{i}.png")
    (tmp_path / "data" / "7" / "broken.png").write_bytes(b"no image")
    run = tmp_path / "run"
    arguments = "--size 8 --epochs 10 --batch-size 8 --lr 3e-3 --network tiny --diffusion vp --noise-schedule cosine".split()
    arguments += "--sampler ddim --seed 1 --sample-every 10".split()
    code, out, err = diffnb("train", tmp_path / "data", "--out", run, *arguments)
    assert code == 0, err
    assert f"diffnb train --resume {run}" in out
    written = {p.name for p in run.iterdir()}
    assert written >= {"model.safetensors", "last.safetensors", "best_loss.safetensors", "training.safetensors", "history.csv", "samples.png"}
    assert all(f"`{name}`" in (run / "README.md").read_text() for name in written - {"README.md"})
    record = json.loads((run / "record.json").read_text())
    assert record["epochs"] == 10 and record["valid_loss"][-1] < record["valid_loss"][0] and record["seed"] == 1
    model = GenerativeModel.load(run / "model.safetensors", verbose=False)
    assert model.labels == [3, 7] and model.shape == (1, 8, 8) and "Cosine" in repr(model.sde)
    for label in (3, 7):
        code, _, err = diffnb(
            "generate", run / "model.safetensors", "--num", 2, "--steps", 10, "--seed", 0, "--labels", label, "--out", run / f"{label}.png"
        )
        assert code == 0, err
    assert pixels(run / "7.png").mean() - pixels(run / "3.png").mean() > 0.3
    code, _, err = diffnb("generate", run / "model.safetensors", "--labels", "5", "--out", run)
    assert code == 2 and "knows 3, 7" in err


def test_options_with_settings_reach_the_run_and_its_folder(tmp_path, no_pictures):
    from diffnb.apps import Recipe, read_settings

    run = tmp_path / "run"
    line = f"train packaged --out {run} --limit 60 --batch-size 9 --epochs 3 --network tiny --warmup 0 --rate inverse-sqrt:4 --ema power-law:0.2"
    line += " --times log-normal:-1.2,1.2 --quantiles shifted --weight min-snr:3 --snapshots 0.05,0.1 --snapshot-every 4 --sample-every 2"
    assert not app(line.split(), standalone_mode=False)
    recipe = Recipe("packaged", limit=60, batch_size=9, epochs=3, network="tiny", snapshots=(0.05, 0.1), snapshot_every=4, sample_every=2)
    settings = {"ema": PowerLaw(0.2), "rate": InverseSqrtRate(4.0), "times": LogNormal(-1.2, 1.2), "weight": MinSNR(3.0), "quantiles": "shifted"}
    assert read_settings(run)["recipe"] == recipe.changed(warmup=0, **settings)
    found = snapshots(run / "snapshots")
    assert [(one.step, one.images, one.sigma_rel) for one in found] == [(n, 9 * n, s) for n in (4, 8, 12, 16, 18) for s in (0.05, 0.1)]
    with open(run / "history.csv") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([1e-3 * (step / 4) ** -0.5 for step in (5, 11, 17)], rel=1e-6)  # that of the last step of each epoch


def test_a_disk_that_is_full_is_named_in_one_line(tmp_path, no_pictures, monkeypatch, capsys):
    import diffnb.training.checkpoints as checkpoints

    run, seen, write = tmp_path / "run", [], checkpoints.write_atomically

    def full(path, data):
        seen.extend([path] * (path.name == "training.safetensors"))
        if len(seen) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    monkeypatch.setattr(checkpoints, "write_atomically", full)
    line = f"train packaged --out {run} --limit 40 --epochs 1 --network tiny --batch-size 12 --save-every 1"
    assert app(line.split(), standalone_mode=False) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"diffnb: could not write {run / 'training.safetensors'} (")
    assert last.endswith("MB): No space left on device; the earlier file is intact")
    monkeypatch.setattr(checkpoints, "write_atomically", write)
    position = load_state(run / "training.safetensors")["position"]
    assert position["epoch"] + position["batch"] >= 1  # the state of some second, or of the end of the epoch
    assert not app(["train", "--resume", str(run)], standalone_mode=False)
    assert json.loads((run / "record.json").read_text())["steps"] == 3


def test_demo_writes_its_pictures_and_says_where(tmp_path):
    code, out, err = diffnb("demo", "--out", tmp_path, "--train-seconds", 1, "--rows", 1, "--json", tmp_path / "told.json")
    assert code == 0, err
    assert not any(sign in out + err for sign in ("\r", "\x1b", "%|")) and "it/s" not in out  # no bar where nobody watches
    assert isinstance(json.loads((tmp_path / "told.json").read_text("utf-8")), dict)
    for name in ("packaged.png", "fast.png", "trained.png"):
        assert Image.open(tmp_path / name).size == (596, 56)
        assert f"{tmp_path / name}: 10 images" in out
    assert "seconds per image" in out
    assert GenerativeModel.load(tmp_path / "trained.safetensors").num_classes == 10


WRONG = [
    "generate nowhere.safetensors",
    "generate .",
    "generate text.txt",
    "generate fashion_mnist --labels hat",
    "generate fashion_mnist --sampler nonsense",
    "generate fashion_mnist --num 0",
    "generate fashion_mnist --num many",
    "generate fashion_mnist --guidance-scale 2",
    "generate fashion_mnist --files --out one.png",
    "generate fashion_mnist --out text.txt/below",
    "generate fashion_mnist --size 1x2x3",
    "generate fashion_mnist --colour red",
    "train nowhere --out x",
    "train empty --out x",
    "train packaged",
    "train packaged --out text.txt",
    "train packaged --out x --diffusion ve --noise-schedule linear",
    "train packaged --out x --classes hat",
    "train packaged --out x --network huge",
    "train packaged --out x --limit 40 --epochs 1 --precision float8",
    "train mixed --out x",
    "train packaged --out x --rate parabola",
    "train packaged --out x --times log-normal:fast",
    "train packaged --out x --weight min-snr:0",
    "train packaged --out x --quantiles sobol",
    "train packaged --out x --ema power-law:3",
    "train packaged --out x --snapshots 0.05;0.1",
    "train packaged --out x --snapshots 3",
    "train packaged --out x --sample-every 0",
    "train packaged --out x --warmup -1",
    "train packaged --out x --limit 40 --log-to paper",
    "train packaged --out x --limit 40 --batch-size 41",
    "paint",
]


def test_what_users_get_wrong_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    from diffnb.apps import main

    (tmp_path / "text.txt").write_text("no model")
    (tmp_path / "empty").mkdir()
    for folder, sizes in (("mixed", [8, 8, 9]),):
        (tmp_path / folder).mkdir()
        for i, side in enumerate(sizes):
            Image.new("L", (8, side), 40 * i).save(tmp_path / folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    for line in WRONG:
        monkeypatch.setattr(sys, "argv", ["diffnb", *line.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        *before, last = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and last.startswith("diffnb: ") and "Exception occured" not in last, (line, last)
        assert all(" images, " in one for one in before), (line, before)  # what was found, before it was seen that it does not do


def option_of(name, info):
    """An option as it is typed; the first name is where typer has the default of a parameter without `Annotated`."""
    names = [one for one in (info.default, *(info.param_decls or ())) if isinstance(one, str) and one.startswith("--")]
    return names[0] if names else "--" + name.replace("_", "-")


def numbers():
    """Every option of every command that takes a number, with what else the command needs: as the functions themselves say it."""
    for group, commands in ((), app.registered_commands), (("trust",), app.registered_groups[0].typer_instance.registered_commands):
        for command in commands:
            parameters = inspect.signature(command.callback.__wrapped__).parameters.values()
            said = {parameter.name: get_args(parameter.annotation) or (parameter.annotation,) for parameter in parameters}
            needed = []
            for parameter in parameters:
                if parameter.default is parameter.empty:
                    needed += (
                        [option_of(parameter.name, said[parameter.name][1]), "0.5"] if isinstance(said[parameter.name][1], OptionInfo) else ["0.5"]
                    )
            for name, (kind, *facts) in said.items():
                kind = next((one for one in (int, float) if one in (kind, *get_args(kind))), None)
                if kind is not None:
                    yield (*group, command.name, *needed), option_of(name, facts[0]), kind, facts[0].min, facts[0].max


def test_every_option_that_takes_a_number_says_so_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found, program = list(numbers()), get_command(app)  # which `app` would make anew for each line
    assert len(found) > 50 and {line[0] for line, *_ in found} >= {"generate", "train", "distill", "export", "score", "edit", "dashboard", "demo"}
    for line, option, kind, least, most in found:
        bounds = f" from {least} to {most}" if most is not None else "" if least is None else f" of at least {least}"
        wrong = ["abc", "", "1,5", "nan", "inf", "two words"] + (["0.5"] if kind is int else []) + ([str(least - 1)] if least is not None else [])
        for text in wrong + ([str(most + 1)] if most is not None else []):
            assert program.main([*line, f"{option}={text}"], standalone_mode=False) == 2
            name = "whole" if kind is int else "finite"
            assert capsys.readouterr().err == f"diffnb: {option} must be a {name} number{bounds}, got {text!r}\n", (line, option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line, said",
    [
        ("generate", "Missing argument 'MODEL'; `diffnb generate --help` says what there is"),
        ("generate fashion_mnist --n 3", "No such option: --n.*; `diffnb generate --help` says what there is"),
        ("generate fashion_mnist more", "Got unexpected extra argument.*more.*; `diffnb generate --help` says what there is"),
        ("generate fashion_mnist --columns", "Option '--columns' requires an argument; `diffnb .* --help` says what there is"),
        ("demo --overwrite=3", "Option '--overwrite' does not take a value; `diffnb .* --help` says what there is"),
        ("nothing", "No such command 'nothing'.*; `diffnb --help` says what there is"),
        ("trust nothing", "No such command 'nothing'.*; `diffnb trust --help` says what there is"),
        ("train packaged", "--out is needed: a folder for everything that the training leaves"),
    ],
)
def test_a_command_of_the_wrong_form_is_told_where_to_look(capsys, line, said):
    assert app(line.split(), standalone_mode=False) == 2
    assert re.fullmatch(f"diffnb: {said}\n", capsys.readouterr().err)


def test_the_first_and_last_of_these_in_a_shell_of_their_own(tmp_path):
    for line in (WRONG[0], WRONG[-1]):
        code, out, err = diffnb(*line.split(), cwd=tmp_path)
        assert code == 2 and out == "" and err.startswith("diffnb: ") and err.count("\n") == 1


def test_programmers_can_have_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFNB_TRACEBACK", "1")
    code, _, err = diffnb("generate", "nowhere", cwd=tmp_path)
    assert code == 1 and "Traceback" in err and "FileNotFoundError" in err
