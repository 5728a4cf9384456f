"""Model files of format 0: written by an independent hand, attacked, and read in another process."""

import json
import os
import pickle
import struct
import subprocess
import sys

import pytest
import torch

from diffnb.networks import NETWORKS, UNet
from diffnb.parametrizations import PARAMETRIZATIONS, Karras
from diffnb.samplers import DDIM, SAMPLERS
from diffnb.schedules import SCHEDULES, Cosine
from diffnb.sdes import SDES, VP
from diffnb.serialization import ModelFileError, _digest, cast, from_config, load_file, load_network, save_file, to_config


def by_hand(tensors, metadata):
    """A safetensors file of float32 tensors, assembled from its specification."""
    header, data = {"__metadata__": metadata}, b""
    for name, tensor in tensors.items():
        numbers = struct.pack(f"<{tensor.numel()}f", *tensor.flatten().tolist())
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("registry", [SCHEDULES, SDES, PARAMETRIZATIONS, SAMPLERS], ids=lambda registry: registry.kind)
def test_every_registered_component_survives_json(registry):
    for name in registry.names():
        component = registry[name]()
        assert from_config(json.loads(json.dumps(to_config(component)))) == component


def test_settings_survive_exactly():
    for component in (VP(Cosine(s=0.1 + 0.2, beta_max=1e3 / 7)), DDIM(eta=1 / 3), Karras(2**-0.5)):
        assert from_config(json.loads(json.dumps(to_config(component)))) == component


def test_networks_are_registered_with_their_settings():
    for name in NETWORKS.names():
        network = NETWORKS[name](dim=2) if name == "mlp" else NETWORKS[name](widths=(8, 8), groups=4)
        assert from_config(json.loads(json.dumps(to_config(network)))).config == network.config


def test_a_file_made_by_hand_is_read(tmp_path):
    """Format 0 as its page describes it, so that later versions keep reading it."""
    tensors = {"a": torch.tensor([[1.5, -2.0]]), "b": torch.tensor([3.0])}
    text = '{"process": {"kind": "process", "name": "ve", "settings": {"sigma_min": 0.01, "sigma_max": 50.0}}}'
    path = tmp_path / "hand"
    path.write_bytes(by_hand(tensors, {"diffnb.format": "0", "diffnb.config": text, "diffnb.sha256": _digest(tensors, text)}))
    found, config = load_file(path)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [[1.5, -2.0]], "b": [3.0]}
    assert config == json.loads(text)


def test_the_checksum_is_the_one_described():
    import hashlib

    tensor = torch.tensor([1.0, 2.0])
    expected = hashlib.sha256(b"{}" + b'["w", "torch.float32", [2]]' + struct.pack("<2f", 1.0, 2.0)).hexdigest()
    assert _digest({"w": tensor}, "{}") == expected


@pytest.mark.parametrize("config", ["[]", "null", "{", '"text"', "[" * 100_000], ids=["list", "null", "cut", "text", "deep"])
def test_configurations_that_are_no_object(tmp_path, config):
    path = tmp_path / "file"
    path.write_bytes(by_hand({}, {"diffnb.format": "0", "diffnb.config": config, "diffnb.sha256": _digest({}, config)}))
    with pytest.raises(ModelFileError):
        load_file(path)


def test_reading_runs_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Attack()))
    torch.save({"attack": Attack()}, tmp_path / "model.pt")
    for name in ("model.safetensors", "model.pt"):
        with pytest.raises(ModelFileError, match="pickle"):
            load_file(tmp_path / name)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    "settings",
    [{"widths": [10**12]}, {"widths": ["64"]}, {"widths": []}, {"activation": "__import__"}, {"channels": -1}, {"blocks": 1.5}, {"self": 1}],
    ids=str,
)
def test_networks_that_cannot_be(settings):
    config = {"kind": "network", "name": "unet", "settings": settings}
    with pytest.raises(ModelFileError):
        load_network(config, {})


def test_loading_a_network_leaves_the_random_state():
    network = UNet(widths=(8, 8), groups=4)
    before = torch.get_rng_state()
    load_network(to_config(network), network.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_rounds_and_refuses():
    x = torch.tensor([1 / 3, -1e-5, 65504.0])
    half = cast({"x": x, "n": torch.tensor([2**40])}, torch.float16)
    assert torch.equal(half["x"], x.half()) and half["n"].dtype == torch.int64
    with pytest.raises(ValueError, match="too large"):
        cast({"x": torch.tensor([7e4])}, torch.float16)
    assert cast({"x": torch.tensor([float("inf")])}, torch.float16)["x"].isinf().all()


def test_a_crash_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model"
    save_file(path, {"w": torch.ones(2)}, {})
    old = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr("diffnb.serialization.os.replace", crash)
    with pytest.raises(OSError, match="disk full"):
        save_file(path, {"w": torch.zeros(2)}, {})
    assert path.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["model"]


def test_another_process_reads_the_same_bits(tmp_path):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(1000, generator=generator)
    save_file(tmp_path / "model", {"w": w}, {})
    program = (
        "import sys; from diffnb.serialization import load_file; print(load_file(sys.argv[1])[0]['w'].view(__import__('torch').int32).sum().item())"
    )
    said = subprocess.run([sys.executable, "-c", program, str(tmp_path / "model")], capture_output=True, text=True, check=True).stdout
    assert int(said) == w.view(torch.int32).sum().item()
