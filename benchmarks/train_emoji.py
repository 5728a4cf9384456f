"""Train a model that draws emoji from text, on one core of a CPU, in as many sittings as it takes.

    python benchmarks/make_emoji.py --npm node_modules --out DATA --styles noto blob fluent flat --effort 2
    python benchmarks/train_emoji.py --data DATA --out RUN [--time-limit 8] [--resume]
    python benchmarks/train_emoji.py --data DATA --out RUN --resume --pack diffnb/assets/emoji.safetensors
    python benchmarks/train_emoji.py --data DATA --out RUN --from diffnb/assets/emoji.safetensors [--time-limit 8]
    python benchmarks/train_emoji.py --data DATA --out RUN --from diffnb/assets/emoji.safetensors --distill diffnb/assets/emoji_fast.safetensors

and one that draws them in the latents of a codec, at 128 x 128 pixels:

    python benchmarks/make_emoji.py --npm node_modules --out DATA128 --styles noto blob fluent flat --effort 0 --size 128
    python benchmarks/train_codec.py --emoji DATA128 --out CODEC --size 128 --width 20 --minutes 30
    python benchmarks/train_emoji.py --data DATA128 --out RUN --codec CODEC/codec.safetensors [--from diffnb/assets/emoji.safetensors]
    python benchmarks/train_codec.py --emoji DATA128 --out CODEC2 --size 128 --width 20 --minutes 9 --from CODEC/codec.safetensors --noise 0.25
    python benchmarks/train_emoji.py --data DATA128 --out RUN --codec CODEC2/codec.safetensors --resume --pack diffnb/assets/emoji_128.safetensors
    python benchmarks/train_emoji.py --data DATA128 --out RUN --side 128     for comparison: pixels, folded so that a step costs about as much

--time-limit is in hours of computing: CPU time of training steps, of all sittings together. The learning rate falls over the last quarter of them.
RUN gets

    train.safetensors    all that the next step depends on, every 100 seconds and when SIGTERM or SIGINT end the run; --resume goes on from there
    progress.jsonl       a line every 100 steps
    grid_STEP.png        pictures for PROMPTS, guided, the same noise each time; and the loss on withheld pictures, in progress.jsonl

Every step draws its pictures, captions, times and noise from generators seeded with the number of the step. A run that was killed and resumed is
the run that was not, up to the last quarter, where the rate follows the clock. A longer --time-limit can be given to a run that has not yet reached
it. With --distill, a model of few evaluations is made from the packed one, guided by --guidance-scale, on the same pictures, each with CAPTIONS
captions; it goes on with --resume, too.

Where the state is lost, --from begins with the weights, steps and hours of a packed model; the optimizer and the average begin anew, and the rate
rises again. A model of latents can begin with a model of pixels, too. They differ in the first and the last layer alone. A small picture is nearly a
linear function of the latent of the large one, place by place, and the other way round. So the first layer of the new network is that of the old one
after the best linear function, and the last one that of the old before it. The channels of detail begin with what the colours tell of them.
"""

import argparse
import gzip
import hashlib
import json
import math
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffnb.core import NoiseSource, expand, to_unit
from diffnb.data import ImageSet, resize_images
from diffnb.denoise import Denoiser
from diffnb.guidance import ClassifierFree
from diffnb.model import GenerativeModel
from diffnb.model.trained import Trained
from diffnb.networks import Codec, ConvCodec, IdentityCodec
from diffnb.networks.text import TextUNet, Vocabulary, split_words, word_vectors
from diffnb.noise import EDM, Karras
from diffnb.samplers import DPMSolverPP2M
from diffnb.training.averages import Average, HalfLife
from diffnb.training.checkpoints import load_state, optimizer_state, save_state, set_optimizer_state
from diffnb.training.losses import Equal, LogNormal, stratified, weighted_mse
from diffnb.training.steps import training_dtype

