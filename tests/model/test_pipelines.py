"""Pipelines of diffusers: made by that package with random weights, read as data, and compared in outputs and in whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffnb import GenerativeModel
from diffnb.core import NoiseSource
from diffnb.denoise import check_denoiser
from diffnb.model import network_of_config
from diffnb.noise import linear_betas
from diffnb.samplers import DDIM, DDPM

SMALL = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
OF_HO = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "attention_head_dim": None}
# google/ddpm-cifar10-32
CIFAR = OF_HO | {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
# google/ddpm-celebahq-256 and ddpm-church-256, at a sixteenth of their side
FACES = OF_HO | {
    "sample_size": 32,
    "block_out_channels": (128, 128, 256, 256, 512, 512),
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}
NETWORKS = {
    "small, of Ho et al.": SMALL | OF_HO,
    "small, defaults": SMALL,
    "small, classes": SMALL | {"num_class_embeds": 5, "attention_head_dim": 16},
    "small, learned variance": SMALL | {"out_channels": 6},
    "small, no attention": SMALL | OF_HO | {"add_attention": False, "down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3},
    "small, no groups of 32 and odd ends": SMALL | {"block_out_channels": (8, 24, 40), "attention_head_dim": 4, "layers_per_block": 1},
    "cifar10": CIFAR,
    "faces": FACES,
}


@pytest.fixture
def diffusers():
    """The package, without the network."""
    return pytest.importorskip("diffusers", reason="diffusers is an optional peer: pip install diffusers")


def lively(network):
    """Weights that differ in every layer, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return network.eval()


def saved(diffusers, folder, config, scheduler, kind="DDPM"):
    """A pipeline with random weights in a folder, and its parts."""
    torch.manual_seed(0)
    unet = lively(diffusers.UNet2DModel(**config))
    made = getattr(diffusers, f"{kind}Scheduler")(**scheduler)
    getattr(diffusers, f"{kind}Pipeline")(unet=unet, scheduler=made).save_pretrained(folder)
    return unet, made


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_diffusers(diffusers, tmp_path, name):
    """To 1e-5 at several steps; saved and loaded by this library, the same."""
    unet, _ = saved(diffusers, tmp_path, NETWORKS[name], {"clip_sample": False})
    model = GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)
    trained, x = model.trained, torch.randn(2, 3, *[NETWORKS[name]["sample_size"]] * 2)
    label = torch.tensor([0, 4]) if trained.labels else None
    for k in (0, 1, 500, 999):
        with torch.no_grad():
            level = trained.sde.half_log_snr(torch.full((2,), (k + 1) / 1000, dtype=torch.float64)).float()
            theirs = unet(x, k, class_labels=label).sample[:, :3]
            ours = trained.network(x, level, **({} if label is None else {"label": label}))
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)
    if name.startswith("small"):
        model.save(tmp_path / "model.safetensors")
        again = GenerativeModel.load(tmp_path / "model.safetensors", "cpu", verbose=False).trained.network
        with torch.no_grad():
            assert torch.equal(again(x, level, **({} if label is None else {"label": label})), ours)


SCHEDULERS = {
    "as of Ho et al.": {"variance_type": "fixed_large", "clip_sample": True},
    "small variance": {"variance_type": "fixed_small", "clip_sample": False},
    "cosine, v": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": True, "clip_sample_range": 1.5},
    "scaled linear, sample": {"beta_schedule": "scaled_linear", "prediction_type": "sample", "clip_sample": True},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_runs_of_ddpm_are_those_of_diffusers(diffusers, tmp_path, monkeypatch, name):
    """Twenty steps with the same start and the same noise."""
    from diffusers.schedulers import scheduling_ddpm

    unet, scheduler = saved(diffusers, tmp_path, SMALL | OF_HO, SCHEDULERS[name])
    model = GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)
    large = SCHEDULERS[name].get("variance_type") == "fixed_large"
    assert model.sampler == DDPM("large" if large else "small")
    noise, shape = NoiseSource.of(3, 2), (3, 16, 16)
    scheduler.set_timesteps(20)
    grid = (scheduler.timesteps + 1).double() / 1000
    x = start = noise.normal(shape, "prior")
    ours = model.sampler(model.denoiser(), x=start, grid=grid, seeds=noise, keep_states=True).states
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, i=i, **k: noise.normal(shape, "step", i))
            x = scheduler.step(unet(x, t).sample, t, x).prev_sample
            if i < len(ours) - 1:
                assert (x - ours[i + 1]).abs().max() < 1e-4 * x.abs().max().clamp(min=1), i


