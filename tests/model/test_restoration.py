"""Restoration and editing through a model, against exact posteriors; what must hold bit for bit; bad input."""

import math

import pytest
import torch
from PIL import Image

from diffnb.data import as_images, as_mask, paste, resized, with_channels, with_luminance
from diffnb.denoise import Gaussian, GaussianMixture
from diffnb.guidance import REC601, Blur, Downsample, Grayscale, gaussian_kernel
from diffnb.model import METHODS, Editing, GenerativeModel, Labels, Restoration, Trained, flow, spherical
from diffnb.noise import EDM, PARAMETRIZATIONS, VE, VP, FlowMatching, SubVP
from diffnb.samplers import exact_flow, karras

W = torch.tensor(REC601).view(-1, 1, 1)


class Model(GenerativeModel, Restoration, Editing):
    """A generative model that restores and edits."""


class Exact(torch.nn.Module):
    """A network that answers with the posterior mean of a mixture; it predicts x_0."""

    def __init__(self, mixture, sde):
        super().__init__()
        self.mixture, self.sde = mixture, sde

    def forward(self, x, half_log_snr):
        t = self.sde.time_of_half_log_snr(half_log_snr)
        return self.mixture.posterior_mean(x / PARAMETRIZATIONS["x0"]().input_scale(self.sde, t).view(-1, 1, 1, 1), self.sde, t)


def model_of(mixture, shape, sde=EDM()):
    return Model.of(Trained(Exact(mixture, sde), sde, PARAMETRIZATIONS["x0"](), shape), sampler="dpm++2m", verbose=False)


def smooth(side, std=0.3):
    y, x = torch.meshgrid(torch.arange(side, dtype=torch.float64), torch.arange(side, dtype=torch.float64), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1)
    return std**2 * (torch.exp(-(torch.cdist(places, places) ** 2) / 8) + 0.02 * torch.eye(side * side, dtype=torch.float64))


GREY = Gaussian(0.2 * torch.ones(64, dtype=torch.float64), smooth(8))
COLOURS = GaussianMixture(
    torch.stack([torch.tensor(c, dtype=torch.float64).view(3, 1).expand(3, 16).flatten() for c in ([0.5, -0.3, -0.4], [-0.5, -0.2, 0.5])]),
    (0.04 * torch.ones(48, 48) + 0.02 * torch.eye(48)).expand(2, 48, 48),
)


@pytest.fixture(scope="module")
def grey():
    return model_of(GREY, (1, 8, 8)).calibrate((GREY.sample(600, seed=9).view(-1, 1, 8, 8).float() + 1).clamp(0, 2) / 2)


@pytest.fixture(scope="module")
def colour():
    return model_of(COLOURS, (3, 4, 4)).calibrate((COLOURS.sample(600, seed=9).view(-1, 3, 4, 4).float() + 1).clamp(0, 2) / 2)


@pytest.fixture(scope="module")
def pictures():
    unit = (GREY.sample(3, seed=1).view(3, 1, 8, 8) + 1) / 2
    return ((unit.clamp(0, 1) * 255).round() / 255).float()


HOLE = torch.zeros(8, 8)
HOLE[2:6, 3:7] = 1


@pytest.mark.parametrize("method", METHODS.names())
def test_known_pixels_come_back_bit_for_bit_by_any_method(grey, pictures, method):
    made = grey.imputation(pictures, HOLE, seed=0, method=method, variants=2, n_steps=4)
    assert made.shape == (6, 1, 8, 8) and made.min() >= 0 and made.max() <= 1
    for v in (0, 1):
        assert torch.equal(made[v::2][..., HOLE == 0], pictures[..., HOLE == 0])
        assert not torch.equal(made[v::2][..., HOLE == 1], pictures[..., HOLE == 1])
    assert torch.equal((made * 255).round()[0::2][..., HOLE == 0], (pictures * 255).round()[..., HOLE == 0])


def test_dark_pixels_come_back_bit_for_bit_too(grey):
    """Where [0, 1] to [-1, 1] and back is not exact."""
    dark = (torch.arange(64) / 255).view(1, 1, 8, 8)
    assert ((dark * 2 - 1 + 1) / 2 != dark).any()
    assert torch.equal(grey.imputation(dark, HOLE, seed=0, method="ddnm", n_steps=2)[..., HOLE == 0], dark[..., HOLE == 0])


