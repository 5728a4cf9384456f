"""Twenty-five minutes of one large GPU: train a class-conditional CIFAR-10 model, make 50,000 images of it, and measure their FID.

    python benchmarks/gpu_cifar10.py pack  OUT --data cifar10 --root ROOT --weights DIR [--resume RUN]   here: folders small enough to be sent
    python benchmarks/gpu_cifar10.py train OUT --pack FOLDER [--minutes 25]                               there: everything, in one command
    python benchmarks/gpu_cifar10.py watch OUT [--seconds 570]                                            there: follow a run in the background
    python benchmarks/gpu_cifar10.py join  OUT MODEL.safetensors                                          here: a model file of what came back

gpu_cifar10.md says why the settings are what they are, and how to go on over several leases. `train` needs torch, safetensors, scipy and
Pillow; of diffnb it imports nothing that needs fastai. `train --small` runs the same code within seconds on a CPU.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffnb.core import NoiseSource, expand, to_model, to_unit
from diffnb.denoise import Denoiser
from diffnb.networks import UNet
from diffnb.noise import EDM, Karras
from diffnb.samplers import Heun

MIB = 2**20


@dataclass(frozen=True)
class Settings:
    """All that a run depends on, apart from the data and the clock."""

    widths: tuple[int, ...] = (128, 256, 256)  # 27.9 million parameters, 12.4 GFLOP forward for an image of 32 x 32
    blocks: int = 2
    attention_levels: tuple[int, ...] = (1,)
    head_width: int = 64
    dropout: float = 0.1
    batch_size: int = 512
    lr: float = 1e-3  # at the end of the warm-up; from there to zero along a line
    warmup: int = 400  # steps
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_norm: float = 1.0  # of the gradient
    noise_mean: float = -1.2  # of log sigma in training
    noise_std: float = 1.2
    sigma_data: float = 0.5
    label_dropout: float = 0.1
    ema: float = 0.08  # standard deviation of the averaged stretch of training, relative to its length
    n_images: int = 50_000
    sampler_steps: int = 18  # of Heun's method: 35 evaluations
    sample_batch: int = 1024
    extractor: str = "inception-2015"
    seed: int = 0


SMALL = Settings(
    widths=(8, 16),
    blocks=1,
    batch_size=16,
    lr=5e-3,
    warmup=10,
    n_images=64,
    sampler_steps=4,
    sample_batch=20,
    extractor="fashion-classifier",
)  # everything, within seconds on a CPU


# --- a pack: files cut into pieces and laid into folders, each small enough to be sent ---


def sheets(images: Tensor, labels: Tensor, names: list[str]) -> dict[str, bytes]:
    """Images as sheets of 100 x 100 tiles, compressed without loss, and what is to be known about them."""
    from PIL import Image

    files = {"data.json": json.dumps({"shape": list(images.shape), "labels": labels.tolist(), "names": names}).encode()}
    for i, part in enumerate(images.split(10_000)):
        rows = -(-len(part) // 100)
        tiles = torch.zeros(rows * 100, *part.shape[1:], dtype=torch.uint8)
        tiles[: len(part)] = part
        _, c, h, w = tiles.shape
        sheet = tiles.view(rows, 100, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, 100 * w, c).expand(-1, -1, 3)
        Image.fromarray(sheet.contiguous().numpy()).save(buffer := io.BytesIO(), format="WEBP", lossless=True, quality=60, method=4)
        files[f"sheet_{i}.webp"] = buffer.getvalue()
    return files


def from_sheets(files: dict[str, bytes]) -> tuple[Tensor, Tensor, list[str]]:
    """Undo `sheets`: images uint8 (n, c, h, w), labels, names."""
    import numpy as np
    from PIL import Image

    facts, parts = json.loads(files["data.json"]), []
    n, c, h, w = facts["shape"]
    for i in range(-(-n // 10_000)):
        sheet = torch.from_numpy(np.array(Image.open(io.BytesIO(files[f"sheet_{i}.webp"])).convert("RGB")))[..., :c]
        parts.append(sheet.reshape(sheet.shape[0] // h, h, 100, w, c).permute(0, 2, 4, 1, 3).reshape(-1, c, h, w))
    return torch.cat(parts)[:n].contiguous(), torch.tensor(facts["labels"]), facts["names"]


def write_pack(files: dict[str, bytes], out: Path, mib: float) -> None:
    """Lay files into folders part_0, part_1, ... of at most so many MiB; what is larger is cut into pieces."""
    room = int(mib * MIB)
    index = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    stream, k, left = json.dumps(index).encode(), 0, 0
    room -= len(stream)  # the index goes into each
    if room < MIB // 4:
        raise ValueError(f"--mib {mib:g} leaves no room beside the index of {len(stream)} bytes; give more")
    for name, data in files.items():
        start = 0
        while start < len(data) or not data:
            if not left:
                folder, left, k = out / f"part_{k}", room, k + 1
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "index.json").write_bytes(stream)
            piece = data[start : start + left]
            (folder / f"{name}.{start:012}").write_bytes(piece)
            start, left = start + len(piece), left - len(piece)
            if not data:
                break
    print(f"{out}: {k} folders, {sum(map(len, files.values())) / MIB:.1f} MiB")


def read_pack(folder: Path) -> dict[str, bytes]:
    """Join the pieces that lie anywhere under a folder.

    Raises:
        ValueError: if a piece is missing or damaged.
    """
    indices = sorted(folder.rglob("index.json"))
    if not indices:
        raise ValueError(f"{folder} holds no pack: there is no index.json in it; `pack` makes one")
    index, files = json.loads(indices[0].read_bytes()), {}
    for name, facts in index.items():
        pieces = sorted(folder.rglob(f"{name}.[0-9]*"), key=lambda path: path.name)
        files[name] = b"".join(path.read_bytes() for path in pieces)
        if len(files[name]) != facts["bytes"]:
            raise ValueError(f"{name} is not whole in {folder}: {len(files[name])} of {facts['bytes']} bytes have arrived, from {len(pieces)} pieces")
        if hashlib.sha256(files[name]).hexdigest() != facts["sha256"]:
            raise ValueError(f"{name} in {folder} is damaged: its sha256 is not that of the index")
    return files


def pack(args) -> None:
    """Pack images, the weights of the extractor, and what an earlier lease left."""
    from diffnb.data import image_set
    from diffnb.metrics import find_fid_weights

    images = image_set(args.data, root=args.root, limit=args.limit)
    names = images.names or [str(value) for value in images.values or ()]
    files = sheets(images.images, images.labels if images.num_classes else torch.full((len(images),), -1), names)
    if args.weights is not None:
        path = find_fid_weights(args.weights)
        files[path.name] = path.read_bytes()
    if args.resume is not None:
        files |= {f"resume_{path.name}": path.read_bytes() for path in [*sorted(args.resume.glob("weights_*.safetensors")), args.resume / "run.json"]}
    write_pack(files, args.out, args.mib)


# --- weights, in files of limited size ---


def write_weights(state: dict[str, Tensor], out: Path, mib: float = 15.5) -> None:
    """Write weights as float16 into files of at most so many MiB; a reader sees the old ones or the new ones."""
    from safetensors.torch import save

    parts, size = [{}], 0
    for name, tensor in state.items():
        tensor = tensor.detach().to("cpu", torch.float16).contiguous()
        if parts[-1] and size + tensor.nbytes > mib * MIB:
            parts.append({})
            size = 0
        parts[-1][name], size = tensor, size + tensor.nbytes
    for i, part in enumerate(parts):
        (out / f".weights_{i}.part").write_bytes(save(part, {"part": f"{i + 1} of {len(parts)}"}))
    for i in range(len(parts)):
        os.replace(out / f".weights_{i}.part", out / f"weights_{i}.safetensors")


def read_weights(files: list[bytes]) -> dict[str, Tensor]:
    """Join weights, as float32."""
    from safetensors.torch import load

    return {name: tensor.float() for data in files for name, tensor in load(data).items()}


# --- training ---


class Clock:
    """How far training is, in [0, 1]: by steps, or by seconds from the first step to a deadline."""

    def __init__(self, deadline: float, steps: int | None):
        self.deadline, self.steps, self.begun = deadline, steps, None

    def start(self):
        """Leave compilation behind."""
        self.begun = time.perf_counter()

    def progress(self, step: int) -> float:
        """Part of training that is done."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return 0.0 if self.begun is None else min(1.0, (time.perf_counter() - self.begun) / max(1e-9, self.deadline - self.begun))


