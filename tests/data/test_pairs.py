"""Ways to spoil pictures: what is random belongs to a picture and not to its place in a batch, and JPEG has the quality that was asked for."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffnb.core import NoiseSource
from diffnb.data import ImageSet, degradation, paired, to_bytes
from diffnb.guidance import Mask


@pytest.fixture(scope="module")
def pictures():
    pixels = torch.randint(0, 256, (260, 3, 8, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(pixels)


def test_what_is_hidden_belongs_to_the_number_of_a_picture(pictures):
    """Also beyond the first 256, which are spoiled together: picture 257 has the hole of number 257, and not that of number 1."""
    second = paired(pictures, "holes:0.25", seed=3, verbose=False).second
    for k in (0, 1, 255, 256, 257):
        alone = degradation("holes:0.25")(pictures.unit([k]), NoiseSource([3], [k]))
        assert torch.equal(second[k : k + 1], to_bytes(alone)), k
    assert len({tuple(map(tuple, second[k, -1].tolist())) for k in range(260)}) > 20


@pytest.mark.parametrize("quality", [5, 10, 60])
def test_jpeg_is_that_of_its_quality(pictures, quality):
    second = paired(pictures.select(torch.arange(3)), f"jpeg:{quality}", verbose=False).second
    for image, found in zip(pictures.images, second):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        assert torch.equal(found, torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_hole_has_the_share_that_was_asked_for_and_may_lie_at_every_edge(share):
    pictures = ImageSet(torch.full((400, 1, 20, 30), 200, dtype=torch.uint8))
    hidden = paired(pictures, f"holes:{share}", verbose=False).second[:, -1] < 128
    assert abs(hidden.float().mean().item() - share) < 0.03
    assert hidden[:, 0].any() and hidden[:, -1].any() and hidden[:, :, 0].any() and hidden[:, :, -1].any()


@pytest.mark.parametrize("shape", [(8, 12), (1, 8, 12), (3, 8, 12), (260, 1, 8, 12), (260, 3, 8, 12)])
def test_a_mask_is_the_alpha_channel_of_what_it_leaves(pictures, shape):
    """One where a pixel is known in all its channels, of masks of every shape, also beyond the first 256 pictures."""
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3).float()
    made = paired(pictures, Mask(mask), verbose=False)
    hidden = mask.expand(260, 3, 8, 12).bool()
    assert made.pairing == "holes" and torch.equal(made.second[:, :3], torch.where(hidden, 0, pictures.images).byte())
    assert torch.equal(made.second[:, 3], (~hidden.any(1)).byte() * 255)
