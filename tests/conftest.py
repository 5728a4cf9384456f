"""What tests share. Nothing in the user's home is read or written, so that a first run is tested as well as a second."""

import itertools
import os
import signal
import sys
from pathlib import Path

import pytest

NUMBERS = itertools.count()
PACKAGE = Path(__file__).resolve().parent.parent / "diffnb"
ONLY_POSIX = {"fcntl", "grp", "pwd", "resource", "termios"}  # modules


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: what another test shows nearly as well in less time; run where DIFFNB_SLOW is set")


def pytest_collection_modifyitems(items):
    """Leave out what is marked as slow, unless the environment asks for it."""
    if not os.environ.get("DIFFNB_SLOW"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow; set DIFFNB_SLOW=1 to run it"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Skip on Windows what a test itself, and not the package, asks of POSIX: a fork, a signal, a link that the user may not make."""
    if sys.platform == "win32" and call.excinfo is not None and not any(Path(e.path).is_relative_to(PACKAGE) for e in call.excinfo.traceback):
        error = call.excinfo.value
        lacks = isinstance(error, AttributeError) and error.obj in (os, signal) or isinstance(error, ImportError) and error.name in ONLY_POSIX
        if lacks or getattr(error, "winerror", None) == 1314:  # "a required privilege is not held by the client"
            try:
                pytest.skip(f"Windows: {error}")
            except pytest.skip.Exception:
                call.excinfo = pytest.ExceptionInfo.from_current()
    return (yield)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_trust(monkeypatch, tmp_path_factory):
    """What a test confirms, the next one has not: the place of the user's own store depends on no variable that a test could set."""
    if "diffnb.files.trust" in sys.modules:
        store = tmp_path_factory.getbasetemp() / "trust" / f"{next(NUMBERS)}.json"
        monkeypatch.setattr("diffnb.files.trust.default_store", lambda: store)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Ctrl-C is an interrupt also where a shell started the tests in the background, which tells them to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_figures(monkeypatch):
    """Trainings draw no figures: drawing takes longer than a few steps of a small network."""
    monkeypatch.setattr("diffnb.apps.runs.write_report", lambda *arguments, **settings: {})
    monkeypatch.setattr("diffnb.training.monitoring.write_figure", lambda *arguments: None)


@pytest.fixture
def no_pictures(no_figures, monkeypatch):
    """Trainings draw no figures either, and their samples in two steps, where a test does not look at pictures."""
    for name in ("SampleCallback", "MetricCallback"):
        few = property(lambda self: 2, lambda self, n_steps: None)
        monkeypatch.setattr(f"diffnb.training.monitoring.{name}.n_steps", few, raising=False)