class PowerLawEMA:
    """Average of weights under the profile t^gamma, as wide as `width` of the training so far.

    References:
        Karras et al. (2024), "Analyzing and improving the training dynamics of diffusion models", section 3.1 and algorithm 2.
    """

    def __init__(self, parameters: list[Tensor], width: float):
        # width^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) falls with gamma: halve an interval that holds the root
        low, high = 0.0, 1e6
        for _ in range(100):
            middle = (low + high) / 2
            wide = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2
            low, high = (middle, high) if wide else (low, middle)
        self.gamma, self.steps = low, 0
        self.parameters, self.averages = parameters, [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Absorb the weights of one more step."""
        self.steps += 1
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], 1 - (1 - 1 / self.steps) ** (self.gamma + 1))


def problem(x0: Tensor, u: Tensor, epsilon: Tensor, s: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Input, half log-SNR and target of the network for clean images, quantiles of the noise level, and noise."""
    sde, karras = EDM(), Karras(s.sigma_data)
    log_sigma = s.noise_mean + s.noise_std * math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + 1e-6, 1 - 1e-6))
    t = sde.time_of_half_log_snr(-log_sigma).clamp(sde.t_min, sde.t_max)
    p, q = karras.network_target(sde, t)
    x = expand(karras.input_scale(sde, t), x0) * sde.perturb(x0, t, epsilon)
    return x, sde.half_log_snr(t), expand(p, x0) * x0 + expand(q, x0) * epsilon


