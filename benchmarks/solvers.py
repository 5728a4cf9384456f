"""Are our samplers those of the other libraries? The same noise, the same score, the same levels: do the same samples come out?

    python benchmarks/solvers.py      needs the `bench` extra: diffusers, k-diffusion, azula

The score is the exact one of three Gaussians in the plane, so that every difference is the sampler's. Each row runs a peer's sampler and ours from
the same 32 points over the same levels, the final step to x0_hat included, and gives the largest difference of the samples, in float64 where
the peer computes in it. "slope" is the convergence order between 64 and 128 levels, of the peer and of ours, against a reference of fine steps: a
peer that falls short of what its method promises shows there. "nfe" is the number of calls of the denoiser, counted.
Prints a table and writes results/solvers.json.
"""

import argparse
import importlib.metadata
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

from diffnb.core import NoiseSource
from diffnb.discrete import Discrete
from diffnb.oracles import GaussianMixture
from diffnb.samplers import (
    DDIM,
    DEIS,
    RK4,
    DPMSolver2,
    DPMSolver2M,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    ExponentialIntegrator,
    Heun,
    UniPC,
    uniform_log_snr,
)
from diffnb.sdes import VE, VP, Level

RESULT = Path(__file__).parent / "results" / "solvers.json"
TURN = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) * math.sqrt(0.5)
MEANS = torch.tensor([[-1.0, 0.4], [0.2, 0.4], [1.2, 0.4]], dtype=torch.float64) @ TURN
COVARIANCES = torch.stack([TURN.T @ torch.diag(torch.tensor([v, 0.09], dtype=torch.float64)) @ TURN for v in (0.05, 0.2, 0.1)])
MIXTURE = GaussianMixture(MEANS, COVARIANCES, torch.tensor([0.3, 0.5, 0.2]))
NOISE = torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Asked:
    """The exact denoiser at given levels, and how often it was asked."""

    def __init__(self, sde, levels: list[Level]):
        self.denoiser, self.levels, self.calls = MIXTURE.denoiser(sde), levels, 0
        self.sde = sde

    def x0(self, x, time):
        """E[x_0 | x_t], in the dtype of x."""
        self.calls += 1
        return self.denoiser(x, time).x0.to(x.dtype)

    def epsilon(self, x, level):
        """The noise in x."""
        return (x - level.alpha * self.x0(x, level.time)) / level.sigma

    def at_ratio(self, y, kappa):
        """E[x_0 | x_t] for y = x / alpha at sigma/alpha = kappa: what k-diffusion calls the model."""
        t = self.sde.time_of_half_log_snr(-torch.as_tensor(kappa, dtype=torch.float64).log().flatten()[:1])[0].clamp(self.sde.t_min, self.sde.t_max)
        return self.x0(self.sde.alpha(t) * y, t)


# diffusers: a scheduler is told the noise of a sample and moves it by one step


def diffusers_loop(name, x, asked, to_zero=True, **settings):
    """Run a scheduler of diffusers that steps in sigma/alpha over our levels, and to 0 by its own last step or by x0_hat."""
    import diffusers

    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, **settings)
    levels = asked.levels
    scheduler.set_timesteps(len(levels))
    ratios = torch.tensor([level.noise_ratio for level in levels] + [0.0], dtype=torch.float64)
    twice = name == "HeunDiscreteScheduler"  # it lists levels twice, and works on x / alpha
    if twice:
        ratios = torch.cat([ratios[:1], ratios[1:-1].repeat_interleave(2), ratios[-1:]])
        levels = [levels[0], *(level for level in levels[1:] for _ in range(2))]
        x = x / levels[0].alpha
    if not to_zero:
        ratios, levels = ratios[:-1], levels[:-1]
    scheduler.sigmas, scheduler.timesteps = ratios, torch.arange(len(levels), 0, -1)
    scheduler._step_index, scheduler._begin_index = None, None
    if twice:
        scheduler.set_begin_index(0)
    for t, level in zip(scheduler.timesteps, levels):
        epsilon = asked.epsilon(level.alpha * x if twice else x, level)
        x = scheduler.step(epsilon.to(x.dtype), t, x).prev_sample
    return x if to_zero else asked.x0(x, asked.levels[-1].time)


