"""The Python of the README runs: every block, from the first to the last, in one session, as a reader who copies them would run them.

Pictures are a folder of small ones, what trains takes one step, and models of one step draw few pictures in five steps. Nothing is downloaded.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHORTER = {
    "time_limit=3600": "steps=1, batch_size=4",
    "steps=3)": "steps=1, batch_size=4)",
    "num_samples=16, seed=0": "num_samples=2, n_steps=5, seed=0",
    "variants=4, seed=0": "variants=4, seed=0, n_steps=5",
    "compact.generate(2, seed=0": "compact.generate(2, seed=0, n_steps=5",
    "GenerativeModel(diffusion=": 'GenerativeModel(network="tiny", verbose=False, diffusion=',
}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with what the README calls `path/to/images`."""
    folder = tmp_path / "path" / "to" / "images"
    folder.mkdir(parents=True)
    noise = torch.Generator().manual_seed(0)
    for k in range(12):
        Image.fromarray((torch.rand(40, 36, 3, generator=noise) * 255).byte().numpy()).save(folder / f"{k}.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_every_block_runs(pictures, capsys):
    """In order, each with the names of those before it."""
    blocks = FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    whole = "\n".join(blocks)
    assert len(blocks) > 8 and all(old in whole for old in SHORTER) and str(Path("path/to/images")) in whole
    names = {"__name__": "readme"}
    for number, block in enumerate(blocks, 1):
        for old, new in SHORTER.items():
            block = block.replace(old, new)
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    assert Path("mine.safetensors").is_file() and Path("fast.safetensors").is_file()
    assert bool((names["filled"] == names["images"])[..., names["mask"] == 0].all())
    mean, std = map(float, re.findall(r"(?:mean|deviation) (-?[\d.]+)", capsys.readouterr().out)[-2:])
    assert abs(mean - 0.4) < 0.02 and abs(std - 0.3) < 0.02


def test_the_index_has_no_other_block():
    """What is tested above is also what the first page of the site shows."""
    cells = json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = [block for cell in cells if cell["cell_type"] == "markdown" for block in FENCE.findall("".join(cell["source"]))]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert shown and all(block in readme for block in shown)
