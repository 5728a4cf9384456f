"""What importing and generating bring along, and what they cost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from wings import WINGS, modules, wing_of  # noqa: E402

HEAVY = ("fastai", "torchvision", "scipy", "matplotlib", "ipywidgets", "PIL")


def run(program):
    """Run a program in a fresh interpreter; the JSON that it printed last. What is measured is measured in one, for a busy machine slows all down."""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return json.loads(said.splitlines()[-1])


@pytest.fixture(scope="module")
def light():
    """One program that imports and generates: seconds of computing after each import, and what is there that is not needed, after each part."""
    heavy = {module for module in modules() if wing_of(module) == "training"} | {"diffnb.apps.recipes", "diffnb.apps.runs"}
    drawing = ("tutorial_figures", "visualization", "studio", "rating", "workshop", "dashboard_parts", "dashboard_pages", "workshop_pages")
    heavy |= {f"diffnb.apps.{name}" for name in drawing}
    names = [f"diffnb.{wing}" for wing in WINGS if wing != "training"] + sorted(modules().keys() - heavy)
    assert len(names) > 50
    return run(f"""
import importlib, json, sys, time
seconds, found = [time.process_time()], {{}}
def look(part):
    found[part] = [name for name in {HEAVY} if name in sys.modules]
import diffnb; seconds.append(time.process_time())
import torch; seconds.append(time.process_time())
diffnb.GenerativeModel; seconds.append(time.process_time())
model = diffnb.GenerativeModel.pretrained("fashion_mnist", verbose=False)
model.generate(2, n_steps=2, seed=0, class_labels="bag", guidance_scale=2.0)
model.under("vp").generate(1, n_steps=2)
look("generating")
from diffnb.data.loaders import image_set
image_set("packaged", size=16, verbose=False)
look("reading")
for name in {names}:
    importlib.import_module(name)
    look(name)
print(json.dumps([seconds, found]))
""")


def test_generating_needs_torch_and_little_else(light):
    assert light[1]["generating"] == []


def test_reading_is_light(light):
    assert light[1]["reading"] == []


def test_every_module_for_generating_is_light(light):
    """All wings and their modules, but for those that train; `apps` hands on the names of three when they are asked for."""
    assert {name: found for name, found in light[1].items() if found} == {}


def test_importing_costs_little_more_than_torch(light):
    package, torch, model = (after - before for before, after in zip(light[0], light[0][1:]))
    assert package + model <= 0.3 * torch + 0.3 and package < 0.3 * torch, (package, model, torch)


RESTORING = {
    "impute": "one.png --model fashion_mnist",
    "colorize": "grey.png --model cifar10 --steps 3",
    "upscale": "small.png --model fashion_mnist --factor 2 --steps 3",
    "denoise": "grey.png --model cifar10 --noise 0.1 --steps 3",
    "edit": "grey.png --model cifar10 --steps 3",
    "generate": "fashion_mnist --num 1 --steps 3",
    "inspect": "fashion_mnist",
}


def test_a_picture_costs_little_more_than_torch(tmp_path):
    """What a person waits for when one picture is restored, calibration and all: no library that only training needs."""
    from PIL import Image

    Image.new("LA", (28, 28), (99, 0)).save(tmp_path / "one.png")
    Image.new("RGB", (32, 32), (99, 99, 99)).save(tmp_path / "grey.png")
    Image.new("L", (14, 14), 99).save(tmp_path / "small.png")
    unneeded = ("torchvision", "fastai", "scipy", "matplotlib", "sympy", "torch._dynamo")
    seconds, found = run(f"""
import json, os, sys, time
import torch
os.chdir({str(tmp_path)!r})
seconds, found = [time.process_time()], {{}}
from diffnb.apps.commands import app
for command, line in {RESTORING}.items():
    out = [] if command == "inspect" else ["--out", command]
    assert app([command, *line.split(), *out], standalone_mode=False) in (None, 0), command
    seconds.append(time.process_time())
    found[command] = [name for name in {unneeded} if name in sys.modules]
print(json.dumps([seconds, found]))
""")
    assert found == dict.fromkeys(RESTORING, [])
    torch, impute = seconds[:2]
    assert impute <= 3 * torch, (impute, torch)  # 1.9 times as a rule; with torchvision 3.5 times


def test_what_commands_import_says_nothing():
    """Libraries warn of each other when they are imported; a person who trains cannot do anything about it."""
    program = "import diffnb.model.generative, diffnb.training, diffnb.apps.runs"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300).stderr == ""
