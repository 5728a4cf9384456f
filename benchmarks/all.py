"""Run the benchmarks that need nothing but the package and the data sets, one after another.

    python benchmarks/all.py --data ROOT [--out DIR]      hours; results are written into benchmarks/results
    python benchmarks/all.py --data ROOT --quick      minutes: a part of each
    python benchmarks/all.py --list      the commands, and nothing else

A benchmark that fails stops no other, and makes the exit code 1. Scripts that need more, such as other libraries or the weights of
Inception, say so themselves and are not in the table.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
COMMANDS = {  # script: arguments of the whole run, and of the short one; None: it has no short one that leaves the stored results alone
    "comparison": ("--data {data} --out {out}", "--data {data} --out {out} --quick"),
    "speed": ("", None),
    "few_steps": ("", "--show"),
    "likelihood": ("--data {data}", None),
    "metrics": ("", None),
    "training": ("--root {data}", "--threads 1 --repeats 1 --no-compile --out {out}/training.json"),
    "scaling": ("", "--rounds 1 --out {out}/scaling.json"),
    "programs": ("", "--rounds 2 --out {out}/programs.json"),
}


def main():
    """Run every command of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of the data sets")
    parser.add_argument("--out", default="diffnb-bench", help="folder for models and what is not kept")
    parser.add_argument("--quick", action="store_true", help="minutes in place of hours")
    parser.add_argument("--list", action="store_true", help="print the commands, and stop")
    args = parser.parse_args()
    failed = []
    for name, forms in COMMANDS.items():
        if (form := forms[args.quick]) is None:
            continue
        command = [sys.executable, str(HERE / f"{name}.py"), *form.format(data=args.data, out=args.out).split()]
        print("+", *command[1:], flush=True)
        if not args.list:
            Path(args.out).mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            code = subprocess.run(command).returncode
            failed += [name] * (code != 0)
            print(f"{name}: {'failed' if code else 'done'} after {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