def diffusers_chain(name, x, asked, times, noise=None, **settings):
    """Run a scheduler of diffusers that steps along the chain of training steps."""
    import diffusers
    import diffusers.schedulers.scheduling_ddpm as ddpm

    scheduler = getattr(diffusers, name)(num_train_timesteps=1000, clip_sample=False, **settings)
    scheduler.betas = torch.tensor(asked.sde.betas, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(len(times))
    original, draws = ddpm.randn_tensor, iter(range(len(times)))
    if noise is not None:  # the numbers that our sampler draws
        ddpm.randn_tensor = lambda shape, **_: noise.normal(tuple(shape[1:]), "step", next(draws), torch.float64)
    try:
        for k, level in zip(scheduler.timesteps, asked.levels):
            x = scheduler.step(asked.epsilon(x, level), int(k), x).prev_sample
    finally:
        ddpm.randn_tensor = original
    return x


# k-diffusion: a sampler is a function of a denoiser, x = y on a VE process, and the levels with 0 at the end


def k_diffusion(name, x, asked, to_zero=True, **settings):
    """Run a sampler of k-diffusion, to 0 by its own last step or by x0_hat."""
    from k_diffusion import sampling

    sigmas = torch.tensor([level.noise_ratio for level in asked.levels] + [0.0] * to_zero, dtype=torch.float64)
    y = getattr(sampling, name)(lambda y, sigma, **_: asked.at_ratio(y, sigma), x / asked.levels[0].alpha, sigmas, disable=True, **settings)
    return y if to_zero else asked.at_ratio(y, sigmas[-1])


# azula: a sampler runs over times of a schedule, down to the last


def azula(name, x, asked, **settings):
    """Run a sampler of azula over our levels, and take x0_hat at the last."""
    from azula import sample

    class Denoiser(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.schedule = lambda t: (asked.sde.alpha(t), asked.sde.sigma(t))

        def forward(self, x, t):
            """Azula's posterior has a mean."""
            return SimpleNamespace(mean=asked.x0(x, t))

    times = torch.tensor([level.time for level in asked.levels], dtype=torch.float64)
    cls = type(name, (getattr(sample, name),), {"timesteps": property(lambda self: times)})
    x = cls(Denoiser(), silent=True, **settings)(x)
    return asked.x0(x, asked.levels[-1].time)


# the comparison

SIGMAS = {"prediction_type": "epsilon", "final_sigmas_type": "zero"}
DPM, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
BY_US = {"to_zero": False, "lower_order_final": False, "prediction_type": "epsilon"}  # the last step by x0_hat, no step of lower order before it
CASES = [  # peer, what it calls the method, how to run it, its name and settings, our sampler, the order it promises
    ("diffusers", "DPMSolverMultistep, dpmsolver++, 2", diffusers_loop, DPM, {"solver_order": 2, **SIGMAS}, DPMSolverPP2M(), 2),
    ("diffusers", "DPMSolverMultistep, dpmsolver++, 3", diffusers_loop, DPM, {"solver_order": 3, **SIGMAS}, DPMSolverPP3M(), 3),
    (
        "diffusers",
        "DPMSolverMultistep, dpmsolver, 2",
        diffusers_loop,
        DPM,
        {"solver_order": 2, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", **BY_US},
        DPMSolver2M(),
        2,
    ),
    ("diffusers", "UniPC, bh2, 2", diffusers_loop, UNIPC, {"solver_order": 2, "solver_type": "bh2", **SIGMAS}, UniPC(2), 3),
    ("diffusers", "UniPC, bh2, 3, as it comes", diffusers_loop, UNIPC, {"solver_order": 3, "solver_type": "bh2", **SIGMAS}, UniPC(3), 4),
    ("diffusers", "UniPC, bh2, 3", diffusers_loop, UNIPC, {"solver_order": 3, "solver_type": "bh2", **BY_US}, UniPC(3), 4),
    (
        "diffusers",
        "UniPC, bh2, 3, lower order final",
        diffusers_loop,
        UNIPC,
        {"solver_order": 3, "solver_type": "bh2", **BY_US, "lower_order_final": True},
        UniPC(3, lower_order_final=True),
        None,
    ),
    (
        "diffusers",
        "UniPC, bh1, 2, as it comes",
        diffusers_loop,
        UNIPC,
        {"solver_order": 2, "solver_type": "bh1", **SIGMAS},
        UniPC(2, line="trapezoid"),
        3,
    ),
    ("diffusers", "UniPC, bh1, 2", diffusers_loop, UNIPC, {"solver_order": 2, "solver_type": "bh1", **BY_US}, UniPC(2, line="trapezoid"), 3),
    ("diffusers", "HeunDiscrete", diffusers_loop, "HeunDiscreteScheduler", {"prediction_type": "epsilon"}, Heun(), 2),
    ("k-diffusion", "sample_euler", k_diffusion, "sample_euler", {}, DDIM(), 1),
    ("k-diffusion", "sample_heun", k_diffusion, "sample_heun", {}, Heun(), 2),
    ("k-diffusion", "sample_dpm_2", k_diffusion, "sample_dpm_2", {}, DPMSolver2(), 2),
    ("k-diffusion", "sample_lms, as it comes", k_diffusion, "sample_lms", {"order": 4}, DEIS(4, "noise-ratio"), 4),
    ("k-diffusion", "sample_lms", k_diffusion, "sample_lms", {"order": 4, "to_zero": False}, DEIS(4, "noise-ratio"), 4),
    ("k-diffusion", "sample_dpmpp_2s_ancestral, eta 0", k_diffusion, "sample_dpmpp_2s_ancestral", {"eta": 0.0}, DPMSolverPP2S(), 2),
    ("k-diffusion", "sample_dpmpp_2m", k_diffusion, "sample_dpmpp_2m", {}, DPMSolverPP2M(), 2),
    ("k-diffusion", "sample_dpmpp_3m_sde, eta 0", k_diffusion, "sample_dpmpp_3m_sde", {"eta": 0.0}, DPMSolverPP3M(), 3),
    ("azula", "EulerSampler", azula, "EulerSampler", {}, DDIM(), 1),
    ("azula", "HeunSampler", azula, "HeunSampler", {}, Heun(), 2),
    *[("azula", f"zABSampler, {k}", azula, "zABSampler", {"order": k}, DEIS(k, "noise-ratio"), k) for k in (2, 3, 4)],
    *[("azula", f"zEABSampler, {k}", azula, "zEABSampler", {"order": k}, ExponentialIntegrator(k, "epsilon", "exact"), k) for k in (2, 3, 4)],
    *[("azula", f"xEABSampler, {k}", azula, "xEABSampler", {"order": k}, ExponentialIntegrator(k, "x0", "exact"), k) for k in (2, 3, 4)],
]
WHY = {
    "DPMSolverMultistep, dpmsolver++, 2": "computes in float32",
    "DPMSolverMultistep, dpmsolver, 2": "computes in float32",
    "DPMSolverMultistep, dpmsolver++, 3": "falls short: the second difference enters with half its weight",
    "sample_dpmpp_3m_sde, eta 0": "falls short: the second difference enters with half its weight",
    "UniPC, bh2, 3, as it comes": "its last steps are of lower order",
    "UniPC, bh2, 3, lower order final": "of no one order",
    "UniPC, bh1, 2, as it comes": "0 times infinity in its last step, to 0",
    "sample_lms, as it comes": "falls short: its last step, to 0, is extrapolated too",
}


def compare(case, reference):
    """Difference at 20 levels, slopes between 64 and 128."""
    peer, method, loop, name, settings, sampler, order = case
    sde = VP() if peer != "k-diffusion" else VE(0.01, 50.0)

    def run(n, start=None):
        levels = sde.levels(uniform_log_snr(sde, n))
        asked, x = Asked(sde, levels), sde.prior_std * NOISE
        theirs = loop(name, x, asked, **settings)
        ours = sampler(MIXTURE.denoiser(sde), x=x, grid=uniform_log_snr(sde, n))
        return theirs, ours.x, asked.calls, ours.nfe

    def slope(pick):
        errors = [(run(n)[pick].double() - reference[type(sde)]).square().mean().sqrt().item() for n in (64, 128)]
        return math.log2(errors[0] / errors[1])

    theirs, ours, calls, our_calls = run(20)
    return {
        "peer": peer,
        "method": method,
        "ours": repr(sampler),
        "difference": finite((theirs.double() - ours).abs().max().item()),
        "dtype": str(theirs.dtype).removeprefix("torch."),
        "nfe": calls,
        "our_nfe": our_calls,
        "promised_order": order,
        "slope": finite(slope(0)),
        "our_slope": slope(1),
        "note": WHY.get(method, ""),
    }


def chain_rows():
    """DDIM and DDPM along the chain, where stride and posterior variance matter."""
    from diffnb.ancestral_samplers import DDPM

    sde, n = Discrete(), 50
    times = torch.arange(n - 1, -1, -1, dtype=torch.float64) * (1000 // n) / 1000 + 1 / 1000  # diffusers' "leading" spacing
    for method, scheduler, settings, sampler, drawn in (
        ("DDIM, eta 0", "DDIMScheduler", {}, DDIM(), False),
        ("DDPM, fixed_small", "DDPMScheduler", {"variance_type": "fixed_small"}, DDPM(), True),
        ("DDPM, fixed_large", "DDPMScheduler", {"variance_type": "fixed_large"}, DDPM("large"), True),
    ):
        asked = Asked(sde, sde.levels(times))
        noise = NoiseSource.of(0, len(NOISE))
        theirs = diffusers_chain(scheduler, NOISE, asked, times, noise if drawn else None, **settings)
        ours = sampler(MIXTURE.denoiser(sde), x=NOISE, grid=times, seeds=NoiseSource.of(0, len(NOISE)))
        yield {
            "peer": "diffusers",
            "method": method,
            "ours": repr(sampler),
            "difference": finite((theirs.double() - ours.x).abs().max().item()),
            "dtype": str(theirs.dtype).removeprefix("torch."),
            "nfe": asked.calls,
            "our_nfe": ours.nfe,
            "promised_order": None,
            "slope": None,
            "our_slope": None,
            "note": "",
        }


def finite(value):
    """The number, or None where it is none: JSON knows no others."""
    return value if math.isfinite(value) else None


def number(value):
    """As the table shows it."""
    return "not finite" if value is None else f"{value:.1e}"


def show(rows):
    """Print the table."""
    print(f"{'peer':12s}{'method':36s}{'difference':>11s}  {'dtype':8s}{'nfe':>5s}{'ours':>5s}{'order':>6s}{'slope':>7s}{'ours':>6s}  note")
    for row in rows:
        ours = f"{row['our_slope']:6.2f}" if row["our_slope"] is not None else ""
        slopes = f"{row['promised_order'] or '':>6}{'' if row['slope'] is None else format(row['slope'], '.2f'):>7s}{ours:>6s}"
        print(
            f"{row['peer']:12s}{row['method']:36s}{number(row['difference']):>11s}  {row['dtype']:8s}{row['nfe']:5d}{row['our_nfe']:5d}{slopes}",
            end="",
        )
        print(f"  {row['note']}")


def main():
    """Compare, print, write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    reference = {}
    for sde in (VP(), VE(0.01, 50.0)):
        reference[type(sde)] = RK4()(MIXTURE.denoiser(sde), x=sde.prior_std * NOISE, n_steps=600, grid="log-snr").x
    rows = [*chain_rows(), *(compare(case, reference) for case in CASES)]
    show(rows)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "k-diffusion", "azula")}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"versions": versions, "levels": 20, "grid": "uniform log-SNR", "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
