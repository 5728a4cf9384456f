"""Make the set of emoji pictures with captions that comes with diffnb, or a larger one, from packages of the npm registry.

    npm install --ignore-scripts @iconify-json/{fluent-emoji-flat,fluent-emoji,noto,noto-v1} cldr-annotations-full
    pip install resvg-py pillow
    python benchmarks/make_emoji.py --npm node_modules --out diffnb/assets
    python benchmarks/make_emoji.py --npm node_modules --out FOLDER --styles noto blob fluent flat --effort 2

OUT gets emoji_STYLE.webp for every style, a lossless sheet of pictures, 32 a row, and emoji.jsonl.gz with a line for every name. A picture's place
in the sheets is the number of its line, from 0. A line holds the name, the character, the category, names and keywords in English, Spanish and
Chinese (where CLDR has them), the styles in which there is a picture, and those of them that are withheld from training.

The styles: noto (Noto Emoji), blob (Noto Emoji as it was until 2017), fluent and flat (Fluent Emoji with and without shading). Pictures are drawn
on white. Flags, skin tones, what the packages hide (logos and doubles) and white pictures are left out. Names under which two styles draw one
character are one.

Withheld are every picture of the names in COMPOSITIONS, and a tenth of all others, picked by a hash of name and style; but of each name one style
is left to training, and so is a picture that another name or style shows too. All styles are drawn, whichever are asked for, so a picture is
withheld in every set or in none.
"""

import argparse
import gzip
import hashlib
import io
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

STYLES = {"noto": "noto", "flat": "fluent-emoji-flat", "fluent": "fluent-emoji", "blob": "noto-v1"}  # the first that names a character decides
COMPOSITIONS = ("blue-heart", "green-square", "yellow-circle")  # colour and shape are both seen in training, their combination is not
LANGUAGES = ("en", "es", "zh")
COLUMNS = 32  # pictures in a row of a sheet

TONE = re.compile(r"skin-tone|-tone\d|(-(light|medium|dark))+$")


def character(codes: str) -> str:
    """Turn hexadecimal codes joined by hyphens into the character, without the mark that asks for colours."""
    return "".join(chr(int(code, 16)) for code in codes.split("-") if code.lower() != "fe0f")


class Source:
    """The icon sets and annotations of a node_modules folder."""

    def __init__(self, npm: Path):
        def read(style, what):
            return json.loads((npm / "@iconify-json" / STYLES[style] / f"{what}.json").read_text(encoding="utf-8"))

        self.sets = {style: read(style, "icons") for style in STYLES}
        self.category, self.character = {}, {}
        for style in STYLES:
            for category, names in read(style, "metadata").get("categories", {}).items():
                for name in names:
                    self.category.setdefault(name, category)
            for codes, name in read(style, "chars").items():
                self.character.setdefault(name, character(codes))
        files = {language: npm / "cldr-annotations-full/annotations" / language / "annotations.json" for language in LANGUAGES}
        self.notes = {k: json.loads(file.read_text(encoding="utf-8"))["annotations"]["annotations"] for k, file in files.items()}
        # sets without a table of characters name most pictures as CLDR does
        self.spelt = {re.sub(r"[^a-z0-9]+", "-", note["tts"][0].lower()).strip("-"): char for char, note in self.notes["en"].items() if "tts" in note}

    def wanted(self, name: str, icon: dict) -> bool:
        """Say whether a picture belongs to the set."""
        category = self.category.get(name)
        toned = TONE.search(name) and category in ("People & Body", None)
        return not (icon.get("hidden") or toned or category == "Flags" or name.startswith("flag-"))

    @cache
    def names(self) -> dict[str, dict[str, str]]:  # name -> style -> what the style calls it
        """List the names, each with its styles."""
        found, first = {}, {}
        for style, icons in self.sets.items():
            for name in sorted(name for name, icon in icons["icons"].items() if self.wanted(name, icon)):
                char = self.character.get(name) or self.spelt.get(name)
                found.setdefault(first.setdefault(char, name) if char else name, {}).setdefault(style, name)
        return dict(sorted(found.items()))

    def record(self, name: str) -> dict:
        """Describe a name."""
        styles = self.names()[name]
        char = next((self.character[n] for n in styles.values() if n in self.character), None) or self.spelt.get(name)
        record = {"name": name, "character": char, "category": next((self.category[n] for n in styles.values() if n in self.category), None)}
        for language in LANGUAGES:
            note = self.notes[language].get(char, {})
            record[language] = note.get("tts", [name.replace("-", " ") if language == "en" else None])[0]
            record[f"{language}_keywords"] = note.get("default", [])
        return record

    def draw(self, style: str, name: str, size: int) -> np.ndarray:  # (size, size, 3) uint8
        """Draw a picture on white, the longer side as long as the picture."""
        icons = self.sets[style]
        icon = icons["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
        box = f'viewBox="{left} {top} {width} {height}" width="{size}" height="{size}"'
        links = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        svg = f"<svg {links} {box}>{icon['body']}</svg>"
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="#ffffff", skip_system_fonts=True)
        return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def pictures(source: Source, size: int) -> dict[str, dict[str, np.ndarray]]:  # name -> style -> picture
    """Draw all that show something; some are white, made for a dark ground."""
    drawn = {name: {style: source.draw(style, own, size) for style, own in styles.items()} for name, styles in source.names().items()}
    return {name: seen for name, styles in drawn.items() if (seen := {style: x for style, x in styles.items() if x.min() < 255})}


