"""Where warnings point: at the line outside of the package that called into it, by whatever way."""

import ast
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import diffnb
from diffnb import GenerativeModel
from diffnb.data import image_set
from diffnb.files import ComponentSource, inprocess
from diffnb.metrics import Evaluator, FrechetDistance, FrechetInfinity, InceptionScore, as_extractor, score
from diffnb.noise import VP, Linear

IMAGES = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def flat(images):
    """The first 16 values of an image."""
    return images.flatten(1)[:, :16]


def halves(images):
    """A classifier of two classes."""
    return torch.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], 1)


class Loops(Linear):
    """A schedule that is no program, because it loops for as long as a value says."""

    def beta(self, t):
        """Return the rate."""
        while t.max() > 2:
            t = t / 2
        return super().beta(t)


def folder_with_a_broken_picture(folder):
    """Eight pictures that can be read, and one that cannot."""
    (folder / "set").mkdir(exist_ok=True)
    for k in range(8):
        Image.new("L", (8, 8), 20 * k).save(folder / "set" / f"{k}.png")
    (folder / "set" / "broken.png").write_bytes(b"no picture")
    return folder / "set"


def model():
    """The packaged model."""
    return GenerativeModel.pretrained("fashion_mnist", "cpu", verbose=False)


def score_with_a_cache_that_is_a_file(folder):
    """Features that cannot be kept."""
    (folder / "file").write_text("no folder")
    score(torch.rand(40, 1, 28, 28), torch.rand(600, 1, 28, 28), ["kernel"], cache=folder / "file")


SOURCE = ComponentSource("schedule", "Mine", "Linear", "from diffnb.noise import Linear\n\n\nclass Mine(Linear):\n    pass\n")
CALLS = {  # what is warned of, and the calls of a user
    "16 x 28 is far from 28 x 28": {
        "generate": lambda folder: model().generate(1, n_steps=1, seed=0, size=(16, 28)),
        "generate under another process": lambda folder: model().under("edm").generate(1, n_steps=1, seed=0, size=(16, 28)),
        "a shape": lambda folder: model().trained.shape_of((16, 28)),
    },
    "cannot be read and are skipped: broken.png": {
        "image_set": lambda folder: image_set(folder_with_a_broken_picture(folder), verbose=False),
        "score": lambda folder: score(folder_with_a_broken_picture(folder), IMAGES, ["kernel"], extractor=flat),
    },
    "is mostly bias": {
        "score": lambda folder: score(IMAGES, IMAGES[:10], ["frechet"], extractor=flat),
        "an evaluator": lambda folder: Evaluator(IMAGES, ["frechet"], extractor=flat)(IMAGES[:10]),
        "classes": lambda folder: Evaluator((IMAGES, torch.arange(60) % 2), ["frechet"], extractor=flat).by_class((IMAGES, torch.arange(60) % 2), 20),
    },
    "far above its value for many images": {
        "from images": lambda folder: FrechetDistance(extractor=as_extractor(flat))(IMAGES, IMAGES[:10]),
        "from features": lambda folder: FrechetDistance(extractor=as_extractor(flat)).from_features(flat(IMAGES), flat(IMAGES[:10])),
        "by score": lambda folder: score(IMAGES, IMAGES[:10], [FrechetDistance(extractor=as_extractor(flat))]),
    },
    "no straight line in 1/n": {
        "from images": lambda folder: FrechetInfinity(extractor=as_extractor(flat))(IMAGES, IMAGES),
        "by score": lambda folder: score(IMAGES, IMAGES, ["frechet infinity"], extractor=flat),
    },
    "its classes are not those of Inception": {
        "from images": lambda folder: InceptionScore(as_extractor(halves, probabilities=halves, classes=["a", "b"]), splits=1)(None, IMAGES),
        "from probabilities": lambda folder: InceptionScore(
            as_extractor(halves, probabilities=halves, classes=["a", "b"]), splits=1
        ).from_probabilities(halves(IMAGES)),
    },
    "features of the real images are not kept": {"score": score_with_a_cache_that_is_a_file},
    "is saved as source only": {"save": lambda folder: model().under(VP(Loops())).save(folder / "model.safetensors")},
    "with all the rights of this program": {"inprocess": lambda folder: inprocess(SOURCE, {})},
}


@pytest.mark.parametrize("said, way", [(said, way) for said, ways in CALLS.items() for way in ways])
def test_a_warning_points_at_the_line_that_called(tmp_path, said, way):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CALLS[said][way](tmp_path)
    ours = [one for one in caught if said in str(one.message)]
    assert ours and {one.filename for one in ours} == {__file__}, [(one.filename, str(one.message)) for one in caught]


def test_no_module_counts_calls_by_itself():
    """All warnings of the package go through `warn_caller`."""
    found = set()
    for path in Path(diffnb.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("warnings.warn", "warnings.warn_explicit"):
                found.add((path.name, ast.unparse(node.func)))
    assert found == {("printing.py", "warnings.warn_explicit")}
