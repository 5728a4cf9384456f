"""The studio and what a stranger's file may do in it."""

import sys

import pytest
import torch

from diffnb.apps import Studio
from diffnb.files import confirm, inspect
from diffnb.model import GenerativeModel, Trained
from diffnb.networks import UNet
from diffnb.noise import VP, Karras, NoiseSchedule


class Looped(NoiseSchedule):
    """A schedule that no program can say: it goes through the times one by one."""

    def beta(self, t):
        """Rate at time t."""
        return torch.as_tensor([0.1 + 5 * float(v) for v in t.flatten()], dtype=t.dtype).view(t.shape)

    def integral(self, t):
        """Integral of the rate."""
        return torch.as_tensor([0.1 * float(v) + 2.5 * float(v) ** 2 for v in t.flatten()], dtype=t.dtype).view(t.shape)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_code_in_a_file_runs_only_if_it_was_confirmed_beforehand(tmp_path):
    network = UNet(1, (8,), 1, (), groups=4)
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "own.safetensors"
    with pytest.warns(UserWarning):
        GenerativeModel.of(Trained(network, VP(Looped()), Karras(), (1, 8, 8)), device="cpu", verbose=False).save(file)
    studio = Studio(tmp_path / "models", "cpu")
    assert "its component Looped is code that nobody has confirmed here" in studio.models["own.safetensors"].fault
    with pytest.raises(ValueError, match="diffnb trust add"):
        studio.choose("own.safetensors")
    uploaded = studio.upload("sent.safetensors", file.read_bytes())
    assert uploaded.fault == studio.models["own.safetensors"].fault and studio.model is None
    digest = next(iter(inspect(file).sources.values())).digest
    assert len(confirm(file, ask=lambda question: digest[:8], show=lambda text: None)) == 1
    studio.rescan()
    assert studio.models["own.safetensors"].fault is None and studio.models["sent.safetensors"].fault is None  # the same code
    studio.choose("sent.safetensors")
    studio.change(number=2, steps=2)
    assert studio.run("generate").images.shape == (2, 1, 8, 8)
