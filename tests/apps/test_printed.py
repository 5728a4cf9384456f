"""What a command prints: results on the output, all the rest on the error stream, help with examples, one sentence for an error."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys

import pytest
import typer
from PIL import Image

from diffnb.apps import EXAMPLES, app
from diffnb.model import GenerativeModel, Trained
from diffnb.networks import UNet
from diffnb.noise import EDM, Karras

PROGRAM = typer.main.get_command(app)
LEAVES = {name: command for name, command in PROGRAM.commands.items() if name != "trust"}
LEAVES |= {f"trust {name}": command for name, command in PROGRAM.commands["trust"].commands.items()}
RUNS = {  # each in a second or a few; what they write goes into a folder "out"
    "draw": "draw heart --num 1 --steps 1 --out out/heart.png",
    "generate": "generate fashion_mnist --num 2 --steps 2 --out out",
    "generate files": "generate fashion_mnist --num 2 --steps 2 --files --out out",
    "generate shards": "generate fashion_mnist --num 2 --steps 2 --shards --out out",
    "train": "train photos --size 8 --network tiny --epochs 2 --out out",
    "train of latents": "train photos --size 8 --network tiny --epochs 2 --codec pca:3 --out out",
    "distill": "distill fashion_mnist packaged --limit 20 --batch-size 4 --steps 1 --out out/student.safetensors",
    "export": "export small.safetensors out/model.pt2 --overwrite",
    "score": "score photos photos --metrics kernel",
    "score of a model": "score photos fashion_mnist --num 8 --steps 1 --metrics kernel,prdc",
    "score by class": "score classes classes --metrics kernel --by-class",
    "colorize": "colorize grey.png --steps 1 --method ddnm --resize --out out",
    "impute": "impute hole.png --model fashion_mnist --steps 1 --method replacement --out out",
    "upscale": "upscale grey.png --model fashion_mnist --factor 2 --resize --steps 1 --method ddnm --out out",
    "denoise": "denoise photos --model fashion_mnist --noise 0.1 --steps 1 --method ddnm --out out",
    "edit": "edit grey.png --model fashion_mnist --steps 2 --out out",
    "compare": "compare comparison.json --out out",
    "compare by a plan": "compare comparison.json --out out --dry-run",
    "translate": "translate pairs.safetensors grey.png --steps 1 --out out",
    "inspect": "inspect fashion_mnist",
    "trust list": "trust list",
    "demo": "demo --train-seconds 1 --rows 1 --out out",
}
WITHOUT = {"weights", "trust add", "trust revoke", "dashboard"}  # these need the internet, a person, or a browser


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with pictures."""
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "classes/a", "classes/b"):
        os.makedirs(folder)
        for i in range(12):
            Image.effect_noise((28, 28), 20 + 9 * i).save(f"{folder}/{i}.png")
    Image.new("L", (28, 28), 99).save("grey.png")
    Image.new("LA", (28, 28), (99, 0)).save("hole.png")
    network = {"widths": [4], "blocks": 1, "attention_levels": [], "groups": 2, "unshuffle": 4}
    facts = {"data": "packaged", "limit": 60, "networks": [network], "processes": "ve", "samplers": "ddim", "metrics": "kernel", "seeds": 1}
    with open("comparison.json", "w", encoding="utf-8") as file:
        json.dump(facts | {"steps": 1, "images": 8, "train_steps": 1, "batch_size": 8}, file)
    small = UNet(1, widths=(4,), blocks=1, attention_levels=(), groups=2)
    GenerativeModel.of(Trained(small, EDM(), Karras(), (1, 8, 8)), device="cpu", verbose=False).save("small.safetensors")
    pairs = UNet(1, widths=(4,), blocks=1, attention_levels=(), groups=2, image_channels=1)
    GenerativeModel.of(Trained(pairs, EDM(), Karras(), (1, 28, 28)), device="cpu", verbose=False).save("pairs.safetensors")
    return tmp_path