def test_filled_pixels_have_the_posterior_of_a_gaussian(grey, pictures):
    made = grey.impute(pictures[:1], HOLE, seed=0, variants=600)
    posterior = GREY.posterior(torch.eye(64)[HOLE.flatten() == 0], 2 * pictures[0].flatten()[HOLE.flatten() == 0].double() - 1, 1 / 255)
    flat, hole = 2 * made.flatten(1).double() - 1, HOLE.flatten() == 1
    std = posterior.covariance.diagonal().sqrt()[hole]
    assert ((flat.mean(0)[hole] - posterior.mean[hole]) / std).square().mean().sqrt() < 0.2
    assert (flat.std(0)[hole] / std - 1).abs().mean() < 0.2  # a spectrum is not every covariance


def test_masks_of_every_form_are_the_same_mask(grey, pictures):
    first = grey.imputation(pictures, HOLE, seed=0, n_steps=3)
    forms = [HOLE.bool(), HOLE[None], HOLE[None, None], HOLE.expand(3, 1, 8, 8), Image.fromarray((HOLE * 255).byte().numpy())]
    for mask in forms:  # masks of each picture's own are solved by iteration, to some digits
        torch.testing.assert_close(grey.imputation(pictures, mask, seed=0, n_steps=3), first, atol=0.02, rtol=0)
    with_alpha = torch.cat([pictures, 1 - HOLE.expand(3, 1, 8, 8)], 1)
    torch.testing.assert_close(grey.imputation(with_alpha, seed=0, n_steps=3), first, atol=0.02, rtol=0)


def test_a_png_with_alpha(tmp_path, colour):
    bytes_ = torch.randint(0, 256, (4, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    bytes_[..., 3] = torch.tensor([255, 0] * 8).view(4, 4)
    Image.fromarray(bytes_.numpy(), "RGBA").save(tmp_path / "a.png")
    made = colour.imputation(tmp_path / "a.png", seed=0, n_steps=3)
    back = (made[0] * 255).round().byte().permute(1, 2, 0)
    known = bytes_[..., 3] == 255
    assert torch.equal(back[known], bytes_[..., :3][known])


@pytest.mark.parametrize("weights", [REC601, (0.2126, 0.7152, 0.0722), (1 / 3, 1 / 3, 1 / 3)])
def test_luminance_is_kept_in_every_pixel(colour, weights):
    w = torch.tensor(weights).view(-1, 1, 1)
    gray = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    gray[0], gray[1] = 0, 1
    made = colour.colorize(gray, seed=0, weights=weights, n_steps=4)
    assert ((w * made).sum(1, keepdim=True) - gray).abs().max() < 1e-6
    assert ((w * (made * 255).round() / 255).sum(1, keepdim=True) - gray).abs().max() <= 1 / 255
    assert made[0].max() == 0 and made[1].min() > 1 - 1e-6


def test_colours_come_in_the_exact_proportion_and_a_hint_decides(colour):
    truth = ((COLOURS.sample(8, seed=3).view(8, 3, 4, 4) + 1) / 2).clamp(0, 1).float()
    gray = (W * truth).sum(1, keepdim=True)
    made = colour.colorize(gray[:1], seed=1, variants=300)
    red = (made.mean((2, 3))[:, 0] > made.mean((2, 3))[:, 2]).float().mean().item()
    exact = COLOURS.posterior(Grayscale(), 2 * gray[:1] - 1, 1 / 255, (3, 4, 4))
    expected = sum(w.item() for w, mean in zip(exact.weights, exact.means) if mean[:16].mean() > mean[32:].mean())
    assert abs(red - expected) < 0.15
    assert torch.equal(colour.colorize(truth, seed=0), colour.colorize(gray, seed=0))
    dot = torch.zeros(1, 1, 4, 4)
    dot[..., 1, 1] = 1
    blue = with_luminance(torch.tensor([0.25, 0.4, 0.75]).view(1, 3, 1, 1).expand(1, 3, 4, 4), gray[:1])
    hinted = colour.colorize(gray[:1], seed=1, variants=60, hints=(blue, dot))
    assert (hinted.mean((2, 3))[:, 2] > hinted.mean((2, 3))[:, 0]).float().mean() > 0.9


def psnr(a, b):
    return -10 * math.log10((a - b).square().mean().item())


def test_every_task_improves_on_what_was_given(grey, pictures):
    z = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    small, noisy = Downsample(4).A(pictures), (pictures + 0.1 * z).clamp(0, 1)
    blurred = (Blur(gaussian_kernel(1.0), "reflect").A(pictures) + 0.01 * z).clamp(0, 1)
    rows = torch.stack([Downsample(4).A(one.view(1, 1, 8, 8)).flatten() for one in torch.eye(64)], 1).double()
    best = torch.stack([GREY.posterior(rows, 2 * one.flatten().double() - 1, 1 / 255).mean for one in small])  # no estimate is nearer in the mean
    best = psnr(((best + 1) / 2).view_as(pictures), pictures)
    assert best > psnr(small.repeat_interleave(4, 2).repeat_interleave(4, 3), pictures) + 1
    assert psnr(grey.upscale(small, seed=0, variants=60).view(3, 60, 1, 8, 8).mean(1), pictures) > best - 0.3
    assert psnr(grey.denoise(noisy, 0.1, seed=0), pictures) > psnr(noisy, pictures) + 1.5
    assert psnr(grey.deblur(blurred, 1.0, seed=0), pictures) > psnr(blurred, pictures)
    again = Downsample(4).A(grey.upscale(small, seed=0))
    assert (again - small).abs().max() < 1e-6
    rough = Downsample(4).A(grey.upscale((small + 0.05 * z[..., :2, :2]).clamp(0, 1), noise=0.05, seed=0))
    assert (rough - (small + 0.05 * z[..., :2, :2]).clamp(0, 1)).abs().max() > 1e-3  # noise is not kept


def test_denoising_a_gaussian_is_its_posterior(grey, pictures):
    noisy = (pictures[:1] + 0.1 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))).clamp(0, 1)
    made = 2 * grey.denoise(noisy, 0.1, seed=0, variants=500).flatten(1).double() - 1
    posterior = GREY.posterior(torch.eye(64), 2 * noisy.flatten().double() - 1, 0.2)
    std = posterior.covariance.diagonal().sqrt()
    assert ((made.mean(0) - posterior.mean) / std).square().mean().sqrt() < 0.25
    assert abs((made.std(0) / std).mean() - 1) < 0.12


