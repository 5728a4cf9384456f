"""What importing and generating bring along, and what they cost."""

import subprocess
import sys
import time

HEAVY = ("fastai", "torchvision", "scipy", "matplotlib", "ipywidgets", "PIL")


def run(program):
    """Run a program in a fresh interpreter; what it printed, and how long it took."""
    start = time.perf_counter()
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    return said.strip(), time.perf_counter() - start


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
    program = f"""
import sys, importlib
for name in "core schedules sdes parametrizations denoisers oracles sampling ode_samplers sde_samplers samplers guidance".split():
    importlib.import_module("diffnb." + name)
for name in "multistep adaptive gaussian_exact grid_search discrete thresholding processes shards restoration".split():
    importlib.import_module("diffnb." + name)
for name in "likelihood networks data serialization model cli".split():
    importlib.import_module("diffnb." + name)
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert run(program)[0] == "[]"


def test_importing_costs_little_more_than_torch():
    # alternating, and the best of several: a busy machine slows both down, now and then
    best = {"import torch": 1e9, "import diffnb": 1e9, "import diffnb; diffnb.GenerativeModel": 1e9}
    for _ in range(3):
        for program in best:
            best[program] = min(best[program], run(program)[1])
    torch, diffnb, model = best.values()
    assert diffnb <= 1.3 * torch + 0.3, best
    assert model <= 1.3 * torch + 0.3, best
