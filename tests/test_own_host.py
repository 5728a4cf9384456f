"""Pages of the site load what they need from the site."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("own_host", ROOT / ".ci" / "own_host.py")
own_host = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(own_host)

# as Quarto writes them
CDN = "https://cdnjs.cloudflare.com/ajax/libs"
REQUIRE = f'<script src="{CDN}/require.js/2.3.6/require.min.js" integrity="sha512-c3Nl8" crossorigin="anonymous"></script>'
JQUERY = f'<script src="{CDN}/jquery/3.5.1/jquery.min.js" integrity="sha512-b" crossorigin="anonymous" data-relocate-top="true"></script>'
WIDGETS = '<script src="https://unpkg.com/@jupyter-widgets/html-manager@*/dist/embed-amd.js" crossorigin="anonymous"></script>'
LINK = '<a href="https://arxiv.org/abs/2006.11239">a link</a><link rel="canonical" href="https://diffnb.github.io/diffnb/">'


@pytest.mark.parametrize("depth, up", [(0, ""), (1, "../"), (2, "../../")])
def test_programs_are_loaded_from_the_site(depth, up):
    page = own_host.at_home(REQUIRE + JQUERY + WIDGETS + LINK, depth)
    assert page == (
        f'<script src="{up}site_libs/controls/require.js"></script>'
        f'<script src="{up}site_libs/controls/jquery.min.js" data-relocate-top="true"></script>'
        f'<script src="{up}site_libs/controls/embed-amd.js"></script>{LINK}'
    )
    assert own_host.from_elsewhere(page) == []


@pytest.mark.parametrize(
    "tag, address",
    [
        (REQUIRE, f"{CDN}/require.js/2.3.6/require.min.js"),
        ('<img alt="a" src="https://example.org/a.png">', "https://example.org/a.png"),
        ('<link href="https://example.org/a.css" rel="stylesheet">', "https://example.org/a.css"),
    ],
)
def test_what_is_loaded_from_elsewhere_is_found(tag, address):
    assert own_host.from_elsewhere(LINK + tag) == [address]


def test_a_site_is_changed_in_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(own_host, "unpacked", lambda package, file: f"{package} {file}".encode())
    (tmp_path / "tutorials").mkdir()
    (tmp_path / "tutorials" / "a.html").write_text(WIDGETS, encoding="utf-8")
    (tmp_path / "index.html").write_text(LINK, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["own_host.py", str(tmp_path)])
    assert own_host.main() == 0
    assert "1 pages changed, 0 loads" in capsys.readouterr().out
    assert (tmp_path / "site_libs/controls/embed-amd.js").read_text() == "@jupyter-widgets/html-manager@1.0.14 dist/embed-amd.js"
    (tmp_path / "index.html").write_text('<script src="https://example.org/a.js"></script>', encoding="utf-8")
    assert own_host.main() == 1
    assert "index.html: loads https://example.org/a.js" in capsys.readouterr().out


def test_the_workflow_of_the_site_does_it():
    workflow = (ROOT / ".github" / "workflows" / "docs.yml").read_text(encoding="utf-8")
    assert workflow.index("nbdev-docs") < workflow.index("python .ci/own_host.py _docs") < workflow.index("upload-pages-artifact")
