"""What tests of commands share."""

import sys

import pytest


@pytest.fixture
def diffnb(capsys, monkeypatch):
    """Run a command in this process; exit code, output, errors."""
    from diffnb.apps import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["diffnb", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run
