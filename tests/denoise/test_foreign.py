"""Networks in the conventions of other libraries: exact ones read back to rounding, real objects of those libraries, and mistakes named."""

import pytest
import torch

from diffnb import GenerativeModel
from diffnb.data import image_set
from diffnb.denoise import CONVENTIONS, Denoiser, DiffusersSteps, GaussianMixture, Steps, Velocity, check_denoiser, denoising_errors
from diffnb.noise import EDM, Discrete, Epsilon, FlowMatching, V, cosine_betas, linear_betas, sigmoid_betas, zero_terminal_betas
from diffnb.samplers import DDIM

DATA = GaussianMixture([[-0.6, 0.2], [0.5, -0.3]], [[[0.02, 0.01], [0.01, 0.03]], [[0.05, 0.0], [0.0, 0.001]]], [0.4, 0.6])


def exact(sde, name, x, t):
    """What a perfect network of the process says, by the name of an attribute of its prediction."""
    return getattr(DATA.denoiser(sde)(x, t), name)


def of_chain(betas, name):
    """f(x, k) with whole steps from 0."""
    return lambda x, k: exact(Discrete(betas), name, x, (k.double() + 1) / len(betas))


def of_sigma(x, sigma):
    """D(x, sigma)."""
    return exact(EDM(), "x0", x, EDM().time_of_half_log_snr(-sigma.log()))


CASES = {
    **{
        f"{table.__name__} {prediction}": (of_chain(table(400), name), Steps(prediction, table(400)))
        for table in (linear_betas, cosine_betas, sigmoid_betas)
        for prediction, name in {"epsilon": "epsilon", "v": "v", "sample": "x0"}.items()
    },
    "zero SNR": (of_chain(zero_terminal_betas(linear_betas(400)), "v"), Steps("v", zero_terminal_betas(linear_betas(400)))),
    "k-diffusion": (of_sigma, "k-diffusion"),
    "edm": (of_sigma, "edm"),
    "data at 0": (lambda x, s: exact(FlowMatching(), "velocity", x, s), Velocity(0)),
    "data at 1": (lambda x, s: -exact(FlowMatching(), "velocity", x, 1 - s), Velocity(1)),
}


@pytest.mark.parametrize("case", CASES)
def test_an_exact_network_is_read_back_exactly(case):
    """At every level of its process, with a time for each sample; in float32 as near as that has it."""
    network, convention = CASES[case]
    denoiser = Denoiser.of(network, convention)
    sde, x0 = denoiser.sde, DATA.sample(40)
    t = sde.snap(torch.linspace(max(sde.t_min, 0.002), sde.t_max, 40, dtype=torch.float64))
    x = sde.perturb(x0, t, torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    truth = exact(sde, "x0", x, t)
    assert (denoiser(x, t).x0 - truth).abs().max() < 1e-10
    assert (denoiser(x.float(), t).x0 - truth)[:35].abs().max() < 1e-2


@pytest.mark.parametrize("name", CONVENTIONS.names())
def test_every_convention_says_what_it_needs_or_works(name):
    """By name alone: an error that names the setting, or a denoiser."""
    try:
        denoiser = Denoiser.of(of_sigma, name)
    except ValueError as error:
        assert "needs prediction" in str(error) or "needs data_at" in str(error)
    else:
        assert denoiser(torch.zeros(2, 2, dtype=torch.float64), 0.5).x0.shape == (2, 2)


def test_classes_and_the_class_for_none():
    """As numbers, with or without a class that stands for none."""
    seen = []
    network = lambda x, k, y: seen.append(y.tolist()) or x  # noqa: E731
    with_null = Denoiser.of(network, Steps("v", linear_betas(100), num_classes=3, null=3))
    with_null(torch.zeros(3, 2), 0.5, {"label": torch.tensor([0, 2, -1])})
    with_null(torch.zeros(2, 2), 0.5)
    assert seen == [[0, 2, 3], [3, 3]]
    without = Denoiser.of(network, Steps("v", linear_betas(100), num_classes=3))
    without(torch.zeros(1, 2), 0.5, {"label": torch.tensor([1])})
    with pytest.raises(ValueError, match="no class that stands for none"):
        without(torch.zeros(1, 2), 0.5)


def test_weights_in_half_precision_are_told_the_right_step():
    """The noise level keeps the digits of float32, whatever the weights have."""
    seen = []

    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))

        def forward(self, x, k):
            seen.append(k.item())
            return x * self.weight

    denoiser = Denoiser.of(Half(), Steps("v", linear_betas(1000)))
    for k in (1, 2, 3, 500, 777, 999, 1000):
        denoiser(torch.zeros(1, 2), k / 1000)
    assert seen == [0, 1, 2, 499, 776, 998, 999]


