"""The rendered site on a screen of 420 pixels: no page is wider, and nothing has to be pushed aside to be read.

The page on which a browser draws is no page of Quarto, and is measured without it, in both themes. Quarto renders the others; the folder is the
one that DIFFNB_SITE names, or `_docs`, where `nbdev-docs` puts it. Without such a folder, or without Chromium and playwright, only a reason is given.
Where DIFFNB_SITE is set, as in the workflow of the site, their absence is a failure.
"""

import functools
import http.server
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 420  # pixels
PATIENCE = 180_000  # milliseconds for a page; a busy machine opens one slowly
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Elements that end beyond the window, the innermost ones, unless something around them scrolls or cuts them.
WIDER = """() => {
  const width = document.documentElement.clientWidth
  const shows = e => getComputedStyle(e).overflowX === 'visible'
  const held = e => { for (let p = e.parentElement; p && p !== document.body; p = p.parentElement)
    if (!shows(p) || getComputedStyle(p).position === 'fixed') return true; return false }
  const end = e => Math.max(e.getBoundingClientRect().right, shows(e) ? e.getBoundingClientRect().left + e.scrollWidth : 0)
  const wide = [...document.body.querySelectorAll('*')].filter(e => end(e) > width + 1 && !held(e))
  const inner = wide.filter(e => !wide.some(other => other !== e && e.contains(other)))
  return document.documentElement.scrollWidth <= width ? [] : (inner.length ? inner : [document.body]).map(e =>
    `<${e.tagName.toLowerCase()} class="${e.getAttribute('class') ?? ''}"> ends at ${Math.round(end(e))}: `
    + (e.textContent ?? '').trim().slice(0, 60))
}"""


@pytest.fixture
def visit():
    """A function that opens a page of a folder in a narrow window and returns what is wrong: the elements that make it wider than the window."""
    said = os.environ.get("DIFFNB_SITE")
    if said and CHROMIUM is None:
        pytest.fail("DIFFNB_SITE is set, and neither chromium nor google-chrome is installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    if said:
        import playwright.sync_api as sync_api
    else:
        sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        page.set_default_timeout(PATIENCE)

        def opened(address, scheme="light", look=WIDER):
            page.emulate_media(color_scheme=scheme)
            page.goto(address, wait_until="load")
            return page.evaluate(look)

        yield opened
        browser.close()


@pytest.fixture
def served():
    """A function that serves a folder on this machine and returns its address."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    def serve(folder):
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def site():
    """The folder of the rendered site, or None."""
    said = os.environ.get("DIFFNB_SITE")
    folders = [Path(said)] if said else [ROOT / "_docs", ROOT / "_proc" / "_docs"]
    return next((folder.resolve() for folder in folders if (folder / "index.html").is_file()), None)


def test_no_page_of_the_site_is_wider_than_a_telephone(visit, served):
    folder = site()
    if folder is None and os.environ.get("DIFFNB_SITE"):
        pytest.fail(f"DIFFNB_SITE is {os.environ['DIFFNB_SITE']!r}, where there is no index.html")
    if folder is None:
        pytest.skip("the site is not rendered: `nbdev-docs`, which needs Quarto, makes the folder _docs")
    address = served(folder)
    pages = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.html"))
    wide = {page: found[:5] for page in pages if (found := visit(f"{address}/{page}"))}
    assert len(pages) > 1 and not wide, "\n".join(f"{page}: {element}" for page, found in wide.items() for element in found)


# Texts whose contrast with what is behind them is lower than 4.5, by the formula of the WCAG.
PALE = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number)
  const channel = v => v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4
  const light = c => 0.2126 * channel(c[0]) + 0.7152 * channel(c[1]) + 0.0722 * channel(c[2])
  const ground = e => { for (let p = e; p; p = p.parentElement) {
    const c = numbers(getComputedStyle(p).backgroundColor); if (c.length < 4 || c[3] === 1) return c } return [255, 255, 255] }
  const contrast = e => { const [a, b] = [light(numbers(getComputedStyle(e).color)), light(ground(e))]
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) }
  const said = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length && !e.matches(':disabled')
  return [...document.body.querySelectorAll('*')].filter(e => said(e) && contrast(e) < 4.5).map(e =>
    `<${e.tagName.toLowerCase()}> has the contrast ${contrast(e).toFixed(1)}: ${e.textContent.trim().slice(0, 60)}`)
}"""
DRAWN = """
for (let k = 0; k < 50; k++) {
  const item = document.createElement("li")
  item.append(document.createElement("canvas"), document.createElement("canvas"), "0.0023")
  document.getElementById("states").append(item)
}
"""


@pytest.fixture
def drawing(tmp_path):
    """The page that draws, with long names and the pictures of 50 steps, and without a network, which it says."""
    levels = {"ddim": [[1.0]] * 50, "dpm-solver++2m": [[1.0]] * 50}
    card = {"shape": [1, 28, 28], "labels": [0, 1], "names": ["a class whose name is longer than any " * 3, "Bag"], "levels": levels, "own": "ddim"}
    card |= {
        "sampler": {"name": "dpm-solver++2m", "n_steps": 20},
        "distilled": False,
        "python": f'GenerativeModel.load("{"long/" * 30}model.safetensors")',
    }
    for path in (ROOT / "diffnb" / "assets" / "page").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "page.html").rename(tmp_path / "index.html")
    (tmp_path / "card.js").write_text(f"window.DIFFNB = {json.dumps({'card': card | {'foot': 'of a licence and a program ' * 9}})};")
    with (tmp_path / "page.js").open("a") as file:
        file.write(DRAWN)
    return tmp_path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_that_draws_fits_and_can_be_read(visit, served, drawing, scheme):
    address = f"{served(drawing)}/index.html"
    assert visit(address, scheme, "() => document.querySelectorAll('#states li').length") == 50
    assert visit(address, scheme) == []
    assert visit(address, scheme, PALE) == []


def test_a_text_that_can_hardly_be_read_is_found(visit, served, tmp_path):
    (tmp_path / "index.html").write_text(
        "<body style='background: #1a1d21; color: #ddd'><p>a</p><p style='color: #000'>b</p></body>", encoding="utf-8"
    )
    (found,) = visit(f"{served(tmp_path)}/index.html", "dark", PALE)
    assert found.endswith(": b"), found


LINE = "x" * 200


@pytest.mark.parametrize(
    "body, wide",
    [
        (f"<p>{'word ' * 200}</p>", []),
        (f"<pre>{LINE}</pre>", ["pre"]),
        (f"<div style='overflow-x: auto'><pre>{LINE}</pre></div>", []),
        ("<p>a <span style='display: inline-block; width: 900px'>b</span></p>", ["span"]),
        ("<img width=900 height=9>", ["img"]),
        ("<img width=900 height=9 style='max-width: 100%'>", []),
    ],
)
def test_what_is_wider_is_found_and_what_scrolls_is_not(visit, served, tmp_path, body, wide):
    (tmp_path / "index.html").write_text(f"<!DOCTYPE html><body>{body}</body>", encoding="utf-8")
    found = visit(f"{served(tmp_path)}/index.html")
    assert [line.split()[0].lstrip("<") for line in found] == wide, found
