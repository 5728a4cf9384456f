"""How large a page that draws by itself is, how fast a browser draws on it, and how far from Python it ends.

    python benchmarks/page.py [--model fashion_mnist] [--folder page] [--runtime DIR] [--picture nbs/images/page.png]

makes the folder, unless it is there, opens it from the disk in Chromium without a window, draws, and writes benchmarks/results/page.json. It needs
the extra `onnx`, playwright, and Chromium. A second page is made of the distilled companion of the model.
"""

import argparse
import base64
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from diffnb.apps import write_page
from diffnb.model import GenerativeModel

RESULTS = Path(__file__).parent / "results" / "page.json"


def opened(browser, folder, width=1400):
    """The page of a folder, ready to draw."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto((folder.absolute() / "index.html").as_uri())
    page.wait_for_selector("#draw:enabled", timeout=120_000)
    return page


def measured(browser, model, folder, runs):
    """Sizes of the files, and for each run the seconds and the largest difference from Python."""
    sizes, page, rows = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}, opened(browser, folder), []
    for sampler, steps, scale in runs:
        model.sampler = sampler
        settings = f"{{seed: 0n, label: 8, sampler: {sampler!r}, steps: {steps}, scale: {scale}}}"
        page.evaluate(f"Page.draw({settings})")  # the first run of a length is slower
        drawn = page.evaluate(f"Page.draw({settings})")
        difference = (torch.tensor(drawn["image"]) - model.generate(1, steps, 0, 8, scale).flatten()).abs().max().item()
        rows.append({"sampler": sampler, "steps": steps, "guidance_scale": scale, "seconds": drawn["seconds"], "difference": difference})
        print(f"{sampler}, {steps} steps, guidance {scale}: {drawn['seconds']:.2f} s, difference {difference:.1e}", flush=True)
    page.close()
    print(f"{sum(sizes.values()) / 1e6:.2f} MB: {', '.join(f'{name} {size:,}' for name, size in sizes.items())}", flush=True)
    return {"sizes": sizes, "runs": rows}


def photograph(browser, folder, place):
    """A picture of the page with an image on it."""
    page = opened(browser, folder, 1000)
    page.select_option("#class", "8")
    page.click("#draw")
    page.wait_for_function("document.getElementById('status').textContent.includes('seconds')", timeout=60_000)
    page.screenshot(path=place, full_page=True)
    page.close()


BUILDS = {  # of onnxruntime-web: what a page would need of the folder dist
    "WebAssembly": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "WebGPU": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.jsep.mjs", "ort-wasm-simd-threaded.jsep.wasm"),
}


def weigh(dist):
    """Print what each build weighs, as it is and in the form in which a page has it: compressed, and written as text."""
    for build, names in BUILDS.items():
        files = [(dist / name).read_bytes() for name in names]
        packed = [len(base64.b64encode(gzip.compress(data, 9, mtime=0))) for data in files]
        print(f"{build}: {sum(map(len, files)):,} bytes, in a page {sum(packed):,}; {names[-1]} {len(files[-1]):,}, in a page {packed[-1]:,}")


def main():
    """Make pages and draw on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="fashion_mnist", help="a packaged model with at least 9 classes and a companion")
    parser.add_argument("--folder", type=Path, help="the page, and beside it NAME-student; a scratch folder if not given")
    parser.add_argument("--runtime", type=Path, help="folder of the unpacked npm package onnxruntime-web")
    parser.add_argument("--picture", type=Path, help="where to put a picture of the page")
    parser.add_argument("--builds", type=Path, help="folder dist of that package: print what its builds weigh in a page, and do no more")
    options = parser.parse_args()
    if options.builds:
        weigh(options.builds)
        return
    folder = options.folder or Path(tempfile.mkdtemp()) / "page"
    student_folder = folder.with_name(f"{folder.name}-student")
    model = GenerativeModel.pretrained(options.model, "cpu", verbose=False)
    student = GenerativeModel.pretrained(options.model, "cpu", verbose=False, fast=True)
    source = f'GenerativeModel.pretrained("{options.model}"'
    if not folder.exists():
        write_page(model, folder, source=f"{source})", licence="MIT", runtime=options.runtime)
    if not student_folder.exists():
        write_page(student, student_folder, source=f"{source}, fast=True)", licence="MIT", runtime=options.runtime)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        results = {"chromium": browser.version}
        few = [("ddim", 20, 1.0), ("dpm-solver++2m", 20, 1.0), ("dpm-solver++2m", 20, 2.0)]
        results["model"] = measured(browser, model, folder, few)
        results["student"] = measured(browser, student, student_folder, [("consistency", 1, 1.0), ("consistency", 2, 1.0)])
        if options.picture:
            photograph(browser, folder, options.picture)
        browser.close()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