class Screen(io.StringIO):
    def isatty(self):
        return True


def refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def test_every_command_is_tried():
    assert {name.split(" of ")[0].split(" by ")[0].removesuffix(" files").removesuffix(" shards") for name in RUNS} | WITHOUT == set(LEAVES)


@pytest.mark.parametrize("name", LEAVES)
def test_help_has_examples_that_a_shell_reads(diffnb, name):
    code, out, err = diffnb(*name.split(), "--help")
    assert (code, err) == (0, "") and diffnb(*name.split(), "-h") == (code, out, err)
    assert set(EXAMPLES) == set(LEAVES)
    for example in EXAMPLES[name]:
        assert f"  diffnb {example}\n" in out
        words = shlex.split(example)[len(name.split()) :]
        words = [word for word in words if not word.endswith(".json")] + ["-"] * (words[-1:] == ["--json"])
        words = words[: words.index("--json") + 1] + ["-"] if "--json" in words else words
        with contextlib.suppress(typer.Exit):  # of an option that does all there is to do
            LEAVES[name].make_context(name, words)  # raises at what is unknown or missing


# the demo is shown to print as little, once, where its pictures are looked at; each export traces the network for as long as all others take
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in ("demo", "export") else name for name in RUNS])
def test_results_are_on_the_output_and_nothing_else(diffnb, no_pictures, name):
    code, out, err = diffnb(*RUNS[name].split(), "--json", "told.json")
    assert code == 0 and out and "\r" not in out + err and "\x1b" not in out + err, err
    assert "it/s" not in out and "%|" not in out + err  # no bar where nobody watches
    told = json.loads(open("told.json", encoding="utf-8").read(), parse_constant=refuse)
    code, again, err = diffnb(*RUNS[name].replace("--out out", "--out out2").split(), "--json")
    assert code == 0, err
    same = json.loads(again, parse_constant=refuse)
    assert isinstance(told, dict) and told.keys() == same.keys()


@pytest.mark.parametrize("name", ["generate", "generate shards", "train", "impute", "denoise", pytest.param("demo", marks=pytest.mark.slow)])
def test_a_person_who_watches_sees_a_bar(diffnb, monkeypatch, no_pictures, capsys, name):
    from diffnb.apps import main

    screen = Screen()
    monkeypatch.setattr(sys, "argv", ["diffnb", *RUNS[name].split()])
    monkeypatch.setattr(sys, "stderr", screen)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "%|" in screen.getvalue() and "%|" not in capsys.readouterr().out