def test_seeds_belong_to_pictures(grey, pictures):
    whole = grey.imputation(pictures, HOLE, seed=3, n_steps=3)
    torch.testing.assert_close(grey.imputation(pictures, HOLE, seed=3, n_steps=3, batch_size=1), whole, atol=1e-4, rtol=0)
    assert not torch.equal(grey.imputation(pictures, HOLE, seed=4, n_steps=3), whole)
    before = torch.get_rng_state()
    grey.imputation(pictures, HOLE, n_steps=2)
    assert torch.equal(torch.get_rng_state(), before) and grey.last_seed is not None
    steps = []
    grey.denoise(pictures[:1], 0.1, n_steps=4, progress_callback=lambda k, n, x0: steps.append((k, n, tuple(x0.shape))), callback_frequency=2)
    assert steps == [(2, 4, (1, 1, 8, 8)), (4, 4, (1, 1, 8, 8))]


def two_textures():
    """Two classes of coloured textures, 3 x 4 x 4."""
    means = 0.5 * torch.randn(2, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return GaussianMixture(means, (0.04 * torch.ones(48, 48) + 0.02 * torch.eye(48)).expand(2, 48, 48))


class Classes(torch.nn.Module):
    """A network whose classes are the parts of a mixture; label -1 means any."""

    condition_names = ("label",)

    def __init__(self, mixture):
        super().__init__()
        parts = [mixture, *(Gaussian(mean, covariance) for mean, covariance in zip(mixture.means, mixture.covariances))]
        self.parts = torch.nn.ModuleList(Exact(part, EDM()) for part in parts)

    def forward(self, x, half_log_snr, label):
        return torch.stack([part(x, half_log_snr) for part in self.parts])[label + 1, torch.arange(len(x))]


@pytest.fixture(scope="module")
def classes():
    labels = Labels((0, 1), ("rough", "fine"))
    return Model.of(
        Trained(Classes(two_textures()), EDM(), PARAMETRIZATIONS["x0"](), (3, 4, 4), labels), sampler="dpm++2m", verbose=False
    ).calibrate()


HALF = torch.zeros(4, 4)
HALF[:, 2:] = 1
WITH_CHANCE = {
    "colorize": lambda m, x, **how: m.colorize((W * x).sum(1, keepdim=True), **how),
    "imputation": lambda m, x, **how: m.imputation(x, HALF, **how),
    "upscale": lambda m, x, **how: m.upscale(Downsample(2).A(x), **how),
    "deblur": lambda m, x, **how: m.deblur(x, 1.0, 0.1, **how),
    "denoise": lambda m, x, **how: m.denoise(x, 0.2, **how),
    "restore": lambda m, x, **how: m.restore(Downsample(2).A(x), Downsample(2), 0.1, **how),
    "reconstruct": lambda m, x, **how: m.reconstruct(x, 0.7, **how),
    "edit": lambda m, x, **how: m.edit(x, 0.7, **how),
}
BY_FLOW = {
    "edit by inversion": lambda m, x, **how: m.edit(x, 0.7, from_labels=0, **how),
    "encode": lambda m, x, **how: m.encode(x, 0.7, **how),
    "decode": lambda m, x, **how: m.decode(m.encode(x, 0.7, 6), 0.7, **how),
    "interpolate": lambda m, x, **how: m.interpolate(x, x.flip(1), 3, 0.7, **how),
}
PASSES = {"edit by inversion": [3, 3], "interpolate": [3, 3, 9]}  # samples in each run over the steps


@pytest.mark.parametrize("task", [*WITH_CHANCE, *BY_FLOW])
def test_every_task_takes_labels_scales_seeds_and_a_callback(classes, task):
    """Each picture has its own, and gets what it gets alone; changing one of them changes the answer."""
    call, how = {**WITH_CHANCE, **BY_FLOW}[task], {"n_steps": 4}
    unit = ((two_textures().sample(2, seed=1).view(2, 3, 4, 4) + 1) / 2).clamp(0, 1).float()[[0, 1, 0]]
    own = {"class_labels": ["rough", "fine", "rough"], "guidance_scale": [1.0, 4.0, 1.0]} | ({"seed": [5, 9, 5]} if task in WITH_CHANCE else {})
    seen = []
    together = call(classes, unit, **how, **own, progress_callback=lambda step, total, x0: seen.append((step, total, tuple(x0.shape))))
    first, second, third = together.split(len(together) // 3)
    rounding = 1e-3 * together.abs().max()  # sums are rounded otherwise in another batch
    assert (third - first).abs().max() < rounding
    steps = seen[0][1]
    assert seen == [(k, steps, (n, 3, 4, 4)) for n in PASSES.get(task, [3]) for k in range(1, steps + 1)]

    alone = {key: values[1] for key, values in own.items()}
    assert (call(classes, unit[1:2], **how, **alone) - second).abs().max() < rounding
    for change in ({"class_labels": "rough"}, {"guidance_scale": 1.0}, {"seed": 10} if task in WITH_CHANCE else {"n_steps": 6}):
        assert (call(classes, unit[1:2], **how | alone | change) - second).abs().max() > 5 * rounding, change
    seen.clear()
    call(classes, unit, **how, progress_callback=lambda step, *_: seen.append(step), callback_frequency=3)
    assert len(seen) == len([k for k in range(1, steps + 1) if k % 3 == 0 or k == steps]) * len(PASSES.get(task, [3]))


def test_calibration_is_measured_again_after_training(grey):
    other = model_of(GREY, (1, 8, 8))
    first = other._covariance()
    assert other._covariance() is first
    other._trained = type(other.trained)(**{**other.trained.__dict__, "records": ({"epochs": 1},)})
    assert other._covariance() is not first


@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(), EDM(), FlowMatching()], ids=lambda sde: type(sde).__name__)
def test_the_flow_follows_the_exact_one_upwards_and_comes_back(sde):
    pair = GaussianMixture([[-1.0], [0.8]], [[[0.04]], [[0.09]]], [0.3, 0.7])
    times = karras(sde, 200, 1.0).flip(0)
    x = sde.alpha(times[0]) * pair.sample(40, seed=1)
    up = flow(pair.denoiser(sde), x, times, {})
    assert (up - exact_flow(pair, sde, x, times[0].item(), times[-1].item())).abs().max() < 5e-3 * sde.prior_std
    assert (flow(pair.denoiser(sde), up, times.flip(0), {}) - x).abs().max() < 5e-3


