"""Pictures and masks read as a person sees them."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffnb.data import as_images, as_mask, image_set

REGION = np.zeros((6, 8), bool)
REGION[1:4, 2:5] = True
FULL = np.full((6, 8), 255, np.uint8)


def layers(*channels):
    return Image.fromarray(np.stack([np.broadcast_to(np.asarray(c, np.uint8), (6, 8)) for c in channels], -1).squeeze())


def strokes(*colour, soft=False):
    """A transparent canvas on which the region is painted."""
    alpha = np.where(REGION, 255, 0)
    if soft:  # as a brush leaves its edges
        alpha[0, 2:5], alpha[4, 2:5] = 100, 30
    return layers(*(np.where(REGION, c, 0) for c in colour), alpha)


def palette():
    image = layers(np.where(REGION, 1, 0)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255] + [0] * 750)
    return image


PAINTED = {
    "white on black": layers(np.where(REGION, 255, 0)),
    "white on black, in colour": layers(*[np.where(REGION, 255, 0)] * 3),
    "white on black, with alpha": layers(*[np.where(REGION, 255, 0)] * 3, FULL),
    "white on black, grey with alpha": layers(np.where(REGION, 255, 0), FULL),
    "white on black, one bit": layers(np.where(REGION, 255, 0)).convert("1"),
    "white on black, palette": palette(),
    "black strokes": strokes(0, 0, 0),
    "white strokes": strokes(255, 255, 255),
    "green strokes": strokes(0, 255, 0),
    "red strokes": strokes(255, 0, 0),
    "strokes of several colours": layers(np.where(REGION, np.arange(8) * 30, 0), np.where(REGION, 90, 0), 7, np.where(REGION, 255, 0)),
    "soft strokes": strokes(10, 20, 30, soft=True),
    "grey strokes": layers(np.where(REGION, 60, 0), np.where(REGION, 255, 0)),
    "white with the region in alpha": layers(255, 255, 255, np.where(REGION, 255, 0)),
}


@pytest.mark.parametrize("kind", PAINTED)
def test_a_mask_is_what_was_painted(tmp_path, kind):
    expected = torch.tensor(REGION).float()
    PAINTED[kind].save(tmp_path / "mask.png")
    for form in (PAINTED[kind], tmp_path / "mask.png", str(tmp_path / "mask.png"), [PAINTED[kind]]):
        assert torch.equal(as_mask(form, (1, 3, 6, 8)), expected[None, None])


UNCLEAR = {
    "colours": (layers(np.where(REGION, 255, 0), 0, 0), "mask is a picture with colours"),
    "colours with alpha": (layers(0, np.where(REGION, 255, 0), 0, FULL), "mask is a picture with colours"),
    "a photograph": (layers(*(np.arange(48).reshape(6, 8) * k for k in (1, 2, 3))), "mask is a picture with colours"),
    "grey values": (layers(np.arange(48).reshape(6, 8) * 5), "nothing between, got 48 values .* make it black and white"),
    "transparent everywhere": (layers(255, 255, 255, 0), "transparent everywhere"),
    "faint strokes": (layers(0, 0, 0, np.where(REGION, 50, 0)), "transparent everywhere"),
    "16 bits": (Image.new("I;16", (8, 6)), "8 bits a channel"),
}


@pytest.mark.parametrize("kind", UNCLEAR)
def test_a_mask_that_says_nothing_clear_is_refused(kind):
    image, message = UNCLEAR[kind]
    with pytest.raises(ValueError, match=message):
        as_mask(image, (1, 3, 6, 8))


NAMES = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
TURNS = {1: []} | {number: [Image.Transpose[name]] for number, name in NAMES.items()}


@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_in_memory_is_turned_as_the_file_is(tmp_path, orientation):
    lying = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    right = lying
    for turn in TURNS[orientation]:
        right = right.transpose(turn)
    lying.getexif()[0x0112] = orientation
    lying.save(tmp_path / "a.png", exif=lying.getexif())
    opened = Image.open(tmp_path / "a.png")
    expected = torch.tensor(np.asarray(right))
    for form in (tmp_path / "a.png", lying, opened):
        assert torch.equal((as_images(form)[0][0, 0] * 255).round().byte(), expected)
    assert torch.equal(image_set([lying, lying], verbose=False).images[0, 0], expected)
    assert torch.equal(image_set(tmp_path, verbose=False).images[0, 0], expected)
    mask = Image.fromarray((np.arange(48).reshape(6, 8) % 5 == 0).astype(np.uint8) * 255)
    mask.getexif()[0x0112] = orientation
    shape = (1, 1, right.height, right.width)
    for turn in TURNS[orientation]:
        turned = mask.transpose(turn)
    assert orientation == 1 or torch.equal(as_mask(mask, shape)[0, 0].byte() * 255, torch.tensor(np.asarray(turned)))


LAYOUTS = {
    "(h, w)": (6, 8),
    "(h, w, 1)": (6, 8, 1),
    "(h, w, 3)": (6, 8, 3),
    "(h, w, 4)": (6, 8, 4),
    "(3, h, w)": (3, 6, 8),
    "(n, h, w, 3)": (2, 6, 8, 3),
    "(n, 3, h, w)": (2, 3, 6, 8),
    "(3, 3, 3), as a tensor is": (3, 3, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64, np.float16])
def test_arrays_of_other_libraries_are_images(layout, dtype):
    shape = LAYOUTS[layout]
    array = np.arange(np.prod(shape)).reshape(shape) % 256
    array = array.astype(dtype) if dtype is np.uint8 else (array / 255).astype(dtype)
    images, alpha = as_images(array)
    last = layout.startswith(("(h, w,", "(n, h"))
    first = torch.tensor(np.moveaxis(array, -1, -3).copy() if last else array).double() / (255 if dtype is np.uint8 else 1)
    whole = images if alpha is None else torch.cat([images, alpha], 1)
    assert torch.allclose(whole.double(), first.reshape(*[1] * (4 - first.ndim), *first.shape), atol=1e-3)
    assert torch.equal(as_images(array[::-1])[0], as_images(np.ascontiguousarray(array[::-1]))[0])
