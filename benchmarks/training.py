"""How many images a second does training take in, and is it worse for being faster? Ours against two plain reference loops.

    python benchmarks/training.py [--threads 1 2] [--network small] [--batch 128] [--steps 4] [--repeats 7] [--images 20000]

All train the same U-Net from the same weights on the same images (Fashion-MNIST, the 10,000 that come with the package, or --data NAME --root DIR),
with the same batch and learning rate, in one process, in turn, `steps` steps at a time:

ours     `diffusion_learner` as it comes, with compile=True: bfloat16 where the processor has it, channels last, one gather a batch, fused AdamW,
         the moving average in one call, no wait for the device in a step.
plain    the usual script: a `Dataset` that transforms item by item, a `DataLoader`, float32, `loss.item()` at every step, a moving average in a
         Python loop over the parameters. The same process, target and loss as ours.
ddpm     `Trainer` and `GaussianDiffusion` of denoising-diffusion-pytorch with its own defaults (v, sigmoid schedule, Adam), reading a folder of
         PNGs; left out with a line where the package is missing (`pip install denoising-diffusion-pytorch`).

What is timed is a stretch of steps, data included; the first stretch of each, which compiles, is not counted. Then each goes on until it has seen
--images images, and all are asked the same: the Karras loss of the float32 network on 1,000 images not trained on, at the same levels and noise,
with the weights of the last step and with the averaged ones. Prints a table and writes benchmarks/results/training.json.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import diffnb
from diffnb.core import NoiseSource
from diffnb.data import ImageLoader, image_set
from diffnb.denoise import Denoiser
from diffnb.networks import build_network
from diffnb.noise import EDM, Karras
from diffnb.training import LogNormal, diffusion_learner

RESULT = Path(__file__).parent / "results" / "training.json"
TIMES = LogNormal(-1.0, 1.3)


class Question:
    """The common examination: x0 to be found at fixed levels under fixed noise, with EDM's weights."""

    def __init__(self, images, sigma_data):
        self.x0 = images.unit(slice(None)) * 2 - 1
        noise = NoiseSource.of(1, len(self.x0))
        u, self.epsilon = noise.uniform((1,), "training", draw=0)[:, 0], noise.normal(self.x0.shape[1:], "training", draw=1)
        self.sde, self.sigma_data = EDM(), sigma_data
        # between the levels that all contenders have been trained on
        self.half_log_snr = self.sde.half_log_snr(TIMES(self.sde, u)).clamp(-4, 4)

    @torch.no_grad()
    def __call__(self, x0_hat):
        """Loss of a function (x / alpha, half log-SNR) -> x0_hat."""
        total, sigma = 0.0, torch.exp(-self.half_log_snr)
        weight = (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2
        for part in torch.arange(len(self.x0)).split(250):
            noisy = self.x0[part] + sigma[part, None, None, None] * self.epsilon[part]
            error = (x0_hat(noisy, self.half_log_snr[part]) - self.x0[part]).square().flatten(1).mean(1)
            total += (weight[part] * error).sum().item()
        return total / len(self.x0)


def examine(question, network, denoise):
    """Loss of a network in evaluation mode."""
    network.eval()
    loss = question(partial(denoise, network))
    network.train()
    return loss


class Stream(ImageLoader):
    """The batches of an `ImageLoader` one epoch after the other, a few at a time."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.steps, self.rest = 1, iter(())

    def __len__(self):
        return self.steps if self.shuffle else super().__len__()

    def __iter__(self):
        for _ in range(self.steps):
            batch = next(self.rest, None)
            if batch is None:
                self.rest = self._batches(self.epoch)
                self.epoch += 1
                batch = next(self.rest)
            yield batch

    def _batches(self, epoch):
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(epoch))
        for index in order.split(self.bs)[: self.n // self.bs]:
            yield self._batch(index, None)


class Clock(Callback):
    """Seconds from the first batch of an epoch to the end of its last step: all but validation."""

    order = -100

    def before_train(self):
        self.started = time.perf_counter()

    def after_train(self):
        self.seconds = time.perf_counter() - self.started


class Ours:
    """`diffusion_learner`."""

    def __init__(self, images, network, args, scale):
        self.network, self.lr, self.scale = network, args.lr, scale
        self.stream, self.clock = Stream(images, args.batch, shuffle=True, drop_last=True), Clock()
        dls = DataLoaders(self.stream, ImageLoader(images.select(torch.arange(8)), 8), device="cpu")
        self.learn = diffusion_learner(
            dls,
            network,
            EDM(),
            Karras(scale),
            lr=args.lr,
            times=TIMES,
            label_dropout=0.0,
            compile=not args.no_compile,
            progress=False,
            callbacks=[self.clock],
        )

    def train(self, steps):
        """Take so many steps; seconds they took."""
        self.stream.steps = steps
        self.learn.fit(1, self.lr)
        return self.clock.seconds

    def losses(self, question):
        """Loss of the last and of the averaged weights."""

        def denoise(network, x, half_log_snr):
            return Denoiser(network, EDM(), Karras(self.scale))(x, EDM().time_of_half_log_snr(half_log_snr)).x0

        last = examine(question, self.network, denoise)
        with self.learn.ema.applied() as network:
            return last, examine(question, network, denoise)

    def settings(self):
        """What it ran with."""
        forward = self.learn.forward
        return {"precision": str(forward.autocast_dtype or torch.float32).removeprefix("torch."), "compiled": forward.compiled is not self.network}


class Pictures(Dataset):
    """Images as PIL pictures and a transform for each item, as torchvision's data sets have them."""

    def __init__(self, images):
        self.images = images.images.permute(0, 2, 3, 1).squeeze(-1).numpy()
        channels = images.shape[0]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * channels, [0.5] * channels)])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.transform(Image.fromarray(self.images[i]))