@pytest.mark.parametrize("name", [*SCHEDULERS, "zero terminal SNR"])
def test_runs_of_ddim_are_those_of_diffusers(diffusers, tmp_path, name):
    """Ten steps from the same start; where x0 is cut off, with its option to take the noise that belongs to that."""
    settings = SCHEDULERS.get(name) or {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": True}
    settings = {key: value for key, value in settings.items() if key != "variance_type"} | {"timestep_spacing": "trailing"}
    unet, scheduler = saved(diffusers, tmp_path, SMALL, settings, "DDIM")
    model = GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)
    assert model.sampler == DDIM()
    scheduler.set_timesteps(10)
    x = start = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    ours = model.sampler(model.denoiser(), x=start, grid=(scheduler.timesteps + 1).double() / 1000).x
    assert (ours - x).abs().max() < 1e-4 * x.abs().max().clamp(min=1)


def test_everything_works_on_it(diffusers, tmp_path):
    """Classes, processes, restoration, editing and the rules of a denoiser."""
    saved(diffusers, tmp_path, SMALL | {"num_class_embeds": 3}, {})
    labelled = GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)
    assert labelled.labels == [0, 1, 2]
    assert labelled.generate(2, n_steps=3, seed=0, class_labels=[0, 2]).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="give one of its 3 classes for every image"):
        labelled.generate(1, n_steps=2, seed=0)
    saved(diffusers, tmp_path / "plain", SMALL, {})
    model = GenerativeModel.from_diffusers(tmp_path / "plain", "cpu", verbose=False)
    check_denoiser(model.denoiser(), (3, 3, 16, 16), tolerance=0.05)
    images = model.generate(2, n_steps=3, seed=0)
    few = {"n_steps": 2, "seed": 0}
    for made in (model.under("vp").generate(1, **few), model.upscale(images[..., ::2, ::2], method="ddnm", **few), model.reconstruct(images, **few)):
        assert bool(made.isfinite().all())
    with pytest.raises(ValueError, match="multiples of 4"):
        model.generate(1, size=18, **few)


# without the package


def by_hand(folder, old_names=False, pickled=False):
    """A tiny pipeline of files written here, at the top of its folder as older ones are."""
    config = {**SMALL, **OF_HO, "block_out_channels": [8, 16, 16], "layers_per_block": 1}
    weights = network_of_config(config, "epsilon", linear_betas()).state_dict()
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items() if old_names else ():
        weights = {name.replace(f".{new}.", f".{old}."): weight for name, weight in weights.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    (folder / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDPMScheduler", "beta_schedule": "linear"}))
    if pickled:
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return weights


def test_old_names_and_pickles(tmp_path):
    """Both forms give the same weights; a pickle only where that is said."""
    by_hand(tmp_path / "new")
    weights = load_file(tmp_path / "new" / "diffusion_pytorch_model.safetensors")
    by_hand(tmp_path / "old", old_names=True, pickled=True)
    with pytest.raises(ValueError, match="as a pickle only"):
        GenerativeModel.from_diffusers(tmp_path / "old", "cpu", verbose=False)
    model = GenerativeModel.from_diffusers(tmp_path / "old", "cpu", verbose=False, pickled=True)
    assert {name: tuple(w.shape) for name, w in model.trained.network.state_dict().items()} == {name: tuple(w.shape) for name, w in weights.items()}


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("config.json", "[1]", "must hold an object"),
        ("config.json", "{", "is no JSON"),
        ("scheduler_config.json", json.dumps({"_class_name": "ScoreSdeVeScheduler"}), "no table of betas"),
        ("scheduler_config.json", json.dumps({"beta_schedule": "linear", "rescale_betas_zero_snr": True}), "zero terminal SNR"),
    ],
)
def test_damaged_folders_are_told(tmp_path, file, text, message):
    """In one sentence."""
    by_hand(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=message):
        GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)


def test_missing_files_and_ids_of_the_hub(tmp_path, monkeypatch):
    """What is missing, and what would do; without a connection too."""
    by_hand(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no diffusion_pytorch_model.safetensors"):
        GenerativeModel.from_diffusers(tmp_path, "cpu")
    with pytest.raises(FileNotFoundError, match="takes a folder of a pipeline, or an id"):
        GenerativeModel.from_diffusers(str(tmp_path / "none"), "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="there is no folder 'owner/name', and .*(needs the package huggingface_hub|the hub did not give it)"):
        GenerativeModel.from_diffusers("owner/name", "cpu")
