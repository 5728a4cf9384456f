"""Model files: every configuration comes back bit for bit, wrong files end in documented errors, and a crash leaves the old file or the new one.

The attack cases over files, sources, programs, the worker's protocol and trust are counted by

    cd tests/files && python -m pytest -o addopts= --collect-only -q test_model_files.py test_programs.py test_sandbox.py test_trust.py \\
        -k "hostile or attack or refused or trusted or believed or digits"
"""

import itertools
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import component_corpus as corpus
import pytest
import torch
from attack_sources import ATTACKS
from commands import program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import diffnb.core
from diffnb.core import to_unit, write_atomically
from diffnb.documents import canonical_json
from diffnb.files import (
    CODES,
    BadHeader,
    BadManifest,
    CodeNotTrusted,
    ComponentError,
    ComponentSource,
    Contents,
    Context,
    DigestMismatch,
    LimitExceeded,
    Limits,
    ModelFileError,
    NonFiniteWeights,
    ProgramError,
    TrustError,
    TrustStore,
    UnknownComponent,
    UnsupportedVersion,
    WeightsMismatch,
    digest_of,
    inspect,
    load,
    parse_header,
    save,
    source_of,
)
from diffnb.model import GenerativeModel
from diffnb.networks import MLP, NETWORKS, SIZES, UNet, build_network
from diffnb.noise import EDM, PARAMETRIZATIONS, SCHEDULES, SDES, VP, Cosine, Karras, SubVP
from diffnb.pickles import read_pickled_weights
from diffnb.samplers import DDIM, GRIDS, SAMPLERS, DPMSolverPP2M, Tuned

DATA, ROOT = Path(__file__).parent / "data", Path(__file__).parents[2]
DOCUMENTED = (ModelFileError, TrustError, ComponentError)


def tiny(**changes):
    """A small model, with the given parts changed."""
    torch.manual_seed(0)
    base = Contents(
        network=MLP(dim=4, width=8, depth=1, num_classes=2),
        sde=VP(Cosine(s=1 / 3)),
        parametrization=Karras(0.1 + 0.2),
        shape=(1, 2, 2),
        labels=(3, 7),
        names=("shirt", "größer"),
        records=({"train_loss": [0.5, 1 / 7], "seed": 4, "note": None},),
        version="0.1.0",
        sampler=DPMSolverPP2M(),
    )
    return replace(base, **changes)


def equal(a, b):
    """Whether two models hold the same, bit for bit."""
    fields = ("sde", "parametrization", "shape", "labels", "names", "records", "version", "sampler", "grid", "n_steps", "value_range")
    assert [getattr(a, f) for f in fields] == [getattr(b, f) for f in fields]
    assert (a.sampling_sde or a.sde) == (b.sampling_sde or b.sde)
    for x, y in ((a.network.state_dict(), b.network.state_dict()), (a.raw or {}, b.raw or {})):
        assert list(x) == list(y)
        for key in x:
            assert x[key].dtype == y[key].dtype and torch.equal(x[key].reshape(-1).view(torch.uint8), y[key].reshape(-1).view(torch.uint8)), key


COMPONENTS = [
    *(({"sde": VP(SCHEDULES[name]())}, f"schedule {name}") for name in SCHEDULES.names()),
    *(({"sde": SubVP(SCHEDULES[name]())}, f"sub-vp {name}") for name in SCHEDULES.names()),
    *(({"sde": SDES[name]()}, f"process {name}") for name in SDES.names()),
    *(({"sampling_sde": SDES[name]()}, f"sampling process {name}") for name in SDES.names()),
    *(({"parametrization": PARAMETRIZATIONS[name](2**-0.5)}, f"parametrization {name}") for name in PARAMETRIZATIONS.names()),
    *(({"sampler": SAMPLERS[name]()}, f"sampler {name}") for name in SAMPLERS.names()),
    ({"sampler": DDIM(1 / 3)}, "sampler with a setting"),
    ({"sampler": None}, "no sampler"),
    ({"grid": "karras", "n_steps": 18}, "named grid"),
    ({"grid": (0.97, 2 / 3, 1e-2)}, "grid of times"),
    ({"sampler": Tuned("dpm++2m", ((-1.0, 1 / 3, 2.0), (0.1,))), "n_steps": 2}, "searched levels"),
    ({"labels": (), "names": None}, "no labels"),
    ({"labels": ("a", 2**40), "names": None}, "labels of both kinds"),
    ({"value_range": (0.0, 1.0)}, "range"),
    ({"records": tuple({"epoch": i} for i in range(50))}, "records"),
]


@pytest.mark.parametrize(("changes", "name"), COMPONENTS, ids=[name for _, name in COMPONENTS])
def test_configurations_come_back(changes, name, tmp_path):
    contents = tiny(**changes)
    save(contents, tmp_path / "m")
    equal(load(tmp_path / "m", code="builtin"), contents)
    assert str(inspect(tmp_path / "m"))


SMALL = {  # settings that make networks small, where they are not those of a U-Net
    "mlp": dict(dim=2),
    "dit": dict(channels=3, width=8, depth=1, head_width=4),
    "frozen-text-unet": dict(features=4, tokens=3, widths=(8, 8), groups=4),
}


@pytest.mark.parametrize("name", ["tiny", "small", *NETWORKS.names()])
def test_networks_come_back(name, tmp_path):
    network = build_network(name, (3, 8, 8), 4) if name in SIZES else NETWORKS[name](**SMALL.get(name, dict(widths=(8, 8), groups=4)))
    shape, classes = (1, 1, 2) if name == "mlp" else (network.channels, 8, 8), network.num_classes
    contents = tiny(network=network, raw={key: value + 1 for key, value in network.state_dict().items()})
    contents = replace(contents, shape=shape, labels=tuple(range(classes)), names=None)
    save(contents, tmp_path / "m")
    equal(load(tmp_path / "m"), contents)
    report = inspect(tmp_path / "m")
    assert report.parameters == 2 * sum(v.numel() for v in network.state_dict().values()) and report.weights == ("model", "raw")


def test_special_numbers_in_weights_come_back(tmp_path):
    contents = tiny()
    odd = torch.tensor([0.0, -0.0, 1e-42, 3.4e38, -1e-45, 0.1])
    with torch.no_grad():
        contents.network.stem.weight.view(-1)[:6] = odd
    save(contents, tmp_path / "m")
    equal(load(tmp_path / "m"), contents)


def test_half_precision(tmp_path):
    contents = tiny()
    save(contents, tmp_path / "m", torch.float16)
    for key, value in load(tmp_path / "m").network.state_dict().items():
        assert torch.equal(value, contents.network.state_dict()[key].half().float())
    with torch.no_grad():
        contents.network.stem.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match="too large for torch.float16"):
        save(contents, tmp_path / "m", torch.float16)


def test_the_sampler_may_be_left_aside(tmp_path):
    save(tiny(grid="karras", n_steps=7), tmp_path / "m")
    found = load(tmp_path / "m", keep_sampler=False)
    assert (found.sampler, found.grid, found.n_steps) == (None, None, None) and found.sde == VP(Cosine(s=1 / 3))


CUSTOM = [*corpus.SCHEDULES, *corpus.PROCESSES, *corpus.PARAMETRIZATIONS, *corpus.SAMPLERS]


def with_component(cls):
    """A small model with one component of somebody's own, and how to find it."""
    if cls in corpus.SCHEDULES:
        return tiny(sde=VP(cls())), lambda contents: contents.sde.schedule
    slot = "sde" if cls in corpus.PROCESSES else "parametrization" if cls in corpus.PARAMETRIZATIONS else "sampler"
    return tiny(**{slot: cls()}), lambda contents: getattr(contents, slot)