# real objects of other libraries


def test_gaussian_diffusion_of_denoising_diffusion_pytorch():
    """Its own prediction of x_0, with each schedule and objective."""
    peer = pytest.importorskip("denoising_diffusion_pytorch", reason="denoising-diffusion-pytorch is an optional peer")
    torch.manual_seed(0)
    unet = peer.Unet(dim=16, dim_mults=(1, 2), channels=1).eval()
    for schedule in ("linear", "cosine", "sigmoid"):
        for objective in ("pred_noise", "pred_x0", "pred_v"):
            theirs = peer.GaussianDiffusion(unet, image_size=16, timesteps=1000, beta_schedule=schedule, objective=objective)
            ours, x = Denoiser.of(theirs, "denoising-diffusion-pytorch"), torch.randn(2, 1, 16, 16)
            for k in (0, 10, 500, 900):
                with torch.no_grad():
                    x0 = theirs.model_predictions(x, torch.full((2,), k)).pred_x_start
                    assert (ours(x, (k + 1) / 1000).x0 - x0).abs().max() < 1e-4 * x0.abs().max()


def test_a_pipeline_of_diffusers():
    """A network and each scheduler: the alpha of the scheduler, and its DDIM run."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is an optional peer: pip install diffusers")
    torch.manual_seed(0)
    small = {"block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=8, num_class_embeds=4, **small
    ).eval()
    for settings in (
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "sample"},
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
        {"beta_schedule": "linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    ):
        scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True, **settings)
        ours = Denoiser.of(diffusers.DDIMPipeline(unet=unet, scheduler=scheduler), "diffusers")
        k = torch.tensor([0, 1, 500, 998, 999])
        assert (ours.sde.alpha((k + 1).double() / 1000) ** 2 - scheduler.alphas_cumprod[k]).abs().max() < 1e-6
        scheduler.set_timesteps(10)
        x = start = torch.randn(2, 1, 8, 8)
        label = torch.tensor([1, 3])
        with torch.no_grad():
            for step in scheduler.timesteps:
                x = scheduler.step(unet(x, step, class_labels=label).sample, step, x).prev_sample
            grid = (scheduler.timesteps + 1).double() / 1000
            run = DDIM()(ours, x=start, grid=grid, condition={"label": label})
        assert (run.x - x).abs().max() < 2e-4 * x.abs().max()
    with pytest.raises(ValueError, match="UNet2DModel does not tell what it predicts"):
        Denoiser.of(unet, "diffusers")
    assert Denoiser.of(unet, DiffusersSteps("epsilon", linear_betas())).network.num_classes == 4


# mistakes


def test_nothing_is_named_for_a_trained_network():
    """The packaged network of garments under its own process, and its error is far below that of shrinking."""
    model = GenerativeModel.pretrained("fashion_mnist", "cpu", verbose=False)
    garments = image_set("packaged", limit=2, verbose=False)
    images = garments.images.float() / 127.5 - 1
    condition = {"label": garments.labels.long()}
    assert check_denoiser(model.trained.denoiser(), images, condition, tolerance=1e-3)["error"] < 1
    wrong = Denoiser(model.trained.network, model.trained.sde, Epsilon(model.trained.parametrization.sigma_data))
    with pytest.raises(AssertionError, match="its prediction is 'karras', read as 'epsilon'"):
        check_denoiser(wrong, images, condition, tolerance=1e9)


def test_the_trap_is_named_for_noise_and_v():
    """A standard network under a name, whose input is scaled by 2 at small noise; the form with sigma_data=1 passes."""
    side = torch.linspace(-1, 1, 6, dtype=torch.float64)
    kinds = torch.stack([side.repeat(6, 1), side.repeat(6, 1).T]).flatten(1)
    data, chain = GaussianMixture(kinds, 1e-4 * torch.eye(36, dtype=torch.float64).repeat(2, 1, 1)), Discrete.linear(1000)
    images = data.sample(24, seed=2).view(24, 1, 6, 6)
    for name, cls in {"epsilon": Epsilon, "v": V}.items():
        network = lambda x, level, name=name: getattr(data.denoiser(chain)(x, chain.time_of_half_log_snr(level)), name)  # noqa: E731
        with pytest.raises(AssertionError, match=rf"it wants x as it is \({cls.__name__}\(sigma_data=1.0\)\)"):
            check_denoiser(Denoiser(network, chain, name), images)
        assert check_denoiser(Denoiser(network, chain, cls(sigma_data=1.0)), images)["error"] < 1
    rows = denoising_errors(data.denoiser(chain), images)
    assert all(row.denoiser < 1.02 * row.shrunk < 1.1 * min(row.untouched, row.constant) for row in rows)
