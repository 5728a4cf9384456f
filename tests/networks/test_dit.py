"""The transformer by name: through the facade, a model file, guidance and the command line."""

import pytest
import torch

from diffnb.data import ImageSet
from diffnb.model import GenerativeModel
from diffnb.networks import DiT, check_network, named_network


@pytest.fixture(scope="module")
def images():
    """Small pictures with captions and classes."""
    pixels = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, torch.arange(12) % 2, captions=[["a red heart", "corazón rojo"], ["blue"]] * 6, values=(0, 1), names=("heart", "other"))


def test_a_model_by_name_is_trained_guided_saved_and_loaded(images, tmp_path):
    model = GenerativeModel(network="dit", verbose=False)
    model.train(images, steps=3, batch_size=4, valid_fraction=0)
    assert isinstance(model.trained.network, DiT) and model.takes_text and model.num_classes == 2
    asked = dict(prompt=["red heart", None], class_labels=["heart", "other"], guidance_scale=2.0, n_steps=3, seed=1)
    made = model.generate(**asked)
    assert made.shape == (2, 3, 8, 8) and bool(made.isfinite().all())
    model.save(tmp_path / "dit.safetensors")
    again = GenerativeModel.load(tmp_path / "dit.safetensors", verbose=False)
    assert again.generate(**asked).equal(made)
    assert again.generate(2, n_steps=3, seed=1).equal(model.generate(2, n_steps=3, seed=1))


def test_it_takes_what_a_set_knows(images):
    for known, names in (
        (images, ("text", "label")),
        (ImageSet(images.images), ()),
        (ImageSet(images.images, attributes={"age": list(range(12))}), ("attributes",)),
    ):
        network = named_network("dit", known)
        assert network.condition_names == names
        check_network(network, known.shape, known.num_classes)


@pytest.mark.parametrize("side", [(5, 7), (8, 8), (33, 20)])
def test_it_takes_images_of_any_size(side):
    network = DiT(1, patch=4, width=16, depth=1, head_width=8)
    out = network(torch.randn(2, 1, *side), torch.tensor(0.0))
    assert out.shape == (2, 1, *side)
