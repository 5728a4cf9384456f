"""The container, Binder and the Space copy files, install extras and start commands that are there. No engine is needed to see that."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from typer.main import get_command

ROOT = Path(__file__).parent.parent
DOCKERFILES = [ROOT / "Dockerfile", ROOT / ".spaces" / "Dockerfile"]
WORDS = {"FROM", "ARG", "ENV", "RUN", "COPY", "USER", "WORKDIR", "VOLUME", "EXPOSE", "ENTRYPOINT", "CMD"}


def steps(path):
    """(instruction, what follows) for each line of a Dockerfile."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]


def extras():
    """Names of the package's extras."""
    config = ConfigParser(delimiters=["="], interpolation=None)
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return {key.removesuffix("_requirements") for key in config["DEFAULT"] if key.endswith("_requirements")}


def check_command(words):
    """Let the command line read words, without doing anything."""
    from diffnb.apps import app

    group = get_command(app)
    command = group.commands[words[0]]
    with command.make_context(words[0], list(words[1:])) as context:
        return context.params


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_container_starts_the_dashboard_as_a_user_without_rights(path, tmp_path, monkeypatch):
    found = steps(path)
    assert {word for word, _ in found} <= WORDS and found[0][0] == "FROM"
    last = {word: rest for word, rest in found}
    user = last["USER"]
    assert user != "root" and any(word == "RUN" and f"useradd --create-home --uid 1000 {user}" in rest for word, rest in found)
    order = [word for word, _ in found]
    assert max(k for k, word in enumerate(order) if word == "RUN") < order.index("USER") < order.index("CMD")
    words = [*json.loads(last.get("ENTRYPOINT", "[]")), *json.loads(last["CMD"])]
    assert words[0] == "diffnb"
    asked = check_command(["dashboard", *[str(tmp_path) if word == "/outputs" else word for word in words[2:]]])
    assert str(asked["port"]) == last["EXPOSE"] and asked["host"] == "0.0.0.0" and not asked["browser"]
    assert last["WORKDIR"] == "/outputs" and words[1] == "dashboard" and words[2] == "/outputs"
    assert any(word == "RUN" and "/outputs" in rest and f"--owner {user}" in rest for word, rest in found)


@pytest.mark.parametrize("path", [*DOCKERFILES, ROOT / ".binder" / "postBuild"], ids=lambda path: str(path.relative_to(ROOT)))
def test_extras_that_are_installed_are_there(path):
    asked = set(re.findall(r"(?:/source|diffnb|\.)\[(\w+)\]", path.read_text(encoding="utf-8")))
    assert asked == {"dashboard"} and asked <= extras()


def test_the_container_copies_what_building_needs():
    copied = {name for word, rest in steps(ROOT / "Dockerfile") if word == "COPY" for name in rest.split()[:-1]}
    sys.path.insert(0, str(ROOT / ".ci"))
    from contents import BUILDING

    assert copied == BUILDING | {"diffnb"} and all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied and ignored[0] == "*"


def test_the_processor_or_the_graphics_card_is_a_build_argument():
    found = steps(ROOT / "Dockerfile")
    assert ("ARG", "TORCH=cpu") in found and ("VOLUME", "/outputs") in found
    assert any(word == "RUN" and rest.endswith("/whl/${TORCH}") for word, rest in found)


def test_binder_writes_the_page(tmp_path):
    script = ROOT / ".binder" / "postBuild"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = [shlex.split(line) for line in script.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert ["python", ".binder/page.py"] in lines
    shutil.copytree(ROOT / ".binder", tmp_path / ".binder")
    (tmp_path / "outputs").mkdir()
    subprocess.run([sys.executable, ".binder/page.py"], cwd=tmp_path, check=True)
    notebook = json.loads((tmp_path / "dashboard.ipynb").read_text(encoding="utf-8"))
    compile(notebook["cells"][0]["source"], "cell", "exec")
    assert f"Studio({str(tmp_path / 'outputs')!r})" in notebook["cells"][0]["source"]


def test_the_space_says_its_port():
    head = (ROOT / ".spaces" / "README.md").read_text(encoding="utf-8").split("---")[1]
    facts = dict(line.split(": ", 1) for line in head.strip().splitlines())
    assert facts["sdk"] == "docker" and ("EXPOSE", facts["app_port"]) in steps(ROOT / ".spaces" / "Dockerfile")
