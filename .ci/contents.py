"""Check what is in the wheel and the source distribution of a folder: all of the package, what building needs, licences, and nothing else.

python .ci/contents.py DIST
"""

import argparse
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILDING = {"pyproject.toml", "settings.ini", "setup.py", "MANIFEST.in", "README.md", "LICENSE"}


def package():
    """The files of the package, as they stand here."""
    files = (path.relative_to(ROOT).as_posix() for path in (ROOT / "diffnb").rglob("*") if path.is_file())
    return {name for name in files if "__pycache__" not in name}


def in_wheel(path):
    """Names in a wheel, without its metadata but for the licence."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
    licences = {name for name in names if name.endswith(".dist-info/licenses/LICENSE")}
    return {name for name in names if ".dist-info/" not in name} | ({"LICENSE"} if licences else set())


def in_sdist(path):
    """Names in a source distribution, without what setuptools writes."""
    with tarfile.open(path) as sdist:
        names = {member.name.partition("/")[2] for member in sdist.getmembers() if member.isfile()}
    return {name for name in names if not name.startswith("diffnb.egg-info/")} - {"PKG-INFO", "setup.cfg"}


def main():
    """Compare; say what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, metavar="DIST", help="a folder with one wheel and one source distribution")
    dist, wanted = parser.parse_args().dist, package()
    if not any(name.startswith("diffnb/assets/LICENSE") for name in wanted):
        sys.exit("diffnb/assets holds data of others, and no licence beside it")
    for pattern, read, more in (("*.whl", in_wheel, {"LICENSE"}), ("*.tar.gz", in_sdist, BUILDING)):
        (path,) = dist.glob(pattern)
        found, expected = read(path), wanted | more
        if found != expected:
            sys.exit(f"{path.name} lacks {sorted(expected - found)}, and has {sorted(found - expected)} besides")
        print(f"{path.name}: {len(found)} files, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