def test_editing(grey, pictures):
    errors = [grey.round_trip_error(pictures, n_steps=n).max().item() for n in (10, 20, 40)]
    assert errors[2] < errors[1] / 2.5 and errors[2] < 0.01  # second order
    changes = [(grey.reconstruct(pictures, t, n_steps=8, seed=0) - pictures).square().mean().sqrt().item() for t in (0.05, 0.3, 0.9)]
    assert changes[0] < changes[1] < changes[2] and changes[0] < 0.01
    way = grey.interpolate(pictures[:1], pictures[1:2], n=3, n_steps=40)
    assert (way[0] - pictures[0]).abs().max() < 0.03 and (way[2] - pictures[1]).abs().max() < 0.03
    assert (way[1] - (way[0] + way[2]) / 2).abs().max() > 1e-4  # on the sphere, not on the chord
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(spherical(a, b, 1 / 3), torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]]))


def test_reconstruct_starts_at_the_level_it_noised_to(grey):
    """Reconstructions of draws from the prior are draws from the prior: their variance is right at any t."""
    unit = ((GREY.sample(300, seed=5).view(-1, 1, 8, 8) + 1) / 2).clamp(0, 1).float()
    for t in (0.2, 0.5, 0.8):
        made = grey.reconstruct(unit, t, n_steps=20, seed=0)
        assert abs(made.std(0).mean() / unit.std(0).mean() - 1) < 0.06


