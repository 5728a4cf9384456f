"""What tests share. The cache in the user's home is neither read nor written, so that a first run is tested as well as a second."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Ctrl-C is an interrupt also where a shell started the tests in the background, which tells them to ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def no_pictures(monkeypatch):
    """Trainings draw nothing, where a test does not look at pictures: drawing takes longer than a few steps of a small network."""
    monkeypatch.setattr("diffnb.apps.runs.write_report", lambda *arguments, **settings: {})
    monkeypatch.setattr("diffnb.training.monitoring.write_figure", lambda *arguments: None)
