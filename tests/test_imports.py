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
    """All wings and their modules, but for those that train; `apps` hands on the names of its two when they are asked for."""
    heavy = {module for module in modules() if wing_of(module) == "training"} | {"diffnb.apps.recipes", "diffnb.apps.runs"}
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


def test_importing_costs_little_more_than_torch():
    # alternating, and the best of several: a busy machine slows all down, now and then
    best = {"import torch": 1e9, "import diffnb; diffnb.GenerativeModel": 1e9}
    for _ in range(2):
        for program in best:
            best[program] = min(best[program], run(program)[1])
    torch, model = best.values()
    assert model <= 1.3 * torch + 0.3, best
    assert run("import diffnb")[1] < 0.3 * torch


@pytest.mark.parametrize("module", ["diffnb.apps.runs", "diffnb.training", "diffnb.model.generative"])
def test_what_commands_import_says_nothing(module):
    """Libraries warn of each other when they are imported; a person who trains cannot do anything about it."""
    assert subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, timeout=300).stderr == ""