UNKNOWN = [
    "paint photos",
    "generates fashion_mnist",
    "generate fashion_mist --out out/deep",
    "generate nowhere.safetensors --out out",
    "generate fashion_mnist --labels hat --out out/deep",
    "generate fashion_mnist --sampler best --out out",
    "generate fashion_mnist --diffusion best --out out",
    "generate fashion_mnist --precision best --steps 1 --num 1 --out out",
    "generate fashion_mnist --device best --out out",
    "generate fashion_mnist --colour red --out out",
    "generate fashion_mnist --steps 1 --num 1 --labels bag,hat --out out/deep",
    "train nowhere --out out",
    "train photos --recipe nothing --out out",
    "train photos --network huge --size 8 --out out",
    "train photos --diffusion best --size 8 --out out",
    "train photos --sampler best --size 8 --out out",
    "train photos --parametrization best --size 8 --out out",
    "train photos --metric best --size 8 --out out",
    "train photos --log-to best --size 8 --out out",
    "train photos --device best --size 8 --out out",
    "train photos --precision best --size 8 --out out",
    "train classes --classes c --size 8 --out out",
    "train photos --rate best --size 8 --out out",
    "train photos --times best --size 8 --out out",
    "train photos --weight best --size 8 --out out",
    "train --resume nowhere",
    "train --resume photos",
    "score nowhere photos",
    "score photos nowhere",
    "score photos fashion_mist",
    "score photos photos --metrics best",
    "score photos photos --extractor best",
    "score photos photos --split test",
    "score photos fashion_mnist --split-generated best",
    "colorize nowhere.png --out out",
    "colorize grey.png --model best --out out",
    "colorize grey.png --resize --method best --out out",
    "colorize grey.png --resize --labels hat --out out",
    "colorize grey.png --resize --format best --out out",
    "impute grey.png --mask nowhere.png --model fashion_mnist --out out",
    "upscale grey.png --factor 2 --resize --kind best --out out",
    "denoise grey.png --noise much --out out",
    "edit grey.png --from-labels hat --model fashion_mnist --out out",
    "edit --model fashion_mnist --out out",
    "compare nowhere.toml --out out",
    "compare grey.png --out out",
    "compare comparison.json --only colour=red --out out",
    "compare comparison.json --only sampler --out out",
    "compare comparison.json --cell best --out out",
    "compare comparison.json --dry-run --print-jobs --out out",
    "translate fashion_mnist grey.png --out out",
    "translate nowhere grey.png --out out",
    "translate pairs.safetensors nowhere.png --out out",
    "train photos --condition best --size 8 --out out",
    "train photos --condition grey --size 8 --out out",
    "train photos --condition image --size 8 --out out",
    "train photos --codec best --size 8 --out out",
    "train photos --codec pca:many --size 8 --out out",
    "train photos --codec classes --size 8 --out out",
    "train photos --codec small.safetensors --size 8 --out out",
    "train photos --codec grey.png --size 8 --out out",
    "inspect nowhere",
    "inspect photos",
    "trust add nowhere",
    "trust add fashion_mnist --mode best",
    "trust revoke best",
    "trust best",
    "demo --device best --out out/deep",
    "demo --rows best --out out",
    "generate fashion_mnist --json nowhere/told.json --out out",
    "generate fashion_mnist --json photos/.json/a.json --out out",
]


@pytest.mark.parametrize("line", UNKNOWN)
def test_an_unknown_name_is_one_sentence_and_leaves_nothing(diffnb, line):
    before = sorted(os.listdir())
    code, out, err = diffnb(*line.split())
    assert code == 2 and out == "" and err.startswith("diffnb: ") and err.count("\n") == 1, err
    assert sorted(os.listdir()) == before
    assert len(err) < 500 and err[8:].strip(), err


AT_ONCE = [  # what the arguments alone tell: a file that is not there, one that is, a number out of its range, options that exclude each other
    'draw "a square" --style pixar',
    "draw heart --num 0",
    "draw heart --out grey.png",
    "generate nowhere.safetensors",
    "generate fashion_mnist --size large",
    "generate fashion_mnist --steps 0",
    "generate fashion_mnist --out grey.png",
    "generate fashion_mnist --out grey.png --shards",
    "generate fashion_mnist --labels a,b --num 1",
    "train photos/none --out out",
    "train photos",
    "train --out out",
    "train photos --out grey.png",
    "train photos --out out --size large",
    "train photos --out out --condition sketches/none",
    "train --resume photos",
    "train --resume photos --out elsewhere",
    "train photos --out done",
    "distill fashion_mnist photos/none --out out.safetensors",
    "distill nowhere.safetensors photos --out out.safetensors",
    "distill fashion_mnist photos --out photos",
    "distill fashion_mnist photos --out student.png",
    "distill fashion_mnist photos --out out.safetensors --condition sketches/none",
    "export nowhere.safetensors model.onnx",
    "export fashion_mnist small.safetensors",
    "score photos/none photos",
    "score photos photos/none",
    "score photos photos --size large",
    "compare nowhere.toml --out out",
    "compare comparison.json --out out --dry-run --print-jobs",
    "colorize nowhere.png",
    "colorize grey.png --model nowhere.safetensors",
    "colorize grey.png --hints nowhere.png",
    "colorize grey.png --format best",
    "colorize grey.png photos --out one.png",
    "impute grey.png --mask nowhere.png",
    "denoise grey.png --noise 2",
    "edit grey.png --strength -1",
    "translate pairs.safetensors nowhere.png",
    "translate nowhere.safetensors grey.png",
    "inspect nowhere.safetensors",
    "trust add nowhere.safetensors",
    "demo --rows 0",
]
PROGRAM_OF_LINES = """
import io, json, shlex, sys
from diffnb.apps.commands import app
told = []
for line in json.loads(sys.stdin.read()):
    sys.stderr = io.StringIO()
    told.append([app(shlex.split(line), standalone_mode=False), sys.stderr.getvalue(), "torch" in sys.modules])
print(json.dumps(told))
"""


