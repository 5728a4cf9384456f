"""A page that draws: its random numbers and samplers are those of Python, its folder is whole and asks nobody, and a browser draws with it."""

import base64
import gzip
import json
import math
import os
import shutil
import subprocess
import urllib.error
from pathlib import Path

import pytest
import torch

from diffnb.apps import RUNTIME, runtime_files, write_page
from diffnb.core import STREAMS, NoiseSource
from diffnb.denoise import Gaussian
from diffnb.model import GenerativeModel, Labels, Trained
from diffnb.networks import UNet
from diffnb.noise import EDM, VP, Discrete, Karras
from diffnb.samplers import DDIM, Consistency, ConsistencyFunction, DPMSolverPP2M, GaussianConsistency

PAGE = Path(__file__).parents[2] / "diffnb" / "assets" / "page"


def node(program):
    """What a program in JavaScript, which knows `Noise` and `Sampling`, gives back as JSON."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    read = "".join(f"const {name} = require({json.dumps(str(PAGE / file))});" for name, file in (("Noise", "noise.js"), ("Sampling", "sampling.js")))
    told = f"{read}(async () => console.log(JSON.stringify(await (async () => {{ {program} }})())))()"
    done = subprocess.run(["node", "-e", told], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


KNOWN = {  # of Philox4x32-10, from the file kat_vectors of Random123: counter, key, answer
    "zeros": ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    "ones": ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    "pi": ([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0], "d16cfe09 94fdcceb 5001e420 24126ea1"),
}


@pytest.mark.parametrize("counter, key, answer", KNOWN.values(), ids=KNOWN)
def test_philox_gives_its_published_answers(counter, key, answer):
    assert node(f"return Noise.philox({counter}, {key})") == [int(word, 16) for word in answer.split()]


@pytest.mark.parametrize("seed, index, stream, draw, size", [(0, 0, "prior", 0, 784), (1, 3, "step", 2, 5), (2**64 - 1, 9, "churn", 70000, 3)])
def test_the_random_numbers_are_those_of_python(seed, index, stream, draw, size):
    numbers = node(f"return Array.from(Noise.normal({seed}n, {index}, {stream!r}, {draw}, {size}))")
    expected = NoiseSource([seed], [index]).normal((size,), stream, draw)[0]
    assert (torch.tensor(numbers) - expected).abs().max() < 1e-6
    assert list(STREAMS) == node(f"return {list(STREAMS)!r}") and stream in (PAGE / "noise.js").read_text()


RUNS = {  # sampler: Python's, and what it asks
    "ddim": (DDIM(), lambda sde: Gaussian(torch.full((6,), 0.4), 0.09 * torch.eye(6)).denoiser(sde)),
    "dpm-solver++2m": (DPMSolverPP2M(), lambda sde: Gaussian(torch.full((6,), 0.4), 0.09 * torch.eye(6)).denoiser(sde)),
    "consistency": (Consistency(), lambda sde: ConsistencyFunction(GaussianConsistency(sde))),
}
MEAN = "y.map((v) => 0.4 + (0.09 / (0.09 + k ** 2)) * (v - 0.4))"  # of the clean value, and the end of the flow
END = "y.map((v) => 0.4 + Math.sqrt((0.09 + last ** 2) / (0.09 + k ** 2)) * (v - 0.4))"


@pytest.mark.parametrize("process", [EDM(), VP(), Discrete.linear(50)], ids=["EDM", "VP", "Discrete"])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("name, grid", [*((name, None) for name in RUNS), ("ddim", "open-karras"), ("dpm-solver++2m", "open-karras")])
def test_a_sampler_takes_the_steps_of_pythons_for_any_process(name, grid, n, process):
    sampler, exact = RUNS[name]
    times = sampler.grid(process, n, grid=grid)
    levels = process.half_log_snr(times).tolist()
    last = math.exp(-process.half_log_snr(torch.tensor(process.t_min, dtype=torch.float64)).item())
    answer = END if name == "consistency" else MEAN
    got = node(f"""
        const levels = {levels}, last = {last}, seen = [];
        const ask = async (y, lambda) => {{ const k = Math.exp(-lambda); return {answer}; }};
        const normal = (stream, draw) => Noise.normal(11n, 0, stream, draw, 6);
        for await (const s of Sampling.sample(ask, levels, {{sampler: {name!r}, steps: {n}, normal}})) seen.push(Array.from(s.x0));
        return seen;
    """)
    seen = []
    run = sampler(exact(process), shape=(1, 6), n_steps=n, grid=grid, seeds=11, callback=lambda step, of, x0: seen.append(x0[0].clone()))
    if len(times) > n and name != "consistency":  # the image is x as it stands at the last level, without its alpha
        seen[-1] = (run.x[0] / process.alpha(times[-1])).float()
    assert len(got) == n and (torch.tensor(got) - torch.stack(seen)).abs().max() < 1e-4


def small(names=("bag", "coat"), records=()):
    torch.manual_seed(0)
    network = UNet(1, widths=(8,), blocks=1, attention_levels=(), num_classes=len(names), groups=4, zero_init=False)
    trained = Trained(network, EDM(), Karras(), (1, 8, 8), Labels(tuple(range(len(names))), tuple(names)), records)
    return GenerativeModel.of(trained, sampler="consistency" if records else "dpm-solver++2m", device="cpu", verbose=False)


@pytest.fixture
def without_onnx(monkeypatch):
    """Neither an exporter nor the npm registry."""
    from diffnb.model import Exported, card_of, graph_of

    def export(self, path, **settings):
        path.write_bytes(b"a network")
        graph, shape = graph_of(self)
        return Exported(path, 9, 0.0, card_of(self, graph, shape, settings["weights"], settings["licence"]))

    monkeypatch.setattr(GenerativeModel, "export", export)
    monkeypatch.setattr("diffnb.apps.web_page.runtime_files", lambda folder: {part: part.encode() for part in RUNTIME})


def test_the_folder_is_whole_and_asks_nobody(without_onnx, tmp_path):
    hostile = "</script><img src=x onerror=alert(1)>"
    page = write_page(small((hostile, "coat")), tmp_path / "page", licence="MIT")
    files = {path.name: path.read_text() for path in page.folder.iterdir()}
    assert {name: len(text) for name, text in files.items()} == page.sizes
    assert set(files) == {"index.html", "page.js", "noise.js", "sampling.js", "card.js", "model.js", *(f"{part}.js" for part in RUNTIME)}
    assert not [name for name, text in files.items() if "http" in text or "//" in text.replace("// ", "").replace("*/", "")]
    packed = files["model.js"].split('"')[1]
    assert gzip.decompress(base64.b64decode(packed)) == b"a network"
    card = json.loads(files["card.js"].removeprefix("window.DIFFNB = ").removesuffix(";\n"))["card"]
    few = DPMSolverPP2M.few_steps  # up to so many steps its grid is open, and has a level more
    lengths = {"ddim": [*range(1, 51)], "dpm-solver++2m": [*range(2, few + 2), *range(few + 1, 51)]}
    assert {name: [len(row) for row in rows] for name, rows in card["levels"].items()} == lengths
    assert card["names"] == [hostile, "coat"] and "MIT" in card["foot"] and [n for n, text in files.items() if hostile in text] == ["card.js"]
    assert not [call for call in ("innerHTML", "document.write", "eval(") if call in files["page.js"]]


def test_what_a_page_cannot_show_is_refused(without_onnx, tmp_path):
    two = GenerativeModel.of(Trained(UNet(2, widths=(8,), groups=4, attention_levels=()), EDM(), Karras(), (2, 8, 8)), device="cpu", verbose=False)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        write_page(two, tmp_path / "page")
    assert not list(tmp_path.iterdir())


def test_a_runtime_that_is_not_the_tested_one_is_not_used(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="does not hold ort.wasm.min.mjs"):
        runtime_files(tmp_path)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / RUNTIME["api"][0]).write_text("something else")
    with pytest.raises(ValueError, match="it was not used"):
        runtime_files(tmp_path)

    def offline(address, timeout):
        raise urllib.error.URLError("no internet")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConnectionError, match="no internet.*name its folder by runtime="):
        runtime_files()
    assert not (tmp_path / "cache").exists()


# playwright, the packages of the extra "onnx", Chromium, and the unpacked package onnxruntime-web, which this variable names
WEB = os.environ.get("DIFFNB_ONNXRUNTIME_WEB")


@pytest.fixture(scope="module")
def browser():
    if WEB is None:
        pytest.skip("DIFFNB_ONNXRUNTIME_WEB does not name the unpacked npm package onnxruntime-web")
    if (chromium := shutil.which("chromium") or shutil.which("google-chrome")) is None:
        pytest.skip("Chromium is not installed")
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("student", [False, True], ids=["a denoiser", "a student"])
def test_a_browser_draws_what_python_draws(browser, student, tmp_path):
    model = small(records=({"distilled": {"guidance_scale": 1.0}},) if student else ())
    write_page(model, tmp_path / "page", runtime=WEB, weights="float32")
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "page" / "index.html").as_uri())
    page.wait_for_selector("#draw:enabled", timeout=60_000)
    assert {url.split(":")[0] for url in asked} <= {"file", "blob", "data"}
    # by the keyboard alone, as somebody without a mouse: class, seed, sampler, steps, guidance, and the button
    page.focus("#class")
    page.keyboard.press("c")
    reached = []
    for _ in range(6 if student else 7):
        reached.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert reached == ["class", "seed", "another", "sampler", "steps", *([] if student else ["guidance"]), "draw"]
    page.fill("#seed", "123")
    page.press("#seed", "Enter")
    page.wait_for_function("document.getElementById('status').textContent.includes('seconds')")
    steps = model.n_steps
    assert page.locator("#states li").count() == steps and "coat" in page.get_attribute("#picture", "aria-label")
    assert page.inner_text("#python").endswith(f'model.generate(n_steps={steps}, seed=123, class_labels="coat")')
    page.fill("#seed", "-1")
    page.press("#seed", "Enter")
    assert page.inner_text("#status.wrong") == "A seed is a whole number from 0 to 2^64 - 1; -1 is none."
    sampler, runs = ("consistency", [(1, 1), (3, 1)]) if student else ("ddim", [(5, 1), (5, 2.5)])
    model.sampler = sampler
    for n, scale in runs:
        got = page.evaluate(f"Page.draw({{seed: 2n ** 40n, label: 0, sampler: {sampler!r}, steps: {n}, scale: {scale}}})")["image"]
        expected = model.generate(1, n, 2**40, "bag", guidance_scale=float(scale)).flatten()
        assert (torch.tensor(got) - expected).abs().max() < 1e-3
    for width in (420, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
