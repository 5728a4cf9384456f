"""Mutate model files, and read them: nothing but the documented errors may come out, quickly and in bounded memory.

    python benchmarks/fuzz_files.py --count 1000000 --seed 0

Each file is one of a few small models with a mutation: bytes flipped, cut, inserted or copied; parts of the header or the manifest replaced and the
digest made to fit again, so that what lies behind the digest is reached too; parts of programs exchanged. Prints how each file ended, the slowest (in
seconds of computing, so that a busy machine makes no difference; after 20 a file counts as an escape), and peak memory. File number i depends on the
seed and on i alone; the figures so far are written every 10,000 files, and `--resume` goes on from them. Ends with status 1 if anything but a
documented error came out, if a file took more than a second, or if memory rose by more than 200 MB.
"""

import argparse
import collections
import copy
import json
import math
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffnb.core import NoiseSource
from diffnb.denoise import Gaussian
from diffnb.files import ComponentError, Contents, ModelFileError, TrustError, digest_of, inspect, load, parse_header, save
from diffnb.networks import MLP
from diffnb.noise import EDM, VP, Cosine, Karras, NoiseSchedule
from diffnb.samplers import DDIM, Heun, Sampler, State

DOCUMENTED = (ModelFileError, TrustError, ComponentError, FileNotFoundError)


class TookTooLong(BaseException):
    """No Exception: whoever reads files turns those into documented errors."""


@dataclass(frozen=True)
class Bend(NoiseSchedule):
    """A schedule that travels as a program."""

    power: float = 3.0
    weights: tuple = (1.0, 2.0)

    def __post_init__(self):
        if not self.power > 0:
            raise ValueError(f"power must be positive, got {self.power}")

    def beta(self, t):
        total = 0 * t
        for k, w in enumerate(self.weights):
            total = total + w * torch.exp(-k * t) * (t + 0.1).clamp(min=0.0) ** self.power
        return total

    def integral(self, t):
        return 20 * t ** (self.power + 1) / (self.power + 1)


class TwoSteps(Sampler):
    """A sampler with memory and noise that travels as a program."""

    n_history = 1

    def step(self, denoiser, state, t, s, noise):
        x0 = denoiser(state.x, t.time).x0
        middle = sum((1.5 * x0 - 0.5 * before for _, before in state.history), 0.5 * x0)
        z = noise.normal(state.x.shape[1:], "step", 2 * state.step + 1, state.x.dtype)
        x = s.alpha * middle + math.sqrt(max(s.sigma**2 - 1e-4, 0.0)) * z
        return replace(state, x=x, x0=x0, history=((t.half_log_snr, x0),))


def seeds(folder: Path) -> list[bytes]:
    """A few small models."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = MLP(dim=2, width=4, depth=1, num_classes=2)
    base = dict(network=network, parametrization=Karras(), shape=(2,), labels=(0, 1), names=("a", "b"), records=({"loss": [0.5]},), version="0.1.0")
    models = [
        Contents(sde=VP(Cosine()), sampler=Heun(), grid=(0.9, 0.5, 0.1), **base),
        Contents(sde=VP(Bend()), sampling_sde=EDM(), sampler=DDIM(0.5), raw=network.state_dict(), **base),
        Contents(sde=VP(), sampler=TwoSteps(), **base),
    ]
    files = []
    for i, model in enumerate(models):
        save(model, folder / str(i))
        files.append((folder / str(i)).read_bytes())
    return files


ODD = [
    None,
    True,
    False,
    -1,
    0,
    1,
    7,
    2**31,
    2**53,
    10**9,
    1e308,
    -0.5,
    0.1,
    "",
    "x",
    "__class__",
    "builtin:os.system",
    "program:x",
    "python:x",
    [],
    {},
    [[]],
    "\u202e",
]


def places(value, path=()):
    """Paths of all parts of a document."""
    if path:
        yield path
    if isinstance(value, (list, dict)):
        for key in range(len(value)) if isinstance(value, list) else list(value):
            yield from places(value[key], (*path, key))


def at(value, path):
    """The part at a path."""
    for key in path:
        value = value[key]
    return value


def odd(rng: random.Random):
    """One of the odd values, a copy: later mutations change it."""
    return copy.deepcopy(rng.choice(ODD))


def mutate_json(value, rng: random.Random):
    """Replace, remove, double or exchange a part."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        known = list(places(value))
        if not known:
            return value
        path = rng.choice(known)
        holder, key, action = at(value, path[:-1]), path[-1], rng.random()
        if action < 0.5:
            holder[key] = odd(rng)
        elif action < 0.65:
            del holder[key]
        elif action < 0.9:
            holder[key] = json.loads(json.dumps(at(value, rng.choice(known))))
        elif isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), json.loads(json.dumps(at(value, rng.choice(known)))))
        else:
            holder[rng.choice(["x", "trust", "__class__", "settings", str(key)])] = odd(rng)
    return value