@pytest.mark.parametrize("cls", CUSTOM, ids=lambda cls: cls.__name__)
def test_custom_components_travel(cls, tmp_path):
    contents, found_in = with_component(cls)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(contents, tmp_path / "m")
    made, report = found_in(load(tmp_path / "m")), inspect(tmp_path / "m")
    assert made.program.name == cls.__name__ and not report.runs_code and not report.sources
    assert all(line in str(report) for lines in made.program.equations().values() for line in lines)
    assert "refused (code='builtin'); computed by its formulas, no code runs (code='program', code='sandbox', code='inprocess')" in str(report)
    with pytest.raises(CodeNotTrusted, match="code='builtin'"):
        load(tmp_path / "m", code="builtin")
    for code in ("sandbox", "inprocess"):
        assert found_in(load(tmp_path / "m", code=code)) == made
    own = found_in(load(tmp_path / "m", components={cls.__name__: cls}))
    assert type(own) is cls and repr(own) == repr(found_in(contents)).replace(hex(id(found_in(contents))), hex(id(own)))
    save(load(tmp_path / "m"), tmp_path / "again")  # a program that was loaded can be saved
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()


GENERATES = """
import sys
from diffnb.model import GenerativeModel
for first, second in zip(sys.argv[1::2], sys.argv[2::2]):
    model = GenerativeModel.load(first, "cpu", verbose=False)
    model.save(second, dtype=None)
    print(model.generate(3, n_steps=6, seed=4, class_labels=[3, 7, 3]).numpy().tobytes().hex())
"""


def test_a_component_survives_without_its_source(tmp_path):
    """Saved here, loaded by another program that has no such classes: equal images, saved again, and equal once more."""
    model = GenerativeModel.load(DATA / "format1.safetensors", "cpu", verbose=False)
    paths, images = [], []
    for cls, sampler in ((corpus.SigmoidSchedule, corpus.MyDPM2M), (corpus.FourierSchedule, corpus.NormCorrected)):
        saved, again, once_more = (tmp_path / f"{name} {cls.__name__}" for name in ("saved", "again", "once more"))
        save(tiny(sde=VP(cls()), sampler=sampler(), parametrization=corpus.SoftV()), saved)
        model = GenerativeModel.load(saved, "cpu", verbose=False, components={c.__name__: c for c in (cls, sampler, corpus.SoftV)})
        assert type(model.sampler) is sampler
        images += [model.generate(3, n_steps=6, seed=4, class_labels=[3, 7, 3]).numpy().tobytes().hex()] * 2
        paths += [saved, again, again, once_more]
    command = [sys.executable, "-c", GENERATES, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == images, done.stderr
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(paths[2::4], paths[3::4], strict=True))


def test_settings_that_cannot_be_written_are_left_out(tmp_path):
    """A program needs none; who has the class has to make it without the file's help."""
    save(tiny(sde=VP(corpus.SummedByHand(more=(corpus.SigmoidSchedule(),)))), tmp_path / "m")
    schedule = load(tmp_path / "m").sde.schedule
    assert schedule.settings is None and repr(schedule) == "SummedByHand()"
    assert schedule.beta(torch.tensor(0.5)) == 10 and "SummedByHand-" in str(inspect(tmp_path / "m"))
    with pytest.raises(BadManifest, match="does not say what SummedByHand was made with"):
        load(tmp_path / "m", components={"SummedByHand": corpus.SummedByHand})
    save(load(tmp_path / "m"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()


@pytest.mark.parametrize("cls", [corpus.AncestralChurn, corpus.CachedByHand, corpus.Brightness, corpus.LongTable], ids=lambda cls: cls.__name__)
def test_what_is_no_program_travels_as_source(cls, tmp_path):
    contents = tiny(sampler=cls()) if cls is corpus.AncestralChurn else tiny(metrics=(cls(),)) if cls is corpus.Brightness else tiny(sde=VP(cls()))
    with pytest.warns(UserWarning, match=f"{cls.__name__} is saved as source only.*{corpus.STAY[cls]}"):
        save(contents, tmp_path / "m")
    with pytest.raises(CodeNotTrusted, match=rf"Nothing was run\. Read it: `diffnb inspect FILE`.*components=\{{'{cls.__name__}'"):
        load(tmp_path / "m")
    assert load(tmp_path / "m", components={cls.__name__: cls})
    report = inspect(tmp_path / "m")
    assert report.runs_code and f"class {cls.__name__}" in str(report) and not report.programs
    assert next(c for c in report.components if c.reference.startswith("python:")).modes["program"] == "refused"


def test_a_program_that_gives_something_else_is_not_saved(tmp_path):
    """What tracing cannot see, the comparison does."""
    sly = type("Sly", (corpus.SmoothRamp,), {"beta": lambda self, t: t * (time.perf_counter() % 1)})
    with pytest.warns(UserWarning, match="does not give what the class gives"):
        save(tiny(sde=VP(sly())), tmp_path / "m")
    assert not inspect(tmp_path / "m").programs


class Blur(nn.Module):
    """A network of one's own."""

    def __init__(self, width=5):
        super().__init__()
        self.config = {"width": width}
        self.layer = nn.Conv2d(1, 1, width, padding="same")


class Unknown(nn.Module):
    """A network that does not say what it was made with."""

    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)


def test_networks_of_ones_own(tmp_path):
    network = Blur(3)
    save(tiny(network=network), tmp_path / "m")
    assert torch.equal(load(tmp_path / "m", components={"Blur": Blur}).network.layer.weight, network.layer.weight)
    with pytest.raises(CodeNotTrusted, match="Blur"):
        load(tmp_path / "m")
    with pytest.raises(ValueError, match=r"Unknown\(width\) needs an attribute config"):
        save(tiny(network=Unknown(3)), tmp_path / "m")


def test_files_stay_readable():
    """A file that was written once and is kept: later versions must read it, and find the same."""
    found = load(DATA / "format1.safetensors")
    assert (found.sde, found.sampling_sde, found.sampler) == (VP(Cosine(s=0.01)), EDM(sigma_min=0.003), DDIM(0.25))
    assert (found.labels, found.names, found.shape, found.parametrization) == ((3, 7), ("shirt", "sneaker"), (1, 2, 2), Karras(0.6))
    assert found.records == ({"train_loss": [0.5, 0.25]},)
    total = sum(value.double().sum().item() for value in found.network.state_dict().values())
    assert total == pytest.approx(0.71875, abs=1e-12)
    assert inspect(DATA / "format1.safetensors").format == "1.0"


def test_the_facade(tmp_path):
    model = GenerativeModel.load(DATA / "format1.safetensors", verbose=False)
    model.sampler = "ddim"
    model.save(tmp_path / "m")
    again = GenerativeModel.load(tmp_path / "m", verbose=False)
    assert again.sampler == SAMPLERS["ddim"]() and torch.equal(again.generate(3, n_steps=3, seed=1), model.generate(3, n_steps=3, seed=1))
    assert GenerativeModel.load(tmp_path / "m", verbose=False, keep_sampler=False).sampler == SAMPLERS["euler-maruyama"]()


@pytest.mark.parametrize("raw", [False, True], ids=["averaged alone", "raw too"])
@pytest.mark.parametrize(("changes", "name"), COMPONENTS, ids=[name for _, name in COMPONENTS])
def test_the_facade_carries_everything(changes, name, raw, tmp_path):
    contents = tiny(**changes)
    if raw:
        contents = replace(contents, raw={key: value * 1.5 for key, value in contents.network.state_dict().items()})
    save(contents, tmp_path / "a")
    if name == "range":
        with pytest.raises(ModelFileError, match=r"values in \[0"):
            GenerativeModel.load(tmp_path / "a", verbose=False)
        return
    model = GenerativeModel.load(tmp_path / "a", "cpu", verbose=False)
    model.save(tmp_path / "b", dtype=None, raw=raw)
    if name == "no sampler":
        assert load(tmp_path / "b").sampler == SAMPLERS["euler-maruyama"]()
    else:
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()  # every bit of everything
        assert (model.sampler, model.grid, model.trained.raw is not None) == (contents.sampler, contents.grid, raw)
    if raw:
        model.save(tmp_path / "c", dtype=None)
        assert load(tmp_path / "c").raw is None
    else:
        with pytest.raises(ValueError, match="raw=True"):
            model.save(tmp_path / "c", raw=True)
    plain = GenerativeModel.load(tmp_path / "a", "cpu", verbose=False, keep_sampler=False)
    assert (plain.sampler, plain.grid, plain.n_steps) == (SAMPLERS["euler-maruyama"](), None, SAMPLERS["euler-maruyama"].n_steps_default)


TEXTS = st.text(max_size=8)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_configuration_comes_back(data, tmp_path_factory):
    """Names, numbers and times of any kind, through the facade, byte for byte."""
    folder = tmp_path_factory.mktemp("any")
    labels = tuple(data.draw(st.lists(st.one_of(st.integers(-(2**53), 2**53), TEXTS), max_size=5, unique_by=repr)))
    network = MLP(dim=4, width=8, depth=1, num_classes=len(labels))
    names = data.draw(st.one_of(st.none(), st.lists(TEXTS, min_size=len(labels), max_size=len(labels), unique_by=str.casefold).map(tuple)))
    times = st.lists(st.floats(0.02, 0.99), min_size=1, max_size=6, unique=True).map(lambda v: tuple(sorted(v, reverse=True)))
    values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
                          lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)), max_leaves=8)  # fmt: skip
    contents = tiny(
        network=network,
        labels=labels,
        names=names,
        grid=data.draw(st.one_of(st.none(), st.sampled_from(GRIDS.names()), times)),
        n_steps=data.draw(st.one_of(st.none(), st.integers(1, 1000))),
        records=tuple(data.draw(st.lists(st.dictionaries(TEXTS, values, max_size=3), max_size=2))),
        parametrization=Karras(data.draw(st.floats(0.01, 10))),
        sampler=DDIM(data.draw(st.floats(0, 1))),
    )
    save(contents, folder / "a")
    GenerativeModel.load(folder / "a", "cpu", verbose=False).save(folder / "b", dtype=None)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_own_guidance_and_metrics_stay_with_the_model(tmp_path):
    model = GenerativeModel.load(DATA / "format1.safetensors", "cpu", verbose=False)
    guidance, metric = corpus.IntervalGuidance(model.denoiser(), guidance_scale=3.0), corpus.Brightness()
    with pytest.warns(UserWarning, match="Brightness is saved as source only"):
        save(tiny(guidance=(guidance,), metrics=(metric,)), tmp_path / "a")
    model = GenerativeModel.load(tmp_path / "a", "cpu", verbose=False, components={"Brightness": corpus.Brightness})
    (read,) = model.trained.guidance
    assert read.program.name == "IntervalGuidance" and read.settings == {"guidance_scale": 3.0, "low": 0.2, "high": 5.0}
    assert model.trained.metrics == (metric,)
    with pytest.warns(UserWarning, match="Brightness is saved as source only"):
        model.save(tmp_path / "b", dtype=None)
    again = load(tmp_path / "b", components={"Brightness": corpus.Brightness})
    assert again.guidance == (read,) and again.metrics == (metric,)


