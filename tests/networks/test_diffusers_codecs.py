"""Autoencoders of diffusers: the same function of the same weights, the scale of a configuration, files, and settings of strangers."""

import json
import math
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffnb import GenerativeModel
from diffnb.denoise import read_scheduler
from diffnb.files import LimitExceeded, ModelFileError, WeightsMismatch
from diffnb.model import codec_settings, fetched_pipeline, latent_scale, network_of_config, read_codec
from diffnb.networks import CODECS, DiffusersAutoencoder, DiffusersTinyAutoencoder, check_codec, first_weights

D, FEW = torch.float64, {"n_steps": 3, "seed": 0}
TYPES = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
SMALL = {"block_out_channels": [8, 16, 24], "norm_num_groups": 4, **TYPES}
TINY = {
    "encoder_block_out_channels": [8] * 3,
    "decoder_block_out_channels": [8] * 3,
    "num_encoder_blocks": [1, 2, 1],
    "num_decoder_blocks": [2, 1, 1],
}
KL = {
    "small": SMALL,
    "two blocks, three channels": SMALL | {"layers_per_block": 2, "latent_channels": 3},
    "no attention": SMALL | {"mid_block_add_attention": False},
    "no convolutions of single pixels": SMALL
    | {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16, "shift_factor": 0.0609},
    "one of them": SMALL | {"use_quant_conv": True, "use_post_quant_conv": False},
    "grey": SMALL | {"in_channels": 1, "out_channels": 1, "scaling_factor": 0.5},
    "one level": {"block_out_channels": [8], "norm_num_groups": 2},
    "two widths alike": {
        "block_out_channels": [8, 8],
        "norm_num_groups": 8,
        **{name: types[:2] for name, types in TYPES.items()},
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [1.0, 2.0, 0.5, 0.7],
        "scaling_factor": 0.5,
    },
    "groups of 32": {
        "block_out_channels": [32, 64],
        **{name: types[:2] for name, types in TYPES.items()},
        "layers_per_block": 2,
        "scaling_factor": 0.13025,
    },
}
SMALL_TINY = {
    "small": TINY,
    "another decoder": TINY | {"decoder_block_out_channels": [12] * 3, "num_decoder_blocks": [1, 0, 2]},
    "sixteen channels": TINY | {"latent_channels": 16, "shift_factor": 0.1, "scaling_factor": 0.4},
    "two levels, grey": TINY
    | {name: values[:2] for name, values in TINY.items()}
    | {"in_channels": 1, "out_channels": 1, "latent_magnitude": 2, "latent_shift": 0.4},
}


@pytest.fixture
def diffusers():
    """The package, without the network."""
    return pytest.importorskip("diffusers", reason="diffusers is an optional peer: pip install diffusers")


