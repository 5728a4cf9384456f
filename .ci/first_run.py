"""Use everything once, as somebody who has only installed the package: every module, every command, every method of the facade.

    python .ci/first_run.py [--train-seconds 60]            in a folder outside the checkout, with the core requirements alone

Commands and methods are found by looking. One without a case in the tables below is an error, and so is a case without its command or method.
Commands run in forks of this process: an interpreter for each would import PyTorch each time. Those with something typed run as a shell runs them.
What the results are worth is the business of the tests; here they must come, be finite, and need no file of the checkout.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import pkgutil
import pty
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

import diffnb

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.append(str(CHECKOUT / "tests"))
from commands import command as forked  # noqa: E402

DIFFNB = Path(sys.executable).parent / "diffnb"
LIMIT = 600  # seconds for a command; after them all is ended
GUARDED = '''
from {module} import NoiseSchedule


class Guarded(NoiseSchedule):
    """A schedule that can only travel as code."""

    def beta(self, t):
        if bool((t > 1).any()):  # a decision that looks at a value
            raise ValueError("t is past the end")
        return 0.1 + 19.9 * t

    def integral(self, t):
        return 0.1 * t + 9.95 * t**2
'''


class Case(NamedTuple):
    """A command line, and what it must do."""

    line: str  # after the command's name
    said: str = ""  # is in what it prints
    code: int = 0  # how it ends
    typed: str = ""  # at its prompt
    weights: str | None = None  # folder of the FID's weights; None: it has none


def commands(seconds, weights):
    """Cases by the name of the command, in an order in which later ones find what earlier ones write."""
    return {
        "inspect": [Case("guarded.safetensors", "Guarded")],
        # a person's own list of what may run is read, and left as it is
        "trust add": [Case("guarded.safetensors", "not confirmed; nothing was run", typed="no\n")],
        "trust list": [Case("")],
        "trust revoke": [Case("0123abcd", "0 trusted sources have a digest that begins with '0123abcd'", 2)],
        "demo": [Case(f"--out demo --train-seconds {seconds} --rows 2", "demo/trained.safetensors")],
        "generate": [
            Case("demo/trained.safetensors --labels bag,coat --num 24 --steps 2 --seed 1 --files --out made", "24 files in made"),
            Case("cifar10 --num 2 --steps 2 --seed 1 --files --out colour", "2 files in colour"),
        ],
        "draw": [Case("heart --style noto --num 2 --steps 2 --seed 1", "heart-noto-style.png: 2 pictures")],
        "train": [
            Case("packaged --limit 64 --epochs 1 --network tiny --metric none --out run", "go on by: diffnb train --resume run"),
            Case(
                "cifar10_samples --size 16 --condition grey --steps 2 --network tiny --metric none --out translator",
                "diffnb train --resume translator",
            ),
            Case(
                "cifar10_samples --size 16 --codec pca:6 --steps 2 --network tiny --metric none --out compact",
                "diffnb train --resume compact",
            ),
            Case(
                "cifar10_samples --size 16 --condition grey --codec pca:6 --steps 2 --network tiny --metric none --out both",
                "diffnb train --resume both",
            ),
            Case("packaged --limit 64 --epochs 1 --network tiny --log-to wandb --out logged", 'pip install "diffnb[wandb]"', 2),
        ],
        "translate": [
            Case("translator colour --resize --steps 2 --out translated", "2 of 2 pictures"),
            Case("both colour --resize --steps 2 --out answered", "2 of 2 pictures"),
        ],
        "distill": [Case("fashion_mnist packaged --limit 20 --batch-size 4 --steps 1 --out student.safetensors", "student.safetensors")],
        "export": [
            Case("run/model.safetensors model.pt2 --weights float16", "a denoiser"),
            Case("fashion_mnist model.onnx", 'pip install "diffnb[onnx]"', 2),
            Case("fashion_mnist for_diffusers", "needs its UNet2DModel", 2),
        ],
        "dashboard": [Case("--no-browser", 'pip install "diffnb[dashboard]"', 2)],
        "weights": [Case(weights, "ready")] if weights else [Case("--help", "DIR")],
        "score": [
            Case("packaged made --metrics kernel --cache features", "kernel[fashion-classifier]"),
            Case("made made --metrics fid --cache features", "by `diffnb weights` ("),
            Case("made made --extractor inception-2015 --cache features", "Get them by `diffnb weights`", 2),
            *([Case("made made --metrics fid --cache features", "kid: extractor inception-2015", weights=weights)] if weights else []),
        ],
        "compare": [Case("--example", "processes = ["), Case("comparison.json --out compared --quick", "1 of 1 cell finished")],
        "colorize": [Case("colour --steps 2 --method ddnm --out colorized", "2 of 2 pictures")],
        "impute": [Case("colour --mask mask.png --steps 2 --method ddnm --out imputed", "2 of 2 pictures")],
        "upscale": [Case("colour --factor 2 --resize --steps 2 --method ddnm --out upscaled", "2 of 2 pictures")],
        "denoise": [Case("colour --noise 0.1 --steps 2 --method ddnm --out denoised", "2 of 2 pictures")],
        "edit": [Case("colour --steps 2 --strength 0.5 --out edited", "2 of 2 pictures")],
    }


def methods(grey, colour, new, find):
    """Calls by the name of the method; `find` looks up a name anywhere in the package."""
    few = {"n_steps": 2, "seed": 0}
    x, rgb = grey.generate(2, **few), colour.generate(2, **few)
    hole = torch.ones(1, 1, *x.shape[-2:])
    hole[..., :10] = 0
    quick = few | {"method": "ddnm"}
    return {
        "pretrained": lambda: type(grey).pretrained("cifar10", "cpu"),
        "of": lambda: type(grey).of(grey.trained, sampler="heun", verbose=False).generate(1, **few),
        "to": lambda: grey.to("cpu"),
        "train": lambda: new.train("packaged", epochs=1, batch_size=16, classes=[0, 1], time_limit=3),
        "distill": lambda: grey.distill("packaged", steps=1, batch_size=4, classes=[0]).generate(2, seed=0),
        "export": lambda: [new.export("exported.pt2", 1), type(grey).from_diffusers(pipeline(find, "given"), "cpu", verbose=False).export("again")],
        "set_labels": lambda: new.set_labels([f"name {k}" for k in range(new.num_classes)]),
        "generate": lambda: grey.generate(2, class_labels="bag", guidance_scale=2.0, **few),
        "under": lambda: grey.under("vp").generate(1, **few),
        "denoiser": lambda: grey.denoiser("bag")(torch.zeros(1, *grey.shape), torch.tensor(0.5)),
        "contents": lambda: grey.contents(),
        "save": lambda: grey.save("saved.safetensors"),
        "load": lambda: type(grey).load("saved.safetensors"),
        "from_diffusers": lambda: type(grey).from_diffusers(pipeline(find), "cpu", verbose=False).generate(2, **few),
        "score": lambda: grey.score("packaged", x, ["kernel"], cache="features"),
        "calibrate": lambda: grey.calibrate(x),
        "restore": lambda: grey.restore(x * 2 - 1, find("Identity")(), noise=0.1, **few),  # by the default method, calibrated above
        "colorize": lambda: colour.colorize(rgb.mean(1, keepdim=True), **quick),
        "impute": lambda: grey.impute(x, hole, **quick),
        "imputation": lambda: grey.imputation(x, hole, **quick),
        "upscale": lambda: grey.upscale(x[..., ::2, ::2], **quick),
        "denoise": lambda: grey.denoise(x, noise=0.1, **quick),
        "deblur": lambda: grey.deblur(x, blur=1.0, **quick),
        "edit": lambda: grey.edit(x, class_labels="bag", **few),
        "reconstruct": lambda: grey.reconstruct(x, **few),
        "encode": lambda: grey.encode(x, n_steps=2),
        "decode": lambda: grey.decode(torch.randn(2, *grey.shape), n_steps=2),
        "interpolate": lambda: grey.interpolate(x[:1], x[1:], n=3, n_steps=2),
        "round_trip_error": lambda: grey.round_trip_error(x, n_steps=2),
        "log_prob": lambda: grey.log_prob(x[:1], n_steps=1),
        "translate": lambda: painter().translate(rgb.mean(1, keepdim=True)[:1], n_steps=2, seed=0),
    }


def painter():
    """A model that answers grey pictures with coloured ones, after one step of training."""
    from diffnb import GenerativeModel

    model = GenerativeModel(network="tiny", verbose=False)
    model.train("cifar10_samples", condition="grey", steps=1, batch_size=4)
    return model


def pipeline(find, folder="pipeline"):
    """A pipeline of diffusers with random weights, written without diffusers; its folder."""
    chain = {"_class_name": "DDPMScheduler", "beta_schedule": "linear"}
    unet = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 8}
    unet |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    folder = Path(folder)
    folder.mkdir()
    for name, said in {"config.json": unet, "scheduler_config.json": chain}.items():
        (folder / name).write_text(json.dumps(said), encoding="utf-8")
    network = find("network_of_config")(unet, *find("read_scheduler")(chain))
    save_file(network.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    return folder


def same_names(what, there, cases):
    """Every name has a case, and every case its name."""
    if wrong := [*(f"no case for {name}" for name in there - cases), *(f"a case for {name}, which is not there" for name in cases - there)]:
        raise SystemExit(f"{what} in {Path(__file__).name}: {'; '.join(sorted(wrong))}")


def finite(result):
    """Whether tensors, and what holds them, are finite."""
    return not isinstance(result, torch.Tensor) or bool(result.isfinite().all())


def timed(name, run):
    """Run, and say how long it took."""
    start = time.perf_counter()
    run()
    print(f"{name:40} {time.perf_counter() - start:6.1f} s", flush=True)


def import_all():
    """Import every module of the package."""
    names = [found.name for found in pkgutil.walk_packages(diffnb.__path__, "diffnb.") if not found.name.endswith("__main__")]
    return [importlib.import_module(name) for name in names]


def check_environment(extras):
    """Nothing that an extra brings is there, and the package is not that of the checkout."""
    if there := [package for package in extras if importlib.util.find_spec(package) is not None]:
        raise SystemExit(f"{', '.join(there)} is installed: this must run with the core requirements alone")
    if Path(diffnb.__file__).is_relative_to(CHECKOUT):
        raise SystemExit(f"{diffnb.__file__} belongs to the checkout: install the wheel instead")


def command_names(group, before=()):
    """The names of all commands below a group."""
    for name, command in group.commands.items():
        yield from command_names(command, (*before, name)) if hasattr(command, "commands") else [" ".join((*before, name))]


def run_typed(name, case):
    """Run a command as a shell does, with a terminal for what is typed; exit code, output, errors."""
    leader, terminal = pty.openpty()
    os.write(leader, case.typed.encode())
    line = [DIFFNB, *name.split(), *case.line.split()]
    result = subprocess.run(line, stdin=terminal, capture_output=True, text=True)
    os.close(leader), os.close(terminal)
    return result.returncode, result.stdout, result.stderr


def run_forked(name, case):
    """Run a command in a fork of this process; exit code, output, errors."""
    if case.weights:
        os.environ["DIFFNB_WEIGHTS"] = case.weights
    try:
        return forked(*name.split(), *case.line.split()).end()
    finally:
        os.environ.pop("DIFFNB_WEIGHTS", None)


def run_command(name, case):
    """Run a command, and hold it to its case."""
    signal.alarm(LIMIT)
    code, *said = run_typed(name, case) if case.typed else run_forked(name, case)
    signal.alarm(0)
    said = "".join(said)
    if code != case.code or case.said not in said or "Traceback" in said:
        raise SystemExit(f"$ diffnb {name} {case.line}\n{said}\nended with {code}; expected {case.code}, and {case.said!r} in what it says")


def prepare(find):
    """Write what commands read: a model with code in it, a comparison, and a mask."""
    Path("own.py").write_text(GUARDED.format(module=find("NoiseSchedule").__module__), encoding="utf-8")
    sys.path.insert(0, os.getcwd())
    schedule = importlib.import_module("own").Guarded()
    diffnb.GenerativeModel.pretrained("fashion_mnist", verbose=False).under("vp", schedule).save("guarded.safetensors")
    facts = {"data": "packaged", "limit": 400, "processes": "ve", "samplers": "ddim", "metrics": "kernel"}
    Path("comparison.json").write_text(json.dumps(facts), encoding="utf-8")
    find("write_png")(torch.arange(32).ge(16).byte().mul(255).expand(32, 32)[..., None], "mask.png")


def main():
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-seconds", type=float, default=60.0, help="how long the demo trains its model")
    seconds = parser.parse_args().train_seconds
    start, loaded = time.perf_counter(), import_all()
    print(f"{len(loaded)} modules imported in {time.perf_counter() - start:.1f} s", flush=True)

    def find(name):
        return next(vars(module)[name] for module in loaded if name in vars(module))

    check_environment(find("EXTRAS"))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = os.path.abspath("cache")
        prepare(find)
        app, cases = find("app"), commands(seconds, os.environ.pop("DIFFNB_WEIGHTS", None))
        same_names("commands", set(command_names(importlib.import_module("typer").main.get_command(app))), set(cases))
        for name, tried in cases.items():
            for case in tried:
                timed(f"diffnb {name}", lambda: run_command(name, case))
        facade = diffnb.GenerativeModel
        grey, colour = (facade.pretrained(name, verbose=False) for name in ("fashion_mnist", "cifar10"))
        new = facade("edm", network="tiny", verbose=False)
        calls = methods(grey, colour, new, find)
        public = {name: inspect.getattr_static(facade, name) for name in dir(facade) if not name.startswith("_")}
        properties = {name for name, value in public.items() if isinstance(value, property)}
        same_names("methods", set(public) - properties, set(calls))
        for name in calls:
            result = []
            timed(f"GenerativeModel.{name}", lambda: result.append(calls[name]()))
            if not finite(result[0]):
                raise SystemExit(f"GenerativeModel.{name} gave numbers that are not finite")
        for name in sorted(properties):
            getattr(grey, name)
        print(f"{len(cases)} commands, {len(calls)} methods and {len(properties)} properties in {time.perf_counter() - start:.0f} s")
        os.chdir("/")


if __name__ == "__main__":
    main()
