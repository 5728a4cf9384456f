"""Files that are sound and would explode later: each is refused when it is read, and when it is written; what people use is not."""

import inspect
import math
import re
import sys
import time
import typing
from dataclasses import replace

import pytest
import torch
from test_model_files import assembled, parts, tiny

from diffnb.documents import canonical_json
from diffnb.files import BadManifest, LimitExceeded, Limits, ModelFileError, load, outlined, save
from diffnb.files import inspect as look
from diffnb.model import GenerativeModel
from diffnb.networks import CODECS, MLP, NETWORKS, DiffusersUNet, DiT, UNet
from diffnb.noise import EDM, PARAMETRIZATIONS, SCHEDULES, SDES, VE, VP, Discrete, Exponential, VEPower
from diffnb.samplers import DDIM, SAMPLERS, DormandPrince, EulerMaruyama, PredictorCorrector, Restart, StochasticHeun, Tuned, UniPC


def written(tmp_path, change, **changes):
    """A file whose manifest was changed, and whose checksum fits."""
    save(tiny(**changes), tmp_path / "m")
    header, body = parts(tmp_path / "m")
    import json

    manifest = json.loads(header["__metadata__"]["diffnb.manifest"])
    change(manifest)
    header["__metadata__"]["diffnb.manifest"] = canonical_json(manifest)
    (tmp_path / "m").write_bytes(assembled(header, body))
    return tmp_path / "m"


def sampling(**changes):
    return lambda m: m["sampling"].update(changes)


def sampler(name, **settings):
    def change(m):
        made = SAMPLERS[name]()
        own = {key: getattr(made, key) for key in inspect.signature(SAMPLERS[name]).parameters}
        own = {
            key: {"kind": "sampler", "component": f"builtin:{SAMPLERS.name_of(v)}", "settings": {}}
            if key in ("predictor", "solver", "sampler")
            else v
            for key, v in own.items()
        }
        m["sampling"]["sampler"] = {"kind": "sampler", "component": f"builtin:{name}", "settings": own | settings}

    return change


def data(**changes):
    return lambda m: m["data"].update(changes)


def process(name, **settings):
    return lambda m: m["sampling"].update(process={"kind": "process", "component": f"builtin:{name}", "settings": settings})


RUNS = {
    "2^28 steps": (sampling(n_steps=2**28), LimitExceeded),
    "10,001 steps": (sampling(n_steps=10_001), LimitExceeded),
    "a grid of 10,001": (sampling(grid=[1 - i / 20_000 for i in range(10_001)]), BadManifest),
    "10^15 corrections": (sampler("predictor-corrector", corrector_steps=10**15), LimitExceeded),
    "1,001 corrections": (sampler("predictor-corrector", corrector_steps=1001), LimitExceeded),
    "-10^15 corrections": (sampler("predictor-corrector", corrector_steps=-(10**15)), LimitExceeded),
    "10^15 restarts": (sampler("restart", intervals=[[0.06, 0.3, 2, 10**15]]), LimitExceeded),
    "10^15 steps of a restart": (sampler("restart", intervals=[[0.06, 0.3, 10**15, 2]]), LimitExceeded),
    "1e15 restarts, a float": (sampler("restart", intervals=[[0.06, 0.3, 2, 1e15]]), LimitExceeded),
    "2.5 restarts": (sampler("restart", intervals=[[0.06, 0.3, 2, 2.5]]), BadManifest),
    "many allowed intervals": (sampler("restart", intervals=[[0.06, 0.3, 1000, 1000]] * 100), LimitExceeded),
    "an adaptive sampler's 300 levels": (lambda m: (sampler("dormand-prince")(m), sampling(n_steps=300)(m)), LimitExceeded),
    "an adaptive predictor's 300 levels": (
        lambda m: (
            sampler("predictor-corrector", predictor={"kind": "sampler", "component": "builtin:dormand-prince", "settings": {}})(m),
            sampling(n_steps=300)(m),
        ),
        LimitExceeded,
    ),
    "10,001 intervals": (sampler("restart", intervals=[[0.06, 0.3, 1, 1]] * 10_001), LimitExceeded),
    "a restart in a corrector": (
        sampler(
            "predictor-corrector", predictor={"kind": "sampler", "component": "builtin:restart", "settings": {"intervals": [[0.06, 0.3, 2, 10**9]]}}
        ),
        LimitExceeded,
    ),
    "an interval above the noisiest level": (sampler("restart", intervals=[[0.06, 1e9, 2, 2]]), BadManifest),
    "levels that are not there": (lambda m: (sampler("tuned")(m), m["sampling"].update(n_steps=7)), BadManifest),
    "10,001 levels": (sampler("tuned", half_log_snrs=[[i / 1e4 for i in range(10_001)]]), LimitExceeded),
    "more steps than a chain": (lambda m: (process("discrete", betas=[0.01] * 50)(m), m["sampling"].update(n_steps=60)), BadManifest),
    "a grid beyond the process": (sampling(grid=[1.0, 0.5, 0.0]), BadManifest),
    "an infinite level": (process("ve-power", base=1e300), BadManifest),
    "an infinite level in training": (lambda m: m["process"].update(component="builtin:ve-power", settings={"base": 1e300}), BadManifest),
    "sigma_max": (process("edm", sigma_max=1e308), BadManifest),
    "rho": (process("edm", rho=1e308), BadManifest),
}
IMAGES = {
    "another shape": (data(shape=[1, 2, 3]), BadManifest),
    "2^27 numbers": (data(shape=[1, 2**14, 2**13]), LimitExceeded),
    "2^62 numbers": (data(shape=[2**31, 2**31]), LimitExceeded),
    "2^248 numbers": (data(shape=[2**31] * 8), LimitExceeded),
    "one label more": (data(labels=[3, 7, 8], names=None), BadManifest),
    "one label less": (data(labels=[3], names=None), BadManifest),
    "65,536 labels": (data(labels=list(range(65_536)), names=None), BadManifest),
}
UNETS = {
    "two channels": (data(shape=[2, 8, 8]), BadManifest),
    "no channels": (data(shape=[8, 8]), BadManifest),
    "four dimensions": (data(shape=[1, 8, 8, 1]), BadManifest),
    "16 million pixels, each of which looks at each other": (data(shape=[1, 4096, 4096]), LimitExceeded),
    "one row more than allowed": (data(shape=[1, 1025, 1024]), LimitExceeded),
}


