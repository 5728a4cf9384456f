"""Commands of `diffnb` in forks of the process that tests: they begin at once, for what they would import is there."""

import os
import sys
import tempfile
import traceback
from pathlib import Path


def diffnb(*arguments, cwd=None):
    """Run a command; exit code, output, errors."""
    import torch._dynamo  # noqa: F401  (this and the next are most of the seconds that a command takes to start; optimizers import this one)

    import diffnb.training  # noqa: F401
    from diffnb.apps import main

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = os.fork()
        if process == 0:
            code = 1
            try:
                for number, file in ((0, open(os.devnull)), (1, out), (2, err)):
                    os.dup2(file.fileno(), number)
                sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, mode, encoding="utf-8") for number, mode in enumerate("rww"))
                os.chdir(cwd or Path.cwd())
                sys.argv = ["diffnb", *map(str, arguments)]
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        out.seek(0)
        err.seek(0)
        return code, out.read().decode(), err.read().decode()
