"""The dashboard in a real browser, as `diffnb dashboard` serves it. Skipped where Chromium, playwright or voila is not installed."""

import csv
import io
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("voila")
pytest.importorskip("ipycanvas")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
PATIENCE = 180_000  # milliseconds; a kernel starts slowly on a busy machine


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a running dashboard."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("models")
    (folder / "broken.safetensors").write_bytes(b"no model")
    command = [str(Path(sys.executable).parent / "diffnb"), "dashboard", str(folder), "--no-browser", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        found = re.search(r"http://\S+?token=[\w-]+", server.stdout.readline()).group()
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/static/nothing", timeout=5)
                except urllib.error.HTTPError:
                    break
                except OSError:
                    time.sleep(0.1)
            yield found
        finally:
            server.send_signal(signal.SIGINT)


@pytest.fixture
def page(address):
    """A visitor's page; whatever it asks other hosts for, and whatever it complains of, is a failure."""
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, faults = browser.new_page(viewport={"width": 1400, "height": 900}), []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("request", lambda sent: None if re.match(r"(http|ws)://127\.0\.0\.1|data:|blob:", sent.url) else faults.append(sent.url))
        page.goto(address)
        page.wait_for_selector(".diffnb-dash")
        yield page
        browser.close()
        assert not faults


def use(page, model):
    """Choose a model."""
    page.locator(".widget-select select").first.select_option(label=model)
    page.get_by_role("button", name="Use this model").click()
    page.wait_for_selector(f"text={model} is loaded")


def saved(page, link):
    """What a link saves."""
    with page.expect_download() as download:
        link.click()
    return Path(download.value.path()).read_bytes()


def test_a_visitor_generates(page):
    use(page, "fashion_mnist_fast")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=all as ZIP")
    assert page.locator("figure figcaption a").count() == 4
    picture = Image.open(io.BytesIO(saved(page, page.locator("figure figcaption a").first)))
    assert picture.size == (28, 28) and '"seed": 0' in picture.text["diffnb"]


def test_who_does_not_know_the_token_sees_nothing(address):
    for place in (re.sub(r"\?token=.*", "", address), re.sub("token=.*", "token=wrong", address)):
        with urllib.request.urlopen(place, timeout=60) as answer:
            assert "/login?" in answer.geturl() and b"diffnb-dash" not in answer.read()


@pytest.mark.slow
def test_a_visitor_does_the_rest(page, tmp_path):
    assert page.locator(".widget-select option", has_text="⚠ broken.safetensors").count() == 1
    use(page, "fashion_mnist")
    page.get_by_role("button", name="Colorize").click()
    page.wait_for_selector("text=it makes grey pictures")
    page.get_by_role("button", name="Generate").click()
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=all as ZIP")
    with zipfile.ZipFile(io.BytesIO(saved(page, page.get_by_text("all as ZIP")))) as archive:
        names = archive.namelist()
        (tmp_path / "one.png").write_bytes(archive.read(names[0]))
    assert len(names) == 4
    page.get_by_role("button", name="Fill in").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(tmp_path / "one.png")
    canvas = page.locator("canvas").last
    canvas.wait_for(state="visible")
    time.sleep(1)
    box = canvas.bounding_box()
    assert abs(box["width"] - 280) < 4 and abs(box["height"] - 280) < 4
    page.mouse.move(box["x"] + 150, box["y"] + 200)
    page.mouse.down()
    for k in range(10):
        page.mouse.move(box["x"] + 150 + 6 * k, box["y"] + 200)
        time.sleep(0.05)
    page.mouse.up()
    time.sleep(1)
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=all as ZIP")
    sent = ((tmp_path / "one.png").read_bytes(), saved(page, page.locator("figure figcaption a").first))
    old, new = (np.asarray(Image.open(io.BytesIO(data)).convert("L")) for data in sent)
    assert (old[:16] == new[:16]).all() and (old[:, :12] == new[:, :12]).all()  # where nothing was painted
    page.locator("select").first.select_option(label="Español")
    page.wait_for_selector("text=Empezar")
    page.get_by_role("button", name="Generar").click()
    page.wait_for_selector("label:text-is('imágenes')")
    page.locator(".noUi-handle").nth(1).press("End")  # as many steps as there may be
    page.get_by_role("button", name="Empezar").click()
    page.get_by_role("button", name="Cancelar").click()
    page.wait_for_selector("text=Cancelado.")


@pytest.mark.slow
def test_a_visitor_trains_evaluates_and_compares(page):
    use(page, "fashion_mnist_fast")
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_label("preset").select_option(label="quick: a first look")
    page.get_by_role("button", name="Estimate").click()
    page.wait_for_selector("text=10,000 images of 1 x 28 x 28")
    page.get_by_label("name of the model").fill("from a browser")
    page.keyboard.press("Tab")
    page.locator("button.mod-primary:visible", has_text="Train").click()
    page.wait_for_selector("text=Loss until step")
    page.wait_for_selector("text=left")
    page.get_by_role("button", name="Stop and keep").click()
    page.wait_for_selector("text=from a browser.safetensors is kept after")
    assert saved(page, page.get_by_text("save the file"))[8:9] == b"{"  # where a file of safetensors begins
    page.get_by_role("button", name="Models").click()
    page.locator(".widget-select option", has_text="from a browser.safetensors").wait_for(state="attached")
    page.get_by_role("button", name="Evaluate").click()
    for label, number in (("images to generate", "16"), ("real images, at most", "64")):
        page.get_by_label(label).fill(number)
        page.keyboard.press("Tab")
    page.get_by_label("Fréchet distance").uncheck()
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=The floor is the same metric")
    table = list(csv.DictReader(io.StringIO(saved(page, page.get_by_text("CSV")).decode())))
    assert {row["generated"] for row in table} == {"16"} and any(row["metric"].startswith("kernel") for row in table)
    page.get_by_role("button", name="Compare").click()
    page.wait_for_selector("text=pairs for realism")
    page.get_by_role("button", name="Start").click()
    for k in range(14):
        page.wait_for_selector(f"text=question {k + 1} of 14")
        page.get_by_role("button", name="Left").press("Enter")  # by the keyboard
    page.wait_for_selector("text=interval of 95%")
    assert len(saved(page, page.get_by_text("CSV")).splitlines()) == 15


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_a_screen_and_can_be_read(page, width, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    use(page, "fashion_mnist")
    brightness = "element => {const c = getComputedStyle(element)[%r].match(/[\\d.]+/g).map(Number); return c[0] + c[1] + c[2]}"
    for name in ("Models", "Generate", "Fill in", "Train", "Evaluate", "Compare"):
        page.get_by_role("button", name=name, exact=True).first.click()
        page.wait_for_selector(f".widget-toggle-button.mod-active:text-is('{name}')")
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for words in page.locator(".diffnb-dash label:visible, .diffnb-dash button:visible:not([disabled])").all():
            colour = words.evaluate(brightness % "color")
            ground = (
                words.evaluate(brightness % "backgroundColor")
                if words.evaluate("element => element.tagName") == "BUTTON"
                else 765 * (scheme == "light")
            )
            assert abs(colour - ground) > 250, words.inner_text()


@pytest.mark.slow
def test_a_visitor_colorizes_and_draws(page, tmp_path):
    use(page, "cifar10")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)).save(tmp_path / "grey.webp")
    page.get_by_role("button", name="Colorize").click()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a picture").click()
    chooser.value.set_files(tmp_path / "grey.webp")
    page.wait_for_selector("img[alt='grey.webp']")
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=all as ZIP")
    coloured = Image.open(io.BytesIO(saved(page, page.locator("figure figcaption a").first)))
    luminance = np.asarray(coloured) @ [0.299, 0.587, 0.114] - np.asarray(Image.open(tmp_path / "grey.webp").convert("L"))
    assert coloured.size == (32, 32) and coloured.mode == "RGB" and abs(luminance).mean() < 12
    page.get_by_role("button", name="Models").click()
    use(page, "emoji")
    page.get_by_role("button", name="Generate").click()
    page.get_by_label("what to draw").fill("a blue appel")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=unknown words in the text: 'appel' (known: apple")
    page.get_by_label("what to draw").fill("a blue square")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Start").click()
    page.wait_for_selector("text=all as ZIP")
    drawn = Image.open(io.BytesIO(saved(page, page.locator("figure figcaption a").first)))
    assert '"prompt": "a blue square"' in drawn.text["diffnb"]


@pytest.mark.slow
def test_a_page_whose_program_has_ended_says_so(address):
    import psutil

    with sync_api.sync_playwright() as play:
        page = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        page.set_default_timeout(PATIENCE)
        before = set(psutil.Process().children(recursive=True))
        page.goto(address)
        page.wait_for_selector(".diffnb-dash")
        said = page.get_by_text("does not answer")
        page.wait_for_timeout(25_000)
        assert said.count() == 1 and not said.is_visible()
        kernels = set(psutil.Process().children(recursive=True)) - before
        for one in kernels:
            if "ipykernel_launcher" in one.cmdline():
                one.kill()
        said.wait_for(state="visible")
        page.reload()
        page.wait_for_selector(".diffnb-dash")
        use(page, "fashion_mnist_fast")


@pytest.mark.slow
def test_two_visitors_do_not_disturb_each_other(address):
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        first, second = (browser.new_page() for _ in range(2))
        for page in (first, second):
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            page.wait_for_selector(".diffnb-dash")
        use(first, "fashion_mnist")
        second.get_by_role("button", name="Generate").click()
        second.wait_for_selector("text=no model is chosen")
        browser.close()