def refused(path, kind):
    start = time.process_time()
    with pytest.raises(kind) as found:
        load(path)
    assert time.process_time() - start < (4 if sys.gettrace() else 1) and re.search(r"^\S+: .{20,500}$", str(found.value))


@pytest.mark.parametrize("before", range(32))
def test_a_network_that_is_not_made_to_its_end_leaves_torch_as_it_was(before):
    """Its layers switch gradients off for a moment while they are made; the count may end them there, after some operations more or less."""

    def endless():
        for _ in range(before):
            torch.empty(1)
        return torch.nn.Sequential(*(torch.nn.Conv2d(2, 2, 3) for _ in range(10_000)))

    random = torch.random.get_rng_state()
    with pytest.raises(LimitExceeded, match="takes more than"):
        outlined(endless, 1)
    assert torch.is_grad_enabled() and torch.equal(random, torch.random.get_rng_state()) and torch.empty(1).device.type == "cpu"


@pytest.mark.parametrize("name", [*RUNS, *IMAGES])
def test_what_would_explode_is_refused(name, tmp_path):
    change, kind = (RUNS | IMAGES)[name]
    refused(written(tmp_path, change), kind)


@pytest.mark.parametrize("name", UNETS)
def test_images_of_a_unet(name, tmp_path):
    change, kind = UNETS[name]
    unet = UNet(1, (8, 8), 1, (0,), groups=4)
    refused(written(tmp_path, change, network=unet, shape=(1, 8, 8), labels=(), names=None), kind)


@pytest.mark.parametrize("name", [name for name in RUNS if "training" not in name])
def test_a_sampler_that_is_left_aside_is_not_judged(name, tmp_path):
    """Who brings a sampler of their own may use the network all the same, if the process is sound."""
    path = written(tmp_path, RUNS[name][0])
    if "steps" in name and name[0].isdigit() and "restart" not in name or "grid of 10" in name:  # refused with the manifest
        return
    if name in ("an infinite level", "sigma_max", "rho", "more steps than a chain"):
        return
    assert load(path, keep_sampler=False).sampler is None


def test_limits_can_be_raised(tmp_path):
    path = written(tmp_path, sampling(n_steps=10_001))
    assert load(path, limits=Limits(sampling_steps=20_000)).n_steps == 10_001
    path = written(tmp_path, sampler("predictor-corrector", corrector_steps=1001))
    assert load(path, limits=Limits(sampler_counts=2000)).sampler.corrector_steps == 1001
    with pytest.raises(LimitExceeded):
        load(path, limits=Limits(sampler_counts=1000))


