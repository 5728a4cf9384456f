"""Windows and macOS, as far as they can be tested elsewhere: what only POSIX has is not needed to import, and texts have an encoding of their own."""

import ast
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import diffnb.core

ROOT = Path(__file__).resolve().parent.parent

# a process in which everything of others has been imported, and what Windows lacks is then taken away
WITHOUT_POSIX = """
import importlib, json, os, pathlib, pkgutil, signal, socket, sys, traceback
import torch, torchvision, fastai.vision.all, matplotlib.pyplot, ipywidgets, typer, tqdm.auto, safetensors.torch, scipy.linalg, PIL.Image
import torch.distributed, multiprocessing.popen_fork, asyncio, subprocess, tempfile, mmap, logging.handlers
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog"):
    sys.modules[name] = None  # `import` raises ImportError
for module, names in {
    os: "fork forkpty getuid geteuid getgid setsid killpg wait4 waitid sched_getaffinity sched_setaffinity sched_yield statvfs fchmod chown mkfifo"
        " memfd_create pread pwrite sysconf uname nice getloadavg O_NOFOLLOW O_DIRECTORY O_NONBLOCK O_CLOEXEC WNOHANG pidfd_open posix_fallocate",
    signal: "SIGKILL SIGHUP SIGQUIT SIGALRM SIGUSR1 SIGUSR2 SIGPIPE SIGCHLD SIGCONT SIGSTOP alarm setitimer pthread_sigmask pidfd_send_signal",
    socket: "AF_UNIX SCM_RIGHTS SO_PEERCRED",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)
sys.platform = "win32"
import diffnb
names = ["diffnb", *(one.name for one in pkgutil.walk_packages(diffnb.__path__, "diffnb.", onerror=lambda name: None))]
failed = {}
for name in names:
    if name != "diffnb._modidx":
        try:
            importlib.import_module(name)
        except BaseException:
            failed[name] = traceback.format_exc()
for name, work in json.loads(sys.argv[1]).items():
    try:
        exec(work, {})
    except BaseException:
        failed[name] = traceback.format_exc()
print("REPORT" + json.dumps({"modules": names, "failed": failed}))
"""

WORK = {  # what has a part of its own for POSIX, or for Linux
    "files are written": "from diffnb.core import write_atomically; write_atomically('a.bin', b'one'); write_atomically('a.bin', b'two')\n"
    "assert open('a.bin', 'rb').read() == b'two'",
    "a model is saved and read": "import torch; from diffnb import GenerativeModel\n"
    "model = GenerativeModel(network='tiny', verbose=False); model.train(torch.rand(8, 1, 8, 8), steps=1, valid_fraction=0)\n"
    "model.save('m.safetensors'); GenerativeModel.load('m.safetensors', verbose=False)",
    "a sandbox says that it needs Linux": "from diffnb.files import unavailable; assert 'needs Linux, this is win32' in unavailable(), unavailable()",
    "a jail says that it needs Linux": "from diffnb.files.jail import JailError, enter\n"
    "try: enter(2**30, 1)\nexcept JailError as error: assert 'needs Linux' in str(error)\nelse: raise AssertionError",
    "processes say that they cannot be copied": "from diffnb.parallel import run_together\n"
    "try: run_together(print)\nexcept RuntimeError as error: assert 'Windows' in str(error)\nelse: raise AssertionError",
    "threads are counted": "from diffnb.apps.shell import set_threads; set_threads(None)",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a process without POSIX could not do."""
    command = [sys.executable, "-c", WITHOUT_POSIX, json.dumps(WORK)]
    run = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=600, cwd=tmp_path_factory.mktemp("windows"))
    assert "REPORT" in run.stdout, run.stderr
    return json.loads(run.stdout.rpartition("REPORT")[2])


def test_every_module_is_imported_without_posix(report):
    """On Windows, nothing of it is there."""
    assert len(report["modules"]) > 90
    assert {name: error for name, error in report["failed"].items() if name in report["modules"]} == {}


@pytest.mark.parametrize("name", WORK)
def test_works_without_posix(report, name):
    """What has another way where POSIX is, or a sentence where it has none."""
    assert name not in report["failed"], report["failed"][name]


def opened_as_text(path):
    """Calls that open or read a text without saying how it is encoded, as (line, source)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", None)
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        texts = [one.value for one in (*node.args, *(k.value for k in node.keywords if k.arg == "mode")) if isinstance(one, ast.Constant)]
        is_binary = any(isinstance(text, str) and re.fullmatch(r"[rwxa+]*b[rwxa+]*", text) for text in texts)
        is_text = name in ("read_text", "write_text") or name in ("open", "fdopen") and not is_binary and (owner, name) not in OTHERS
        if is_text and not any(keyword.arg == "encoding" for keyword in node.keywords):
            yield node.lineno, ast.unparse(node)[:100]


OTHERS = {("os", "open"), ("Image", "open"), ("tarfile", "open"), ("gzip", "open")}  # that open something else


@pytest.mark.parametrize("folder", ["diffnb", ".ci"])
def test_texts_have_an_encoding(folder):
    """Without one, Windows takes that of its own language."""
    found = {path.name: list(opened_as_text(path)) for path in (ROOT / folder).rglob("*.py")}
    assert len(found) > 5
    assert {name: calls for name, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("open('a')", True),
        ("open('a', 'w')", True),
        ("open('a', 'rb')", False),
        ("open('a', mode='wb')", False),
        ("open('a', encoding='utf-8')", False),
        ("path.read_text()", True),
        ("path.open()", True),
        ("path.write_text('b', encoding='utf-8')", False),
        ("os.open('a', 0)", False),
        ("os.fdopen(3)", True),
    ],
)
def test_what_counts_as_a_text(tmp_path, source, is_found):
    """The search above finds what it should."""
    (tmp_path / "a.py").write_text(source, encoding="utf-8")
    assert bool(list(opened_as_text(tmp_path / "a.py"))) == is_found


