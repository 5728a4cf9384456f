"""What the package needs: everything that it imports is required, and what an extra brings is asked for when it is used."""

import ast
import importlib.metadata
import re
import sys
import types
from configparser import ConfigParser
from pathlib import Path

import pytest

from diffnb.apps import Painter, dashboard
from diffnb.importing import EXTRAS, import_extra
from diffnb.model import GenerativeModel
from diffnb.networks import FrozenText
from diffnb.training import log_callbacks, together

ROOT = Path(__file__).parents[1]
SETTINGS = ConfigParser(delimiters=["="], interpolation=None)
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")


def required(key):
    """Names of the packages that a setting lists."""
    return {re.match(r"[\w\-]+", line)[0].lower() for line in SETTINGS["DEFAULT"][key].split()}


def imported():
    """Every module that the package imports, anywhere in its code, with the file that does it."""
    for path in (ROOT / "diffnb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name, path.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module, path.name


def test_everything_imported_is_a_requirement():
    distributions, core = importlib.metadata.packages_distributions(), required("requirements")
    found = {(module.split(".")[0], file) for module, file in imported()} - {("diffnb", file) for _, file in imported()}
    foreign = {(name, file) for name, file in found if name not in sys.stdlib_module_names}
    assert {name for name, _ in foreign} >= {"torch", "fastai", "PIL", "numpy"}
    missing = {one for one in foreign if not core & {owner.lower() for owner in distributions.get(one[0], ())}}
    assert not missing, f"{missing}: list what brings these in settings.ini, or use diffnb.importing.import_extra"


def test_parts_of_fastai_that_need_more_are_imported_as_extras_only():
    # their own imports do not show in ours
    assert not [one for one in imported() if one[0].startswith(("fastai.distributed", "fastai.callback.tensorboard", "fastai.callback.wandb"))]


def test_extras_bring_what_they_are_named_for():
    for package, extra in EXTRAS.items():
        assert package in required(f"{extra}_requirements") and package not in required("requirements")


def several(folder):
    """Train in two processes."""
    with together(None):
        pass


def exported(folder):
    """Write ONNX, where the packages before the one that is missing are there."""
    GenerativeModel.pretrained("fashion_mnist", verbose=False).export(folder / "model.onnx")


USES = {  # each use of an extra: package, how the error begins, what to call with an empty folder
    "processes": ("accelerate", "training in several processes needs", several),
    "tensorboard": ("tensorboard", "log_to='tensorboard' needs", lambda folder: log_callbacks("tensorboard", folder)),
    "wandb": ("wandb", "log_to='wandb' needs", lambda folder: log_callbacks("wandb", folder)),
    **{package: (package, "an .onnx file needs", lambda folder: exported(folder)) for package in ("onnx", "onnxscript", "onnxruntime")},
    "dashboard": ("voila", "the dashboard needs", lambda folder: dashboard(browser=False)),
    "text encoders": ("transformers", "reading texts by an encoder of Hugging Face needs", lambda folder: FrozenText.load(folder)),
    "mask": ("ipycanvas", "painting a mask needs", lambda folder: Painter()),
}


@pytest.mark.parametrize("package, begins, use", USES.values(), ids=USES)
def test_a_missing_extra_is_named_with_its_command(package, begins, use, monkeypatch, tmp_path):
    for other in EXTRAS:  # whether or not they are here
        if EXTRAS[other] == EXTRAS[package] == "onnx":
            monkeypatch.setitem(sys.modules, other, types.ModuleType(other))
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    for module in [name for name in sys.modules if name in ("fastai.distributed", "fastai.callback.tensorboard", "fastai.callback.wandb")]:
        monkeypatch.delitem(sys.modules, module)
    if use is several:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ImportError) as caught:
        use(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{begins} the package {package}") and said.endswith(f'pip install "diffnb[{EXTRAS[package]}]"')


def test_every_extra_has_a_use_in_the_table():
    assert {package for package, _, _ in USES.values()} == set(EXTRAS)


def test_without_accelerate_one_process_trains_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    monkeypatch.delitem(sys.modules, "fastai.distributed", raising=False)
    learner = object()
    with together(learner) as same:
        assert same is learner


def test_a_broken_module_is_not_taken_for_a_missing_one():
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        import_extra("json.no_such_part", "json", "this test")