class Batches:
    """Batches drawn on the device where the images lie: an order a pass, mirrored by chance, labels dropped by chance."""

    def __init__(self, images: Tensor, labels: Tensor, s: Settings, flip: bool, seed: int):
        if len(images) < s.batch_size:
            raise ValueError(f"{len(images)} images do not fill a batch of {s.batch_size}")
        self.images, self.labels, self.s, self.flip = images, labels, s, flip
        self.generator, self.order = torch.Generator(images.device).manual_seed(seed), None

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean images in [-1, 1], labels, quantiles of noise levels (one in each of n equal intervals), noise."""
        n, g, device = self.s.batch_size, self.generator, self.images.device
        if self.order is None or len(self.order) < n:
            self.order = torch.randperm(len(self.images), generator=g, device=device)
        pick, self.order = self.order[:n], self.order[n:]
        x0 = to_model(self.images[pick].float() / 255)
        if self.flip:
            x0 = torch.where(torch.rand(n, 1, 1, 1, generator=g, device=device) < 0.5, x0.flip(-1), x0)
        label = torch.where(torch.rand(n, generator=g, device=device) < self.s.label_dropout, -1, self.labels[pick])
        u = (torch.randperm(n, generator=g, device=device) + torch.rand(n, generator=g, device=device)) / n
        return x0, label, u, torch.randn(x0.shape, generator=g, device=device)


def autocast(device: torch.device):
    """bfloat16 on a GPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def train(network: nn.Module, batches: Batches, s: Settings, clock: Clock, compiled: bool, save) -> tuple[list[Tensor], dict]:
    """Train until the clock has run out; the averaged weights, and what there is to say.

    Raises:
        ArithmeticError: if the loss is no longer finite.
    """
    device, weights = batches.images.device, list(network.parameters())
    run = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(weights, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, fused=True)
    average, losses, step, last_save = PowerLawEMA(weights, s.ema), [], 0, time.perf_counter()
    recent = torch.zeros((), device=device)
    network.train()
    while (progress := clock.progress(step)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = s.lr * min(1.0, (step + 1) / s.warmup) * (1 - progress)
        x0, label, u, epsilon = batches.next()
        x, half_log_snr, target = problem(x0, u, epsilon, s)
        with autocast(device):
            out = run(x.contiguous(memory_format=torch.channels_last), half_log_snr, label)
        loss = (out.float() - target).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, s.max_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        step, recent = step + 1, recent + loss.detach()
        if step == 1:
            synchronize(device)
            clock.start()
        if step % 50 == 0 or clock.progress(step) == 1:  # the only wait for the device: it also keeps the clock honest
            since = len(losses) * 50
            losses.append(recent.item() / (step - since))
            recent = torch.zeros_like(recent)
            if not math.isfinite(losses[-1]):
                raise ArithmeticError(f"the loss is {losses[-1]} before step {step}; start again with a smaller --lr, from the weights saved last")
            if step % 1000 == 0:
                say(f"step {step}, {step * s.batch_size:,} images, loss {losses[-1]:.4f}, {100 * clock.progress(step):.0f}%")
            if time.perf_counter() - last_save > 300:
                save(average.averages)
                last_save = time.perf_counter()
    synchronize(device)
    seconds, images = time.perf_counter() - clock.begun, step * s.batch_size
    facts = {"steps": step, "images": images, "seconds": round(seconds, 2), "images_per_second": round((images - s.batch_size) / seconds, 1)}
    return average.averages, facts | {"losses": [round(value, 5) for value in losses], "ema_gamma": round(average.gamma, 3)}


# --- how much of the machine is used ---


def flops_per_image(network: nn.Module, shape: tuple[int, ...]) -> float:
    """Floating-point operations of matrix products and convolutions to train on an image, forward and backward."""
    network = UNet(**network.config).to("meta")
    x, level, label = torch.empty(2, *shape, device="meta"), torch.empty(2, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(x, level, label).sum().backward()
    return counter.get_total_flops() / len(x)


def matmul_rate(device: torch.device, repeats: int = 10) -> float:
    """Operations a second of a large product of random matrices: bfloat16 on a GPU, float32 elsewhere; the median."""
    n, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (768, torch.float32)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times = []
    for _ in range(repeats + 3):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * n**3 / sorted(times[3:])[repeats // 2]


# --- images, and their distance from real ones ---


@torch.inference_mode()
def generate(network: nn.Module, s: Settings, shape: tuple[int, ...], classes: int, n: int, device: torch.device, steps: int) -> Tensor:
    """Images as bytes on the device; classes take turns."""
    network.eval()
    denoiser = Denoiser(network, EDM(), Karras(s.sigma_data), torch.bfloat16 if device.type == "cuda" else None)
    parts = []
    for first in range(0, n, s.sample_batch):
        m = min(s.sample_batch, n - first)
        condition = {"label": torch.arange(first, first + m, device=device) % classes}
        noise = NoiseSource.of(s.seed, m, first, device)
        x = Heun()(denoiser, shape=(m, *shape), n_steps=steps, seeds=noise, condition=condition, device=device).x
        parts.append((to_unit(x) * 255).round().byte())
    return torch.cat(parts)


@torch.inference_mode()
def statistics(extractor, images: Tensor, batch_size: int):
    """Moments of the features of images given as bytes; float32 throughout."""
    from diffnb.metrics import FeatureStatistics

    found, extractor.batch_size = FeatureStatistics(), batch_size
    for batch in images.split(batch_size * 8):
        found.update(extractor(batch.float() / 255))
    return found


def make_extractor(s: Settings, weights: Path | None, device: torch.device):
    """The network whose features are compared; a file of weights for the FID's own."""
    from diffnb.metrics import InceptionFeatures, as_extractor

    torch.backends.cudnn.allow_tf32 = False  # Inception in plain float32: its features are what others' numbers are made of
    extractor = InceptionFeatures(weights) if s.extractor == "inception-2015" else as_extractor(s.extractor)
    return extractor.to(device)


def rehearse(network, s, extractor, real: Tensor, shape, classes, device) -> None:
    """Run the whole end once, in small, before time is spent: a missing library shows now."""
    from diffnb.metrics import frechet_distance, frechet_of_features

    made = generate(network, replace(s, sample_batch=8), shape, classes, 8, device, 2)
    frechet_of_features(statistics(extractor, real[:8], 8), statistics(extractor, made, 8))
    frechet_distance(torch.zeros(4), torch.eye(4), torch.ones(4), torch.eye(4))
    on_device = extractor(real[:4].float() / 255).cpu()
    on_cpu = extractor.cpu()(real[:4].cpu().float() / 255)
    extractor.to(device)
    worst = ((on_device - on_cpu).norm() / on_cpu.norm()).item()
    if not worst < 1e-3:
        raise ArithmeticError(f"features on {device} differ from those on the CPU by {worst:.2g} of their size: no distance can be made of them")


# --- one lease ---


def say(text: str) -> None:
    """Print at once."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def picture(images: Tensor, path: Path) -> None:
    """Write the first hundred images as a grid."""
    from PIL import Image

    tiles = images[: len(images) // 10 * 10][:100].cpu()
    n, c, h, w = tiles.shape
    grid = tiles.view(n // 10, 10, c, h, w).permute(0, 3, 1, 4, 2).reshape(n // 10 * h, 10 * w, c).expand(-1, -1, 3)
    Image.fromarray(grid.contiguous().numpy()).save(path)


def write_json(path: Path, facts: dict) -> None:
    """Write plain values, whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def begin(files: dict[str, bytes], s: Settings, shape, classes: int) -> tuple[UNet, list[dict]]:
    """The network, with the weights of the lease before if they were packed, and the records of all leases before.

    Raises:
        ValueError: if those weights are of another network.
    """
    torch.manual_seed(s.seed)
    layout = dict(channels=shape[0], num_classes=classes, widths=s.widths, blocks=s.blocks, attention_levels=s.attention_levels)
    network = UNet(**layout, head_width=s.head_width, dropout=s.dropout)
    earlier = sorted(name for name in files if name.startswith("resume_weights_"))
    if not earlier:
        return network, []
    run = json.loads(files["resume_run.json"])
    if (found := {k: v for k, v in run["network"].items() if k != "dropout"}) != (asked := plain_config(network)):
        named = ", ".join(f"{k} {found[k]!r} against {asked[k]!r}" for k in found if found[k] != asked.get(k))
        raise ValueError(f"the packed weights belong to another network: {named}")
    network.load_state_dict(read_weights([files[name] for name in earlier]))
    return network, run["leases"]


def plain_config(network: UNet) -> dict:
    """Arguments of the network as JSON holds them, without its dropout, which may change from lease to lease."""
    return {k: v for k, v in json.loads(json.dumps(network.config)).items() if k != "dropout"}


def lease(args) -> None:
    """Read, train, write the weights, make images, measure."""
    clock_start, out = time.perf_counter(), args.out
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    s = SMALL if args.small else Settings()
    chosen = {"lr": args.lr, "batch_size": args.batch_size, "dropout": args.dropout, "n_images": args.n_images, "seed": args.seed}
    s = replace(s, **{k: v for k, v in chosen.items() if v is not None})
    files = read_pack(args.pack)
    images, labels, names = from_sheets(files)
    shape, classes = tuple(images.shape[1:]), len(names)
    network, before = begin(files, s, shape, classes)
    network.to(device, memory_format=torch.channels_last)
    s = replace(s, seed=s.seed + len(before))  # another order and other noise than in the leases before
    images, labels = images.to(device), labels.to(device)
    torch.backends.cudnn.benchmark = True  # every batch has the same shape
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rate, flops = matmul_rate(device), flops_per_image(network, shape)
    parameters = sum(p.numel() for p in network.parameters())
    say(f"{where}: {rate / 1e12:.3g} TFLOP/s in a matrix product; {parameters:,} parameters, {flops / 1e9:.3g} GFLOP to train on an image")
    say(f"{len(images):,} images of {shape} in {classes} classes; lease {len(before) + 1}, {sum(r['images'] for r in before):,} images seen before")

    weights = next((name for name in files if name.startswith(("fid_", "pt_inception"))), None)
    if weights is not None:
        (out / weights).write_bytes(files[weights])
    extractor = make_extractor(s, out if weights is None else out / weights, device)
    if weights is not None:
        (out / weights).unlink()
    rehearse(network, s, extractor, images, shape, classes, device)
    settings = {"settings": asdict(s), "network": dict(json.loads(json.dumps(network.config))), "names": names, "shape": list(shape)}

    def save(averages):
        state = {name: tensor for (name, _), tensor in zip(network.named_parameters(), averages)}
        write_weights(state, out, args.file_mib)

    clock = Clock(clock_start + 60 * args.minutes - args.reserve, args.steps)
    batches = Batches(images, labels, s, args.flip, s.seed)
    say("training")
    averages, record = train(network, batches, s, clock, args.compile, save)
    utilisation = record["images_per_second"] * flops / rate
    record |= {
        "device": where,
        "torch": torch.__version__,
        "matmul_tflops": float(f"{rate / 1e12:.4g}"),
        "gflop_per_image": float(f"{flops / 1e9:.4g}"),
    }
    record |= {"utilisation": float(f"{utilisation:.4g}"), "lr": s.lr, "batch_size": s.batch_size, "dropout": s.dropout, "seed": s.seed}
    speed = f"{record['images_per_second']:,.0f} a second: {100 * utilisation:.1f}% of the matrix rate"
    say(f"{record['images']:,} images in {record['seconds']:.0f} s, {speed}")
    save(averages)
    write_json(out / "run.json", settings | {"leases": [*before, record]})

    # what is measured is what the files hold
    network.load_state_dict(read_weights([path.read_bytes() for path in sorted(out.glob("weights_*.safetensors"))]))
    start = time.perf_counter()
    made = generate(network, s, shape, classes, s.n_images, device, s.sampler_steps)
    synchronize(device)
    record["seconds_generating"] = round(time.perf_counter() - start, 2)
    picture(made, out / "images.png")
    say(f"{len(made):,} images made in {record['seconds_generating']:.0f} s")
    start = time.perf_counter()
    batch = 500 if device.type == "cuda" else 50
    from diffnb.metrics import frechet_of_features

    distance = frechet_of_features(statistics(extractor, images, batch), statistics(extractor, made, batch))
    record |= {"distance": {"extractor": extractor.config(), "value": distance, "n_real": len(images), "n_generated": len(made)}}
    record |= {"seconds_measuring": round(time.perf_counter() - start, 2), "sampler": f"Heun, {s.sampler_steps} steps"}
    record["seconds_in_all"] = round(time.perf_counter() - clock_start, 2)
    write_json(out / "run.json", settings | {"leases": [*before, record]})
    name = "FID" if extractor.name == "inception-2015" else f"Frechet distance under {extractor.name}"
    say(f"{name} {distance:.4g} ({len(made):,} images against {len(images):,}); {record['seconds_in_all']:.0f} s in all")


def train_command(args) -> None:
    """Run a lease; leave `finished` or `failed` behind for `watch`."""
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("finished", "failed"):
        (args.out / name).unlink(missing_ok=True)
    try:
        lease(args)
    except BaseException as error:
        (args.out / "failed").write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        raise
    (args.out / "finished").touch()


def watch(args) -> None:
    """Print what a run in the background says, until it ends or the time is up."""
    end, shown, log = time.time() + args.seconds, 0, args.out / "log.txt"
    while True:
        ended = [name for name in ("finished", "failed") if (args.out / name).exists()]
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        print(text[shown:], end="", flush=True)
        shown = len(text)
        if ended or time.time() > end:
            print(ended[0] if ended else "still running")
            sys.exit(ended == ["failed"])
        time.sleep(1)


def join(args) -> None:
    """Make a model file of the weights that came back."""
    from diffnb.model import Labels, Trained, to_file

    run = json.loads((args.out / "run.json").read_text(encoding="utf-8"))
    network = UNet(**run["network"])
    network.load_state_dict(read_weights([path.read_bytes() for path in sorted(args.out.glob("weights_*.safetensors"))]))
    names = tuple(run["names"])
    records = tuple({k: v for k, v in lease.items() if k != "losses"} for lease in run["leases"])
    trained = Trained(network, EDM(), Karras(run["settings"]["sigma_data"]), tuple(run["shape"]), Labels(tuple(range(len(names))), names), records)
    to_file(args.model, trained, EDM(), Heun(), torch.float16)
    print(f"{args.model}: {args.model.stat().st_size / 1e6:.1f} MB")


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True)
    one = commands.add_parser("pack", help="folders of images and weights, small enough to be sent")
    one.add_argument("out", type=Path)
    one.add_argument("--data", default="cifar10", help="what diffnb.data.image_set reads: a name or a folder")
    one.add_argument("--root", type=Path, help="where known sets are")
    one.add_argument("--limit", type=int, help="at most so many images")
    one.add_argument("--weights", type=Path, help="file or folder of the FID's weights (diffnb weights)")
    one.add_argument("--resume", type=Path, help="what an earlier lease left")
    one.add_argument("--mib", type=float, default=42, help="largest folder")
    one.set_defaults(run=pack)
    two = commands.add_parser("train", help="one lease")
    two.add_argument("out", type=Path)
    two.add_argument("--pack", type=Path, required=True, help="folder under which the folders of a pack lie")
    two.add_argument("--minutes", type=float, default=25, help="from start to end, images and distance included")
    two.add_argument("--reserve", type=float, default=330, help="seconds of these that are kept for images and distance")
    two.add_argument("--steps", type=int, help="train for so many steps, whatever the time")
    two.add_argument("--small", action="store_true", help="the scaled-down settings that try everything on a CPU")
    two.add_argument("--device", help="cuda if there is one, else cpu")
    two.add_argument("--compile", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available(), help="torch.compile")
    two.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror images by chance")
    two.add_argument("--lr", type=float)
    two.add_argument("--batch-size", type=int)
    two.add_argument("--dropout", type=float)
    two.add_argument("--n-images", type=int)
    two.add_argument("--seed", type=int)
    two.add_argument("--file-mib", type=float, default=15.5, help="largest file of weights")
    two.set_defaults(run=train_command)
    three = commands.add_parser("watch", help="follow a run whose output goes to OUT/log.txt")
    three.add_argument("out", type=Path)
    three.add_argument("--seconds", type=float, default=570)
    three.set_defaults(run=watch)
    four = commands.add_parser("join", help="a model file of what came back")
    four.add_argument("out", type=Path)
    four.add_argument("model", type=Path)
    four.set_defaults(run=join)
    return top


if __name__ == "__main__":
    arguments = parser().parse_args()
    arguments.run(arguments)