class Plain:
    """The usual script."""

    def __init__(self, images, network, args, scale):
        self.network, self.scale, self.decay = network, scale, 0.999
        self.averages = [p.detach().clone() for p in network.parameters()]
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.loader = DataLoader(Pictures(images), args.batch, shuffle=True, drop_last=True)
        self.batches, self.count, self.running = iter(()), 0, 0.0

    def batch(self):
        """The next batch, of the next epoch if need be."""
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.loader)
            batch = next(self.batches)
        return batch

    def step(self):
        """One step."""
        x0 = self.batch()
        sigma = torch.exp(TIMES.mean + TIMES.std * torch.randn(len(x0))).clamp(0.002, 80.0)
        noise, sd = torch.randn_like(x0), self.scale
        x, d = x0 + sigma[:, None, None, None] * noise, torch.hypot(sigma, torch.tensor(sd))
        target = (sigma / (sd * d))[:, None, None, None] * x0 - (sd / d)[:, None, None, None] * noise
        output = self.network(x / d[:, None, None, None], -torch.log(sigma))
        loss = (output - target).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for average, p in zip(self.averages, self.network.parameters()):
            average.data.mul_(decay).add_(p.data, alpha=1 - decay)
        self.running += loss.item()

    def train(self, steps):
        """Take so many steps; seconds they took."""
        start = time.perf_counter()
        for _ in range(steps):
            self.step()
        return time.perf_counter() - start

    def losses(self, question):
        """Loss of the last and of the averaged weights."""

        def denoise(network, x, half_log_snr):
            return Denoiser(network, EDM(), Karras(self.scale))(x, EDM().time_of_half_log_snr(half_log_snr)).x0

        last = examine(question, self.network, denoise)
        kept = [p.detach().clone() for p in self.network.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(list(self.network.parameters()), self.averages)
            averaged = examine(question, self.network, denoise)
            torch._foreach_copy_(list(self.network.parameters()), kept)
        return last, averaged

    def settings(self):
        """What it ran with."""
        return {"precision": "float32", "compiled": False}


@contextlib.contextmanager
def quiet():
    """Without bars, notes and warnings of others."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


class AsTheirs(nn.Module):
    """Our network as denoising-diffusion-pytorch calls one: with the number of a level."""

    def __init__(self, network, channels):
        super().__init__()
        self.network, self.channels, self.out_dim, self.self_condition = network, channels, channels, False
        self.register_buffer("half_log_snr", torch.zeros(1000))

    def forward(self, x, t, x_self_cond=None):
        return self.network(x, self.half_log_snr[t])


class Theirs:
    """`Trainer` of denoising-diffusion-pytorch."""

    def __init__(self, images, network, args, scale, folder):
        from denoising_diffusion_pytorch import GaussianDiffusion, Trainer

        (folder / "images").mkdir()
        for i, picture in enumerate(images.images.permute(0, 2, 3, 1).squeeze(-1).numpy()):
            Image.fromarray(picture).save(folder / "images" / f"{i:05}.png")
        wrapped = AsTheirs(network, images.shape[0])
        diffusion = GaussianDiffusion(wrapped, image_size=images.shape[1:])
        signal = diffusion.alphas_cumprod.double()
        wrapped.half_log_snr.copy_((0.5 * torch.log(signal / (1 - signal))).float())
        self.trainer = Trainer(
            diffusion,
            folder / "images",
            train_batch_size=args.batch,
            train_lr=args.lr,
            augment_horizontal_flip=False,
            train_num_steps=0,
            save_and_sample_every=10**9,
            calculate_fid=False,
            results_folder=folder / "results",
        )

    def train(self, steps):
        """Take so many steps; seconds they took."""
        self.trainer.train_num_steps += steps
        start = time.perf_counter()
        with quiet():
            self.trainer.train()
        return time.perf_counter() - start

    def losses(self, question):
        """Loss of the last and of the averaged weights, at the nearest of its levels."""

        def denoise(diffusion, x, half_log_snr):
            t = (diffusion.model.half_log_snr[None] - half_log_snr[:, None]).abs().argmin(1)
            x = x * diffusion.sqrt_alphas_cumprod[t, None, None, None]
            return diffusion.predict_start_from_v(x, t, diffusion.model(x, t))

        return tuple(examine(question, model, denoise) for model in (self.trainer.model, self.trainer.ema.ema_model))

    def settings(self):
        """What it ran with."""
        return {"precision": "float32", "compiled": False}


def contenders(images, args, scale, folder):
    """Each with a network of its own, all from the same weights."""

    def network():
        torch.manual_seed(0)
        return build_network(args.network, images.shape)

    made = {"ours": Ours(images, network(), args, scale), "plain": Plain(images, network(), args, scale)}
    try:
        made["ddpm"] = Theirs(images, network(), args, scale, folder)
    except ImportError as error:
        print(f"ddpm left out: {error} (pip install denoising-diffusion-pytorch)")
    return made


def measured(made, threads, args):
    """Seconds of every stretch of steps, by contender."""
    torch.set_num_threads(threads)
    seconds = {name: [] for name in made}
    for repeat in range(args.repeats + 1):
        for name, contender in made.items():
            taken = contender.train(args.steps)
            if repeat:
                seconds[name].append(taken)
    return seconds


def speed_rows(made, args):
    """A row for each number of threads and contender."""
    print(f"{'threads':>7s} {'loop':6s} {'images/s, best':>15s} {'median':>8s} {'ours over it':>13s}")
    for threads in args.threads:
        seconds = measured(made, threads, args)
        for name, taken in seconds.items():
            ratios = [theirs / ours for theirs, ours in zip(taken, seconds["ours"])]  # of neighbours in time, so that what slows one slows both
            row = {"threads": threads, "loop": name, "images_per_second": args.batch * args.steps / min(taken)}
            row |= {"median": args.batch * args.steps / statistics.median(taken), "times_ours": statistics.median(ratios)}
            row |= made[name].settings()
            print(f"{threads:7d} {name:6s} {row['images_per_second']:15.1f} {row['median']:8.1f} {row['times_ours']:13.2f}", flush=True)
            yield {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def loss_rows(made, question, args):
    """Train on to equal images, and examine."""
    done = len(args.threads) * (args.repeats + 1) * args.steps
    steps = max(0, math.ceil(args.images / args.batch) - done)
    print(f"\nafter {(done + steps) * args.batch:,} images each:\n{'loop':6s} {'loss':>8s} {'of averaged weights':>20s}")
    for name, contender in made.items():
        if steps:
            contender.train(steps)
        last, averaged = contender.losses(question)
        print(f"{name:6s} {last:8.4f} {averaged:20.4f}", flush=True)
        yield {"loop": name, "images": (done + steps) * args.batch, "loss": round(last, 5), "averaged_loss": round(averaged, 5)}


def main():
    """Print the tables and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--network", default="small")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--data", default="packaged")
    parser.add_argument("--root", default=None)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    train, valid = image_set(args.data, root=args.root).split(0.1)
    train, valid = (type(part)(part.images, source=part.source) for part in (train, valid.select(torch.arange(min(1000, len(valid))))))
    scale = round(train.rms, 3)
    with tempfile.TemporaryDirectory() as folder:
        made = contenders(train, args, scale, Path(folder))
        speed = list(speed_rows(made, args))
        loss = list(loss_rows(made, Question(valid, scale), args))
    about = {"diffnb": diffnb.__version__, "torch": torch.__version__, "machine": platform.machine(), "data": train.source}
    about |= {key: getattr(args, key) for key in ("network", "batch", "steps", "repeats", "lr")}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"about": about, "speed": speed, "loss": loss}, indent=1) + "\n")


if __name__ == "__main__":
    main()
