"""Pipelines of diffusers: made by that package with random weights, read as data and written again, compared in outputs and in whole runs."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffnb import GenerativeModel
from diffnb.core import NoiseSource
from diffnb.denoise import check_denoiser, read_scheduler
from diffnb.model import Labels, Trained, config_of_network, network_of_config, scheduler_config
from diffnb.networks import DiffusersUNet, UNet
from diffnb.noise import Discrete, Epsilon, Karras, V, linear_betas
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
# google/ddpm-celebahq-256 and ddpm-church-256, at an eighth of their side and a quarter of their width
FACES = OF_HO | {
    "sample_size": 32,
    "block_out_channels": (32, 32, 64, 64, 128, 128),
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


def saved(diffusers, folder, config, scheduler, kind="DDPM", size=1.0):
    """A pipeline with random weights in a folder, and its parts; the smaller the output, the less its rounding grows from step to step."""
    torch.manual_seed(0)
    unet = lively(diffusers.UNet2DModel(**config))
    unet.conv_out.weight.data *= size
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
    for k in (0, 1, 500, 999) if name != "cifar10" else (500,):  # the network of a published model, as large as that is
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


def grid_of_card(folder, n):
    """The levels of a run, by the line that stands in README.md."""
    line = next(line for line in (folder / "README.md").read_text().splitlines() if "model.grid = " in line)
    return eval(line.split(" = ")[1], {"n": n})


def pipeline_images(diffusers, folder, monkeypatch, model, noise, n_steps):
    """What diffusers draws of a folder, from where the model begins and given its noise."""
    from diffusers.pipelines.ddim import pipeline_ddim
    from diffusers.pipelines.ddpm import pipeline_ddpm
    from diffusers.schedulers import scheduling_ddpm

    steps = iter(range(n_steps))
    for module in (pipeline_ddim, pipeline_ddpm):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: model.sde.prior_std * noise.normal(model.shape, "prior"))
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: noise.normal(model.shape, "step", next(steps)))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    clipped = {"use_clipped_model_output": True} if isinstance(pipeline, diffusers.DDIMPipeline) else {}
    made = pipeline(batch_size=len(noise), num_inference_steps=n_steps, output_type="np", **clipped)
    return torch.from_numpy(made.images).permute(0, 3, 1, 2)


WRITTEN = {**{name: (SCHEDULERS[name], "DDPM") for name in SCHEDULERS}}
WRITTEN |= {f"DDIM, {name}": ({k: v for k, v in said.items() if k != "variance_type"}, "DDIM") for name, said in SCHEDULERS.items()}
WRITTEN |= {"zero terminal SNR": ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "clip_sample": True}, "DDIM")}
WRITTEN |= {"a chain of 100": ({"num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.2, "clip_sample": False}, "DDPM")}
WRITTEN |= {"a table": ({"trained_betas": [0.001 + 0.2 * (k / 100) ** 2 for k in range(100)], "num_train_timesteps": 100}, "DDIM")}


@pytest.mark.parametrize("name", WRITTEN)
def test_an_exported_folder_draws_in_diffusers_what_the_model_draws(diffusers, tmp_path, monkeypatch, name):
    """The whole pipeline from noise to images, ten steps; the weights are the same bytes."""
    settings, kind = WRITTEN[name]
    saved(diffusers, tmp_path / "a", SMALL | OF_HO, settings, kind, size=0.2)
    model = GenerativeModel.from_diffusers(tmp_path / "a", "cpu", verbose=False)
    assert model.export(tmp_path / "b").difference == 0
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "b" / weights).read_bytes() == (tmp_path / "a" / weights).read_bytes()
    model.grid = grid_of_card(tmp_path / "b", 10)
    theirs = pipeline_images(diffusers, tmp_path / "b", monkeypatch, model, NoiseSource.of(5, 2), 10)
    # a network that was never trained and is not cut off draws numbers far beyond the range of images, and rounding grows with them
    noise = NoiseSource.of(5, 2)
    start = model.sde.prior_std * noise.normal(model.shape, "prior")
    size = model.sampler(model.denoiser(), x=start, grid=model.grid, seeds=noise).x.abs().max().item()
    assert (model.generate(2, 10, 5) - theirs).abs().max() < 1e-5 * max(1, size)
    assert 0.05 < theirs.std()  # they are not all black
    assert size < 2 or not model.trained.network.config["clip"]


def test_a_model_that_was_trained_here_goes_to_diffusers(diffusers, tmp_path, monkeypatch):
    """From the beginning, and after more training of what came from there."""
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network = DiffusersUNet(None, "v", 1, 1, (8, 16), 1, (), (1,), groups=4)
    model = GenerativeModel(Discrete(), DDPM("large"), network=network, parametrization=V(sigma_data=1.0), device="cpu", verbose=False)
    for round_ in ("here", "again"):
        model.train(images, epochs=2, batch_size=4)
        model.export(tmp_path / round_)
        model.grid = grid_of_card(tmp_path / round_, 10)
        theirs = pipeline_images(diffusers, tmp_path / round_, monkeypatch, model, NoiseSource.of(1, 2), 10)
        assert (model.generate(2, 10, 1) - theirs).abs().max() < 1e-5
        model = GenerativeModel.from_diffusers(tmp_path / round_, "cpu", verbose=False)
    weights = [load_file(tmp_path / name / "unet" / "diffusion_pytorch_model.safetensors") for name in ("here", "again")]
    assert not torch.equal(weights[0]["conv_in.weight"], weights[1]["conv_in.weight"])


def test_a_folder_with_classes_is_sampled_as_its_card_says(diffusers, tmp_path):
    """The loop in README.md, run as it stands there."""
    saved(diffusers, tmp_path / "a", SMALL | {"num_class_embeds": 3}, {"clip_sample": True}, "DDIM")
    model = GenerativeModel.from_diffusers(tmp_path / "a", "cpu", verbose=False)
    model.export(tmp_path / "b", weights="float16", size=8)
    text = (tmp_path / "b" / "README.md").read_text()
    loop = "".join(line[4:] for line in text[text.index("    x = ") : text.index("where `classes`")].splitlines(keepends=True))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "b")
    assert pipeline.unet.config.sample_size == 8
    torch.manual_seed(0)
    known = {"torch": torch, "pipeline": pipeline, "classes": torch.tensor([0, 2])}
    with torch.no_grad():
        exec(loop, known)
    torch.manual_seed(0)
    own = GenerativeModel.from_diffusers(tmp_path / "b", "cpu", verbose=False)  # which draws nothing from torch's own generator
    own.export(tmp_path / "c")
    grid = grid_of_card(tmp_path / "b", 50)
    ours = own.sampler(own.denoiser(), x=torch.randn(2, 3, 8, 8), grid=grid, condition={"label": torch.tensor([0, 2])}).x
    assert (ours - known["x"]).abs().max() < 1e-4


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


def by_hand(folder, old_names=False, pickled=False, config=(), scheduler=()):
    """A tiny pipeline of files written here, at the top of its folder as older ones are."""
    config = {**SMALL, **OF_HO, "block_out_channels": [8, 16, 16], "layers_per_block": 1, **dict(config)}
    scheduler = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", **dict(scheduler)}
    weights = network_of_config(config, "epsilon", linear_betas()).state_dict()
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items() if old_names else ():
        weights = {name.replace(f".{new}.", f".{old}."): weight for name, weight in weights.items()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    if pickled:
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return weights


SETTINGS = {
    "as it is": {},
    "other values of everything": {
        "in_channels": 1, "out_channels": 1, "block_out_channels": [8, 8, 16, 24], "layers_per_block": 2, "norm_num_groups": 4,
        "down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"], "norm_eps": 1e-4, "downsample_padding": 1,
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"], "attention_head_dim": 4, "freq_shift": 0.5, "num_class_embeds": 7,
        "flip_sin_to_cos": True, "dropout": 0.1, "add_attention": False, "sample_size": [16, 24],
    },
}  # fmt: skip
CHAINS = {
    "large": {"variance_type": "fixed_large"},
    "small, cosine, v": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "num_train_timesteps": 50},
    "ends of one's own": {"beta_start": 0.0003, "beta_end": 0.017, "clip_sample": False, "num_train_timesteps": 321},
    "latent": {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample_range": 2.5},
    "sigmoid": {"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid", "prediction_type": "sample"},
    "zero terminal": {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    "a table": {"trained_betas": [0.01, 0.02, 0.05, 0.3], "num_train_timesteps": 4},
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_folder_comes_out_as_it_went_in(tmp_path, name, chain):
    """The same weights to the byte, the same settings of the network, and a scheduler that says the same by the same names."""
    weights = by_hand(tmp_path / "a", config=SETTINGS[name], scheduler=CHAINS[chain])
    model = GenerativeModel.from_diffusers(tmp_path / "a", "cpu", verbose=False)
    done = model.export(tmp_path / "b")
    assert done.difference == 0 and done.size == sum(path.stat().st_size for path in (tmp_path / "b").rglob("*") if path.is_file())
    again = load_file(tmp_path / "b" / "unet" / "diffusion_pytorch_model.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[key], weights[key]) for key in weights)
    before, after = (json.loads((tmp_path / place).read_text()) for place in ("a/config.json", "b/unet/config.json"))
    assert {key: after[key] for key in before} == before
    said = json.loads((tmp_path / "b" / "scheduler" / "scheduler_config.json").read_text())
    given = json.loads((tmp_path / "a" / "scheduler_config.json").read_text())
    assert read_scheduler(said) == read_scheduler(given)
    named = {"trained_betas"} if "trained_betas" in given else {"beta_schedule", "beta_start", "beta_end", "rescale_betas_zero_snr"} & set(given)
    assert {key: said[key] for key in named} == {key: given[key] for key in named}
    twin = GenerativeModel.from_diffusers(tmp_path / "b", "cpu", verbose=False)
    assert (twin.sampler, twin.sde, twin.trained.network.config) == (model.sampler, model.sde, model.trained.network.config)
    twin.export(tmp_path / "c")
    assert all((tmp_path / "c" / path.relative_to(tmp_path / "b")).read_bytes() == path.read_bytes() for path in (tmp_path / "b").rglob("*.*"))


def test_a_setting_of_its_own_for_every_argument():
    """A network whose settings all differ from the defaults is described, and made again of the description."""
    network = DiffusersUNet(None, "v", 1, 2, (8, 16, 24), 3, (0, 2), (1,), False, 8, 4, 1e-3, True, 0.25, True, 3, 0.2, 1.5)
    config = config_of_network(network, (1, 8, 12))
    defaults = DiffusersUNet(widths=(32,), attention_down=(), attention_up=()).config
    assert all(network.config[key] != defaults[key] for key in network.config if key != "betas")
    assert config["sample_size"] == [8, 12] and config["up_block_types"] == ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    assert network_of_config(config, "v", network.chain.betas, 1.5).config == network.config
    assert scheduler_config(network, DDIM())["clip_sample_range"] == 1.5


FOREIGN = {  # pipelines that are not read: their index, and what is said of their network
    "DiTPipeline": (
        {"transformer": "DiTTransformer2DModel", "vae": "AutoencoderKL", "scheduler": "DDIMScheduler"},
        "is DiTTransformer2DModel, works on the code that an autoencoder makes of an image \\(vae\\)",
    ),
    "LDMPipeline": ({"unet": "UNet2DModel", "vqvae": "VQModel", "scheduler": "DDIMScheduler"}, "works on the code .* \\(vqvae\\)"),
    "StableDiffusionPipeline": (
        {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"},
        "is UNet2DConditionModel, is told a text in every step \\(text_encoder\\), works on the code .* \\(vae\\)",
    ),
    "AudioDiffusionPipeline": ({"unet": "UNet2DModel", "mel": "Mel", "scheduler": "DDPMScheduler"}, "makes sound \\(mel\\)"),
    "DanceDiffusionPipeline": ({"unet": "UNet1DModel", "scheduler": "IPNDMScheduler"}, "is UNet1DModel"),
    "StrangePipeline": ({"unet": "UNet2DModel", "helper": "Helper", "scheduler": "DDPMScheduler"}, "comes with helper"),
    "EmptyPipeline": ({}, "is of no known kind"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_pipelines_are_told(tmp_path, name):
    """What they are and why they are not read, in a sentence, whatever files they have."""
    parts, reason = FOREIGN[name]
    by_hand(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name} | {part: ["diffusers", kind] for part, kind in parts.items()}))
    with pytest.raises(ValueError, match=f"holds a {name}, which from_diffusers does not read: its network {reason}; it reads pipelines of images"):
        GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)


def test_other_networks_are_told(tmp_path):
    """A network alone says its class in its settings."""
    by_hand(tmp_path, config={})
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "DiTTransformer2DModel", "num_attention_heads": 16}))
    with pytest.raises(ValueError, match="holds a DiTTransformer2DModel, which from_diffusers does not read"):
        GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)


def of(network=None, parametrization=None, sampler="ddim", **facts):
    """A model of a small network, which fits diffusers but for what is said."""
    network = network or DiffusersUNet(None, "epsilon", 1, 1, (8, 16), 1, (), (), groups=4)
    trained = Trained(network, Discrete(), parametrization or Epsilon(sigma_data=1.0), (1, 8, 8), **facts)
    return GenerativeModel.of(trained, sampler=sampler, device="cpu", verbose=False)


REFUSED = {
    "our own network": (lambda: of(UNet(1, widths=(4,), blocks=1, attention_levels=(), groups=2), Karras()), {}, "this model's network is UNet"),
    "a learned variance": (lambda: of(DiffusersUNet(None, "epsilon", 1, 2, (8, 16), 1, (), (), groups=4)), {}, "learned variance"),
    "a distilled model": (lambda: of(sampler="consistency", records=({"distilled": {"guidance_scale": 1.0}},)), {}, "a distilled model"),
    "a scaled input": (lambda: of(parametrization=Epsilon(sigma_data=0.5)), {}, r"parametrization=Epsilon\(sigma_data=1.0\)"),
    "another prediction": (lambda: of(parametrization=V(sigma_data=1.0)), {}, "predicts epsilon"),
    "another process": (lambda: of().under("vp"), {}, "export model.under"),
    "a sampler of no scheduler": (lambda: of(sampler="heun"), {}, "set model.sampler to 'ddim', 'ddpm'"),
    "a sampler with eta": (lambda: of(sampler=DDIM(0.5)), {}, "set model.sampler to"),
    "steps": (of, {"n_steps": 4}, "leave n_steps=4 out"),
    "other weights": (of, {"weights": "int8"}, "'float32' or 'float16'"),
    "another size": (of, {"size": 9}, "multiples of 2"),
}


def test_classes_are_trained_on_and_no_label_is_hidden(tmp_path):
    """The network has no class for none, which training would hide a label by; another size is made too."""
    model = of(DiffusersUNet(None, "epsilon", 1, 1, (8, 16), 1, (), (), groups=4, num_classes=3), labels=Labels((0, 1, 2)))
    before = model.trained.network.class_embedding.weight.detach().clone()
    model.train((torch.rand(12, 1, 8, 8), torch.arange(12) % 3), epochs=1, batch_size=4)
    assert not torch.equal(model.trained.network.class_embedding.weight, before)
    assert model.generate(1, 2, 0, class_labels=1, size=16).shape == (1, 1, 16, 16)
    model.export(tmp_path / "folder")
    again = GenerativeModel.from_diffusers(tmp_path / "folder", "cpu", verbose=False)
    assert (again.generate(3, 2, 0, [0, 1, 2]) - model.generate(3, 2, 0, [0, 1, 2])).abs().max() == 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_diffusers_cannot_hold_is_told(tmp_path, name):
    """In a sentence that says what would do, and nothing is written."""
    made, settings, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason):
        made().export(tmp_path / "folder", **settings)
    assert not list(tmp_path.iterdir())
    if name == "another process":
        view = made()
        view.under(view.trained.network.chain).export(tmp_path / "folder")  # what the sentence says


def test_nothing_is_written_where_the_folder_would_be_another_network(tmp_path, monkeypatch):
    """What is written is read again before it reaches its place."""
    monkeypatch.setattr("diffnb.model.pipelines.config_of_network", lambda network, shape: config_of_network(network, shape) | {"freq_shift": 0.5})
    with pytest.raises(ArithmeticError, match="nothing was written"):
        of().export(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    "given, came",
    [
        ("", "there is no folder ''"),
        (" ", "there is no folder ' '"),
        ("/", "the folder '/' holds none of model_index.json, unet/config.json, config.json"),
        ("empty", "the folder 'empty' holds none of model_index.json, unet/config.json, config.json"),
        (Path("empty"), "the folder 'empty' holds none of model_index.json, unet/config.json, config.json"),
        ("file.json", "'file.json' is a file, and the folder that it lies in is what is read"),
        ("none", "there is no folder 'none'"),
        ("./none", "there is no folder './none'"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        ("owner/", "there is no folder 'owner/'"),
        ("/name", "there is no folder '/name'"),
        (None, "got None"),
        (3, "got 3"),
        (b"folder", "got b'folder'"),
    ],
)
def test_what_is_no_pipeline_is_told_with_the_argument_and_what_would_do(tmp_path, monkeypatch, given, came):
    """In one sentence; the folder in which Python runs is never meant."""
    by_hand(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, TypeError)) as caught:
        GenerativeModel.from_diffusers(given, "cpu")
    assert str(caught.value).startswith("path_or_hub_id must be a folder that diffusers saved a pipeline in, or an id of the hub such as")
    assert str(caught.value).endswith(came) and "\n" not in str(caught.value)


@pytest.mark.parametrize("last", [0.02, 0.3, 0.9, 0.998, 0.999 * (1 - 1e-9)])
def test_any_table_of_betas_goes_out_and_comes_back(last):
    """A table without a name is written as numbers, also where a named one between its ends would be no table at all."""
    betas = (*(0.999 * (k / 999) ** 8 + 1e-4 * (1 - k / 999) for k in range(999)), last)
    network = DiffusersUNet(betas, "v", 1, 1, (8, 16), 1, (), (), groups=4)
    said = scheduler_config(network, DDIM())
    assert read_scheduler(json.loads(json.dumps(said)))[1] == network.chain.betas


def test_missing_files_and_ids_of_the_hub(tmp_path, monkeypatch):
    """What is missing, and what would do; without a connection too."""
    by_hand(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no diffusion_pytorch_model.safetensors"):
        GenerativeModel.from_diffusers(tmp_path, "cpu")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="there is no folder 'owner/name', and .*(needs the package huggingface_hub|the hub did not give it)"):
        GenerativeModel.from_diffusers("owner/name", "cpu")
