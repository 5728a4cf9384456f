"""What a sampler costs outside the network, and which distance it reaches in how many seconds: ours beside those of other libraries.

    python benchmarks/peers.py [--rounds 9] [--n 500] [--long 500] [--out FILE]
    python benchmarks/peers.py --overhead      the first table alone, in a minute; written to results/overhead.json

All run the packaged Fashion-MNIST model from the same noise, in float32 on one thread, over Karras's levels, with the classes in turn:

ours           DPM-Solver++(2M), DDIM and Heun; the distilled model with 1, 2 and 4 evaluations; Euler-Maruyama with --long steps.
diffusers      `EDMDPMSolverMultistepScheduler` and `EDMEulerScheduler`, which scale the network's input and answer themselves.
k-diffusion    `sample_dpmpp_2m`, `sample_euler` and `sample_heun`, with the network as their denoiser.
azula          `xEABSampler` of order 2, `EulerSampler` and `HeunSampler`, with the network as their denoiser.

The overhead is the time of a run with a network that answers at once, for each evaluation; the seconds of an image are those of a batch of 16. Both
are the minimum and the median of rounds in which all take turns. The distance is Frechet's in the features of the packaged classifier, between n
images and the 10,000 packaged ones; it is found again in --out where it has been measured. It needs the extra `bench`; a library that is missing is
left out with a line. Results are written to results/peers.json.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch
from scaling import in_turns
from torch import nn

from diffnb.core import NoiseSource, to_unit
from diffnb.data import image_set
from diffnb.denoise import Denoiser
from diffnb.metrics import FashionClassifier, FeatureStatistics, frechet_of_features
from diffnb.model import GenerativeModel
from diffnb.samplers import DDIM, Consistency, DPMSolverPP2M, EulerMaruyama, Heun

RESULT = Path(__file__).parent / "results" / "peers.json"
BATCH = 16  # images at a time


class Idle(nn.Module):
    """A network that answers at once, so that what remains is the time of everything around it."""

    condition_names = ("label",)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, x, half_log_snr, label=None):
        """Answer with the input."""
        return x


class Asked:
    """A network as the libraries call it; it counts its calls."""

    def __init__(self, trained, network=None):
        self.sde, self.parametrization, self.shape, self.calls = trained.sde, trained.parametrization, trained.shape, 0
        own = network or trained.network.eval()

        def counted(x, half_log_snr, label=None):
            self.calls += 1
            return own(x, half_log_snr, label=label)

        counted.condition_names, counted.parameters = ("label",), own.parameters
        self.network, self.denoiser = counted, Denoiser(counted, self.sde, self.parametrization)

    def sigmas(self, n_steps):
        """Karras's levels, from the largest to the smallest, and 0."""
        return torch.cat([self.sde.sigma(torch.linspace(1, 0, n_steps)), torch.zeros(1)])

    def start(self, n, first=0):
        """Noise of the highest level for images first, first + 1, ..., and their classes in turn."""
        return self.sde.sigma_max * NoiseSource.of(0, n, first).normal(self.shape, "prior"), torch.arange(first, first + n) % 10


def ours(sampler, n_steps):
    """A sampler of this library."""

    def run(asked, x, labels):
        return sampler(asked.denoiser, x=x, seeds=0, n_steps=n_steps, condition={"label": labels}).x

    return run


def of_diffusers(name, n_steps):
    """A scheduler of diffusers, which is handed what the network says."""
    import diffusers

    def run(asked, x, labels):
        scheduler = getattr(diffusers, name)(
            sigma_min=asked.sde.sigma_min, sigma_max=asked.sde.sigma_max, sigma_data=asked.parametrization.sigma_data
        )
        scheduler.set_timesteps(n_steps)
        for t in scheduler.timesteps:  # a quarter of log sigma
            answer = asked.network(scheduler.scale_model_input(x, t), (-4 * t).expand(len(x)), label=labels)
            x = scheduler.step(answer, t, x).prev_sample
        return x

    return run


def of_k_diffusion(name, n_steps):
    """A sampler of k-diffusion, which asks for x0_hat at a sigma."""
    from k_diffusion import sampling

    def run(asked, x, labels):
        def x0(x, sigma):
            return asked.denoiser(x, asked.sde.time_of_half_log_snr(-sigma.log()), {"label": labels}).x0

        return getattr(sampling, name)(x0, x, asked.sigmas(n_steps), disable=True)

    return run


def of_azula(name, n_steps, **settings):
    """A sampler of azula, which asks for the mean of a posterior."""
    from azula import sample

    class Posterior(nn.Module):
        def __init__(self, asked, labels):
            super().__init__()
            self.ask = lambda x, t: asked.denoiser(x, t, {"label": labels}).x0
            self.schedule = lambda t: (torch.ones_like(t), asked.sde.sigma(t))

        def forward(self, x, t):
            """Its mean."""
            return SimpleNamespace(mean=self.ask(x, t))

    def run(asked, x, labels):
        posterior = Posterior(asked, labels)
        x = getattr(sample, name)(posterior, start=1.0, stop=0.0, steps=n_steps - 1, silent=True, **settings)(x)
        return posterior(x, torch.zeros(())).mean

    return run