def test_what_the_arguments_alone_tell_is_told_without_torch(place):
    """In one interpreter, which would have it from the first line on that brings it."""
    os.mkdir("done")
    open("done/model.safetensors", "w").close()
    done = subprocess.run([sys.executable, "-c", PROGRAM_OF_LINES], input=json.dumps(AT_ONCE), capture_output=True, text=True, check=True)
    for line, (code, said, has_torch) in zip(AT_ONCE, json.loads(done.stdout), strict=True):
        assert code == 2 and said.startswith("diffnb: ") and said.count("\n") == 1 and not has_torch, (line, said)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("demo", "compare by a plan")])
def test_every_command_that_computes_chooses_its_threads_first(diffnb, monkeypatch, no_pictures, name):
    class Chosen(Exception):
        """Nothing more is needed."""

    def choose(threads):
        raise Chosen(threads)

    monkeypatch.setattr("diffnb.apps.shell.set_threads", choose)
    computes = any(
        option.name == "threads" for option in LEAVES[name.split(" of ")[0].split(" by ")[0].removesuffix(" files").removesuffix(" shards")].params
    )
    if not computes:
        return
    with pytest.raises(Chosen) as told:
        PROGRAM.main([*RUNS[name].split(), "--threads", "3"], standalone_mode=False)
    assert told.value.args == (3,)


def test_a_network_that_takes_no_captions_is_told_of(capsys, no_pictures):
    from diffnb.apps import Recipe, begin_run

    with open("photos/captions.csv", "w", encoding="utf-8") as file:
        file.write("image,caption,age\n" + "".join(f"{k}.png,a,{k}\n" for k in range(12)))
    network = {"widths": (4,), "blocks": 1, "attention_levels": (), "groups": 2}
    begin_run(Recipe("photos", network=network, size=8, steps=1), "out", device="cpu")
    assert "the captions and attributes of the images are not used: the network of this recipe takes none" in capsys.readouterr().err


def test_an_unknown_style_is_told_as_a_style(diffnb):
    code, _, err = diffnb("draw", "a square", "--style", "pixar")
    assert (code, err) == (2, "diffnb: unknown style 'pixar'; the styles of the packaged model emoji are noto, blob, fluent, flat\n")
    code, _, err = diffnb("draw", "a square", "--style", "Noto", "--num", 1, "--steps", 1, "--out", "a.png")
    assert code == 0, err


def test_the_example_of_a_comparison_is_a_comparison(diffnb):
    from diffnb.apps import Comparison

    code, out, err = diffnb("compare", "--example")
    assert (code, err) == (0, "")
    with open("example.toml", "w", encoding="utf-8") as file:
        file.write(out)
    if sys.version_info >= (3, 11):
        assert Comparison.of("example.toml") == Comparison("packaged")
    told = " ".join(diffnb("compare", "--help")[1].split())
    assert all(f" {name}" in told for name in Comparison.__dataclass_fields__)


