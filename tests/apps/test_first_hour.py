"""The first hour of a person with photographs, by the commands of the README: from a folder as people have it to pictures, every message read."""

import os
import shlex
import signal
import time

import pytest
from commands import command
from PIL import Image, ImageDraw

from diffnb.data import image_set
from diffnb.model import GenerativeModel


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Forty photographs: names with spaces and commas, turned ones, a large one, screenshots with alpha, and files that are none."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "My Photos"
    for k, name in enumerate(("Rosen (Garten)", "tulips, red & white")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            picture = Image.new("RGB", (60, 40), (40 + 150 * k, 90, 9 * i))
            ImageDraw.Draw(picture).ellipse([5 + i, 5, 30 + i, 30], fill=(220, 9 * i, 120 * k))
            if i % 5 == 0:  # a telephone writes how it was held
                exif = picture.getexif()
                exif[0x0112] = 6
                picture.rotate(90, expand=True).save(root / name / f"IMG_{i:04}.JPG", exif=exif)
            elif i % 5 == 1:
                picture.convert("RGBA").save(root / name / f"Bildschirmfoto {i}.png")
            else:
                picture.resize((900, 600) if i == 2 else (60, 40)).save(root / name / f"photo ({i}).jpeg")
    (root / "empty").mkdir()
    (root / ".DS_Store").write_bytes(b"x")
    (root / "Rosen (Garten)" / "IMG_2001.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "Rosen (Garten)" / "cut.jpg").write_bytes((root / "Rosen (Garten)" / "photo (2).jpeg").read_bytes()[:700])
    return root


def test_from_a_folder_to_pictures(diffnb, photos, no_pictures):
    # train; the key Ctrl-C is pressed on the way
    line = ["train", photos.name, "--out", "my run", "--size", "16", "--network", "tiny", "--epochs", "500"]
    training, end = command(*line), time.monotonic() + 240
    while "epoch 1 of 500" not in training.said and not training.has_ended and time.monotonic() < end:
        time.sleep(0.2)
    os.kill(training.pid, signal.SIGINT)
    code, _, said = training.end()
    assert code == 130, said
    assert "diffnb: in folder My Photos, 1 of 41 pictures cannot be read and are skipped: cut.jpg" in said and ".py" not in said
    assert "1 .heic (Rosen (Garten)/IMG_2001.HEIC); save .heic as .jpg to use them" in said
    assert "subfolders without a picture are left out: empty" in said and "My Photos: 40 images, 3 x 16 x 16, 2 classes" in said
    assert "So few steps leave noise" in said or "500" in said

    # go on, by the line that was said last
    resume = shlex.split(said.strip().splitlines()[-1].rpartition("Go on by: diffnb ")[2])
    assert resume == ["train", "--resume", "my run"]
    before = len(open("my run/history.csv").readlines())
    code, out, err = diffnb(*resume, "--time-limit", 1)
    assert code == 0 and out.startswith("my run: stopped by --time-limit") and "diffnb train --resume 'my run'" in out, err
    assert len(open("my run/history.csv").readlines()) > before
    assert GenerativeModel.load("my run/model.safetensors", verbose=False).label_names == ["Rosen (Garten)", "tulips, red & white"]

    # draw, by class; a name that holds a comma stands in quotes
    code, out, err = diffnb("generate", "my run", "--labels", '"tulips, red & white",Rosen (Garten)', "--steps", 3, "--out", "two.png")
    assert code == 0 and Image.open("two.png").size == (34, 16), err
    assert diffnb("generate", "my run", "--labels", '"tulips, red & white",Rosen (Garten)', "--steps", 3, "--out", "two.png")[0] == 2  # it is there

    # colours for a grey picture, which is too large at first
    Image.open(photos / "Rosen (Garten)" / "photo (2).jpeg").convert("L").save("grey.png")
    line = ["colorize", "grey.png", "--model", "my run", "--steps", 3, "--method", "ddnm", "--out", "coloured"]
    code, out, err = diffnb(*line)
    assert code == 2 and "give --resize" in err
    code, out, err = diffnb(*line, "--resize")
    assert code == 0 and Image.open("coloured/grey.png").mode == "RGB", err

    # a hole, painted by hand with a soft brush, kept as JPEG
    mask = Image.new("RGB", (1200, 800))
    ImageDraw.Draw(mask).line([(200, 200), (900, 500)], fill="white", width=160)
    mask.resize((600, 400), Image.Resampling.BICUBIC).save("mask.jpg", quality=70)
    line = ["impute", "grey.png", "--model", "my run", "--resize", "--steps", 3, "--method", "replacement", "--out", "filled"]
    code, out, err = diffnb(*line)
    assert code == 2 and "impute needs --mask, a picture that is white where to generate" in err
    code, out, err = diffnb(*line, "--mask", "mask.jpg")
    assert code == 0 and Image.open("filled/grey.png").size == (16, 16), err

    # how good is it? photographs of all sizes are brought to that of the model
    code, out, err = diffnb("score", photos.name, "my run", "--num", 8, "--steps", 2, "--metrics", "kernel", "--json")
    assert code == 0 and '"kernel' in out, err
    assert len(image_set(photos, size=16, verbose=False)) == 40
