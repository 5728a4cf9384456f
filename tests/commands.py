"""What would need an interpreter of its own, such as a command of `diffnb`, in forks of the process that tests: all that it would import is there."""

import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch


class Fork:
    """A function in a fork of this process; with its own output, errors and folder."""

    def __init__(self, work, cwd=None):
        self._said = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                torch.set_num_threads(1)  # the threads of the parent are not there
                for number, file in enumerate((open(os.devnull), *self._said)):
                    os.dup2(file.fileno(), number)
                sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww"))
                os.chdir(cwd or Path.cwd())
                work()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    @property
    def has_ended(self):
        """Whether it has, without waiting for it."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    @property
    def said(self):
        """What it has written so far: its output, then its errors."""
        return "".join(os.pread(file.fileno(), 10**8, 0).decode(errors="replace") for file in self._said)

    def end(self):
        """Wait for it; exit code (negative: the signal that ended it), output, errors."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return code, *(os.pread(file.fileno(), 10**8, 0).decode() for file in self._said)


def program(text, *arguments):
    """Run a program that imports `diffnb` and torch, in a fork; exit code, output, errors."""

    def work():
        sys.argv = ["-c", *map(str, arguments)]
        exec(compile(text, "<program>", "exec"), {"__name__": "__main__"})

    return Fork(work).end()


def command(*arguments, cwd=None):
    """Start a command, which goes on beside this process."""
    import torch._dynamo  # noqa: F401  (this and the next are most of the seconds that a command takes to start; optimizers import this one)

    import diffnb.training  # noqa: F401
    from diffnb.apps import main

    def work():
        sys.argv = ["diffnb", *map(str, arguments)]
        main()

    return Fork(work, cwd)


def diffnb(*arguments, cwd=None):
    """Run a command; exit code, output, errors."""
    return command(*arguments, cwd=cwd).end()
