"""Photograph the dashboard for its documentation: `python benchmarks/screenshots.py`. Needs the extras dashboard and dev, and Chromium.

Each picture shows one page on a wide screen and one on a narrow screen, in two of the three languages, light or dark.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from diffnb.apps import TRANSLATIONS
from diffnb.model import GenerativeModel

HEIGHT, WIDE, NARROW, GAP = 800, 1400, 420, 24
SCENES = {  # by the name of the picture: (page, language, whether dark) on the wide screen and on the narrow one
    "models": (("models", "en", False), ("models", "zh", True)),
    "generate": (("generate", "es", False), ("generate", "en", True)),
    "fill_in": (("impute", "zh", False), ("impute", "es", False)),
    "train": (("train", "en", True), ("train", "zh", False)),
    "evaluate": (("evaluate", "es", True), ("evaluate", "en", False)),
    "compare": (("rate", "zh", True), ("rate", "es", True)),
}


class Visitor:
    """Somebody who opens the dashboard and uses one page of it."""

    def __init__(self, page, language, folder):
        self.page, self.text, self.folder = page, TRANSLATIONS[language], folder

    def press(self, key, exact=True):
        """Press the button of a text."""
        self.page.get_by_role("button", name=self.text[key], exact=exact).first.click()

    def wait(self, words):
        """Wait for a text."""
        self.page.get_by_text(words).last.wait_for()

    def use(self, model):
        """Choose a model."""
        self.page.locator(".widget-select select").first.select_option(label=model)
        self.press("use")
        self.wait(self.text["chosen"].format(name=model))

    def set(self, key, value):
        """Type into a field."""
        self.page.get_by_label(self.text[key]).fill(value)
        self.page.keyboard.press("Tab")

    def models(self):
        """Look at a report."""
        self.use("fashion_mnist")

    def generate(self):
        """Draw what a text says."""
        self.use("emoji")
        self.press("generate")
        self.set("prompt", "smiling face, noto style")
        self.press("start")
        self.wait(self.text["all_zip"])

    def impute(self):
        """Paint a part of a picture, and have it made anew."""
        self.use("fashion_mnist")
        self.press("impute")
        with self.page.expect_file_chooser() as chooser:
            self.press("upload_picture", exact=False)
        chooser.value.set_files(self.folder / "shoe.png")
        canvas = self.page.locator("canvas").last
        canvas.wait_for(state="visible")
        self.page.wait_for_timeout(1500)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        for down in (40, 64, 88):
            self.page.mouse.move(box["x"] + 60, box["y"] + down + 80)
            self.page.mouse.down()
            for k in range(12):
                self.page.mouse.move(box["x"] + 60 + 6 * k, box["y"] + down + 80)
                time.sleep(0.03)
            self.page.mouse.up()
        self.page.wait_for_timeout(1000)
        self.press("start")
        self.wait(self.text["all_zip"])

    def train(self):
        """Watch a training."""
        self.press("train")
        self.page.get_by_label(self.text["name"]).wait_for()
        self.page.locator("button.mod-primary:visible", has_text=self.text["train"]).last.click()
        self.page.locator("img.smooth").first.wait_for()
        self.page.wait_for_timeout(15_000)

    def evaluate(self):
        """Measure how good a model is."""
        self.use("fashion_mnist_fast")
        self.press("evaluate")
        self.page.locator("input[type=number]:visible").nth(0).fill("64")
        self.page.locator("input[type=number]:visible").nth(1).fill("500")
        self.page.keyboard.press("Tab")
        self.press("start")
        self.page.locator("table").wait_for()

    def rate(self):
        """Answer questions about pairs."""
        self.use("fashion_mnist_fast")
        self.press("rate")
        self.press("start")
        self.page.locator("figure img").nth(1).wait_for()


def photograph(browser, address, scene, width, folder):
    """One page as a picture."""
    task, language, dark = scene
    page = browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme="dark" if dark else "light")
    page.set_default_timeout(180_000)
    for _ in range(60):
        try:
            page.goto(address)
            break
        except Exception:  # the server is not there yet
            time.sleep(1)
    page.wait_for_selector(".diffnb-dash")
    page.wait_for_timeout(1000)
    page.locator("select").first.select_option(value=None, index=list(TRANSLATIONS).index(language))
    page.wait_for_selector(f"h2:text-is('{TRANSLATIONS[language]['title']}')")
    getattr(Visitor(page, language, folder), task)()
    page.wait_for_timeout(1200)
    page.evaluate("document.querySelectorAll('*').forEach(element => { element.scrollTop = 0 })")
    page.wait_for_timeout(300)
    shot = Image.open(BytesIO(page.screenshot())).convert("RGB")
    page.close()
    return shot


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("nbs/images"), help="folder for dashboard_NAME.png")
    parser.add_argument("--only", nargs="*", choices=SCENES, default=list(SCENES))
    given = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as place, sync_playwright() as play:
        folder = Path(place)
        shoe = GenerativeModel.pretrained("fashion_mnist").generate(1, seed=3, class_labels="sneaker", guidance_scale=2)
        Image.fromarray((shoe[0, 0] * 255).byte().numpy()).save(folder / "shoe.png")
        command = [str(Path(sys.executable).parent / "diffnb"), "dashboard", str(folder), "--no-browser"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            address = re.search(r"http\S+", server.stdout.readline()).group()
            try:
                browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
                for name in given.only:
                    shots = [photograph(browser, address, scene, width, folder) for scene, width in zip(SCENES[name], (WIDE, NARROW))]
                    both = Image.new("RGB", (WIDE + NARROW + GAP, HEIGHT), "#7f8790")
                    for left, shot in zip((0, WIDE + GAP), shots):
                        both.paste(shot, (left, 0))
                    small = both.resize((both.width * 2 // 3, both.height * 2 // 3), Image.Resampling.LANCZOS)
                    small.quantize(96, dither=Image.Dither.NONE).save(given.out / f"dashboard_{name}.png", optimize=True)
                    print(given.out / f"dashboard_{name}.png", (given.out / f"dashboard_{name}.png").stat().st_size)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