def lively(network, size=0.05):
    """Weights that differ in every layer, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data += size * torch.randn(weight.shape, generator=generator)
    return network.eval().requires_grad_(False)


def pictures(config, n=2):
    """Random pictures in [-1, 1], not square."""
    return torch.rand(n, config.get("in_channels", 3), 16, 24, generator=torch.Generator().manual_seed(1), dtype=D) * 2 - 1


def close(a, b, relative):
    """Equal to a part of the size of the numbers."""
    assert (a - b).abs().max() <= relative * b.abs().max().clamp(min=1), (a - b).abs().max()


# beside the package


@pytest.mark.parametrize("dtype, relative", [(torch.float32, 1e-5), (D, 1e-10)], ids=["single", "double"])
@pytest.mark.parametrize("name", KL)
def test_it_computes_what_diffusers_computes(diffusers, tmp_path, name, dtype, relative):
    torch.manual_seed(0)
    theirs = lively(diffusers.AutoencoderKL(**KL[name]))
    theirs.save_pretrained(tmp_path)
    codec, theirs, x = read_codec(tmp_path).to(dtype), theirs.to(dtype), pictures(KL[name]).to(dtype)
    found, (mean, std) = theirs.encode(x).latent_dist, codec.posterior(x)
    close(mean, found.mean, relative)
    close(std, found.std, relative)
    assert found.mean.std() > 0.05 and torch.equal(codec.analyse(x), mean)
    z, config = mean + 0.3 * std, theirs.config
    close(codec.synthesise(z), theirs.decode(z).sample, relative)
    # the latents that a diffusion model of diffusers sees, and what its pipelines decode
    if config.latents_mean is not None:
        middle, spread = (torch.tensor(one, dtype=dtype)[:, None, None] for one in (config.latents_mean, config.latents_std))
        seen = (found.mean - middle) * config.scaling_factor / spread
    else:
        seen = (found.mean - (config.shift_factor or 0)) * config.scaling_factor
    close(codec.encode(x), seen, max(relative, 3e-7))  # the scale is kept in single precision
    close(codec.decode(seen), theirs.decode(found.mean).sample, max(relative, 3e-6))
    check_codec(codec.float(), tuple(x.shape[1:]))
    assert codec.shape(x.shape[1:]) == tuple(mean.shape[1:]) and codec.is_fitted and not codec.exact and not codec.is_linear


@pytest.mark.parametrize("dtype, relative", [(torch.float32, 1e-5), (D, 1e-10)], ids=["single", "double"])
@pytest.mark.parametrize("name", SMALL_TINY)
def test_the_tiny_one_computes_what_diffusers_computes(diffusers, tmp_path, name, dtype, relative):
    torch.manual_seed(0)
    theirs = lively(diffusers.AutoencoderTiny(**SMALL_TINY[name]))
    theirs.save_pretrained(tmp_path)
    codec, theirs, x = read_codec(tmp_path).to(dtype), theirs.to(dtype), pictures(SMALL_TINY[name]).to(dtype)
    z = theirs.encode(x).latents
    close(codec.analyse(x), z, relative)
    close(codec.encode(x), (z - theirs.config.shift_factor) * theirs.config.scaling_factor, max(relative, 3e-7))
    for size in (1.0, 30.0):  # far latents are clamped
        close(codec.synthesise(size * z), theirs.decode(size * z).sample, relative)
    levels = theirs.scale_latents(4 * z).mul(255).round().byte()
    assert torch.equal(codec.to_bytes(4 * z), levels)
    close(codec.from_bytes(levels).to(dtype), theirs.unscale_latents(levels / 255).to(dtype), 1e-6)
    check_codec(codec.float(), tuple(x.shape[1:]))


def test_a_pipeline_of_latents_draws_what_diffusers_draws(diffusers, tmp_path):
    """Ten steps of DDIM from the same start, decoded."""
    torch.manual_seed(0)
    unet = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    unet |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    network = lively(diffusers.UNet2DModel(**unet))
    vae = lively(diffusers.AutoencoderKL(**KL["two blocks, three channels"], scaling_factor=0.7, shift_factor=0.2))
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="trailing")
    for name, part in {"unet": network, "vae": vae, "scheduler": scheduler}.items():
        part.save_pretrained(tmp_path / name)
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDIMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))
    model = GenerativeModel.from_diffusers(tmp_path, "cpu", verbose=False)
    assert (model.shape, model.trained.latent_shape) == ((3, 32, 32), (3, 8, 8))
    scheduler.set_timesteps(10)
    x = start = torch.randn(2, 3, 8, 8)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t).sample, t, x).prev_sample
    ours = model.sampler(model.denoiser(), x=start, grid=(scheduler.timesteps + 1).double() / 1000).x
    close(ours, x, 1e-4)
    close(model.codec.decode(ours), vae.decode(ours / 0.7 + 0.2).sample, 1e-5)
    images = model.generate(2, **FEW)
    assert images.shape == (2, 3, 32, 32) and 0 <= images.min() <= images.max() <= 1
    with pytest.raises(ValueError, match="works on latents of a DiffusersAutoencoder"):
        model.export(tmp_path / "again")


# without the package


def by_hand(folder, config=None, kind="AutoencoderKL", pickled=False, old_names=False, dtype=torch.float32):
    """The folder of a small autoencoder, written here; its codec."""
    config = {"_class_name": kind, **(SMALL if kind == "AutoencoderKL" else TINY), **(config or {})}
    cls, arguments = codec_settings(config)
    with first_weights(0):
        codec = lively(cls(**arguments))
    weights = {name: weight.to(dtype) for name, weight in codec.state_dict().items() if name not in ("mean", "scale")}
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items() if old_names else ():
        weights = {name.replace(f".{new}.", f".{old}."): weight for name, weight in weights.items()}
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if pickled:
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return codec


@pytest.mark.parametrize("place", [".", "vae"])
@pytest.mark.parametrize("old_names", [False, True])
def test_a_folder_is_read(tmp_path, place, old_names):
    """Alone and as a part of a pipeline, with the names of today and those of before."""
    made = by_hand(tmp_path / place, old_names=old_names)
    codec = read_codec(tmp_path)
    for name, weight in made.state_dict().items():
        if name not in ("mean", "scale"):
            assert torch.equal(codec.state_dict()[name], weight)
    torch.testing.assert_close(codec.scale, torch.full((4,), 1 / 0.18215))  # where the file is silent
    assert not codec.training and not any(weight.requires_grad for weight in codec.parameters())


def test_half_precision_is_read_as_single(tmp_path):
    by_hand(tmp_path, dtype=torch.float16)
    assert {weight.dtype for weight in read_codec(tmp_path).parameters()} == {torch.float32}


def test_a_pickle_is_read_where_that_is_said(tmp_path):
    made = by_hand(tmp_path, pickled=True)
    with pytest.raises(ValueError, match=r"as a pickle only, .*; read_codec\(..., pickled=True\) reads it"):
        read_codec(tmp_path)
    assert torch.equal(read_codec(tmp_path, pickled=True).decoder.conv_out.weight, made.decoder.conv_out.weight)


SCALES = {  # settings of a configuration, and mean and scale of two channels
    "silent": ({}, [0.0, 0.0], [1 / 0.18215] * 2),
    "of the tiny one": ({"_class_name": "AutoencoderTiny"}, [0.0, 0.0], [1.0, 1.0]),
    "a factor": ({"scaling_factor": 0.13025}, [0.0, 0.0], [1 / 0.13025] * 2),
    "null": ({"scaling_factor": 2, "shift_factor": None, "latents_mean": None, "latents_std": None}, [0.0, 0.0], [0.5, 0.5]),
    "a shift": ({"scaling_factor": 0.5, "shift_factor": -0.25}, [-0.25, -0.25], [2.0, 2.0]),
    "channels": ({"scaling_factor": 0.5, "latents_mean": [1, -2.0], "latents_std": [3.0, 4]}, [1.0, -2.0], [6.0, 8.0]),
    "channels, and a shift of zero": (
        {"scaling_factor": 1.0, "shift_factor": 0.0, "latents_mean": [1, 0], "latents_std": [1, 2]},
        [1.0, 0.0],
        [1.0, 2.0],
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_the_scale_of_a_configuration(name):
    said, mean, scale = SCALES[name]
    for found, wanted in zip(latent_scale(said, 2), (mean, scale)):
        torch.testing.assert_close(found, torch.tensor(wanted))


def test_a_forgotten_scale_is_seen(tmp_path):
    """Latents are those of the network, less the shift and times the factor; and of unit size where mean and scale were measured."""
    by_hand(tmp_path, {"scaling_factor": 0.3611, "shift_factor": 0.1159})
    codec, x = read_codec(tmp_path), pictures({}).float()
    raw = codec.analyse(x)
    torch.testing.assert_close(codec.encode(x), (raw - 0.1159) * 0.3611, atol=1e-6, rtol=0)
    assert (codec.encode(x) - raw).abs().max() > 0.1 and (codec.decode(raw) - codec.synthesise(raw)).abs().max() > 0.1
    torch.testing.assert_close(codec.decode(codec.encode(x)), codec.synthesise(raw), atol=1e-5, rtol=0)
    z = codec.standardise((x + 1) / 2).encode(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(1, correction=0), torch.ones(4), atol=1e-4, rtol=0)


def test_standard_deviations_are_bounded():
    """As in diffusers, whatever a network says: from e^-15 to e^10."""
    codec = lively(DiffusersAutoencoder(channels=1, widths=(4,), groups=2))
    codec.quant_conv.bias.copy_(torch.tensor([0.0, 1e4]))
    assert torch.allclose(codec.posterior(torch.zeros(1, 3, 4, 4))[1], torch.tensor(math.e**10))
    codec.quant_conv.bias.copy_(torch.tensor([0.0, -1e4]))
    assert torch.allclose(codec.posterior(torch.zeros(1, 3, 4, 4))[1], torch.tensor(math.e**-15), atol=0)


def test_the_halving_pads_on_the_right_and_below():
    """The kernel that is 1 in its middle takes every second pixel, from the second on."""
    halve = DiffusersAutoencoder(widths=(2, 2), groups=1).encoder.down_blocks[0].downsamplers[0]
    torch.nn.init.zeros_(halve.conv.bias)
    torch.nn.init.zeros_(halve.conv.weight).data[0, 0, 1, 1] = 1
    ramp = torch.arange(6.0).expand(1, 2, 6, 6)
    assert halve(ramp)[0, 0, 0].tolist() == [1, 3, 5]


@pytest.fixture(params=["AutoencoderKL", "AutoencoderTiny"])
def model(request, tmp_path):
    """A model of latents after two steps of training."""
    by_hand(tmp_path / "codec", kind=request.param, config={"scaling_factor": 0.5, "shift_factor": 0.1})
    made = GenerativeModel("edm", "dpm-solver++2m", network="tiny", codec=read_codec(tmp_path / "codec"), device="cpu", verbose=False)
    made.train(torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)), steps=2, batch_size=4, flip=True)
    return made


def test_a_model_trains_draws_and_is_saved(model, tmp_path):
    drawn, path = model.generate(3, **FEW), tmp_path / "m.safetensors"
    assert drawn.shape == (3, 3, 16, 16) and model.trained.latent_shape == (4, 4, 4)
    torch.testing.assert_close(model.generate(1, first=2, **FEW), drawn[2:], atol=1e-4, rtol=0)  # decoded alone as in a batch
    model.save(path)
    again = GenerativeModel.load(path, device="cpu", verbose=False)
    assert type(again.codec) is type(model.codec) and again.codec.config == model.codec.config
    for name, value in model.codec.state_dict().items():
        assert torch.equal(again.codec.state_dict()[name], value)
    assert torch.equal(again.generate(3, **FEW), drawn)
    model.save(path, torch.float16)
    half = GenerativeModel.load(path, device="cpu", verbose=False).codec
    assert torch.equal(half.scale, model.codec.scale) and torch.equal(half.mean, model.codec.mean)  # numbers of the scale are not rounded
    torch.testing.assert_close(half.decode(torch.ones(1, 4, 4, 4)), model.codec.decode(torch.ones(1, 4, 4, 4)), atol=0.02, rtol=0.02)
    with pytest.raises(ValueError, match="loses something"):
        model.log_prob(drawn)
    assert model.impute(drawn, torch.ones(16, 16), method="dps", **FEW).isfinite().all()


def test_settings_come_back():
    for cls, settings in (
        (DiffusersAutoencoder, dict(channels=3, image_channels=1, widths=[4, 8], blocks=3, groups=2, attention=False, quant=False, post_quant=True)),
        (
            DiffusersTinyAutoencoder,
            dict(
                channels=3, image_channels=1, encoder_width=5, decoder_width=6, encoder_blocks=[1, 0], decoder_blocks=[2, 1], magnitude=2.0, shift=0.4
            ),
        ),
    ):
        codec = cls(**settings)
        assert codec.config == settings and CODECS[CODECS.name_of(codec)](**codec.config).config == settings
        assert not codec.is_fitted and lively(codec).is_fitted
        with torch.no_grad():
            x = torch.zeros(1, 1, 4, 4)
            assert codec.decode(codec.encode(x)).shape == x.shape


@pytest.mark.parametrize("name", ["diffusers-autoencoder", "autoencoder-kl", "taesd", "autoencoder-tiny"])
def test_a_new_object_is_no_codec_of_a_model(name, monkeypatch):
    for draws in ("kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(torch.nn.init, draws, lambda weights, *arguments, **settings: weights)
    with pytest.raises(ValueError, match=r"has not been fitted to images; diffnb.model.read_codec\(folder\) reads one"):
        GenerativeModel(codec=name)


def test_memory_is_bounded(model, monkeypatch):
    """Sets are encoded, and what is drawn is decoded, some images at a time."""
    sizes, decode = [], model.codec.decode
    monkeypatch.setattr("diffnb.model.latents.chunk_of", lambda shape: 2)
    monkeypatch.setattr(type(model.codec), "decode", lambda self, z: sizes.append(len(z)) or decode(z))
    assert model.trained.to_pictures(torch.zeros(5, 4, 4, 4)).shape == (5, 3, 16, 16) and sizes == [2, 2, 1]


# pipelines of latents


def pipeline(folder, vae="AutoencoderKL", part="vae", channels=4):
    """A pipeline of latents with random weights."""
    by_hand(folder / part, kind=vae)
    unet = {"_class_name": "UNet2DModel", "sample_size": [4, 8], "in_channels": channels, "out_channels": channels, "norm_num_groups": 4}
    unet |= {"block_out_channels": [8, 8], "layers_per_block": 1, "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
    chain = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "clip_sample": False}
    index = {
        "_class_name": "LDMPipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
        part: ["diffusers", vae],
    }
    for name, said in {"unet/config.json": unet, "scheduler/scheduler_config.json": chain, "model_index.json": index}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(said))
    save_file(network_of_config(unet, *read_scheduler(chain)).state_dict(), folder / "unet" / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("vae, part", [("AutoencoderKL", "vae"), ("AutoencoderTiny", "vae"), ("AutoencoderKL", "vqvae")])
def test_a_pipeline_of_latents_is_read(tmp_path, vae, part):
    model = GenerativeModel.from_diffusers(pipeline(tmp_path, vae, part), "cpu", verbose=False)
    assert (model.shape, model.trained.latent_shape) == ((3, 16, 32), (4, 4, 8))
    drawn = model.generate(2, **FEW)
    assert drawn.shape == (2, 3, 16, 32)
    model.save(tmp_path / "m.safetensors")
    assert torch.equal(GenerativeModel.load(tmp_path / "m.safetensors", device="cpu", verbose=False).generate(2, **FEW), drawn)
    model.train(torch.rand(4, 3, 16, 32), steps=1, batch_size=2)


def test_parts_of_two_pipelines_are_told(tmp_path):
    with pytest.raises(ValueError, match="makes latents of 4 channels, and the network takes 3"):
        GenerativeModel.from_diffusers(pipeline(tmp_path, channels=3), "cpu", verbose=False)


# what does not fit

WRONG = {  # settings of a folder, and what is said
    "another autoencoder": ({"_class_name": "VQModel"}, "it is VQModel, which is not read; known are AutoencoderKL and AutoencoderTiny"),
    "a network": ({"_class_name": "UNet2DModel"}, "it is UNet2DModel, which is not read"),
    "no class": ({"_class_name": None}, "it is of no class that is told"),
    "a list for a class": ({"_class_name": ["AutoencoderKL"]}, "which is not read"),
    "an unknown setting": ({"num_vq_embeddings": 256, "commitment": 0.25}, "has commitment, num_vq_embeddings, which is no setting of AutoencoderKL"),
    "a setting of the other class": ({"latent_magnitude": 3}, "has latent_magnitude, which is no setting of AutoencoderKL"),
    "another activation": ({"act_fn": "gelu"}, "act_fn = 'gelu'; known is 'silu' or 'swish'"),
    "another block down": (
        {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D", "DownEncoderBlock2D"]},
        "type AttnDownEncoderBlock2D; known is DownEnc",
    ),
    "another block up": ({"up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D"]}, "type AttnUpDecoderBlock2D; known"),
    "a block that is no text": ({"up_block_types": [1, 2, 3]}, "blocks of the type 1; known"),
    "fewer blocks": ({"down_block_types": ["DownEncoderBlock2D"]}, "it must be a list of as many blocks as block_out_channels"),
    "blocks in a text": ({"down_block_types": "DownEncoderBlock2D"}, "it must be a list of as many blocks"),
    "widths in a number": ({"block_out_channels": 8}, "it must be a list of as many blocks as block_out_channels = 8"),
    "more out than in": ({"out_channels": 6}, "in_channels = 3 and out_channels = 6; a codec has as many in as out"),
    "no scale": ({"scaling_factor": 0}, "scaling_factor = 0; it must be a number above 0"),
    "a scale below zero": ({"scaling_factor": -1.0}, "scaling_factor = -1.0; it must be a number above 0"),
    "a scale in words": ({"scaling_factor": "0.18"}, "scaling_factor = '0.18'; it must be a number above 0"),
    "null for a scale": ({"scaling_factor": None}, "scaling_factor = None; it must be a number above 0"),
    "a shift in words": ({"shift_factor": "none"}, "shift_factor = 'none'; it must be a number, or null"),
    "a mean alone": ({"latents_mean": [0.0] * 4}, "contradict one another: the first two go together"),
    "a deviation alone": ({"latents_std": [1.0] * 4}, "contradict one another"),
    "a mean and a shift": ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.1}, "contradict one another"),
    "fewer means": ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "latents_mean = .*; it must hold a number for each of 4 channels"),
    "a deviation of zero": ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 0.0, 1.0, 1.0]}, "latents_std = .*; it must hold a number"),
    "means in a text": ({"latents_mean": "0000", "latents_std": [1.0] * 4}, "latents_mean = '0000'; it must hold"),
    "a truth value for a mean": ({"latents_mean": [True, 0, 0, 0], "latents_std": [1.0] * 4}, "latents_mean = .*; it must hold"),
    "widths that groups do not divide": (
        {"block_out_channels": [8, 16, 22]},
        "no codec is made of .*: widths must be multiples of the 4 groups of the norms, got 22",
    ),
    "no widths": (
        {"block_out_channels": [], "down_block_types": [], "up_block_types": []},
        "no codec is made of .*: widths must be the channels of 1 to 12 levels",
    ),
    "a width of zero": ({"block_out_channels": [8, 0, 24]}, "no codec is made of .*: widths, blocks and groups must be at least 1"),
    "no groups": ({"norm_num_groups": 0}, "no codec is made of .*: widths, blocks and groups must be at least 1"),
    "a truth value in numbers": ({"use_quant_conv": 1}, "no codec is made of .*: quant must be True or False, got 1"),
    "half a block": ({"layers_per_block": 1.5}, "no codec is made of .*: blocks must be a whole number, got 1.5"),
    "a list for a number": ({"latent_channels": [4]}, "latent_channels must be a whole number from 1 to 65536, got"),
    "other latents": ({"latent_channels": 8}, "the weights in .* are not those of the network in its config.json: size mismatch"),
    "other widths": ({"block_out_channels": [8, 16, 32]}, "are not those of the network in its config.json: size mismatch"),
    "fewer layers": ({"mid_block_add_attention": False}, "are not those of the network in its config.json: Unexpected key"),
    "more layers": ({"layers_per_block": 2}, "are not those of the network in its config.json: Missing key"),
}
WRONG_TINY = {
    "another activation": ({"act_fn": "silu"}, "act_fn = 'silu'; known is 'relu'"),
    "another way up": ({"upsample_fn": "bilinear"}, "upsample_fn = 'bilinear'; known is 'nearest'"),
    "three times": ({"upsampling_scaling_factor": 3}, "upsampling_scaling_factor = 3; known is 2"),
    "different widths": (
        {"encoder_block_out_channels": [8, 8, 16]},
        "encoder_block_out_channels = .*; it must hold one number, as often as num_encoder",
    ),
    "fewer widths": (
        {"decoder_block_out_channels": [8, 8]},
        "decoder_block_out_channels = .*; it must hold one number, as often as num_decoder_blocks",
    ),
    "a width alone": ({"encoder_block_out_channels": 8}, "encoder_block_out_channels = 8; it must hold one number"),
    "levels that differ": (
        {"num_decoder_blocks": [2, 1], "decoder_block_out_channels": [8, 8]},
        "no codec is made of .*: encoder_blocks and decoder_blocks must be of as many levels",
    ),
    "less than no blocks": ({"num_decoder_blocks": [2, -1, 1]}, "the numbers of blocks at least 0"),
    "no magnitude": ({"latent_magnitude": 0}, "no codec is made of .*: magnitude must be a number above 0"),
    "a setting of the other class": ({"norm_num_groups": 4}, "norm_num_groups, which is no setting of AutoencoderTiny"),
    "means of channels": ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "latents_mean, latents_std, which is no setting of AutoencoderTiny"),
    "other blocks": ({"num_encoder_blocks": [1, 2, 2]}, "are not those of the network in its config.json"),
}
EXPLODING = {  # settings that ask for more than the file of weights holds
    "layers": {"layers_per_block": 10_000},
    "many layers": {"layers_per_block": 65_000},
    "10^12 layers": {"layers_per_block": 10**12},
    "width": {"block_out_channels": [8, 16, 64_000]},
    "10^15 wide": {"block_out_channels": [8, 16, 10**15]},
    "latents": {"latent_channels": 2**40},
    "image channels": {"in_channels": 2**30, "out_channels": 2**30},
    "groups": {"norm_num_groups": 2**50},
    "levels": {"block_out_channels": [8] * 5000, "down_block_types": ["DownEncoderBlock2D"] * 5000, "up_block_types": ["UpDecoderBlock2D"] * 5000},
}


def refused(folder, message):
    """Refused at once, in one sentence."""
    start = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        read_codec(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700 and time.process_time() - start < 3
    assert torch.is_grad_enabled()  # which making layers switches off and on


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_do_not_fit_are_told(tmp_path, name):
    settings, message = WRONG[name]
    by_hand(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **SMALL, **settings}))
    refused(tmp_path, message)


@pytest.mark.parametrize("name", WRONG_TINY)
def test_settings_that_do_not_fit_the_tiny_one_are_told(tmp_path, name):
    settings, message = WRONG_TINY[name]
    by_hand(tmp_path, kind="AutoencoderTiny")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", **TINY, **settings}))
    refused(tmp_path, message)


@pytest.mark.parametrize("name", EXPLODING)
def test_settings_of_a_stranger_cannot_explode(tmp_path, name):
    by_hand(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", **SMALL, **EXPLODING[name]}))
    refused(tmp_path, "larger than anything|many more layers|are not those of the network|no codec is made of|a whole number from 1 to 65536")


@pytest.mark.parametrize("blocks", [[1, 2, 60_000], [1, 2, 10**12], [1] * 4000])
def test_settings_of_a_stranger_cannot_explode_the_tiny_one(tmp_path, blocks):
    by_hand(tmp_path, kind="AutoencoderTiny")
    said = {"num_encoder_blocks": blocks, "encoder_block_out_channels": [8] * len(blocks)}
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", **TINY, **said}))
    refused(tmp_path, "larger than anything|many more layers|no codec is made of")


@pytest.mark.parametrize(
    "settings",
    [{"layers_per_block": 60_000}, {"layers_per_block": 10**9}, {"block_out_channels": [8, 60_000]}, {"block_out_channels": [8, 10**12]}],
    ids=str,
)
def test_nor_those_of_a_pipeline(tmp_path, settings):
    folder = pipeline(tmp_path)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps(config | settings))
    start = time.process_time()
    with pytest.raises(ValueError, match="larger than anything|many more layers|are not those of the network"):
        GenerativeModel.from_diffusers(folder, "cpu", verbose=False)
    assert time.process_time() - start < 3


DAMAGED = {  # a file, what stands in it, and what is said
    "no JSON": ("config.json", b"{", "is no JSON"),
    "no object": ("config.json", b"[1]", "must hold an object"),
    "too deep": ("config.json", b"[" * 100_000, "is no JSON"),
    "not a number": ("config.json", b'{"scaling_factor": NaN}', "is no JSON"),
    "no text": ("config.json", b"\xff\xfe{}", "is no JSON"),
    "too long": ("config.json", b'{"a": "' + b"a" * 2**21 + b'"}', "is no JSON"),
    "no weights": ("diffusion_pytorch_model.safetensors", b"", "is no file of safetensors, or is damaged"),
    "half of them": ("diffusion_pytorch_model.safetensors", b"\x10\0\0\0\0\0\0\0{}", "is no file of safetensors, or is damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_folders_are_told(tmp_path, name):
    file, data, message = DAMAGED[name]
    by_hand(tmp_path)
    (tmp_path / file).write_bytes(data)
    refused(tmp_path, message)


@pytest.mark.parametrize(
    "given, came",
    [
        ("", "there is no folder ''"),
        ("empty", "the folder 'empty' holds none of vae/config.json, config.json, vqvae/config.json"),
        ("file.json", "'file.json' is a file, and the folder that it lies in is what is read"),
        ("a/b/c", "there is no folder 'a/b/c'"),
        (None, "got None"),
        (3, "got 3"),
    ],
)
def test_what_is_no_folder_is_told(tmp_path, monkeypatch, given, came):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, TypeError)) as caught:
        read_codec(given)
    assert str(caught.value).startswith(
        "path_or_hub_id must be a folder that diffusers saved an autoencoder in, or an id of the hub such as 'madebyollin/taesd'"
    )
    assert str(caught.value).endswith(came) and "\n" not in str(caught.value)


def test_only_the_codec_is_fetched(monkeypatch, tmp_path):
    """Of a pipeline of gigabytes the two files of its autoencoder, and pickles where that is said."""
    import fnmatch
    import sys
    import types

    files = ["model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin"]
    files += ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors", "text.safetensors"]
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append([file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)])
        return tmp_path

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    by_hand(tmp_path / "vae")
    assert read_codec("somebody/something").is_fitted and asked[-1] == files[1:3]
    read_codec("somebody/something", pickled=True)
    assert asked[-1] == files[1:4]
    fetched_pipeline("somebody/something")
    assert set(files) - set(asked[-1]) == {"vae/diffusion_pytorch_model.bin"}


CALLS = {
    "levels": (lambda: DiffusersAutoencoder(widths=(4,) * 13), "widths must be the channels of 1 to 12 levels, got 13 levels"),
    "blocks": (lambda: DiffusersAutoencoder(widths=(4,), groups=4, blocks=0), "widths, blocks and groups must be at least 1"),
    "latents": (lambda: DiffusersAutoencoder(channels=0, widths=(4,), groups=4), "channels must be a whole number of at least 1"),
    "images": (lambda: DiffusersTinyAutoencoder(image_channels=0), "image_channels must be a whole number of at least 1"),
    "no levels": (lambda: DiffusersTinyAutoencoder(encoder_blocks=(), decoder_blocks=()), "must be of as many levels, 1 to 12, got 0 and 0"),
    "width": (lambda: DiffusersTinyAutoencoder(decoder_width=0), "decoder_width must be at least 1, got 64 and 0"),
    "magnitude": (lambda: DiffusersTinyAutoencoder(magnitude=-1.0), "magnitude must be a number above 0, got -1.0"),
    "grey pictures": (lambda: DiffusersAutoencoder(widths=(4, 4), groups=4).encode(torch.zeros(1, 1, 4, 4)), "made for images of 3 channels"),
    "sides": (lambda: DiffusersTinyAutoencoder(encoder_width=2).encode(torch.zeros(1, 3, 12, 16)), "multiples of 8, got 12 x 16"),
    "latents of another": (lambda: DiffusersAutoencoder(widths=(4,), groups=4).decode(torch.zeros(1, 3, 2, 2)), "latents have 4 channels"),
    "a density": (lambda: DiffusersTinyAutoencoder(encoder_width=2).log_det((3, 8, 8)), "loses something"),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_does_not_fit_is_told_in_a_sentence(name):
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# model files of strangers

BROKEN = {
    "a large latent": (lambda m: m["codec"]["settings"].update(channels=60_000), (WeightsMismatch, LimitExceeded)),
    "a number beyond the file": (lambda m: m["codec"]["settings"].update(channels=10**9), LimitExceeded),
    "many blocks": (lambda m: m["codec"]["settings"].update(blocks=60_000), LimitExceeded),
    "many levels": (lambda m: m["codec"]["settings"].update(widths=[8] * 13), ModelFileError),
    "no levels": (lambda m: m["codec"]["settings"].update(widths=[]), ModelFileError),
    "a width in words": (lambda m: m["codec"]["settings"].update(widths="888"), ModelFileError),
    "a width of half": (lambda m: m["codec"]["settings"].update(widths=[8, 16.5, 24]), ModelFileError),
    "groups that do not divide": (lambda m: m["codec"]["settings"].update(groups=7), ModelFileError),
    "no attention": (lambda m: m["codec"]["settings"].update(attention=False), WeightsMismatch),
    "the other class": (lambda m: m["codec"].update(component="builtin:diffusers-tiny-autoencoder"), ModelFileError),
    "images that it does not take": (lambda m: m["data"].update(shape=[3, 18, 16]), ModelFileError),
    "a large image": (lambda m: m["data"].update(shape=[3, 2**14, 2**14]), LimitExceeded),
    "an image whose places look at each other": (lambda m: m["data"].update(shape=[3, 4100, 4096]), LimitExceeded),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The file of a model of the latents of a small autoencoder."""
    folder = tmp_path_factory.mktemp("kept")
    by_hand(folder / "codec")
    made = GenerativeModel("edm", network="tiny", codec=read_codec(folder / "codec"), device="cpu", verbose=False)
    made.train(torch.rand(4, 3, 16, 16), steps=1, batch_size=2)
    made.save(folder / "m.safetensors")
    return folder / "m.safetensors"


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name, kept, tmp_path):
    from safetensors import safe_open

    from diffnb.files import write_container

    change, kind = BROKEN[name]
    path = tmp_path / "m.safetensors"
    with safe_open(kept, "pt") as file:
        texts, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    texts.pop("diffnb.digest")
    manifest = json.loads(texts["diffnb.manifest"])
    change(manifest)
    write_container(path, tensors, texts | {"diffnb.manifest": json.dumps(manifest, sort_keys=True, separators=(",", ":"))})
    start = time.process_time()
    with pytest.raises(kind) as caught:
        GenerativeModel.load(path, device="cpu", verbose=False)
    assert "\n" not in str(caught.value) and time.process_time() - start < 3
    if "look" in name:
        assert "the codec DiffusersAutoencoder would let each of 1,049,600 places look at each other" in str(caught.value)


def test_what_is_read_is_what_was_written(tmp_path):
    """Names and bytes of a folder are those of the codec, so that one can be written by hand."""
    codec = by_hand(tmp_path)
    assert set(load_file(tmp_path / "diffusion_pytorch_model.safetensors")) == set(codec.state_dict()) - {"mean", "scale"}