def test_pictures():
    byte = torch.arange(256).float() / 255
    assert torch.equal(paste((byte * 2 - 1 + 1) / 2, byte, torch.zeros(256)), byte)
    image = torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    images, alpha = as_images(image)
    assert torch.equal(images, image[:, :3]) and torch.equal(alpha, image[:, 3:])
    assert resized(images, (10, 12), True).shape == (2, 3, 10, 12)
    assert torch.equal(with_channels(images[:, :1], 3)[:, 1], images[:, 0])


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda m, x: m.imputation(x), "needs a mask"),
        (lambda m, x: m.imputation(x, HOLE[:5]), "mask is 5 x 8, the image 8 x 8"),
        (lambda m, x: m.imputation(x, HOLE * 0.5), "mask > 0.5 makes it so"),
        (lambda m, x: m.imputation(x, HOLE * 255), "mask > 127 makes it so"),
        (lambda m, x: m.imputation(x, HOLE.expand(2, 1, 8, 8)), "does not fit images of shape"),
        (lambda m, x: m.imputation(x * 2, HOLE), "values in \\[0, 1\\]"),
        (lambda m, x: m.colorize(x), "a grayscale model knows no colours"),
        (lambda m, x: m.denoise(torch.zeros(1, 1, 64, 64), 0.1), "resize=True to resize it, or cut it into tiles of 8 x 8"),
        (lambda m, x: m.denoise(torch.zeros(1, 4, 8, 8), 0.1), "alpha channel"),
        (lambda m, x: m.denoise(torch.zeros(1, 3, 8, 8), 0.1), "3 channels, this model makes 1"),
        (lambda m, x: m.denoise(x, 0.0), "more than 0"),
        (lambda m, x: m.upscale(torch.zeros(1, 1, 3, 3)), "it enlarges pictures of "),
        (lambda m, x: m.upscale(x), "as large as this model makes them"),
        (lambda m, x: m.restore(torch.zeros(1, 1, 3, 3), Downsample(4)), "y must have the shape"),
        (lambda m, x: m.imputation(x, HOLE, method="magic"), "unknown restoration method"),
        (lambda m, x: m.imputation(x, HOLE, guidance_scale=2.0), "needs a model with classes"),
        (lambda m, x: m.imputation(x, HOLE, class_labels=3), "trained without labels"),
        (lambda m, x: m.imputation(x, HOLE, variants=0), "variants must be a whole number"),
        (lambda m, x: m.reconstruct(x, 0.0), "t must lie in"),
        (lambda m, x: m.edit(x, 0.5, from_labels=1, variants=2), "needs chance"),
        (lambda m, x: m.interpolate(x, x[:2]), "as many pictures"),
        (lambda m, x: as_mask(3, x.shape), "mask must be a tensor"),
        (lambda m, x: as_images([x, x[..., :4]]), "different shapes"),
    ],
)
def test_bad_input(grey, pictures, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(grey, pictures)


def test_resize_on_request(grey):
    large = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(16, 16)
    mask[4:8, 4:8] = 1
    made = grey.imputation(large, mask, resize=True, seed=0, n_steps=3)
    small = resized(large, (8, 8), True)
    keep = torch.ones(8, 8, dtype=torch.bool)
    keep[2:4, 2:4] = False
    assert torch.equal(made[..., keep], small[..., keep])