SIDE = 32  # of what the network sees, latents or pixels; larger pictures are folded further, which costs no more
NETWORK = dict(widths=(48, 96, 96), blocks=1, attention_levels=(1, 2), unshuffle=2, embedding_width=192, text_width=128, text_depth=2, length=24)
BATCH, LR, WARMUP, DECAY = 32, 1e-3, 500, 0.25  # images, peak rate, steps until it is reached, part of the training over which it falls
TIMES = LogNormal(mean=-0.4, std=1.4)  # emoji are smooth and of high contrast: what they show is decided at more noise than in photographs
TEXT_DROPOUT = 0.1
CAPTIONS = 16  # of a picture, while a model is distilled
STYLE_WORDS = {"en": ("{}, {} style", "{} in {} style", "{}, {}"), "es": ("{}, estilo {}", "{} estilo {}"), "zh": ("{}，{}风格", "{} {}")}
STYLES = ("noto", "blob", "fluent", "flat")
PROMPTS = [f"{what}, {style} style" for what in ("green heart", "red apple", "blue heart", "grinning face") for style in STYLES]
PROMPTS += ["a blue square", "green square, flat style", "yellow circle, noto style", "cat"]
PROMPTS += ["corazón azul", "红苹果", "puppy, noto style", "purple car, fluent style"]


class Emoji:
    """The pictures of a folder that make_emoji.py has made, and captions for them."""

    def __init__(self, folder: Path, side: int = SIDE):
        packed = (folder / "emoji.jsonl.gz").read_bytes()
        self.digest = hashlib.sha256(packed).hexdigest()
        self.records = [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()]
        sheets = {}
        for style in {style for record in self.records for style in record["styles"]}:
            sheet = np.asarray(Image.open(folder / f"emoji_{style}.webp").convert("RGB"))
            own = sheet.shape[1] // 32
            cells = torch.from_numpy(sheet.reshape(-1, own, 32, own, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, own, own).copy())
            sheets[style] = resize_images(cells, side)
        pairs = [(place, style) for place, record in enumerate(self.records) for style in record["styles"]]
        self.train = [(place, style) for place, style in pairs if style not in self.records[place]["withheld"]]
        self.withheld = [(place, style) for place, style in pairs if style in self.records[place]["withheld"]]
        self.sheets, self.latents, self.codec = sheets, sheets, None

    @torch.no_grad()
    def encode(self, codec: Codec):
        """Let the network see latents, each of whose channels has mean 0 and variance 1 on the pictures of training."""
        self.codec = codec.standardise(torch.stack([self.sheets[style][place] for place, style in self.train]))
        parts = {style: sheet.split(64) for style, sheet in self.sheets.items()}
        self.latents = {style: torch.cat([codec.encode(part / 127.5 - 1) for part in own]) for style, own in parts.items()}

    def pictures(self, pairs: list[tuple[int, str]]) -> torch.Tensor:  # (n, 3, side, side) in [-1, 1], or latents of such pictures
        """Look up what the network sees."""
        seen = torch.stack([self.latents[style][place] for place, style in pairs])
        return seen.float() / 127.5 - 1 if self.codec is None else seen

    def vocabulary(self, length: int) -> Vocabulary:
        """Collect the words of all captions."""
        texts = [text for r in self.records for k in STYLE_WORDS for text in (r[k] or "", *r[f"{k}_keywords"])]
        texts += [record["name"].replace("-", " ") for record in self.records]
        texts += [shape.format("", style) for shapes in STYLE_WORDS.values() for shape in shapes for style in self.sheets]
        return Vocabulary.of(texts, length)

    def caption(self, pair: tuple[int, str], rng: random.Random, longest: int) -> str:
        """Say what a picture shows, in one of many ways."""
        record, style = self.records[pair[0]], pair[1]
        language = rng.choices(list(STYLE_WORDS), (0.7, 0.15, 0.15))[0]
        language = language if record[language] else "en"
        names, keywords = [record[language]] + [record["name"].replace("-", " ")] * (language == "en"), record[f"{language}_keywords"]
        name, kind = rng.choice(names), rng.random()
        if not keywords or kind < 0.65:
            text = rng.choices(("", "a ", "the "), (0.7, 0.2, 0.1))[0] + name if language == "en" else name
        else:
            some = rng.sample(keywords, min(len(keywords), rng.randint(1, 3)))
            text = ", ".join([name, *some] if kind < 0.85 else some)
        if rng.random() < 0.75:
            said = rng.choice(STYLE_WORDS[language]).format(text, style)
            text = said if len(split_words(said)) <= longest else text
        return text if len(split_words(text)) <= longest else name

    def image_set(self, longest: int) -> ImageSet:
        """The pictures of training with several captions each, as everything in diffnb takes them."""
        images = torch.stack([self.sheets[style][place] for place, style in self.train])
        generators = ([random.Random(f"{pair} {i}") for i in range(CAPTIONS)] for pair in self.train)
        captions = [tuple(self.caption(pair, one, longest) for one in own) for pair, own in zip(self.train, generators)]
        return ImageSet(images, captions=captions)


