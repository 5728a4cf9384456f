"""benchmarks/gpu_cifar10.py, scaled down: two leases on a CPU, and the arithmetic that its figures rest on."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from diffnb.core import NoiseSource
from diffnb.data import image_set
from diffnb.metrics import Evaluator, FrechetDistance
from diffnb.model import GenerativeModel
from diffnb.networks import UNet

PATH = Path(__file__).parent.parent / "benchmarks" / "gpu_cifar10.py"
spec = importlib.util.spec_from_file_location("gpu_cifar10", PATH)
script = sys.modules["gpu_cifar10"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def command(line):
    """Run a command of the script in this process."""
    args = script.parser().parse_args(line.split())
    args.run(args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small pictures of two classes, packed; and a lease on them, in a process where fastai cannot be imported."""
    top = tmp_path_factory.mktemp("gpu")
    noise = torch.rand(2, 60, 12, 12, 3, generator=torch.Generator().manual_seed(0))
    for label, name in enumerate(("dark", "light")):
        (top / "data" / name).mkdir(parents=True)
        for i, x in enumerate(noise[label]):
            Image.fromarray(((0.15 + 0.6 * label + 0.2 * x) * 255).byte().numpy()).save(top / "data" / name / f"{i:02}.png")
    command(f"pack {top / 'pack'} --data {top / 'data'} --mib 0.3")
    line = f"train {top / 'one'} --pack {top / 'pack'} --small --steps 150 --n-images 40 --file-mib 0.02"
    program = f"""
import sys, runpy
sys.modules.update(dict.fromkeys("fastai fastcore nbdev torchvision".split()))
sys.argv = ["gpu_cifar10.py", *{line.split()!r}]
runpy.run_path({str(PATH)!r}, run_name="__main__")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    (top / "one" / "log.txt").write_text(result.stdout)
    return top


def test_sheets_keep_every_pixel_and_label(folder):
    images, labels, names = script.from_sheets(script.read_pack(folder / "pack"))
    expected = image_set(folder / "data", verbose=False)
    assert torch.equal(images, expected.images) and torch.equal(labels, expected.labels) and names == ["dark", "light"]
    grey = torch.arange(250 * 1 * 5 * 7).remainder(256).byte().view(250, 1, 5, 7)  # not square, not a whole sheet, one channel
    again, labels, _ = script.from_sheets(script.sheets(grey, torch.arange(250), []))
    assert torch.equal(again, grey) and torch.equal(labels, torch.arange(250))


def test_a_pack_is_cut_to_size_and_joined_and_its_damage_is_seen(tmp_path):
    generator = torch.Generator().manual_seed(1)
    files = {name: bytes(torch.randint(256, (n,), generator=generator).tolist()) for name, n in (("a", 700_000), ("b.c", 3), ("d", 400_000))}
    script.write_pack(files, tmp_path, 0.4)
    sizes = [sum(path.stat().st_size for path in part.iterdir()) for part in sorted(tmp_path.iterdir())]
    assert len(sizes) == 3 and max(sizes) <= 0.4 * script.MIB and script.read_pack(tmp_path) == files
    piece = tmp_path / "part_0" / "a.000000000000"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="a in .* is damaged"):
        script.read_pack(tmp_path)
    piece.unlink()
    with pytest.raises(ValueError, match="a is not whole"):
        script.read_pack(tmp_path)
    with pytest.raises(ValueError, match="no index.json"):
        script.read_pack(tmp_path / "part_0" / "nothing")


def test_a_lease_leaves_weights_pictures_and_figures(folder, capsys):
    out = folder / "one"
    run = json.loads((out / "run.json").read_text())
    (lease,) = run["leases"]
    assert lease["steps"] == 150 and lease["images"] == 150 * run["settings"]["batch_size"]
    assert lease["losses"][-1] < 0.7 * lease["losses"][0]
    weights = sorted(out.glob("weights_*.safetensors"))
    assert len(weights) > 1 and max(path.stat().st_size for path in weights) < 0.02 * script.MIB + 8192  # a header each
    assert Image.open(out / "images.png").size == (120, 48)
    expected = lease["images_per_second"] * lease["gflop_per_image"] * 1e9 / (lease["matmul_tflops"] * 1e12)
    assert abs(lease["utilisation"] - expected) < 0.01 * expected
    assert "Frechet distance under fashion-classifier" in (out / "log.txt").read_text()  # not called FID
    with pytest.raises(SystemExit) as end:
        command(f"watch {out}")
    assert not end.value.code and capsys.readouterr().out.endswith("finished\n")


def test_the_distance_is_that_of_the_images_of_the_model_that_comes_back(folder):
    command(f"join {folder / 'one'} {folder / 'model.safetensors'}")
    model = GenerativeModel.load(folder / "model.safetensors", verbose=False)
    assert model.label_names == ["dark", "light"] and model.shape == (3, 12, 12)
    run = json.loads((folder / "one" / "run.json").read_text())
    seed, steps, batch = run["leases"][0]["seed"], run["settings"]["sampler_steps"], run["settings"]["sample_batch"]
    images = model.generate(40, n_steps=steps, seed=seed, class_labels=[0, 1] * 20, batch_size=batch)
    tiles = torch.frombuffer(bytearray(Image.open(folder / "one" / "images.png").tobytes()), dtype=torch.uint8).view(4, 12, 10, 12, 3)
    stored = tiles.permute(0, 2, 4, 1, 3).reshape(40, 3, 12, 12)
    assert ((images * 255).round() - stored.float()).abs().max() <= 1  # the same but for rounding
    assert images[1::2].mean() - images[::2].mean() > 0.3  # and it has learned its classes
    evaluator = Evaluator(folder / "data", [FrechetDistance("fashion-classifier")], cache=folder / "cache", progress=False)
    value = evaluator(stored).rows[0].result.value
    assert abs(value - run["leases"][0]["distance"]["value"]) < 1e-4 * value


def test_a_second_lease_goes_on_from_the_weights(folder, capsys):
    command(f"pack {folder / 'pack2'} --data {folder / 'data'} --mib 0.3 --resume {folder / 'one'}")
    command(f"train {folder / 'two'} --pack {folder / 'pack2'} --small --steps 50 --n-images 20 --lr 1e-3 --dropout 0")
    first, second = json.loads((folder / "two" / "run.json").read_text())["leases"]
    assert second["losses"][0] < 0.5 * first["losses"][0] and (second["seed"], second["dropout"]) == (1, 0)
    assert "2,400 images seen before" in capsys.readouterr().out
    files = script.read_pack(folder / "pack2")
    start, _ = script.begin(files, script.SMALL, (3, 12, 12), 2)
    stored = script.read_weights([path.read_bytes() for path in sorted((folder / "one").glob("weights_*"))])
    assert all(torch.equal(tensor, stored[name]) for name, tensor in start.state_dict().items())
    with pytest.raises(ValueError, match=r"another network: widths \[8, 16\] against \[16, 16\]"):
        script.begin(files, replace(script.SMALL, widths=(16, 16)), (3, 12, 12), 2)


def test_a_failed_run_says_so(tmp_path, capsys):
    with pytest.raises(ValueError, match="holds no pack"):
        command(f"train {tmp_path / 'out'} --pack {tmp_path} --small")
    with pytest.raises(SystemExit) as end:
        command(f"watch {tmp_path / 'out'} --seconds 1")
    assert end.value.code == 1 and capsys.readouterr().out.endswith("failed\n")
    (tmp_path / "out" / "failed").unlink()
    with pytest.raises(SystemExit) as end:
        command(f"watch {tmp_path / 'out'} --seconds 0")
    assert not end.value.code and capsys.readouterr().out.endswith("still running\n")


def test_the_average_has_the_profile_it_is_named_after():
    weight = torch.zeros((), dtype=torch.float64)
    average = script.PowerLawEMA([weight], 0.1)
    g = average.gamma
    assert abs(((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 - 0.1) < 1e-9 and abs(g - 6.94) < 0.01  # Karras et al. (2024), section 3.1
    n = 400
    for t in range(1, n + 1):
        weight.fill_(t)
        average.update()
    # the profile t^gamma on (0, n]: mean and deviation of t, as parts of n, up to terms of 1 / n
    assert abs(average.averages[0].item() / n - (g + 1) / (g + 2)) < 2 / n
    assert average.averages[0] > 0.8 * n and script.PowerLawEMA([weight], 0.2).gamma < g


def test_operations_are_counted_as_by_hand():
    class One(nn.Module):
        """A single convolution, dressed as the network that is counted."""

        def __init__(self, **config):
            super().__init__()
            self.config, self.conv = config, nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, x, level, label):
            return self.conv(x)

    original, script.UNet = script.UNet, One
    try:
        counted = script.flops_per_image(One(), (3, 8, 8))
    finally:
        script.UNet = original
    forward = 2 * 8 * 8 * 9 * 3 * 5
    assert counted == 2 * forward  # the gradient of the weights costs as much again; the image needs none


def test_full_settings_keep_what_they_promise():
    s = script.Settings()
    with torch.device("meta"):
        network = UNet(3, s.widths, s.blocks, s.attention_levels, 10, head_width=s.head_width)
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters <= 30e6 and 2 * parameters <= 60e6 and s.batch_size >= 512
    flops = script.flops_per_image(network, (3, 32, 32))
    assert 35e9 < flops < 40e9  # gpu_cifar10.md says 37 GFLOP


def test_the_network_is_asked_for_the_noise_of_edm():
    s, n = script.Settings(), 20_000
    u = (torch.arange(n) + 0.5) / n
    noise = NoiseSource.of(0, n).normal((2,), "probe")
    x0 = 0.5 * NoiseSource.of(1, n).normal((2,), "probe")
    x, half_log_snr, target = script.problem(x0, u, noise, s)
    log_sigma = -half_log_snr
    inside = (log_sigma > -6) & (log_sigma < 4)
    assert inside.float().mean() > 0.99 and abs(log_sigma.mean() + 1.2) < 0.01 and abs(log_sigma.std() - 1.2) < 0.02
    assert abs(x.std() - 1) < 0.02 and abs(target.std() - 1) < 0.02  # both are normalised
    sigma = log_sigma.exp()[:, None]
    x0_hat = 0.25 / (sigma**2 + 0.25) * (x0 + sigma * noise) + 0.5 * sigma / (sigma**2 + 0.25).sqrt() * target  # table 1 of Karras et al.
    assert (x0_hat - x0).abs().max() < 1e-3


def test_batches_go_through_all_images_each_pass_and_mirror_half():
    images = torch.zeros(64, 1, 4, 4, dtype=torch.uint8)
    images[..., 0] = torch.arange(64).byte()[:, None, None]  # the number of the image, at its left edge
    s = replace(script.SMALL, batch_size=16, label_dropout=0.25)
    batches = script.Batches(images, torch.arange(64), s, flip=True, seed=0)
    seen, dropped, mirrored = [], 0, 0
    for _ in range(40):
        x0, label, u, _ = batches.next()
        number = ((x0 + 1) * 127.5).round().long().amax((1, 2, 3))
        seen.append(number)
        assert torch.equal(label[label >= 0], number[label >= 0]) and sorted((u * 16).long().tolist()) == list(range(16))
        dropped, mirrored = dropped + int((label < 0).sum()), mirrored + int((x0[:, 0, 0, 3] > -1).sum())
    for epoch in torch.cat(seen).split(64):
        assert torch.equal(epoch.sort().values, torch.arange(64))
    assert 110 < dropped < 210 and 250 < mirrored < 390  # of 640: 160 and 315 (image 0 is black)
    with pytest.raises(ValueError, match="do not fill a batch"):
        script.Batches(images[:10], torch.arange(10), s, True, 0)