def test_file_names_are_possible_everywhere():
    """Windows forbids some characters and names, and neither it nor macOS tells upper case from lower."""
    skipped = {".git", ".venv", "build", "dist", "_docs", "_proc", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints"}
    names = [path.relative_to(ROOT) for path in ROOT.rglob("*") if not skipped & set(path.relative_to(ROOT).parts)]
    parts = {part for name in names for part in name.parts}
    assert len(names) > 300
    assert [
        part for part in parts if re.search(r'[<>:"|?*\\]|[. ]$', part) or re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", part, re.I)
    ] == []
    assert len({name.as_posix().casefold() for name in names}) == len(names)


def test_tests_are_collected_without_posix():
    """A test imports what only POSIX has inside of it, so that the others of its file run."""
    modules = {name for name in ("fcntl", "grp", "pwd", "resource", "termios")}
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            assert not (isinstance(node, ast.Import) and modules & {alias.name for alias in node.names}), path
            assert not (isinstance(node, ast.ImportFrom) and node.module in modules), path


def asked_by_the_package():
    """An error in a file that is not one of the tests."""
    exec(compile("import os\nos.no_such_thing", diffnb.core.__file__, "exec"), {})


def asked_by_the_test():
    """What Windows lacks; the name stands for `os.fork`, which this system may have."""
    os.no_such_thing


def signal_of_the_test():
    """The same of a signal."""
    signal.SIGNOTHING


def wrong_in_the_test():
    """An error of another kind."""
    [].no_such_thing


@pytest.mark.parametrize(
    ("work", "platform", "is_skipped"),
    [
        (asked_by_the_test, "win32", True),
        (signal_of_the_test, "win32", True),
        (asked_by_the_test, "linux", False),
        (asked_by_the_package, "win32", False),
        (wrong_in_the_test, "win32", False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_skipped_on_windows(monkeypatch, work, platform, is_skipped):
    """A test that asks for what Windows lacks is skipped there, and the package is never excused."""
    spec = importlib.util.spec_from_file_location("conftest_of_all", Path(__file__).with_name("conftest.py"))
    spec.loader.exec_module(hooks := importlib.util.module_from_spec(spec))
    try:
        work()
    except AttributeError:
        call = SimpleNamespace(excinfo=pytest.ExceptionInfo.from_current())
    monkeypatch.setattr(sys, "platform", platform)
    next(hooks.pytest_runtest_makereport(None, call))
    assert call.excinfo.errisinstance(pytest.skip.Exception) if is_skipped else call.excinfo.errisinstance(AttributeError)