def mutate_inside(raw: bytes, rng: random.Random) -> bytes:
    """Change the header's JSON or a text inside it; where it makes sense, make the digest fit."""
    n = int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8 : 8 + n]), raw[8 + n :]
    texts = header["__metadata__"]
    key = rng.choice([k for k in texts if k != "diffnb.digest"])
    if rng.random() < 0.25:
        header = mutate_json(header, rng)
    elif key == "diffnb.version":
        texts[key] = rng.choice(["0", "1", "1.0", "1.9", "2.0", "", "x" * 100, "-1"])
    else:
        texts[key] = json.dumps(mutate_json(json.loads(texts[key]), rng), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    if rng.random() < 0.1:
        body = bytes(rng.randrange(256) for _ in range(min(16, len(body)))) + body[16:]
    try:
        if isinstance(header.get("__metadata__"), dict) and "diffnb.digest" in header["__metadata__"]:
            text = json.dumps(header, ensure_ascii=False)
            header["__metadata__"]["diffnb.digest"] = digest_of(header["__metadata__"], parse_header(text)[1], [body])
    except Exception:  # the header is beyond repair, which is a case, too
        pass
    text = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, or copy bytes."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        i, action = rng.randrange(len(data) or 1), rng.random()
        if not data or action < 0.1:
            data[i:i] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        elif action < 0.7:
            data[i] = rng.choice((data[i] ^ (1 << rng.randrange(8)), 0, 255, ord('"'), ord("{"), ord("]"), rng.randrange(256)))
        elif action < 0.8:
            del data[i:]
        elif action < 0.9:
            del data[i : i + rng.randrange(1, 64)]
        else:
            j = rng.randrange(len(data))
            data[i:i] = data[j : j + rng.randrange(1, 256)]
    return bytes(data)


def read(path: Path) -> str:
    """Read a file by both doors; what became of it."""
    found = []
    for door in (lambda: str(inspect(path)), lambda: use(load(path))):
        try:
            door()
            found.append("read")
        except DOCUMENTED as error:
            found.append(type(error).__name__)
    return " ".join(found)


def use(contents):
    """Call what a file made."""
    t = torch.linspace(0, 1, 3)
    contents.sde.alpha(t), contents.sde.sigma(t)
    if type(contents.sampler).__module__ == "diffnb.files.programs":
        x, noise, levels = torch.linspace(-1, 1, 4).view(2, 2), NoiseSource.of(0, 2), VP().levels(torch.tensor([0.9, 0.5]))
        contents.sampler.step(Gaussian([0.0, 0.0], [[1.0, 0.0], [0.0, 1.0]]).denoiser(VP()), State(x), *levels, noise)


class Tally:
    """What became of the files so far."""

    def __init__(self, arguments):
        self.out, self.done, self.outcomes, self.escapes = Path(arguments.out), 0, collections.Counter(), []
        self.slowest = self.memory = self.before = 0.0
        self.command = f"python benchmarks/fuzz_files.py --count {arguments.count} --seed {arguments.seed}"
        if arguments.resume:
            self.take(json.loads(self.out.read_text(encoding="utf-8")))
        self.base, self.start = 0, time.perf_counter()

    def take(self, earlier: dict):
        """Go on from what an earlier run has written."""
        if earlier["command"] != self.command:
            raise SystemExit(f"{self.out} is of another run, {earlier['command']!r}; leave --resume out to begin anew")
        self.done, self.outcomes, self.escapes = earlier["files"], collections.Counter(earlier["outcomes"]), earlier["escapes"]
        self.slowest, self.memory, self.before = earlier["slowest_seconds"], earlier["memory_above_start_mb"], earlier["seconds"]

    def report(self):
        """Print and write the figures."""
        self.memory = max(self.memory, round((peak_memory() - self.base) / 1000, 1))
        result = {
            "command": self.command,
            "files": self.done,
            "escapes": self.escapes,
            "slowest_seconds": round(self.slowest, 3),
            "memory_above_start_mb": self.memory,
            "seconds": round(self.before + time.perf_counter() - self.start, 1),
            "outcomes": dict(self.outcomes.most_common()),
        }
        self.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        found = f"{self.done} files, {len(self.escapes)} escapes, slowest {self.slowest:.2f} s"
        print(f"{found}, {self.memory:.0f} MB above the start, {result['seconds']} s", flush=True)


def peak_memory() -> int:
    """The most memory that this process has had, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def too_long(*_):
    """End the reading of a file."""
    raise TookTooLong("more than 20 seconds")


def main():
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the figures in --out")
    parser.add_argument("--out", default="benchmarks/results/fuzz_files.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, too_long)
    tally = Tally(arguments)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # cutting a file on a disk takes longer than reading it
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        files, path = seeds(Path(folder)), Path(folder) / "mutated"
        for raw in files:
            path.write_bytes(raw)
            assert read(path) == "read read"
        tally.base = peak_memory()
        for i in range(tally.done, arguments.count):
            rng = random.Random(f"{arguments.seed}/{i}")
            path.write_bytes(rng.choice((mutate_bytes, mutate_inside, mutate_inside))(rng.choice(files), rng))
            signal.setitimer(signal.ITIMER_PROF, 20)
            began = time.process_time()
            try:
                tally.outcomes[read(path)] += 1
            except KeyboardInterrupt:
                break
            except BaseException as error:
                tally.escapes.append({"case": i, "error": f"{type(error).__name__}: {str(error)[:200]}"})
                print("ESCAPED", tally.escapes[-1], file=sys.stderr, flush=True)
            signal.setitimer(signal.ITIMER_PROF, 0)
            tally.slowest = max(tally.slowest, time.process_time() - began)
            tally.done = i + 1
            if tally.done % 10_000 == 0:
                tally.report()
    tally.report()
    sys.exit(int(bool(tally.escapes) or tally.slowest > 1 or tally.memory > 200))


if __name__ == "__main__":
    main()