def test_a_grid_is_used_and_belongs_to_sampler_and_process(tmp_path):
    model = GenerativeModel.load(DATA / "format1.safetensors", "cpu", verbose=False)
    model.grid = torch.tensor([1.0, 0.3, 0.1])
    assert model.n_steps == 3
    denoiser = model.denoiser()
    condition = {"label": torch.tensor([-1, -1])}
    direct = model.sampler(denoiser, shape=(2, *model.shape), grid=model.grid, seeds=5, condition=condition)
    assert torch.equal(model.generate(2, seed=5), to_unit(direct.x).float())
    with pytest.raises(ValueError, match="holds 5 times"):
        model.generate(1, n_steps=5)
    assert model.under("vp").grid is None and model.grid is not None
    for wrong in ((0.1, 0.5), (2.0, 0.5), "karass"):
        with pytest.raises(ValueError):
            model.grid = wrong
    with pytest.raises(ValueError, match="n_steps"):
        model.n_steps = 0
    model.sampler = "ddim"
    assert model.grid is None
    with pytest.raises(ValueError, match="t_min"):  # times that the process has not; a file that says so: tests/files/test_bounds.py
        save(tiny(grid=(0.5, 1e-9)), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_file_from_a_gpu_loads_without_one(tmp_path):
    """Nothing in a file says where its tensors were; a record that speaks of CUDA is only a record."""
    save(tiny(records=({"device": "cuda:3", "precision": "bfloat16"},)), tmp_path / "m")
    header, body = parts(tmp_path / "m")
    assert not any("cuda" in json.dumps(entry) for name, entry in header.items() if name != "__metadata__")
    model = GenerativeModel.load(tmp_path / "m", "cpu", verbose=False)
    assert {p.device.type for p in model.trained.network.parameters()} == {"cpu"} and model.record["device"] == "cuda:3"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
            GenerativeModel.load(tmp_path / "m", "cuda", verbose=False)
    else:
        on_gpu = GenerativeModel.load(tmp_path / "m", "cuda", verbose=False)
        assert on_gpu.device.type == "cuda"
        on_gpu.save(tmp_path / "again", dtype=None)
        assert (tmp_path / "again").read_bytes() == (tmp_path / "m").read_bytes()


# hostile files


def parts(path):
    """Header and body of a file."""
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def good(tmp_path):
    """Header, texts and body of a sound file that holds a program, and a source to which nothing refers."""
    save(tiny(sde=VP(corpus.TutorialExponential())), tmp_path / "good")
    (header, body), source = parts(tmp_path / "good"), source_of(corpus.TutorialExponential)
    row = {"kind": source.kind, "name": source.name, "base": source.base, "api": source.api, "text": source.text, "sha256": source.digest}
    header["__metadata__"]["diffnb.sources"] = canonical_json({"TutorialExponential-1": row})
    header["__metadata__"]["diffnb.digest"] = digest_of(header["__metadata__"], parse_header(json.dumps(header))[1], [body])
    return header, body


def assembled(header, body, fit=True):
    """A file of these parts, with a digest that fits if asked for."""
    if fit:
        header["__metadata__"]["diffnb.digest"] = digest_of(header["__metadata__"], parse_header(json.dumps(header))[1], [body])
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def header_text(text, body=b""):
    return struct.pack("<Q", len(text)) + text + body


def many_tensors(n):
    """A header of so many empty tensors."""
    return ("{" + ",".join(f'"t{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(n)) + "}").encode()


W = '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
CONTAINERS = {
    "empty": (b"", BadHeader),
    "two bytes": (b"{}", BadHeader),
    "header length 0": (struct.pack("<Q", 0) + b"{}" * 10, BadHeader),
    "header length 1": (struct.pack("<Q", 1) + b"{}" * 10, BadHeader),
    "header length 2^63": (struct.pack("<Q", 2**63) + b"{}", BadHeader),
    "header length over the cap": (struct.pack("<Q", 2**23 + 1) + b"{}", LimitExceeded),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", BadHeader),
    "truncated header": (header_text(b'{"w":{"dtype":"F32"'), BadHeader),
    "bad UTF-8": (header_text(b'{"\xff":1}'), BadHeader),
    "UTF-16": (header_text(W.encode("utf-16")), BadHeader),
    "byte order mark": (header_text(b"\xef\xbb\xbf" + W.encode(), b"1234"), BadHeader),
    "nested 100k": (header_text(b'{"w":' + b"[" * 100_000), BadHeader),
    "nested 100k in a tensor": (header_text(b'{"w":{"shape":' + b"[" * 100_000), BadHeader),
    "100k closed brackets": (header_text(b'{"w":{"dtype":"F32","shape":' + b"[" * 50_000 + b"]" * 50_000 + b',"data_offsets":[0,4]}}'), BadHeader),
    "a list": (header_text(b"[1, 2, 3]"), BadHeader),
    "a number": (header_text(b"123456"), BadHeader),
    "empty object": (header_text(b"{}"), BadManifest),
    "data after the header's end": (header_text(W.encode() + b"x", b"1234"), BadHeader),
    "comma at the end": (header_text(W[:-1].encode() + b",}", b"1234"), BadHeader),
    "duplicate tensor": (header_text(W[:-1].encode() + b"," + W[1:].encode(), b"1234"), BadHeader),
    "duplicate key": (header_text(W.replace('"shape"', '"dtype":"F32","shape"').encode(), b"1234"), BadHeader),
    "duplicate metadata": (header_text(b'{"__metadata__":{"a":"b","a":"c"}}'), BadHeader),
    "metadata twice": (header_text(b'{"__metadata__":{},"__metadata__":{}}'), BadHeader),
    "metadata with a number": (header_text(b'{"__metadata__":{"a":1}}'), BadHeader),
    "metadata with a list": (header_text(b'{"__metadata__":[]}'), BadHeader),
    "metadata with 1000 keys": (header_text(json.dumps({"__metadata__": {str(i): "" for i in range(1000)}}).encode()), LimitExceeded),
    "unknown field": (header_text(W.replace('"shape"', '"x":1,"shape"').encode(), b"1234"), BadHeader),
    "missing field": (header_text(b'{"w":{"dtype":"F32","shape":[1]}}', b"1234"), BadHeader),
    "short body": (header_text(W.encode(), b"12"), BadHeader),
    "trailing bytes": (header_text(W.encode(), b"12345"), BadHeader),
    "hole": (header_text(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"12345678"), BadHeader),
    "overlap": (header_text(W[:-1].encode() + b',"v":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}', b"123456"), BadHeader),
    "offsets reversed": (header_text(W.replace("[0,4]", "[4,0]").encode(), b"1234"), BadHeader),
    "three offsets": (header_text(W.replace("[0,4]", "[0,2,4]").encode(), b"1234"), BadHeader),
    "shape and offsets disagree": (header_text(W.replace("[1]", "[2]").encode(), b"1234"), BadHeader),
    "product overflow": (header_text(W.replace("[1]", "[4294967296,4294967296,4294967296]").encode(), b"1234"), BadHeader),
    "negative dimension": (header_text(W.replace("[1]", "[-1]").encode(), b"1234"), BadHeader),
    "float dimension": (header_text(W.replace("[1]", "[1.0]").encode(), b"1234"), BadHeader),
    "exponent dimension": (header_text(W.replace("[1]", "[1e0]").encode(), b"1234"), BadHeader),
    "true as dimension": (header_text(W.replace("[1]", "[true]").encode(), b"1234"), BadHeader),
    "text as dimension": (header_text(W.replace("[1]", '["1"]').encode(), b"1234"), BadHeader),
    "100k dimensions": (header_text(W.replace("[1]", "[" + "1," * 100_000 + "1]").encode(), b"1234"), BadHeader),
    "9 dimensions": (header_text(W.replace("[1]", "[1,1,1,1,1,1,1,1,1]").encode(), b"1234"), LimitExceeded),
    "[0, 2^40]": (header_text(b'{"w":{"dtype":"F32","shape":[0,1099511627776],"data_offsets":[0,0]}}'), BadManifest),
    "a long number": (header_text(W.replace("[1]", "[" + "9" * 900 + "]").encode(), b"1234"), BadHeader),
    "unknown type": (header_text(W.replace("F32", "F31").encode(), b"1234"), BadHeader),
    "type of another library": (header_text(W.replace("F32", "F8_E4M3").encode(), b"1234"), BadHeader),
    "type that is a number": (header_text(W.replace('"F32"', "32").encode(), b"1234"), BadHeader),
    "NUL in a name": (header_text(W.replace('"w"', '"w\\u0000"').encode(), b"1234"), BadHeader),
    "../../ in a name": (header_text(W.replace('"w"', '"../../w"').encode(), b"1234"), BadHeader),
    "empty name": (header_text(W.replace('"w"', '""').encode(), b"1234"), BadHeader),
    "long name": (header_text(W.replace('"w"', f'"{"w" * 1000}"').encode(), b"1234"), LimitExceeded),
    "unicode name": (header_text(W.replace('"w"', '"\u0430"').encode(), b"1234"), BadHeader),
    "tensors of another program": (header_text(W.encode(), b"1234"), BadManifest),
    "NaN in the header": (header_text(W.replace("[1]", "NaN").encode(), b"1234"), BadHeader),
    "300,000 tensors": (header_text(many_tensors(300_000)), LimitExceeded),
    "100,000 tensors": (header_text(many_tensors(100_000)), LimitExceeded),
    "8,193 tensors": (header_text(many_tensors(8_193)), LimitExceeded),
    "8,192 tensors and another hole": (header_text(many_tensors(8_192), b"1"), BadHeader),
    "8,192 tensors, written with spaces": (header_text(many_tensors(8_192).replace(b",", b", ").replace(b":", b" : ")), BadManifest),
    "keys that are not counted": (header_text(b'{"w":{"dtype":"U8","shape":[0],"data\\u005foffsets":[0,0]}}'), BadHeader),
    "1M keys in one tensor": (header_text(b'{"w":{' + b'"a":1,' * 1_000_000 + b'"b":1}}'), BadHeader),
    "99 MB text": (struct.pack("<Q", 99_000_000) + b'{"__metadata__":{"a":"' + b"x" * 1000, LimitExceeded),
    "8 MB text": (header_text(b'{"__metadata__":{"diffnb.version":"' + b"1" * 8_000_000 + b'"}}'), UnsupportedVersion),
    "8 MB text of escapes": (header_text(b'{"__metadata__":{"diffnb.version":"' + b"\\n" * 4_000_000 + b'"}}'), UnsupportedVersion),
    "15 MB text": (header_text(b'{"__metadata__":{"diffnb.version":"' + b"1" * 15_000_000 + b'"}}'), LimitExceeded),
    "8 MB of brackets": (header_text(b'{"w":{"dtype":[' + b"[]," * 2_700_000), BadHeader),
    "8 MB of spaces": (header_text(b"{" + b" " * 8_000_000), BadHeader),
    "8 MB of a name": (header_text(b'{"' + b"a" * 8_000_000), BadHeader),
    "16 MB of brackets": (header_text(b'{"w":{"dtype":[' + b"[]," * 5_000_000), LimitExceeded),
    "future major": (header_text(b'{"__metadata__":{"diffnb.version":"2.0"}}'), UnsupportedVersion),
    "a zip with a pickle": (b"PK\x03\x04" + b"data.pkl" * 10, BadHeader),
    "a raw pickle": (pickle.dumps({"a": 1}), BadHeader),
    "an old pickle": (pickle.dumps([1] * 50, protocol=0), BadHeader),
    "HTML": (b"<html><body>not found</body></html>", BadHeader),
    "a PNG": (b"\x89PNG\r\n\x1a\n" + bytes(100), BadHeader),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_hostile_container(name, tmp_path):
    data, kind = CONTAINERS[name]
    (tmp_path / "m").write_bytes(data)
    for door in (load, inspect):
        start = time.process_time()  # of this process alone: the machine may be busy
        with pytest.raises(kind, match=str(tmp_path / "m")):
            door(tmp_path / "m")
        assert time.process_time() - start < 1


def field(path, value):
    """A change of the manifest at a dotted path."""

    def change(header, manifest):
        keys = path.split(".")
        for key in keys[:-1]:
            manifest = manifest[int(key) if key.isdecimal() else key]
        if value is KeyError:
            del manifest[keys[-1]]
        else:
            manifest[keys[-1]] = value

    return change


def text(key, value):
    def change(header, manifest):
        header["__metadata__"][key] = value

    return change


def in_source(**changes):
    """A change of the one source."""

    def change(header, manifest):
        sources = json.loads(header["__metadata__"]["diffnb.sources"])
        ((ident, row),) = sources.items()
        header["__metadata__"]["diffnb.sources"] = canonical_json({ident: row | changes})

    return change


def in_program(**changes):
    """A change of the one program."""

    def change(header, manifest):
        programs = json.loads(header["__metadata__"]["diffnb.programs"])
        ((ident, data),) = programs.items()
        header["__metadata__"]["diffnb.programs"] = canonical_json({ident: data | changes})

    return change


def program_elsewhere(header, manifest):
    """The schedule's program where a process should be."""
    (ident,) = json.loads(header["__metadata__"]["diffnb.programs"])
    manifest["process"] = {"kind": "process", "component": f"program:{ident}", "settings": {}}


HUGE = {"kind": "network", "component": "builtin:mlp", "settings": {"dim": 2, "width": 8, "depth": 30_000}}
DDIM_ROW = {"kind": "sampler", "component": "builtin:ddim", "settings": {}}
MANIFESTS = {
    "unknown field": (field("trust", True), BadManifest),
    "trust in a component": (field("process.trust", True), BadManifest),
    "missing field": (field("records", KeyError), BadManifest),
    "version is a number": (field("version", 1), BadManifest),
    "shape is negative": (field("data.shape", [-1]), BadManifest),
    "shape is a float": (field("data.shape", [1.5]), BadManifest),
    "shape of true": (field("data.shape", [True]), BadManifest),
    "range falls": (field("data.range", [1, -1]), BadManifest),
    "range of three": (field("data.range", [0, 1, 2]), BadManifest),
    "labels are lists": (field("data.labels", [[1], [2]]), BadManifest),
    "labels of floats": (field("data.labels", [1.5, 2.5]), BadManifest),
    "too few names": (field("data.names", ["a"]), BadManifest),
    "names are numbers": (field("data.names", [1, 2]), BadManifest),
    "records are numbers": (field("records", [1]), BadManifest),
    "records 40 deep": (field("records", [{"a": json.loads("[" * 40 + "]" * 40)}]), BadManifest),
    "records with 2^53 + 1": (field("records", [{"a": 2**53 + 1}]), BadManifest),
    "weights unknown": (field("weights", ["model", "other"]), BadManifest),
    "weights raw, which are not there": (field("weights", ["model", "raw"]), WeightsMismatch),
    "grid rises": (field("sampling.grid", [0.1, 0.5]), BadManifest),
    "grid beyond 1": (field("sampling.grid", [2.0, 0.5]), BadManifest),
    "grid unknown": (field("sampling.grid", "os.system"), BadManifest),
    "no steps": (field("sampling.n_steps", 0), BadManifest),
    "sampler is 0": (field("sampling.sampler", 0), BadManifest),
    "sampler is false": (field("sampling.sampler", False), BadManifest),
    "process is null": (field("process", None), BadManifest),
    "process is a sampler": (field("process", {"kind": "sampler", "component": "builtin:ddim", "settings": {}}), BadManifest),
    "kind is a list": (field("process.kind", ["process"]), BadManifest),
    "builtin:os.system": (field("process.component", "builtin:os.system"), UnknownComponent),
    "builtin:__class__": (field("process.component", "builtin:__class__"), UnknownComponent),
    "builtin with an alias": (field("process.component", "builtin:ddpm"), UnknownComponent),
    "builtin without a name": (field("process.component", "builtin:"), UnknownComponent),
    "module:os": (field("process.component", "module:os"), UnknownComponent),
    "reference is a number": (field("process.component", 3), UnknownComponent),
    "reference with a newline": (field("process.component", "builtin:vp\n"), UnknownComponent),
    "program that is not there": (field("process.component", "program:x"), BadManifest),
    "source that is not there": (field("process.component", "python:x"), BadManifest),
    "network is a program": (field("network.component", "program:x"), BadManifest),
    "unknown setting": (field("sampling.sampler.settings.x", 1), BadManifest),
    "setting out of range": (field("parametrization.settings.sigma_data", -1), BadManifest),
    "setting is text": (field("parametrization.settings.sigma_data", "__import__('os')"), BadManifest),
    "setting is a list": (field("parametrization.settings.sigma_data", [1]), BadManifest),
    "setting is a component": (
        field("parametrization.settings.sigma_data", {"kind": "sampler", "component": "builtin:ddim", "settings": {}}),
        BadManifest,
    ),
    "setting is a network": (field("parametrization.settings.sigma_data", HUGE), BadManifest),
    "setting is a list with a network in it": (field("process.settings.schedule.settings.beta_max", [1.0, [HUGE]]), BadManifest),
    "guidance is a network": (field("guidance", [HUGE]), BadManifest),
    "65 components": (field("process.settings.schedule.settings.beta_max", [DDIM_ROW] * 65), LimitExceeded),
    "100,000 components": (field("guidance", [{"kind": 1, "component": [{"component": 1}] * 100_000}]), LimitExceeded),
    "setting with a dunder": (field("parametrization.settings.__class__", 1), BadManifest),
    "settings are a list": (field("process.settings", []), BadManifest),
    "settings are null": (field("process.settings", None), BadManifest),
    "schedule is a process": (field("process.settings.schedule", {"kind": "process", "component": "builtin:ve", "settings": {}}), BadManifest),
    "width 10^9": (field("network.settings.width", 10**9), LimitExceeded),
    "depth 10^9": (field("network.settings.depth", 10**9), LimitExceeded),
    "depth 60000": (field("network.settings.depth", 60_000), LimitExceeded),
    "width 16": (field("network.settings.width", 16), WeightsMismatch),
    "depth 2": (field("network.settings.depth", 2), WeightsMismatch),
    "no classes": (field("network.settings.num_classes", 0), WeightsMismatch),
    "width -2": (field("network.settings.width", -2), BadManifest),
    "width is a text": (field("network.settings.width", "8"), BadManifest),
    "another network": (field("network", {"kind": "network", "component": "builtin:unet", "settings": {}}), WeightsMismatch),
    "manifest is no JSON": (text("diffnb.manifest", "{"), BadManifest),
    "manifest is a list": (text("diffnb.manifest", "[]"), BadManifest),
    "manifest with NaN": (text("diffnb.manifest", '{"version": NaN}'), BadManifest),
    "manifest with a key twice": (text("diffnb.manifest", '{"a": 1, "a": 1}'), BadManifest),
    "manifest nested 1000 deep": (text("diffnb.manifest", "[" * 1000 + "]" * 1000), BadManifest),
    "manifest nested 100k deep": (text("diffnb.manifest", "[" * 100_000), BadManifest),
    "manifest with 10^400": (text("diffnb.manifest", '{"a": 1e400}'), BadManifest),
    "manifest with a long number": (text("diffnb.manifest", '{"a": ' + "9" * 5000 + "}"), BadManifest),
    "manifest of 2 MB": (text("diffnb.manifest", " " * 2**21), LimitExceeded),
    "manifest of surrogates": (text("diffnb.manifest", '"\\ud800"'), BadManifest),
    "recipe of an earlier version": (field("process.component", "recipe:x"), UnknownComponent),
    "table of an earlier version": (text("diffnb.recipes", '{"a": {}}'), BadManifest),
    "program is of another kind": (in_program(kind="parametrization"), ProgramError),
    "program in another slot": (program_elsewhere, BadManifest),
    "program calls what there is not": (in_program(functions={"beta": {"operations": [["os.system", 0]], "outputs": [1]}}), ProgramError),
    "program is a text": (text("diffnb.programs", '{"a": "b"}'), ProgramError),
    "programs with NaN": (text("diffnb.programs", '{"a": NaN}'), BadManifest),
    "a program of 300 kB": (text("diffnb.programs", '{"a": "' + "b" * 300_000 + '"}'), LimitExceeded),
    "settings of a program under names that are none": (field("process.settings.schedule.settings", {"a b": 1}), BadManifest),
    "a network under the settings of a program": (field("process.settings.schedule.settings.x", HUGE), BadManifest),
    "programs are a list": (text("diffnb.programs", "[]"), BadManifest),
    "programs of 2 MB": (text("diffnb.programs", " " * 2**21), LimitExceeded),
    "programs with an ID ../x": (text("diffnb.programs", '{"../x": {}}'), BadManifest),
    "sources are a text": (text("diffnb.sources", '"a"'), BadManifest),
    "source without fields": (text("diffnb.sources", '{"a": {}}'), BadManifest),
    "source that is not what its digest says": (in_source(text="import os"), BadManifest),
    "source under another name": (in_source(name="os.system"), BadManifest),
    "source of another kind": (in_source(kind="network"), BadManifest),
    "source without an end": (in_source(text="#" * 2**18 + "!"), LimitExceeded),
    "source of 2 MB": (text("diffnb.sources", " " * 2**21), LimitExceeded),
    "version 1.0.1 ... long": (text("diffnb.version", "1." + "0" * 50), UnsupportedVersion),
    "version 2": (text("diffnb.version", "2"), UnsupportedVersion),
    "version empty": (text("diffnb.version", ""), UnsupportedVersion),
    "another key in the metadata": (text("diffnb.files.trust", "true"), BadManifest),
}


def with_manifest(name, header, body):
    """A file with one of these changes, and a digest that fits."""
    header = json.loads(json.dumps(header))
    manifest = json.loads(header["__metadata__"]["diffnb.manifest"])
    MANIFESTS[name][0](header, manifest)
    if not name.startswith("manifest"):
        header["__metadata__"]["diffnb.manifest"] = canonical_json(manifest)
    return assembled(header, body)


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifest(name, tmp_path):
    (tmp_path / "m").write_bytes(with_manifest(name, *good(tmp_path)))
    start = time.process_time()
    with pytest.raises(MANIFESTS[name][1]):
        load(tmp_path / "m")
    assert time.process_time() - start < 1
    try:
        str(inspect(tmp_path / "m"))
    except ModelFileError:
        pass


def test_the_number_of_components_is_the_readers_to_limit(tmp_path):
    save(tiny(), tmp_path / "m")
    load(tmp_path / "m")
    with pytest.raises(LimitExceeded, match="components, more than 3"):
        load(tmp_path / "m", limits=Limits(components=3))


def test_networks_travel_in_no_setting(tmp_path):
    """Their weights would stay behind; a program needs no settings."""
    save(tiny(sde=VP(corpus.SummedByHand(more=(MLP(dim=2),)))), tmp_path / "m")
    assert load(tmp_path / "m").sde.schedule.settings is None
    (tmp_path / "m").unlink()
    with pytest.raises(ValueError, match="weights would not travel"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tiny(sde=VP(corpus.KeptApart(more=(MLP(dim=2),)))), tmp_path / "m")
    with pytest.raises(ValueError, match="137 components, more than the 64"):
        save(tiny(sde=VP(corpus.SummedByHand(more=(Cosine(),) * 65))), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def retyped(name, dtype, value, of="model.stem.bias"):
    """A file in which one tensor has another type and content."""

    def change(tmp_path):
        header, body = good(tmp_path)
        entry = header[of]
        n = entry["data_offsets"][1] - entry["data_offsets"][0]
        data = (value * n)[:n]
        if dtype is not None:
            entry["dtype"] = dtype
            entry["shape"] = [n // {"F32": 4, "I32": 4, "BOOL": 1, "F16": 2}[dtype]]
        return assembled(header, body[: entry["data_offsets"][0]] + data + body[entry["data_offsets"][1] :])

    return pytest.param(change, id=name)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        pytest.param(retyped("", None, b"\x00\x00\xc0\x7f").values[0], NonFiniteWeights, id="NaN"),
        pytest.param(retyped("", None, b"\x00\x00\x80\x7f").values[0], NonFiniteWeights, id="inf"),
        pytest.param(retyped("", "I32", b"\x01\x00\x00\x00").values[0], WeightsMismatch, id="whole numbers"),
        pytest.param(retyped("", "BOOL", b"\xff").values[0], WeightsMismatch, id="BOOL 255"),
        pytest.param(retyped("", "F16", b"\x00\x00").values[0], WeightsMismatch, id="other shape"),
    ],
)
def test_hostile_numbers(change, kind, tmp_path):
    (tmp_path / "m").write_bytes(change(tmp_path))
    with pytest.raises(kind):
        load(tmp_path / "m")


def test_boolean_bytes(tmp_path):
    from diffnb.files import Entry, check_values

    with pytest.raises(NonFiniteWeights, match="one of them is 255"):
        check_values({"w": torch.tensor([1, 255], dtype=torch.uint8)}, {"w": Entry(torch.bool, (2,), 0, 2)})


@pytest.mark.parametrize("what", ["missing", "extra", "renamed", "stray"])
def test_weights_that_do_not_fit(what, tmp_path):
    contents = tiny()
    state = contents.network.state_dict()

    class Other(nn.Module):
        config = {}

        def state_dict(self, *args, **kwargs):
            changed = dict(state)
            if what in ("missing", "renamed"):
                bias = changed.pop("stem.bias")
            if what in ("extra", "renamed"):
                changed["other.bias"] = state["stem.bias"] if what == "extra" else bias
            return changed

    save(contents, tmp_path / "good")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(replace(contents, network=Other(), raw=state if what == "stray" else None), tmp_path / "m")
    raw, sound = (tmp_path / "m").read_bytes(), (tmp_path / "good").read_bytes()
    n, k = int.from_bytes(raw[:8], "little"), int.from_bytes(sound[:8], "little")
    header, manifest = json.loads(raw[8 : 8 + n]), json.loads(sound[8 : 8 + k])["__metadata__"]["diffnb.manifest"]
    header["__metadata__"]["diffnb.manifest"] = manifest
    (tmp_path / "m").write_bytes(assembled(header, raw[8 + n :]))
    with pytest.raises(WeightsMismatch):
        load(tmp_path / "m")


def test_every_byte_counts(tmp_path):
    """One flipped bit anywhere, and a cut at any place, is noticed."""
    save(tiny(network=MLP(dim=1, width=2, depth=1), shape=(1,), labels=(), names=None, records=()), tmp_path / "m")
    raw = (tmp_path / "m").read_bytes()
    for i in range(0, len(raw), 11):
        (tmp_path / "x").write_bytes(raw[:i] + bytes([raw[i] ^ 1 << i % 8]) + raw[i + 1 :])
        with pytest.raises(ModelFileError):
            load(tmp_path / "x")
        (tmp_path / "x").write_bytes(raw[:i])
        with pytest.raises(ModelFileError):
            load(tmp_path / "x")
    header, body = good(tmp_path)
    (tmp_path / "x").write_bytes(assembled(header, bytes([body[0] ^ 1]) + body[1:], fit=False))
    with pytest.raises(DigestMismatch):
        load(tmp_path / "x")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for what in (tmp_path / "pipe", "/dev/zero", tmp_path, "a\0b"):
        with pytest.raises(BadHeader):
            load(what)
        with pytest.raises(BadHeader):
            inspect(what)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")
    for name, content in {"model.pt2": b"PK\x03\x04archive", "model.ckpt": pickle.dumps([1])}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadHeader, match="read_pickled_weights"):
            load(tmp_path / name)


def test_flags_are_not_trust(tmp_path):
    save(tiny(), tmp_path / "m")
    for wrong in (True, "yes", 1, {"Foo"}):
        with pytest.raises(TypeError, match="TrustStore"):
            load(tmp_path / "m", trust=wrong)
    with pytest.raises(ValueError, match="code must be one of"):
        load(tmp_path / "m", code="all")
    with pytest.raises(TypeError, match="components"):
        load(tmp_path / "m", components={"Foo": 3})


def test_code_runs_only_where_it_was_allowed(tmp_path, monkeypatch):
    """In no mode by itself; in the mode that was confirmed, and for the text that was; without a store, by the user's own."""
    ran = tmp_path / "ran"
    source = ComponentSource("schedule", "Mark", "NoiseSchedule", MARK.format(path=str(ran)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tiny(sde=VP(corpus.CachedByHand())), tmp_path / "m")
    header, body = parts(tmp_path / "m")
    manifest = json.loads(header["__metadata__"]["diffnb.manifest"])
    for slot in (manifest["process"], manifest["sampling"]["process"]):
        slot["settings"]["schedule"] = {"kind": "schedule", "component": "python:Mark-1", "settings": {}}
    row = {"kind": source.kind, "name": source.name, "base": source.base, "api": source.api, "text": source.text, "sha256": source.digest}
    header["__metadata__"] |= {"diffnb.manifest": canonical_json(manifest), "diffnb.sources": canonical_json({"Mark-1": row})}
    (tmp_path / "m").write_bytes(assembled(header, body))
    store = TrustStore(tmp_path / "trust.json")
    store.add(replace(source, text=source.text + "\n"), "inprocess")
    for code in CODES:
        with pytest.raises(CodeNotTrusted):
            load(tmp_path / "m", code=code, trust=store)
    store.add(source, "sandbox")
    with pytest.raises(CodeNotTrusted, match="has not been confirmed for code='inprocess'"):
        load(tmp_path / "m", code="inprocess", trust=store)
    assert not ran.exists()
    store.add(source, "inprocess")
    assert load(tmp_path / "m", code="inprocess", trust=store).sde.schedule.beta(torch.zeros(1)).item() == 1 and ran.exists()
    monkeypatch.setattr("diffnb.files.trust.default_store", lambda: store.path)
    assert load(tmp_path / "m", code="inprocess").sde.schedule.beta(torch.zeros(1)).item() == 1
    monkeypatch.setattr("diffnb.files.trust.default_store", lambda: tmp_path / "another.json")
    with pytest.raises(CodeNotTrusted, match="has not been confirmed"):
        load(tmp_path / "m", code="inprocess")
    with pytest.raises(CodeNotTrusted, match="has not been confirmed"):
        Context("inprocess").allow(source, {}, "process.schedule")


MARK = """
import pathlib
from diffnb.noise import NoiseSchedule
pathlib.Path({path!r}).write_text("ran")

class Mark(NoiseSchedule):
    def beta(self, t):
        return 1 + 0 * t

    def integral(self, t):
        return t
"""


def with_source(text, header, body):
    """A file whose schedule is such a source, and a digest that fits."""
    header, source = json.loads(json.dumps(header)), ComponentSource("schedule", "Bad", "NoiseSchedule", unicodedata.normalize("NFC", text))
    manifest = json.loads(header["__metadata__"]["diffnb.manifest"])
    manifest["process"]["settings"]["schedule"] = {"kind": "schedule", "component": "python:Bad-1", "settings": {}}
    row = {"kind": source.kind, "name": source.name, "base": source.base, "api": source.api, "text": source.text, "sha256": source.digest}
    header["__metadata__"] |= {"diffnb.manifest": canonical_json(manifest), "diffnb.sources": canonical_json({"Bad-1": row})}
    return assembled(header, body)


def test_hostile_sources_are_shown_and_never_run(tmp_path):
    """Each attack of the corpus in a file: read by both doors, run by none. (Alive they are in test_sandbox.py, and held there.)"""
    canary, (header, body) = tmp_path / "canary", good(tmp_path)
    for name, text in ATTACKS.items():
        (tmp_path / "m").write_bytes(with_source(text.replace("CANARY", str(canary)), header, body))
        for code in ("builtin", "program"):
            with pytest.raises((CodeNotTrusted, LimitExceeded), match="Nothing was run|more than"):
                load(tmp_path / "m", code=code)
        if len(text) < 2**18:
            assert str(inspect(tmp_path / "m")).isascii()
        assert not canary.exists(), name


def test_a_file_may_change_after_it_was_read(tmp_path):
    contents = tiny()
    save(contents, tmp_path / "m")
    found = load(tmp_path / "m")
    with open(tmp_path / "m", "r+b") as file:
        file.seek(-40, 2)
        file.write(b"\xff" * 40)
        file.truncate(50)
    equal(found, contents)


def test_refusing_costs_little_memory_and_time(tmp_path):
    """Every hostile header and manifest, and a file whose header is sound and whose body is large: under 200 MB, and a second of computing."""
    n = 2**33
    header = ('{"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]},"__metadata__":{"diffnb.version":"1.0"}}' % (n, n)).encode()
    with open(tmp_path / "sparse", "wb") as file:  # 8 GiB
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + n)
    for i, (data, _) in enumerate(CONTAINERS.values()):
        (tmp_path / f"c{i}").write_bytes(data)
    header, body = good(tmp_path)
    (tmp_path / "good").unlink()
    for i, name in enumerate(MANIFESTS):
        (tmp_path / f"m{i}").write_bytes(with_manifest(name, header, body))
    script = """
import resource, sys, time
from diffnb.files import ModelFileError, TrustError
from diffnb.files import inspect
from diffnb.files import load
base, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
for path in sys.argv[1:]:
    for door in (load, inspect):
        start = time.process_time()
        try:
            door(path)
        except (ModelFileError, TrustError):
            pass
        slowest = max(slowest, time.process_time() - start)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024, slowest)
"""
    paths = sorted(str(path) for path in tmp_path.iterdir())
    _, out, err = program(script, *paths)
    memory, slowest = map(float, out.split())
    assert memory < 200 and slowest < 3, out + err  # a third of a second on a quiet machine


AUDIT = """
import sys, torch
from diffnb.files import inspect
from diffnb.files import load
from diffnb.files import ModelFileError, TrustError
load(sys.argv[1])
events = []
watched = {"exec", "compile", "import", "os.system", "subprocess.Popen", "socket.connect", "ctypes.dlopen"}
sys.addaudithook(lambda event, args: events.append((event, str(args)[:80])) if event in watched else None)
for path in sys.argv[1:]:
    for door in (load, inspect):
        try:
            str(door(path))
        except (ModelFileError, TrustError):
            pass
print(events)
"""


def test_reading_raises_no_audit_events(tmp_path):
    """Sound and hostile files, with programs and with sources: no exec, compile or import while they are read."""
    save(tiny(sde=VP(corpus.TableSchedule()), sampler=corpus.AdamsBashforth()), tmp_path / "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(tiny(sde=VP(corpus.CachedByHand())), tmp_path / "1")
    for i, (data, _) in enumerate(CONTAINERS.values()):
        if len(data) < 10**6:
            (tmp_path / f"c{i}").write_bytes(data)
    header, body = good(tmp_path)
    for i, name in enumerate(MANIFESTS):
        (tmp_path / f"m{i}").write_bytes(with_manifest(name, header, body))
    for i, text in enumerate(ATTACKS.values()):
        (tmp_path / f"s{i}").write_bytes(with_source(text, header, body))
    paths = sorted(str(path) for path in tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", AUDIT, *paths], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout[-2000:] + done.stderr[-2000:]


# crashes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that is killed has to be a copy of this one")
def test_a_crash_leaves_the_old_file_or_the_new_one(tmp_path):
    path, networks = tmp_path / "m", [MLP(dim=2, width=256, depth=3) for _ in range(2)]
    for k, network in enumerate(networks):
        for p in network.parameters():
            torch.nn.init.constant_(p, k + 1.0)
    for delay in (0.0, 0.004, 0.02, 0.003, 0.007, 0.013):
        writer = os.fork()
        if writer == 0:  # writes the one and the other until it is killed
            try:
                for k in itertools.count():
                    save(Contents(networks[k % 2], VP(), Karras(), (2,), version=str(k % 2)), path)
            finally:
                os._exit(1)
        while not path.exists():
            assert os.waitpid(writer, os.WNOHANG) == (0, 0)  # a writer that cannot write is no crash
            time.sleep(0.001)
        time.sleep(delay)
        os.kill(writer, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
        found = load(path)  # whole, and of one piece
        values = {value.item() for p in found.network.parameters() for value in (p.min(), p.max())}
        assert values == {float(found.version) + 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process that is killed half way has to be a copy of this one")
def test_a_kill_at_any_line_leaves_the_old_file_or_the_new_one(tmp_path):
    """Before each line that `write_atomically` runs; and what is left over is removed later, by another process's write."""
    path, old, new, found = tmp_path / "m", b"old" * 1000, [b"ne", b"w" * 1000], []
    for k in range(1, 1000):
        write_atomically(path, old)
        child = os.fork()
        if child == 0:
            killed_before_line(k, lambda: write_atomically(path, new))
        killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found.append(path.read_bytes())
        if killed == 0:
            break
        assert killed == -signal.SIGKILL
    assert set(found) == {old, b"".join(new)} and found[-1] == b"".join(new) and k > 15
    left = list(tmp_path.glob(".*.part"))
    assert left
    for unfinished in left:
        os.utime(unfinished, (0, 0))
    diffnb.core._swept.clear()
    write_atomically(path, old)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def killed_before_line(k, run):
    """Run, and end this process before the k-th line of diffnb.core; or at the end of it."""
    left = k

    def trace(frame, event, argument):
        nonlocal left
        if frame.f_code.co_filename == diffnb.core.__file__:
            left -= event == "line"
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    try:
        sys.settrace(trace)
        run()
        os._exit(0)
    finally:
        os._exit(1)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    save(tiny(), tmp_path / "m")
    before = (tmp_path / "m").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(tiny(labels=(1, 2)), tmp_path / "m")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="plain data"):
        save(tiny(records=({"loss": float("nan")},)), tmp_path / "m")
    with pytest.raises(FileNotFoundError, match="no folder"):
        save(tiny(), tmp_path / "nowhere" / "m")
    broken = tiny()
    with torch.no_grad():
        broken.network.stem.bias[0] = float("inf")
    with pytest.raises(ValueError, match="infinite"):
        save(broken, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_two_threads_may_save_to_one_place(tmp_path):
    models = [tiny(version="a"), tiny(version="b")]
    threads = [threading.Thread(target=lambda m=m: [save(m, tmp_path / "m") for _ in range(10)]) for m in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(tmp_path / "m").version in ("a", "b") and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_weights_of_a_pickle(tmp_path):
    network = UNet(widths=(8, 8), groups=4)
    torch.save({"model": network.state_dict(), "epoch": 3, "nested": {"list": [1, 2]}}, tmp_path / "old.pth")
    found = read_pickled_weights(tmp_path / "old.pth")
    assert torch.equal(found["model.stem.weight"], network.stem.weight)

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({"x": Harmful()}, tmp_path / "bad.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "noise.pth").write_bytes(b"noise" * 100)
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    for name in ("bad.pth", "raw.pth", "noise.pth", "none.pth"):
        with pytest.raises(ValueError):
            read_pickled_weights(tmp_path / name)
    assert not (tmp_path / "canary").exists()


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzzed_files(data, tmp_path_factory):
    """A bounded number of mutations with a fixed seed; benchmarks/fuzz_files.py makes a million."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        from fuzz_files import mutate_bytes, mutate_inside, read, seeds
    finally:
        sys.path.pop(0)
    import random

    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    if not hasattr(test_fuzzed_files, "files"):
        test_fuzzed_files.files = seeds(folder)
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    (folder / "m").write_bytes(rng.choice((mutate_bytes, mutate_inside))(rng.choice(test_fuzzed_files.files), rng))
    read(folder / "m")  # raises whatever is not documented


def test_limits_can_be_lowered(tmp_path):
    save(tiny(), tmp_path / "m")
    for limits in (
        Limits(file_bytes=100),
        Limits(header_bytes=100),
        Limits(tensors=2),
        Limits(manifest_bytes=100),
        Limits(name_length=3),
        Limits(dimensions=1),
    ):
        with pytest.raises(LimitExceeded):
            load(tmp_path / "m", limits=limits)
    with pytest.raises(BadManifest, match="nested"):
        load(tmp_path / "m", limits=Limits(json_depth=2))
    with pytest.raises(TypeError, match="limits"):
        load(tmp_path / "m", limits=3)


def test_global_state_is_left_alone(tmp_path):
    save(tiny(), tmp_path / "m")
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    load(tmp_path / "m")
    assert torch.equal(before[0], torch.get_rng_state()) and before[1:] == (torch.get_default_dtype(), torch.is_grad_enabled())
