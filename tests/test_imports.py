"""What importing and generating bring along, and what they cost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from wings import WINGS, modules, wing_of  # noqa: E402

HEAVY = ("fastai", "torchvision", "scipy", "matplotlib", "ipywidgets", "PIL")


def run(program):
    """Run a program in a fresh interpreter; what it printed, and how many seconds it computed, which depends less than its end on what else runs."""
    before = os.times()
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    after = os.times()
    return said.strip(), after.children_user + after.children_system - before.children_user - before.children_system


def test_generating_needs_torch_and_little_else():
    program = f"""
import sys, diffnb
model = diffnb.GenerativeModel.pretrained("fashion_mnist")
model.generate(2, n_steps=2, seed=0, class_labels="bag", guidance_scale=2.0)
model.under("vp").generate(1, n_steps=2)
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert run(program)[0].splitlines()[-1] == "[]"


def test_every_module_for_generating_is_light():
    """All wings and their modules, but for those that train; `apps` hands on the names of three when they are asked for."""
    heavy = {module for module in modules() if wing_of(module) == "training"} | {"diffnb.apps.recipes", "diffnb.apps.runs"}
    heavy |= {"diffnb.apps.tutorial_figures", "diffnb.apps.visualization"}  # draw
    names = [f"diffnb.{wing}" for wing in WINGS if wing != "training"] + sorted(modules().keys() - heavy)
    program = f"""
import sys, importlib
for name in {names}:
    importlib.import_module(name)
    found = [one for one in {HEAVY} if one in sys.modules]
    if found:
        sys.exit(print(name, found))
"""
    assert len(names) > 50 and run(program)[0] == ""


@pytest.fixture(scope="module")
def seconds_of_torch():
    """What torch costs: the best of several, for a busy machine slows all down, now and then."""
    return min(run("import torch")[1] for _ in range(2))


def test_importing_costs_little_more_than_torch(seconds_of_torch):
    model = min(run("import diffnb; diffnb.GenerativeModel")[1] for _ in range(2))
    assert model <= 1.3 * seconds_of_torch + 0.3, (model, seconds_of_torch)
    assert run("import diffnb")[1] < 0.3 * seconds_of_torch


RESTORING = {
    "impute": "one.png --model fashion_mnist",
    "colorize": "grey.png --model cifar10 --steps 3",
    "upscale": "small.png --model fashion_mnist --factor 2 --steps 3",
    "denoise": "grey.png --model cifar10 --noise 0.1 --steps 3",
    "edit": "grey.png --model cifar10 --steps 3",
    "generate": "fashion_mnist --num 1 --steps 3",
    "inspect": "fashion_mnist",
}


def test_a_picture_costs_little_more_than_torch(seconds_of_torch, tmp_path):
    """What a person waits for when one picture is restored, calibration and all: no library that only training needs."""
    from PIL import Image

    Image.new("LA", (28, 28), (99, 0)).save(tmp_path / "one.png")
    Image.new("RGB", (32, 32), (99, 99, 99)).save(tmp_path / "grey.png")
    Image.new("L", (14, 14), 99).save(tmp_path / "small.png")
    unneeded = ("torchvision", "fastai", "scipy", "matplotlib", "sympy", "torch._dynamo")
    program = """
import sys, os
os.chdir(sys.argv.pop())
from diffnb.apps.commands import app
for command, line in {}.items():
    out = [] if command == "inspect" else ["--out", command]
    assert app([command, *line.split(), *out], standalone_mode=False) in (None, 0), command
    print([name for name in {} if name in sys.modules])
""".replace("sys.argv.pop()", repr(str(tmp_path)))
    said, _ = run(program.format(RESTORING, unneeded))
    assert [line for line in said.splitlines() if line.startswith("[")] == ["[]"] * len(RESTORING), said
    one = program.format({"impute": RESTORING["impute"] + " --overwrite"}, unneeded)
    whole = min(run(one)[1] for _ in range(2))
    assert whole <= 3 * seconds_of_torch, (whole, seconds_of_torch)  # 1.9 times as a rule; with torchvision 3.5 times


def test_what_commands_import_says_nothing():
    """Libraries warn of each other when they are imported; a person who trains cannot do anything about it."""
    program = "import diffnb.model.generative, diffnb.training, diffnb.apps.runs"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300).stderr == ""