def test_a_plan_is_a_summary_and_jobs_are_the_list(diffnb):
    code, out, err = diffnb("compare", "comparison.json", "--out", "out", "--dry-run")
    head, row, last = out.splitlines()
    assert code == 0 and head.split() == ["data", "task", "cells", "finished", "missing"] and row.split() == ["packaged", "generation", "1", "0", "1"]
    assert last.startswith("1 of 1 cell to do, and 1 model to train: about ") and last.endswith("--print-jobs lists the cells"), last
    code, out, err = diffnb("compare", "comparison.json", "--out", "out", "--print-jobs")
    (line,) = out.splitlines()
    job, _, settings = line.partition("  # ")
    assert code == 0 and job.startswith("diffnb compare comparison.json --out out --cell ") and "process=ve" in settings and "seed=0" in settings
    assert shlex.split(line, comments=True) == shlex.split(job)


def test_a_training_that_was_stopped_by_its_steps_says_how_it_goes_on(diffnb, no_pictures):
    code, out, err = diffnb(*"train photos --size 8 --network tiny --steps 3 --out out".split())
    assert code == 0 and "3 steps (1 step an epoch)" in err and "go on by: diffnb train --resume out --steps N, for N in all" in out
    code, out, err = diffnb(*"train --resume out --steps 11".split())
    assert code == 0 and "8 more steps, 11 in all (1 step an epoch" in err, err


def test_pairs_are_learned_and_answered_through_a_codec(diffnb, no_pictures):
    code, out, err = diffnb(*"train photos --size 8 --network tiny --steps 2 --codec pca:3 --condition small:2 --out out".split())
    assert code == 0 and "go on by: diffnb train --resume out" in out, err
    assert GenerativeModel.load("out/model.safetensors", "cpu", verbose=False).trained.second_shape == (1, 4, 4)
    code, out, err = diffnb(*"translate out grey.png --resize --variants 2 --steps 1 --seed 1 --out answers".split())
    assert code == 0 and "1 of 1 pictures" in out and len(os.listdir("answers")) == 2, err
    code, out, err = diffnb(*"translate out grey.png --steps 1 --out answers".split())
    assert code == 2 and "trained on second images of 4 x 4" in err


@pytest.mark.parametrize("options", ["--codec pca:17", "--codec wavelet:4", "--codec wavelet:4 --condition small:2"])
def test_a_codec_that_does_not_suit_the_images_is_one_sentence_and_leaves_nothing(diffnb, options):
    """It shows when the images have been read, which is told first."""
    before = sorted(os.listdir())
    code, out, err = diffnb(*f"train photos --size 8 {options} --out out".split())
    assert code == 2 and out == "" and err.startswith("photos: 12 images") and err.count("\n") == 2, err
    assert err.splitlines()[1].startswith("diffnb: ") and "codec=" not in err and sorted(os.listdir()) == before


NAMES = ["größe", "写真", "фото", "a\u202eb", "\udcff", "naïve pictures 🎉"]


# a byte that is no text, one that turns the line around, and one beyond 16 bits by a space; three more of plain letters where there is time
@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name.isalpha() else name for name in NAMES], ids=ascii)
def test_a_path_that_the_locale_cannot_print_is_no_error(monkeypatch, no_pictures, name):
    from diffnb.apps import main

    os.rename("photos", name)
    for line in (
        "generate fashion_mnist --num 1 --steps 1 --out {}-one/{}.png",
        "impute hole.png --model fashion_mnist --method replacement --steps 1 --out {}-filled",
        "score {0} {0} --metrics kernel",
        "inspect {}/none",
        "train {} --size 8 --network tiny --epochs 1 --out {}-run",
        "denoise {} --noise 0.1 --model fashion_mnist --steps 1 --method ddnm --out {}-out",
    ):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=how) for how in ("strict", "backslashreplace")]
        monkeypatch.setattr(sys, "argv", ["diffnb", *(word.replace("{0}", name).replace("{}", name) for word in line.split())])
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as stop:
            main()
        said = [stream.flush() or stream.buffer.getvalue().decode("ascii") for stream in streams]
        assert stop.value.code == (2 if "inspect" in line else 0), said
        assert ascii(name)[1:-1].replace("\\\\", "\\").split()[0] in said[0] + said[1]
