"""The commands on image files: what must hold to the byte, what is told about bad input, and that nothing is lost."""

import io
import sys

import pytest
import torch
from PIL import Image

from diffnb import GenerativeModel
from diffnb.apps import AT_A_TIME
from diffnb.guidance import REC601, Downsample

QUICK = ["--method", "ddnm", "--steps", "3", "--seed", "1"]  # needs no calibration
GREY = ["--model", "fashion_mnist"]


def pixels(path):
    """A picture as bytes (c, h, w)."""
    with Image.open(path) as image:
        shape = (image.height, image.width, len(image.getbands()))
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(shape).permute(2, 0, 1)


def random_bytes(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def save(path, bytes_, **options):
    """Write bytes (c, h, w), c = 1, 2, 3 or 4, by the ending of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(bytes_)]
    data = bytes_[0] if len(bytes_) == 1 else bytes_.permute(1, 2, 0)
    Image.fromarray(data.contiguous().numpy(), mode).save(path, **options)
    return path


def luminance(bytes_):
    return (torch.tensor(REC601).view(-1, 1, 1) * bytes_).sum(0)


@pytest.mark.parametrize("method", [QUICK, ["--method", "replacement", "--steps", "2", "--seed", "3"]], ids=["ddnm", "replacement"])
def test_colorized_pictures_keep_their_luminance_to_a_step(diffnb, tmp_path, method):
    grey = random_bytes(1, 32, 32)
    grey[:, :8], grey[:, 8:16] = 0, 255
    save(tmp_path / "in" / "grey.png", grey)
    colour = save(tmp_path / "in" / "colour.webp", random_bytes(3, 32, 32, seed=1), lossless=True)
    code, out, err = diffnb("colorize", tmp_path / "in", "--out", tmp_path / "out", "--model", "cifar10", *method)
    assert code == 0 and err == "" and "2 of 2 pictures" in out
    assert (luminance(pixels(tmp_path / "out" / "grey.png")) - grey[0]).abs().max() <= 1
    assert (luminance(pixels(tmp_path / "out" / "colour.png")) - luminance(pixels(colour))).abs().max() <= 1
    made = pixels(tmp_path / "out" / "grey.png").int()
    assert (made[0] - made[2]).abs().max() > 5  # there are colours


def test_hints_are_colours_where_they_are_not_transparent(diffnb, tmp_path):
    grey = save(tmp_path / "grey.png", torch.full((1, 32, 32), 110, dtype=torch.uint8))
    hint = torch.zeros(4, 32, 32, dtype=torch.uint8)
    hint[0], hint[1], hint[2] = 200, 70, 81  # of the same luminance
    hint[3, 8:24, 8:24] = 255
    save(tmp_path / "hints" / "grey.png", hint)
    code, _, err = diffnb("colorize", grey, "--hints", tmp_path / "hints", "--out", tmp_path / "out", *QUICK)
    assert code == 0, err
    inside = pixels(tmp_path / "out" / "grey.png")[:, 10:22, 10:22].double()
    assert (inside.mean((1, 2)) - torch.tensor([200.0, 70.0, 81.0])).abs().max() < 6
    code, _, err = diffnb("colorize", grey, "--hints", grey, "--out", tmp_path / "other", *QUICK)
    assert code == 2 and "must be transparent where it gives no hint" in err


def test_known_pixels_come_back_to_the_byte(diffnb, tmp_path):
    bytes_, hole = random_bytes(4, 32, 32), torch.zeros(32, 32, dtype=torch.bool)
    hole[4:20, 9:30] = True
    bytes_[3] = torch.where(hole, 0, 255)
    save(tmp_path / "in" / "a.png", bytes_)
    save(tmp_path / "in" / "b.webp", bytes_, lossless=True, exact=True)
    mask = save(tmp_path / "mask.png", hole[None].byte() * 255)
    code, _, err = diffnb("impute", tmp_path / "in", "--out", tmp_path / "out", "--variants", 2, *QUICK)
    assert code == 0 and err == ""
    plain = save(tmp_path / "plain" / "c.png", bytes_[:3])
    assert diffnb("impute", plain, "--mask", mask, "--out", tmp_path / "out", "--variants", 2, *QUICK)[0] == 0
    for name in ("a-1", "a-2", "b-1", "b-2", "c-1", "c-2"):
        made = pixels(tmp_path / "out" / f"{name}.png")
        assert torch.equal(made[:, ~hole], bytes_[:3, ~hole]) and not torch.equal(made[:, hole], bytes_[:3, hole])
    assert not torch.equal(pixels(tmp_path / "out" / "a-1.png"), pixels(tmp_path / "out" / "a-2.png"))
    for name in ("b-1", "c-2"):  # alpha or mask, PNG or WebP: the same problem, and the same seed
        assert (pixels(tmp_path / "out" / f"{name}.png").int() - pixels(tmp_path / "out" / f"a{name[1:]}.png").int()).abs().max() <= 2


def test_an_upscaled_picture_has_the_small_one_as_its_averages(diffnb, tmp_path):
    small = random_bytes(3, 8, 8)
    small[:, 0], small[:, 1] = 0, 255
    save(tmp_path / "small.png", small)
    code, _, err = diffnb("upscale", tmp_path / "small.png", "--out", tmp_path / "out", *QUICK)
    assert code == 0, err
    made = pixels(tmp_path / "out" / "small.png")
    assert made.shape == (3, 32, 32)
    assert (Downsample(4).A(made[None].double())[0] - small).abs().max() <= 0.5
    assert diffnb("upscale", tmp_path / "small.png", "--factor", 2, "--resize", "--out", tmp_path / "twice", *QUICK)[0] == 0
    code, _, err = diffnb("upscale", tmp_path / "small.png", "--factor", 2, "--out", tmp_path / "none", *QUICK)
    assert (
        code == 2
        and "--factor 2 enlarges pictures of 16 x 16 to 32 x 32, and image is 8 x 8; give --resize" in err
        and not (tmp_path / "none").exists()
    )


def test_the_commands_make_what_python_makes(diffnb, tmp_path):
    clothes = GenerativeModel.pretrained("fashion_mnist", verbose=False)
    noisy = save(tmp_path / "noisy.png", random_bytes(1, 28, 28))
    image = pixels(noisy)[None] / 255
    common = ["--out", tmp_path / "out", *GREY, "--steps", 3, "--seed", 5, "--labels", "bag", "--guidance-scale", 1.5]
    python = {"n_steps": 3, "seed": [5], "class_labels": "Bag", "guidance_scale": 1.5}
    for command, options, expected in [
        ("denoise", ["--noise", 0.3, "--method", "ddnm"], clothes.denoise(image, 0.3, method="ddnm", **python)),
        ("edit", ["--strength", 0.4], clothes.edit(image, 0.4, **python)),
        ("edit", ["--strength", 0.4, "--from-labels", "Coat"], clothes.edit(image, 0.4, from_labels="Coat", **python)),
    ]:
        code, out, err = diffnb(command, noisy, *options, *common, "--overwrite")
        assert code == 0 and err == "" and "seed 5" in out
        assert torch.equal(pixels(tmp_path / "out" / "noisy.png"), (expected[0] * 255).round().byte()), command


def test_seeds_belong_to_pictures_whatever_stands_beside_them(diffnb, tmp_path):
    for k in range(AT_A_TIME + 2):
        save(tmp_path / "in" / f"{k:02}.png", random_bytes(1, 28, 28, seed=k))
    run = ["edit", "--strength", 0.4, "--steps", 1, *GREY]
    for folder, what, seed in (("all", tmp_path / "in", 7), ("again", tmp_path / "in", 7), ("one", tmp_path / "in" / "33.png", 7)):
        assert diffnb(*run, what, "--seed", seed, "--out", tmp_path / folder)[0] == 0
    assert diffnb(*run, tmp_path / "in" / "33.png", "--seed", 8, "--out", tmp_path / "other")[0] == 0
    assert len(list((tmp_path / "all").iterdir())) == AT_A_TIME + 2
    for k in range(AT_A_TIME + 2):
        assert (tmp_path / "all" / f"{k:02}.png").read_bytes() == (tmp_path / "again" / f"{k:02}.png").read_bytes()
    last = pixels(tmp_path / "all" / "33.png").int()
    assert (last - pixels(tmp_path / "one" / "33.png").int()).abs().max() <= 2
    assert (last - pixels(tmp_path / "other" / "33.png").int()).abs().max() > 20
    code, out, _ = diffnb(*run, tmp_path / "in" / "33.png", "--out", tmp_path / "fresh")
    assert code == 0 and int(out.split("seed ")[1].split(",")[0]) >= 0


def test_labels_go_with_their_files_also_where_one_fails(diffnb, tmp_path):
    good = save(tmp_path / "good.png", random_bytes(1, 28, 28))
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    run = ["edit", "--strength", 0.9, "--guidance-scale", 3, "--steps", 3, "--seed", 1, *GREY]
    code, out, err = diffnb(*run, bad, good, tmp_path / "gone.png", "--labels", "Bag,Trouser,Coat", "--out", tmp_path / "out")
    assert code == 2 and "1 of 3 pictures" in out
    assert [line.startswith("diffnb: ") for line in err.splitlines()] == [True, True] and "bad.png" in err and "gone.png" in err
    assert diffnb(*run, good, "--labels", "Trouser", "--out", tmp_path / "alone")[0] == 0
    assert (tmp_path / "out" / "good.png").read_bytes() == (tmp_path / "alone" / "good.png").read_bytes()


def test_nothing_is_overwritten_in_silence(diffnb, tmp_path):
    file = save(tmp_path / "a.png", random_bytes(1, 28, 28))
    before = file.read_bytes()
    run = ["edit", file, "--strength", 0.2, "--steps", 1, "--seed", 0, *GREY]
    code, _, err = diffnb(*run, "--out", tmp_path)
    assert code == 2 and "would be overwritten" in err and file.read_bytes() == before
    assert diffnb(*run, "--out", tmp_path / "out", "--format", "jpg")[0] == 0
    with Image.open(tmp_path / "out" / "a.jpg") as image:
        assert image.format == "JPEG" and image.size == (28, 28) and image.mode == "L"
    assert diffnb(*run, "--out", tmp_path / "out")[0] == 0  # a.png beside a.jpg
    assert diffnb(*run, "--out", tmp_path / "out")[0] == 2
    assert diffnb(*run, "--out", tmp_path / "out", "--overwrite")[0] == 0
    save(tmp_path / "b" / "a.jpg", random_bytes(1, 28, 28))
    code, _, err = diffnb(*run, tmp_path / "b" / "a.jpg", "--out", tmp_path / "both")
    assert code == 2 and "would both become" in err and not (tmp_path / "both").exists()


def test_photographs_are_resized_and_set_upright_on_request(diffnb, tmp_path):
    photo = torch.zeros(3, 48, 64, dtype=torch.uint8)
    photo[:, :, :32] = 255  # bright at the left as stored: at the top, once it is turned clockwise
    turn = Image.Exif()
    turn[0x0112] = 6
    save(tmp_path / "photo.jpg", photo, quality=95, exif=turn)
    run = ["denoise", tmp_path / "photo.jpg", "--noise", 0.02, "--method", "ddnm", "--steps", 2, "--seed", 0, "--out", tmp_path / "out"]
    code, _, err = diffnb(*run)
    assert code == 2 and "64 x 48, this model makes 32 x 32; give --resize to resize it, or cut it into tiles of 32 x 32" in err
    assert diffnb(*run, "--resize")[0] == 0
    made = pixels(tmp_path / "out" / "photo.png").double()
    assert made[:, :12].mean() > 220 and made[:, -12:].mean() < 35


WRONG = {
    "impute a.png": "no alpha channel",
    "impute opaque.png": "no pixel of the image is transparent",
    "impute a.png --mask small.png": "mask is 20 x 28, the image 28 x 28",
    "impute a.png --mask soft.png": "make it black and white",
    "impute a.png --mask empty": "holds no picture named a",
    "denoise half.png --noise 0.1": "transparent pixels",
    "denoise rgb.png --noise 0.1": "3 channels, this model makes 1",
    "denoise deep.png --noise 0.1": "8 bits",
    "denoise a.png": "--noise",
    "denoise a.png --noise 25": "--noise",
    "denoise a.png --noise 0.1 --method magic": "unknown restoration method 'magic'",
    "denoise a.png --noise 0.1 --guidance-scale 2": "give --labels too",
    "colorize a.png": "a grayscale model knows no colours",
    "upscale a.png": "as large as this model makes them",
    "upscale a.png --factor 3": "must divide",
    "upscale a.png --resize": "--factor",
    "edit empty": "holds no pictures",
    "edit a.png --labels hat": "unknown label 'hat'",
    "edit a.png --labels bag,coat": "2 labels for 1 pictures",
    "edit a.png --from-labels bag --variants 2": "needs chance",
    "edit a.png --model nothing": "neither a model file",
    "edit": "FILES",
}


def test_what_users_get_wrong_is_one_line_and_exit_code_2(diffnb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    grey = random_bytes(1, 28, 28)
    save(tmp_path / "a.png", grey)
    save(tmp_path / "opaque.png", torch.cat([grey, torch.full_like(grey, 255)]))
    save(tmp_path / "half.png", torch.cat([grey, torch.zeros_like(grey)]))
    save(tmp_path / "small.png", (grey[:, :20] > 127).byte() * 255)
    save(tmp_path / "soft.png", torch.full_like(grey, 128))
    save(tmp_path / "rgb.png", random_bytes(3, 28, 28))
    Image.new("I;16", (28, 28)).save(tmp_path / "deep.png")
    (tmp_path / "empty").mkdir()
    for line, words in WRONG.items():
        model = [] if "--model" in line else GREY
        code, out, err = diffnb(*line.split(), *model, "--out", "out", "--seed", 0, "--steps", 2)
        assert code == 2 and out == "" and err.startswith("diffnb: ") and err.count("\n") == 1 and words in err, (line, err)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_bar_is_shown_to_people_only(diffnb, tmp_path, monkeypatch):
    from diffnb.apps import Progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = Progress(4)
    observe = progress.steps(2, 3)
    for step in range(1, 6):
        observe(step, 5, torch.zeros(6, 1, 2, 2))
    assert abs(progress.bar.n - 2) < 1e-9
    progress.finished()
    progress.finished(error=ValueError("bad"), source="b.png")
    assert progress.done == 1 and progress.bar.n == 2 and "diffnb: b.png: bad" in screen.getvalue() and "50%" in screen.getvalue()
    progress.bar.close()


def test_the_five_have_the_same_options_and_their_own(diffnb):
    shared = "--out --model --resize --steps --seed --labels --guidance-scale --variants --format --overwrite --device FILES".split()
    own = {"colorize": "--hints --method", "impute": "--mask --method", "upscale": "--factor --kind --noise --method"}
    own |= {"denoise": "--noise --method", "edit": "--strength --from-labels"}
    for command, options in own.items():
        code, out, _ = diffnb(command, "--help")
        assert code == 0 and all(option in out for option in [*shared, *options.split()]), command
