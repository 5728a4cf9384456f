"""Train a learned codec, on one core of a CPU, in as many sittings as it takes.

    python benchmarks/train_codec.py --out RUN [--data emoji] [--size 64] [--channels 8] [--minutes 180] [--resume]
    python benchmarks/train_codec.py --out RUN --emoji FOLDER --size 128 --width 20     for train_emoji.py --codec, of what make_emoji.py has drawn
    python benchmarks/train_codec.py --out RUN2 --from RUN/codec.safetensors --noise 0.25 --emoji ... a decoder for latents that are less exact
    python benchmarks/codecs.py --codecs "ConvCodec, 8 channels" --train-minutes 180 --run RUN     measures it, and trains what is missing

--minutes are of computing: CPU time of training steps, of all sittings together. The learning rate falls over the second half of them. A tenth of the
pictures is held out, the same as in codecs.py; of emoji that make_emoji.py has drawn, those that are withheld from the model of text. With
--precision bfloat16 a step at 128 pixels took 0.6 times as long on a processor that has instructions for it. RUN gets

    codec.safetensors   all that the next step depends on, every 100 seconds and when SIGTERM or SIGINT end the run; --resume goes on from there
    progress.jsonl      a line every 100 steps
"""

import argparse
import json
import signal
import time
from pathlib import Path

import torch
from train_emoji import Emoji

from diffnb.core import to_model, to_unit
from diffnb.data import image_set
from diffnb.networks import CodecTraining, PatchPCA
from diffnb.training.checkpoints import load_state, save_state
from diffnb.training.steps import training_dtype


def trained(
    images,
    channels: int,
    minutes: float,
    out: Path,
    resume: bool = True,
    width: int = 32,
    precision: str = "auto",
    rate: float = 1e-3,
    noise: float = 0.05,
    encoder: Path | None = None,
) -> tuple[CodecTraining, float]:  # and the minutes it took
    """Train until the minutes are used up, or somebody says stop."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    training = CodecTraining(images, channels=channels, width=width, rate=rate, noise=noise)
    if encoder is not None:
        training.network.load_state_dict(load_state(encoder)["training"]["network"])
        training.network.encoder.requires_grad_(False)
    file, seconds, stop, losses = out / "codec.safetensors", 0.0, [], []
    dtype = training_dtype(training.network, "cpu", precision)
    facts = {"images": list(training.images.shape), "settings": json.dumps(training.network.config)}
    if file.exists():
        state = load_state(file)
        if not resume:
            raise SystemExit(f"{file} holds a training already; go on with --resume, or give another folder")
        if state["facts"] != facts:
            raise SystemExit(f"{file} belongs to another training, of {state['facts']}; this one has {facts}")
        training.load_state_dict(state["training"])
        seconds = state["seconds"]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))
    written = time.monotonic()
    while seconds < 60 * minutes and not stop:
        before = time.process_time()
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            losses.append(training.train_step(seconds / (60 * minutes)))
        seconds += time.process_time() - before
        if training.step % 100 == 0:
            line = json.dumps({"step": training.step, "minutes": round(seconds / 60, 2), "loss": round(sum(losses) / len(losses), 5)})
            print(line, flush=True)
            with open(out / "progress.jsonl", "a", encoding="utf-8") as log:
                log.write(line + "\n")
            losses.clear()
        if time.monotonic() - written > 100:
            save_state(file, {"training": training.state_dict(), "seconds": seconds, "facts": facts})
            written = time.monotonic()
    save_state(file, {"training": training.state_dict(), "seconds": seconds, "facts": facts})
    return training, seconds / 60


@torch.no_grad()
def decibels(codec, images: torch.Tensor) -> float:
    """Mean PSNR of the round trip of images, which are bytes."""
    errors = []
    for part in images.split(64):
        x = part / 255
        errors.append((to_unit(codec.decode(codec.encode(to_model(x)))) - x).square().flatten(1).mean(1))
    return -10 * torch.cat(errors).clamp(min=1e-12).log10().mean().item()


def main():
    """Train on a set of pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the state and the progress")
    parser.add_argument("--data", default="emoji", help="name of a set, or a folder")
    parser.add_argument("--size", type=int, default=64, help="side of the images")
    parser.add_argument("--emoji", type=Path, help="folder that make_emoji.py has made, in place of --data")
    parser.add_argument("--width", type=int, default=32, help="channels of the convolutions at half the side of the images")
    parser.add_argument("--channels", type=int, default=8, help="channels of the latents, each of 4 x 4 pixels")
    parser.add_argument("--noise", type=float, default=0.05, help="on latents, in units of the standard deviation of each channel")
    parser.add_argument("--from", dest="encoder", type=Path, help="state of a codec to begin with, whose encoder stays as it is")
    parser.add_argument("--minutes", type=float, default=180.0, help="minutes of computing, of all sittings together")
    parser.add_argument("--rate", type=float, default=1e-3, help="the largest learning rate; with 2e-3, a network of width 32 lost its way")
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"], help="of the layers while training")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out, if there is one")
    options = parser.parse_args()
    if options.emoji is not None:
        emoji = Emoji(options.emoji, options.size)
        kept, aside = (torch.stack([emoji.sheets[style][place] for place, style in own]) for own in (emoji.train, emoji.withheld))
    else:
        kept, aside = (own.images for own in image_set(options.data, size=options.size, verbose=False).split(0.1, seed=0))
    settings = (options.width, options.precision, options.rate, options.noise, options.encoder)
    training, minutes = trained(kept, options.channels, options.minutes, options.out, options.resume, *settings)
    linear = PatchPCA.fit(kept, training.network.patch, options.channels)
    learned, simple = decibels(training.codec(), aside), decibels(linear, aside)
    print(f"{learned:.1f} dB on {len(aside)} pictures held out after {minutes:.0f} minutes; principal components {simple:.1f}")


if __name__ == "__main__":
    main()
