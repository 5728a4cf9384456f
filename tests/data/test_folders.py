"""Folders as people have them: every picture that Pillow reads, everything else accounted for, and nothing that does harm."""

import os
import re
import struct
import time
import warnings
import zlib
from pathlib import Path

import pytest
from commands import program
from PIL import Image

from diffnb.data import image_set, open_picture, picture_formats
from diffnb.printing import printable


def picture(path, value=100, size=(6, 6), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (value, 0, 0))
    (image.convert("P") if path.suffix in (".xpm",) else image).save(path, **options)
    return path


def read(folder, **how):
    """The images of a folder, and what is told about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = image_set(folder, verbose=False, **how)
    return found, " ".join(str(one.message) for one in caught)


WRITTEN = {".avif": "AVIF", ".jfif": "JPEG", ".jpe": "JPEG", ".jp2": "JPEG2000", ".tga": "TGA", ".webp": "WEBP", ".ico": "ICO", ".pcx": "PCX"} | {
    ".dib": "DIB", ".pbm": "PPM", ".pnm": "PPM", ".sgi": "SGI", ".qoi": "QOI", ".apng": "PNG", ".mpo": "MPO", ".dds": "DDS", ".gif": "GIF"
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITTEN)
def test_what_pillow_reads_is_read(tmp_path, ending):
    if ending not in picture_formats()[0]:
        pytest.skip(f"this Pillow does not read {ending}")
    for place in ("cat/a.png", f"dog/b{ending.upper()}"):
        picture(tmp_path / place, size=(16, 16), format=None if place.endswith("png") else WRITTEN[ending])
    found, told = read(tmp_path, size=8)
    assert found.names == ["cat", "dog"] and len(found) == 2 and told == ""


OTHERS = {
    "heic": ("dog/x.heic", b"\0\0\0\x18ftypheic", r"files that are not read as pictures are passed over: 1 \.heic \(dog/x\.heic\)"),
    "text": ("dog/notes.txt", b"n", r"1 \.txt \(dog/notes\.txt\)"),
    "no ending": ("dog/LICENSE", b"n", r"1 without ending \(dog/LICENSE\)"),
    "beside the classes": ("labels.csv", b"n", r"1 \.csv \(labels\.csv\)"),
    "broken": ("dog/b.png", b"n", r"1 of 3 pictures cannot be read and are skipped: b\.png \(it is no picture that Pillow reads\)"),
    "another program's": ("dog/b.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"1 of 3 pictures .* b\.png"),
    "a class of others": ("cow/x.heic", b"n", r"subfolders without a picture are left out: cow"),
    "a class of broken ones": ("cow/x.png", b"n", r"1 of 3 pictures .*; subfolders without a picture are left out: cow"),
    "a name that steers": ("dog/\x1b[2J\u202e.png", b"n", r"\\x1b\[2J\\u202e\.png"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_read_is_counted_and_named(tmp_path, kind):
    place, data, message = OTHERS[kind]
    for name in ("cat/a.png", "dog/a.png"):
        picture(tmp_path / name)
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_bytes(data)
    found, told = read(tmp_path)
    assert found.names == ["cat", "dog"] and found.labels.tolist() == [0, 1]
    with pytest.warns(UserWarning, match=message):
        read_again = image_set(tmp_path, verbose=False)
    assert len(read_again) == 2 and "\x1b" not in told


def test_an_empty_class_folder_is_said_and_the_others_keep_their_labels(tmp_path):
    for name in ("3/a.png", "7/b.png"):
        picture(tmp_path / name)
    (tmp_path / "5").mkdir()
    found, told = read(tmp_path)
    assert found.values == [3, 7] and told.endswith("subfolders without a picture are left out: 5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="folder empty has no image that Pillow reads; it is empty"):
        read(tmp_path / "empty")
    (tmp_path / "empty" / "a.heic").touch()
    with pytest.raises(ValueError, match=r"folder empty has no image that Pillow reads; it holds 1 \.heic \(a\.heic\)"):
        read(tmp_path / "empty")


HIDDEN = [".ipynb_checkpoints", "@eaDir", "__MACOSX", ".thumbnails", "#recycle", "$RECYCLE.BIN", "lost+found", "@tmp", ".git"]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("place", ["", "cat", "cat/deep/er"])
def test_hidden_folders_are_no_data_at_any_depth(tmp_path, hidden, place):
    for name in ("cat/a.png", "dog/b.png", "cat/deep/er/c.png"):
        picture(tmp_path / name)
    picture(tmp_path / place / hidden / "a.png")
    (tmp_path / place / "Thumbs.db").touch()
    (tmp_path / place / ".DS_Store").touch()
    found, told = read(tmp_path)
    assert found.names == ["cat", "dog"] and len(found) == 3 and told == ""


def test_links_are_followed_once(tmp_path):
    data, far = tmp_path / "data", tmp_path / "far"
    picture(data / "cat" / "a.png", 1)
    picture(far / "dogs" / "b.png", 2)
    picture(far / "single.png", 3)
    (data / "dog").symlink_to(far / "dogs")  # a class on another disk
    (data / "cat" / "c.png").symlink_to(far / "single.png")  # a file elsewhere
    (data / "cat" / "up").symlink_to(data)  # a circle
    (data / "dog" / "self").symlink_to(far / "dogs")  # a smaller one
    (data / "cat" / "round.png").symlink_to(data / "cat" / "round.png")  # a file that is itself
    (data / "cat" / "gone.png").symlink_to(far / "nothing.png")
    (data / "aaa").symlink_to(data / "cat")  # before cat in every order
    found, told = read(data)
    assert found.names == ["cat", "dog"] and sorted(found.images[:, 0, 0, 0].tolist()) == [1, 2, 3]
    assert "2 of 5 pictures cannot be read and are skipped" in told and "left out: aaa" in told


def test_pipes_and_devices_are_never_opened(tmp_path):
    for name in ("cat/a.png", "dog/b.png"):
        picture(tmp_path / name)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    (tmp_path / "cat" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "cat" / "tty.png").symlink_to("/dev/full")
    os.mkfifo(tmp_path / "dog" / "pipe.txt")
    begin = time.monotonic()
    found, told = read(tmp_path)
    assert time.monotonic() - begin < 5 and len(found) == 2
    assert told.count("it is a pipe, device or socket, and no file") == 3 and "1 .txt (dog/pipe.txt)" in told


def bomb(path, width, height):
    """A PNG of so many pixels, of one colour, of which the first 256 rows are there."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), b"\0" * (width + 1) * 64
    data = b"".join(packer.compress(rows) for _ in range(min(height // 64, 4))) + packer.flush()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


def test_pictures_of_too_many_pixels_are_named_before_they_are_decoded(tmp_path):
    for k in range(4):
        bomb(tmp_path / f"bomb{k}.png", 32768 if k else 12288, 32768 if k else 12288)
    picture(tmp_path / "a.png")
    text = "import resource, sys, warnings; warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)\n"
    text += "from diffnb.data import image_set; before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
    text += "print(len(image_set(sys.argv[1], size=8)), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    begin = time.monotonic()
    code, out, err = program(text, tmp_path)
    assert code == 0, err
    n, kilobytes = map(int, out.splitlines()[-1].split())
    assert n == 1 and kilobytes < 500_000  # the first imports of torchvision among them
    assert "4 of 5 pictures cannot be read" in err and "bomb0.png (it has 12288 x 12288 pixels; a picture has at most 134,217,728" in err
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("what", ["pipe", "device", "folder", "text", "nothing", "bomb"])
def test_one_picture_is_opened_by_the_same_rules(tmp_path, what):
    place = tmp_path / "a.png"
    if what == "pipe":
        os.mkfifo(place)
    elif what == "device":
        place.symlink_to("/dev/zero")
    elif what == "folder":
        place.mkdir()
    elif what == "text":
        place.write_text("a")
    elif what == "bomb":
        bomb(place, 16384, 16384)
    messages = {
        "pipe": "pipe",
        "device": "device",
        "folder": "it is a folder, and no file",
        "text": "no picture",
        "nothing": "No such file|there is no file .*; give the path of a picture",
        "bomb": "pixels",
    }
    from diffnb.data import as_images, as_mask

    for function in (lambda: open_picture(place).__enter__(), lambda: as_images(place), lambda: as_mask(place, (1, 3, 4, 4))):
        with pytest.raises((ValueError, FileNotFoundError), match=messages[what]):
            function()


def test_names_are_written_so_that_no_terminal_is_misled():
    for name, shown in (
        ("a b.png", "a b.png"),
        ("é世.png", "é世.png"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb", "a\\nb"),
        ("\u202e", "\\u202e"),
        ("\u200b", "\\u200b"),
    ):
        assert printable(Path(name)) == shown


TABLES = {  # of three pictures: the table, the attributes that are read (None: not known), what is said of the others
    "numbers and truth values": (
        "image,caption,age,smiles\n0.png,a,30,yes\n1.png,b,41.5,no\n2.png,c,,No\n",
        {"age": [30, 41.5, None], "smiles": [1, 0, 0]},
        "",
    ),
    "texts": ("image,caption,artist\n0.png,a,Monet\n1.png,b,\n2.png,c,\n", {}, r"artist \(holds 'Monet'\); attributes are numbers, yes or no"),
    "one text among numbers": ("image,caption,age\n0.png,a,30\n1.png,b,old\n2.png,c,31\n", {}, r"age \(holds 'old'\)"),
    "what counts lines": ("id,image,caption\n0,0.png,a\n1,1.png,b\n2,2.png,c\n", {}, r"id \(counts lines\)"),
    "what says nothing": ("image,caption,set,x\n0.png,a,1,\n1.png,b,1,\n2.png,c,1,\n", {}, r"set \(is the same for all pictures\), x \(is empty\)"),
    "what differs": ("image,caption,k,n\n0.png,a,1,5\n0.png,aa,2,5\n1.png,b,3,6\n2.png,c,3,6\n", {"n": [5, 6, 6]}, r"k \(differs between lines"),
    "no captions": ("file_name,age\n0.png,3\n1.png,4\n", {"age": [3, 4, None]}, "1 picture of 3 without a line in captions.csv"),
    "endless numbers": ("image,caption,age\n0.png,a,1e999\n1.png,b,2\n2.png,c,3\n", {}, r"age \(holds '1e999'\)"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_columns_of_numbers_become_attributes_and_others_are_named(tmp_path, kind):
    table, wanted, said = TABLES[kind]
    for k in range(3):
        picture(tmp_path / f"{k}.png", 80 * k)
    (tmp_path / "captions.csv").write_text(table)
    found, told = read(tmp_path)
    known = {name: [None if value != value else value for value in values.tolist()] for name, values in (found.attributes or {}).items()}
    assert known == wanted and (re.search(said, told) if said else told == ""), told
    assert (found.captions is None) == (kind == "no captions")
    assert ("attribute" in repr(found)) == bool(wanted) and all(name in repr(found) for name in wanted)