def withheld(drawn: dict[str, dict[str, np.ndarray]]) -> dict[str, list[str]]:  # name -> styles
    """List what is withheld from training."""
    copies, out = Counter(x.tobytes() for styles in drawn.values() for x in styles.values()), {}
    for name, styles in drawn.items():
        picked = [style for style in styles if int(hashlib.sha256(f"{name}/{style}".encode()).hexdigest(), 16) % 10 == 0]
        picked = [style for style in picked if copies[styles[style].tobytes()] == 1]
        out[name] = list(styles) if name in COMPOSITIONS else picked if len(picked) < len(styles) else picked[1:]
    return out


def main():
    """Make the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npm", type=Path, required=True, help="the node_modules folder")
    parser.add_argument("--out", type=Path, required=True, help="where the files go")
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=["noto", "flat"], help="which styles")
    parser.add_argument("--size", type=int, default=64, help="side of a picture in pixels")
    parser.add_argument("--effort", type=int, default=6, help="how hard WebP compresses, 0 to 6: the highest takes a fifth off, and minutes")
    args = parser.parse_args()
    source, records, sheets = Source(args.npm), [], {}
    drawn = pictures(source, args.size)
    out_of_training = withheld(drawn)
    names = [name for name in drawn if set(drawn[name]) & set(args.styles)]
    rows = -(-len(names) // COLUMNS)
    for style in args.styles:
        sheets[style] = np.full((rows, args.size, COLUMNS, args.size, 3), 255, np.uint8)
    for place, name in enumerate(names):
        here = [style for style in args.styles if style in drawn[name]]
        for style in here:
            sheets[style][place // COLUMNS, :, place % COLUMNS] = drawn[name][style]
        records.append(source.record(name) | {"styles": here, "withheld": [style for style in out_of_training[name] if style in here]})
    args.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n" for record in records)
    (args.out / "emoji.jsonl.gz").write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
    for style, sheet in sheets.items():
        picture = Image.fromarray(sheet.reshape(rows * args.size, COLUMNS * args.size, 3))
        picture.save(args.out / f"emoji_{style}.webp", lossless=True, quality=100, method=args.effort)
        n, out = (sum(style in record[key] for record in records) for key in ("styles", "withheld"))
        print(f"{style}: {n} pictures, {out} withheld, {(args.out / f'emoji_{style}.webp').stat().st_size / 1e6:.2f} MB")
    print(f"{len(records)} names, {sum(len(record['styles']) == len(args.styles) for record in records)} of them in every style asked for")


if __name__ == "__main__":
    main()