def test_inspection_refuses_what_needs_no_network(tmp_path):
    for change in (sampling(n_steps=2**28), data(shape=[2**31] * 8)):
        with pytest.raises(LimitExceeded):
            look(written(tmp_path, change))


def integers(annotation):
    """How many whole numbers a type has."""
    return (annotation is int) + sum(integers(one) for one in typing.get_args(annotation) if one is not ...)


COUNTS = [(n, p) for n in SAMPLERS.names() for p, d in inspect.signature(SAMPLERS[n]).parameters.items() if integers(d.annotation)]


@pytest.mark.parametrize(("name", "parameter"), COUNTS)
def test_every_count_of_every_sampler(name, parameter, tmp_path):
    """By the signatures: a sampler that is added tomorrow is in the table."""
    value = [[0.06, 0.3, 1001, 2]] if parameter == "intervals" else 1001
    path = written(tmp_path, sampler(name, **{parameter: value}))
    with pytest.raises(LimitExceeded, match=f"{parameter} holds the count 1,001; the limit is 1,000"):
        load(path)


WRONG = [
    None,
    True,
    "x",
    [],
    [[]],
    {},
    -1e300,
    1e300,
    0,
    -1,
    2**53,
    1e-300,
    [None],
    [1e300] * 3,
    {"kind": "schedule", "component": "builtin:linear", "settings": {}},
]
SETTINGS = [
    (k, n, p)
    for k, r in (("schedule", SCHEDULES), ("process", SDES), ("parametrization", PARAMETRIZATIONS), ("sampler", SAMPLERS))
    for n in r.names()
    for p in inspect.signature(r[n]).parameters
]


@pytest.mark.parametrize(("kind", "name", "parameter"), SETTINGS)
def test_every_setting_of_every_component(kind, name, parameter, tmp_path):
    """With values of no use: a documented error, or a model that lays out its run in finite numbers."""
    save(tiny(), tmp_path / "m")
    header, body = parts(tmp_path / "m")
    import json

    text = header["__metadata__"]["diffnb.manifest"]
    for value in WRONG:
        manifest, row = json.loads(text), {"kind": kind, "component": f"builtin:{name}", "settings": {parameter: value}}
        if kind == "schedule":
            manifest["process"]["settings"]["schedule"] = manifest["sampling"]["process"]["settings"]["schedule"] = row
        elif kind == "process":
            manifest["sampling"]["process"] = manifest["process"] = row
        elif kind == "sampler":
            manifest["sampling"]["sampler"] = row
        else:
            manifest[kind] = row
        header["__metadata__"]["diffnb.manifest"] = canonical_json(manifest)
        (tmp_path / "m").write_bytes(assembled(header, body))
        start = time.process_time()
        try:
            found = load(tmp_path / "m")
        except ModelFileError:
            continue
        finally:
            assert time.process_time() - start < 2
        levels = found.sampling_sde.levels(found.sampler.grid(found.sampling_sde, found.sampler.n_steps_default))
        assert all(math.isfinite(v) for level in levels for v in level)


SMALL_CODECS = {  # settings that make codecs small, where they are more than a few numbers
    "conv-codec": dict(factor=2, channels=2, width=4, blocks=1),
    "diffusers-autoencoder": dict(channels=2, widths=(4, 4), blocks=1, groups=2),
    "diffusers-tiny-autoencoder": dict(channels=2, encoder_width=2, decoder_width=2, encoder_blocks=(1, 1), decoder_blocks=(1, 1)),
}
CODEC_SETTINGS = [(name, parameter) for name in CODECS.names() for parameter in inspect.signature(CODECS[name]).parameters]


def with_codec(name):
    """A model of latents of 3 x 16 x 16 images."""
    codec = CODECS[name](**SMALL_CODECS.get(name, {}))
    channels = codec.shape((3, 16, 16))[0]
    return tiny(codec=codec, network=UNet(channels, (8, 8), 1, (), groups=4), shape=(3, 16, 16), labels=(), names=None)


@pytest.mark.parametrize("name", CODECS.names())
def test_every_codec_comes_back(name, tmp_path):
    contents = with_codec(name)
    save(contents, tmp_path / "m")
    again = load(tmp_path / "m")
    assert type(again.codec) is type(contents.codec) and again.codec.config == contents.codec.config
    for key, value in contents.codec.state_dict().items():
        assert torch.equal(again.codec.state_dict()[key], value)