METHODS = {  # library: names, and what makes the run of a method with a number of steps
    "ours": {
        "DPM-Solver++(2M)": functools.partial(ours, DPMSolverPP2M()),
        "DDIM": functools.partial(ours, DDIM()),
        "Heun": functools.partial(ours, Heun()),
    },
    "diffusers": {name: functools.partial(of_diffusers, name) for name in ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")},
    "k_diffusion": {name: functools.partial(of_k_diffusion, name) for name in ("sample_dpmpp_2m", "sample_euler", "sample_heun")},
    "azula": {
        "xEABSampler, 2": functools.partial(of_azula, "xEABSampler", order=2),
        "EulerSampler": functools.partial(of_azula, "EulerSampler"),
        "HeunSampler": functools.partial(of_azula, "HeunSampler"),
    },
}


def there(library):
    """Whether a library is installed."""
    try:
        if library != "ours":
            __import__(library)
        return True
    except ImportError as error:
        print(f"{library} is left out: {error}")
        return False


def overheads(trained, libraries, rounds, n_steps=50):
    """Time beside the network for each of its evaluations, at one image; the run's beginning and end included."""
    asked, real = Asked(trained, Idle()), Asked(trained)
    ways = {(lib, name): make(n_steps) for lib in libraries for name, make in METHODS[lib].items()}
    x, labels = asked.start(1)
    calls = {}
    for key, way in ways.items():
        asked.calls = 0
        way(asked, x, labels)
        calls[key] = asked.calls
    times = in_turns({key: functools.partial(way, asked, x, labels) for key, way in ways.items()}, rounds)
    level = torch.zeros(1)
    network = in_turns({"network": lambda: [real.network(x / 80, level, labels) for _ in range(10)]}, rounds)["network"]
    network = min(network) / 10
    for (library, name), own in times.items():
        each = [one / calls[library, name] for one in own]
        yield {
            "library": library,
            "name": name,
            "min": min(each),
            "median": statistics.median(each),
            "network": network,
            "share": min(each) / network,
        }


def distance_of(asked, run, n, extractor, reference):
    """Frechet's distance of n images."""
    found = FeatureStatistics()
    for first in range(0, n, 50):
        x, labels = asked.start(min(50, n - first), first)
        found.update(extractor(to_unit(run(asked, x, labels))))
    return float(frechet_of_features(reference, found))


def qualities(trained, fast, libraries, args, known):
    """Seconds an image and distance of every method and number of steps."""
    asked, distilled = Asked(trained), Asked(fast)
    runs = {("ours, distilled", "consistency", n): (distilled, ours(Consistency(), n)) for n in (1, 2, 4)}
    for library in libraries:
        for name, make in METHODS[library].items():
            for n in (5, 10, 20) if "eun" not in name else (3, 5, 10):
                runs[library, name, n] = asked, make(n)
    long = "ours", "Euler-Maruyama", args.long
    runs[long] = asked, ours(EulerMaruyama(), args.long)
    counts, times = {}, {}
    x, labels = asked.start(BATCH)
    ways = {key: functools.partial(run, who, x, labels) for key, (who, run) in runs.items() if key != long}
    for key, (who, run) in runs.items():
        who.calls = 0
        run(who, *who.start(1))
        counts[key] = who.calls
    times = in_turns(ways, args.rounds)
    ten = in_turns({"ten": functools.partial(ours(EulerMaruyama(), 10), asked, x, labels)}, args.rounds)["ten"]
    times[long] = [one / 10 * args.long for one in ten]  # its steps are all alike
    extractor = FashionClassifier()
    reference = FeatureStatistics()
    for part in image_set("packaged", verbose=False).images.split(500):
        reference.update(extractor(part.float() / 255))
    for key, (who, run) in runs.items():
        (library, name, n_steps), text = key, " ".join(map(str, (*key, args.n)))
        if text not in known:
            known[text] = distance_of(who, run, args.n, extractor, reference)
        each = [one / BATCH for one in times[key]]
        yield {
            "library": library,
            "name": name,
            "n_steps": n_steps,
            "evaluations": counts[key],
            "n": args.n,
            "distance": known[text],
            "min": min(each),
            "median": statistics.median(each),
        }


def main():
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="turns, at least 7 for a figure that is told to others")
    parser.add_argument("--n", type=int, default=500, help="images of a distance")
    parser.add_argument("--long", type=int, default=500, help="steps of Euler-Maruyama")
    parser.add_argument("--overhead", action="store_true", help="the first table alone")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    trained, fast = (GenerativeModel.pretrained("fashion_mnist", device="cpu", verbose=False, fast=fast).trained for fast in (False, True))
    libraries = [name for name in METHODS if there(name)]
    with torch.inference_mode():
        outside = list(overheads(trained, libraries, args.rounds))
        for row in outside:
            text = f"{row['min'] * 1e6:7.0f} us, median {row['median'] * 1e6:7.0f}, {row['share']:.2%} of the network's"
            print(f"{row['library']:12s} {row['name']:32s} {text}", flush=True)
        about = {"torch": torch.__version__, "machine": platform.machine(), "threads": 1, "rounds": args.rounds, "batch": BATCH}
        if args.overhead:
            RESULT.with_name("overhead.json").write_text(json.dumps({"about": about, "overhead": outside}, indent=1) + "\n")
            return
        stored = json.loads(args.out.read_text()) if args.out.exists() else {}
        known = {f"{r['library']} {r['name']} {r['n_steps']} {r['n']}": r["distance"] for r in stored.get("quality", ())}
        rows = []
        for row in qualities(trained, fast, libraries, args, known):
            rows.append(row)
            print(f"{row['library']:16s} {row['name']:32s} {row['evaluations']:4d}  {row['min'] * 1e3:9.1f} ms  {row['distance']:7.3f}", flush=True)
            about["load"] = round(os.getloadavg()[0], 2)
            args.out.write_text(json.dumps({"about": about, "overhead": outside, "quality": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
