"""The rendered site on a screen of 420 pixels: no page is wider, and nothing has to be pushed aside to be read.

Quarto renders the site; the folder is the one that DIFFNB_SITE names, or `_docs`, where `nbdev-docs` puts it. Without such a folder, or without
Chromium and playwright, only a reason is given. Where DIFFNB_SITE is set, as in the workflow of the site, their absence is a failure.
"""

import functools
import http.server
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
    """A function that opens a page of a folder in a narrow window and returns the elements that make it wider than the window."""
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

        def opened(address):
            page.goto(address, wait_until="load")
            return page.evaluate(WIDER)

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