@pytest.mark.parametrize(("name", "parameter"), CODEC_SETTINGS)
def test_every_setting_of_every_codec(name, parameter, tmp_path):
    """With values of no use, and with large ones: a documented error at once, or a codec that takes the images of the file."""
    save(with_codec(name), tmp_path / "m")
    header, body = parts(tmp_path / "m")
    import json

    text = header["__metadata__"]["diffnb.manifest"]
    for value in (*WRONG, [], [4] * 13, [4, 60_000], [10**9, 4], 60_000, 10**9, [4, 2.5], ["4"]):
        manifest = json.loads(text)
        manifest["codec"]["settings"][parameter] = value
        header["__metadata__"]["diffnb.manifest"] = canonical_json(manifest)
        (tmp_path / "m").write_bytes(assembled(header, body))
        start = time.process_time()
        try:
            found = load(tmp_path / "m")
        except ModelFileError:
            continue
        finally:
            assert time.process_time() - start < 2
        assert found.codec.shape((3, 16, 16))


def test_attention_of_a_codec_is_bounded(tmp_path):
    """Where it is asked for in the middle of an autoencoder whose latent is the size of the image."""
    codec = CODECS["diffusers-autoencoder"](channels=1, image_channels=1, widths=(2,), blocks=1, groups=1)
    contents = tiny(codec=codec, network=UNet(1, (8, 8), 1, (), groups=4), shape=(1, 64, 64), labels=(), names=None)
    save(contents, tmp_path / "m")
    with pytest.raises(ValueError, match="the codec DiffusersAutoencoder would let each of 16,777,216 places look at each other"):
        save(replace(contents, shape=(1, 4096, 4096)), tmp_path / "n")
    header, body = parts(tmp_path / "m")
    header["__metadata__"]["diffnb.manifest"] = header["__metadata__"]["diffnb.manifest"].replace("[1,64,64]", "[1,4096,4096]")
    (tmp_path / "m").write_bytes(assembled(header, body))
    refused(tmp_path / "m", LimitExceeded)


USED = {
    "few steps": {"sampler": UniPC(), "n_steps": 5},
    "many steps": {"sampler": EulerMaruyama(), "n_steps": 10_000},
    "a corrector": {"sampler": PredictorCorrector(10)},
    "restarts of the paper": {"sampling_sde": EDM(), "sampler": Restart(((0.05, 0.3, 3, 2), (0.19, 0.35, 4, 1), (1.09, 1.92, 4, 4)))},
    "churn": {"sampling_sde": EDM(), "sampler": StochasticHeun(s_churn=40, s_max=5000)},
    "levels of a search": {"sampler": Tuned("dpm-solver++3m", ((-1.0, 0.0, 1.0, 2.0), (0.5,)))},
    "a chain of 4,000": {"sde": Discrete(tuple([0.001] * 4000)), "sampler": DDIM()},
    "tolerance": {"sampler": DormandPrince(1e-6, 1e-6)},
    "exponent": {"sde": VP(Exponential(0.1, 20, 3))},
    "sigma of 10,000": {"sde": VE(0.01, 10_000)},
    "base": {"sde": VEPower(50)},
    "an unconditional user of a conditional network": {"labels": (), "names": None},
    "a megapixel": {"network": UNet(3, (8, 8), 1, (), groups=4), "shape": (3, 1024, 1024), "labels": (), "names": None},
    "a transformer": {"network": DiT(3, 16, 16, 1), "shape": (3, 256, 256), "labels": (), "names": None},
    "64 megapixels": {"network": MLP(2**12, 8, 1), "shape": (1, 64, 64), "labels": (), "names": None},
}


@pytest.mark.parametrize("name", USED)
def test_what_people_use_is_read(name, tmp_path):
    save(tiny(**USED[name]), tmp_path / "m")
    load(tmp_path / "m")
    GenerativeModel.load(tmp_path / "m")


UNWRITTEN = {
    "steps": {"n_steps": 10_001},
    "corrections": {"sampler": PredictorCorrector(1001)},
    "levels": {"sampler": Tuned(), "n_steps": 7},
    "shape": {"shape": (1, 2, 3)},
    "labels": {"labels": (1, 2, 3), "names": None},
    "process": {"sde": VEPower(1e300)},
}


@pytest.mark.parametrize("name", UNWRITTEN)
def test_what_would_be_refused_is_not_written(name, tmp_path):
    with pytest.raises(ValueError, match="the file could not be loaded|the limit is|at most"):
        save(tiny(**UNWRITTEN[name]), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_every_network_of_diffnb_is_known(tmp_path):
    """A network that is added has to say what it takes."""
    for name in NETWORKS.names():
        assert issubclass(NETWORKS[name], (MLP, UNet, DiffusersUNet, DiT)), name
    assert torch.get_default_device() == torch.device("cpu")