class Training:
    """All that one step after another changes, and where it is kept."""

    def __init__(self, emoji: Emoji, out: Path):
        self.emoji, self.out, self.file = emoji, out, out / "train.safetensors"
        torch.manual_seed(0)
        channels, side = emoji.pictures(emoji.train[:1]).shape[1:3]
        settings = NETWORK | {"unshuffle": NETWORK["unshuffle"] * side // SIDE}
        self.network = TextUNet(channels, **settings, further=emoji.vocabulary(NETWORK["length"]).further).to(memory_format=torch.channels_last)
        sigma_data = round(emoji.pictures(emoji.train).square().mean().sqrt().item(), 3)
        self.sde, self.parametrization, self.weight = EDM(), Karras(sigma_data=sigma_data), Equal()
        self.opt = torch.optim.AdamW(self.network.parameters(), LR, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.average = Average(list(self.network.parameters()), HalfLife(30_000))
        self.dtype = training_dtype(self.network, "cpu")
        self.step, self.seconds, self.losses = 0, 0.0, []
        self.first, self.begun = 0, ""  # the step from which the rate rises, and what came before
        words = hashlib.sha256(word_vectors().vectors.numpy().tobytes()).hexdigest()
        self.facts = {
            "data": emoji.digest,
            "words": words,
            "network": repr({key: value for key, value in self.network.config.items() if key != "num_classes"}),
        }
        self.facts |= {"side": side, "sigma_data": sigma_data, "batch": BATCH, "times": repr(TIMES)}
        if emoji.codec is not None:
            self.facts["codec"] = hashlib.sha256(emoji.codec.encode(torch.ones(1, 3, 8, 8)).numpy().tobytes()).hexdigest()

    def write(self):
        """Keep the state."""
        state = {"network": self.network.state_dict(), "optimizer": optimizer_state(self.opt), "average": self.average.state_dict()}
        save_state(self.file, state | {"step": self.step, "seconds": self.seconds, "facts": self.facts, "first": self.first, "begun": self.begun})

    def read(self):
        """Go on from the state that was kept."""
        state = load_state(self.file)
        if different := [key for key in self.facts if state["facts"].get(key) != self.facts[key]]:
            raise SystemExit(f"{self.file} belongs to another training: {', '.join(different)} differ")
        self.network.load_state_dict(state["network"])
        set_optimizer_state(self.opt, state["optimizer"])
        self.average.load_state_dict(state["average"])
        self.step, self.seconds, self.first, self.begun = state["step"], state["seconds"], state["first"], state.get("begun", "")

    def begin(self, path: Path):
        """Begin where a packed model ended."""
        model = GenerativeModel.load(path, device="cpu", verbose=False)
        weights, spent = model.trained.network.state_dict(), model.trained.records[-1]
        if other := weights["stem.weight"].shape != self.network.stem.weight.shape:
            weights |= bridged(weights, self.emoji)
        self.network.load_state_dict(weights)
        self.average = Average(list(self.network.parameters()), HalfLife(30_000))
        if other:
            self.begun = f", begun with a model of pixels that had seen {spent['images_seen']} pictures in {spent['seconds'] / 3600:.1f} hours"
        else:
            self.step = self.first = spent["steps"]
            self.seconds = float(spent["seconds"])

    @torch.no_grad()
    def pack(self, path: Path):
        """Write the averaged weights as a model file, in float16."""
        torch._foreach_copy_(list(self.network.parameters()), self.average.tensors)
        spent = {
            "steps": self.step,
            "seconds": round(self.seconds),
            "images_seen": self.step * BATCH,
            "batch_size": BATCH,
        }
        shape = tuple(next(iter(self.emoji.sheets.values())).shape[1:])
        spent["data"] = f"emoji in four styles, {shape[1]} x {shape[2]}{self.begun}"
        codec = self.emoji.codec or IdentityCodec()
        trained = Trained(self.network, self.sde, self.parametrization, shape, records=(spent,), codec=codec)
        GenerativeModel.of(trained, sampler="dpm-solver++2m", device="cpu", n_steps=16).save(path, torch.float16)

    def loss(self, pairs, captions, generator) -> torch.Tensor:
        """The denoising loss of a batch, as `diffnb.training` poses it."""
        x0 = self.emoji.pictures(pairs)
        t = self.sde.snap(TIMES(self.sde, stratified(len(x0), generator)))
        epsilon = torch.randn(x0.shape, generator=generator)
        x = self.sde.perturb(x0, t, epsilon)
        p, q = self.parametrization.network_target(self.sde, t)
        x_in = (expand(self.parametrization.input_scale(self.sde, t), x) * x).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            out = self.network(x_in, self.sde.half_log_snr(t), text=captions)
        return weighted_mse(out, expand(p, x0) * x0 + expand(q, x0) * epsilon, self.weight(self.parametrization, self.sde, t))

    def train_step(self, progress: float):
        """One step, whose random numbers are those of its number."""
        generator, rng = torch.Generator().manual_seed(2**32 + self.step), random.Random(self.step)
        n = len(self.emoji.train)
        order = [self._pair(self.step * BATCH + i, n) for i in range(BATCH)]
        text = self.network.vocabulary.encode([self.emoji.caption(pair, rng, NETWORK["length"] - 1) for pair in order])
        hidden = torch.rand(BATCH, generator=generator) < TEXT_DROPOUT
        text = torch.where(hidden[:, None], self.network.null("text"), text)
        for group in self.opt.param_groups:
            group["lr"] = LR * min(1.0, (self.step - self.first + 1) / WARMUP, (1 - progress) / DECAY)
        loss = self.loss(order, text, generator)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"the loss is {loss.item()} at step {self.step}; {self.file} is from before")
        self.opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.opt.step()
        self.average.update(list(self.network.parameters()), BATCH)
        self.step += 1
        self.losses.append(loss.item())

    def _pair(self, i, n):
        """The i-th picture of an endless series of shuffled epochs."""
        epoch, place = divmod(i, n)
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._order = epoch, torch.randperm(n, generator=torch.Generator().manual_seed(epoch)).tolist()
        return self.emoji.train[self._order[place]]

    @torch.no_grad()
    def look(self, n_steps: int = 16, scale: float = 3.0) -> float:
        """Draw the prompts and measure the loss on withheld pictures, with the averaged weights."""
        weights, raw = list(self.network.parameters()), [p.clone() for p in self.network.parameters()]
        torch._foreach_copy_(weights, self.average.tensors)
        self.network.eval()
        generator, losses = torch.Generator().manual_seed(0), []
        pairs = self.emoji.withheld[:: max(1, len(self.emoji.withheld) // 256)]
        for i in range(0, len(pairs), BATCH):
            part = pairs[i : i + BATCH]
            captions = [f"{self.emoji.records[place]['en']}, {style} style" for place, style in part]
            losses.append(self.loss(part, self.network.vocabulary.encode(captions), generator).item() * len(part))
        denoiser = ClassifierFree(Denoiser(self.network, self.sde, self.parametrization, self.dtype), scale)
        text = self.network.vocabulary.encode(PROMPTS)
        shape = len(text), *self.emoji.pictures(pairs[:1]).shape[1:]
        images = DPMSolverPP2M()(denoiser, shape=shape, n_steps=n_steps, seeds=NoiseSource.of(0, len(text)), condition={"text": text}).x
        if self.emoji.codec is not None:
            images = self.emoji.codec.decode(images)
        rows = (to_unit(images) * 255).round().byte().unflatten(0, (-1, 8)).permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
        Image.fromarray(rows.numpy()).save(self.out / f"grid_{self.step:07d}.png")
        torch._foreach_copy_(weights, raw)
        self.network.train()
        return sum(losses) / len(pairs)


def bridged(weights: dict, emoji: Emoji) -> dict:  # first and last layer of a network of latents
    """Put the best linear functions from latents to small pictures and back before the first layer and behind the last of a network of pixels."""
    pairs, side = emoji.train[::8], emoji.latents[emoji.train[0][1]].shape[-1]
    small = resize_images(torch.stack([emoji.sheets[style][place] for place, style in pairs]), side).double() / 127.5 - 1
    z, rgb = (images.double().transpose(0, 1).flatten(1).mT for images in (emoji.pictures(pairs), small))

    def fit(a, b):
        found = torch.linalg.lstsq(torch.cat([a, torch.ones_like(a[:, :1])], 1), b).solution.float()
        return found[:-1], found[-1]

    (into, shift), (out, _) = fit(z, rgb), fit(rgb, z)
    stem = weights["stem.weight"].unflatten(1, (3, -1))  # (width, colour, place, 3, 3)
    head = weights["head.weight"].unflatten(0, (3, -1))  # (colour, place, width, 3, 3)
    bias = weights["head.bias"].unflatten(0, (3, -1))
    return {
        "stem.weight": torch.einsum("wcphi,kc->wkphi", stem, into).flatten(1, 2),
        "stem.bias": weights["stem.bias"] + torch.einsum("wcphi,c->w", stem, shift),
        "head.weight": torch.einsum("cpwhi,ck->kpwhi", head, out).flatten(0, 1),
        "head.bias": (out.mT @ bias).flatten(),
    }


def read_codec_run(path: Path) -> ConvCodec:
    """Give the codec that train_codec.py has made, from the state that it keeps."""
    state = load_state(path)
    codec = ConvCodec(**json.loads(state["facts"]["settings"]))
    codec.load_state_dict(state["training"]["network"])
    return codec.eval().requires_grad_(False)


def distill(emoji: Emoji, args):
    """Make a model of few evaluations from the packed one."""
    teacher = GenerativeModel.load(args.model, device="cpu")
    pictures = emoji.image_set(NETWORK["length"] - 1)
    try:
        teacher.distill(pictures, args.time_limit * 3600, args.guidance_scale, checkpoints=args.out, resume=args.resume)
    finally:  # an interrupt, too, leaves what was learned until then
        if teacher.last_student is not None and teacher.last_student.record:
            teacher.last_student.save(args.distill)


def main():
    """Train until the time is used up or somebody says stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that make_emoji.py has made")
    parser.add_argument("--out", type=Path, required=True, help="folder for the state, progress and pictures")
    parser.add_argument("--side", type=int, default=SIDE, help="of pictures without a codec: 32, 64 or 128 pixels, if the data has them")
    parser.add_argument("--codec", type=Path, help="state of a codec that train_codec.py has made: draw its latents, of pictures four times as large")
    parser.add_argument("--time-limit", type=float, default=8.0, help="hours of computing, of all sittings together")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out, if there is one")
    parser.add_argument("--from", dest="model", type=Path, help="begin with the weights of this packed model")
    parser.add_argument("--steps", type=int, help="stop after so many steps in all")
    parser.add_argument("--grid-every", type=float, default=20.0, help="minutes of computing between two looks")
    parser.add_argument("--pack", type=Path, help="write the model as it stands to this file, and train nothing")
    parser.add_argument("--distill", type=Path, help="write a model of few evaluations, made from that of --from, to this file")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of the teacher, while it is distilled")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.distill is not None:
        return distill(Emoji(args.data), args)
    codec = IdentityCodec() if args.codec is None else read_codec_run(args.codec)
    emoji = Emoji(args.data, SIDE * codec.patch if args.codec else args.side)
    if args.codec is not None:
        emoji.encode(codec)
    training = Training(emoji, args.out)
    if training.file.exists():
        if not args.resume:
            raise SystemExit(f"{training.file} holds a training already; go on with --resume, or give another folder")
        training.read()
    elif args.model is not None:
        training.begin(args.model)
    if args.pack is not None:
        return training.pack(args.pack)
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))

    def say(**facts):
        epoch = training.step * BATCH / len(training.emoji.train)
        line = json.dumps({"step": training.step, "hours": round(training.seconds / 3600, 4), "epoch": round(epoch, 2)} | facts)
        print(line, flush=True)
        with open(args.out / "progress.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    limit, written, looked, start, begun = args.time_limit * 3600, time.monotonic(), training.seconds, training.step, training.seconds
    n_parameters, emoji = sum(p.numel() for p in training.network.parameters()), training.emoji
    say(parameters=n_parameters, pictures=len(emoji.train), withheld=len(emoji.withheld), precision=str(training.dtype or torch.float32))
    while training.seconds < limit and not stop and (args.steps is None or training.step < args.steps):
        before = time.process_time()
        training.train_step(training.seconds / limit)
        training.seconds += time.process_time() - before
        if training.step % 100 == 0:
            speed = (training.step - start) * BATCH / (training.seconds - begun)
            rate = training.opt.param_groups[0]["lr"]
            say(loss=round(sum(training.losses) / len(training.losses), 5), lr=round(rate, 6), images_a_second=round(speed, 2))
            training.losses.clear()
        if time.monotonic() - written > 100:
            training.write()
            written = time.monotonic()
        if training.seconds - looked > args.grid_every * 60 and not stop:
            say(withheld_loss=round(training.look(), 5))
            looked = training.seconds
    training.write()
    if training.seconds >= limit:
        say(withheld_loss=round(training.look(), 5))
    say(stopped=True)


if __name__ == "__main__":
    main()
