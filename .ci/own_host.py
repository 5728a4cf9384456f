"""Put the programs that show the controls of pages on the site itself; as Quarto renders pages, a reader's browser loads them from other hosts.

    python .ci/own_host.py _docs

The programs are packages of npm, whose versions are pinned here, and `npm pack` fetches them. Every page that names one of them by the address of
another host names the copy afterwards. It is a fault if a page still loads anything from elsewhere.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PLACE = "site_libs/controls"
PROGRAMS = {  # where pages load it from: the package and its version, and the file in it
    r"https://cdnjs\.cloudflare\.com/ajax/libs/require\.js/[^\"]*": ("requirejs@2.3.6", "require.js"),
    r"https://cdnjs\.cloudflare\.com/ajax/libs/jquery/[^\"]*": ("jquery@3.5.1", "dist/jquery.min.js"),
    r"https://unpkg\.com/@jupyter-widgets/html-manager@[^\"]*": ("@jupyter-widgets/html-manager@1.0.14", "dist/embed-amd.js"),
}
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\ssrc=\"(https?:[^\"]*)|<link\b(?=[^>]*rel=\"stylesheet\")[^>]*\shref=\"(https?:[^\"]*)")


def unpacked(package: str, file: str) -> bytes:
    """Fetch a package of npm, and return a file of it."""
    with tempfile.TemporaryDirectory() as folder:
        packed = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(Path(folder, packed)) as archive:
            return archive.extractfile(f"package/{file}").read()


def at_home(page: str, depth: int) -> str:
    """Let a page that lies so many folders deep load the programs from the site. A copy needs no leave of another host, nor its digest."""
    for address, (_, file) in PROGRAMS.items():
        own = f'src="{"../" * depth}{PLACE}/{Path(file).name}"'
        page = re.sub(rf'src="{address}"((?:\s(?:integrity|crossorigin)="[^"]*")*)', own, page)
    return page


def from_elsewhere(page: str) -> list[str]:
    """List the addresses of other hosts from which a page loads something when it is opened."""
    return ["".join(found) for found in LOADED.findall(page)]


def main() -> int:
    """Change the pages of a rendered site, and say what they still load from elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder of the rendered site")
    site = parser.parse_args().site
    for package, file in PROGRAMS.values():
        place = site / PLACE / Path(file).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(unpacked(package, file))
    changed, faults = 0, []
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site)
        before = path.read_text(encoding="utf-8")
        after = at_home(before, len(name.parts) - 1)
        if after != before:
            path.write_text(after, encoding="utf-8")
            changed += 1
        faults += [f"{name.as_posix()}: loads {address}" for address in from_elsewhere(after)]
    print(*faults, f"{changed} pages changed, {len(faults)} loads from other hosts left", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
