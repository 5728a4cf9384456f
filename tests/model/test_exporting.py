"""Exported models: the same function of y = x / alpha and lambda for every process, files that answer as PyTorch does, cards, and what is refused."""

import json
import math
import warnings

import pytest
import torch
from torch import nn

from diffnb.core import NoiseSource
from diffnb.model import GenerativeModel, Labels, Trained, card_of, graph_of, noise_of, read_card
from diffnb.noise import PARAMETRIZATIONS, SDES, VE
from diffnb.samplers import SAMPLERS, Consistency

SHAPE = (1, 4, 6)


class Bend(nn.Module):
    """A network that is recorded in a moment, and whose answer depends on all that it is given."""

    condition_names = ("label",)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(0.3 * torch.randn(1, 1, 3, 3, generator=generator))
        self.shift = nn.Parameter(torch.randn(4, 1, generator=generator))

    def forward(self, x, half_log_snr, label=None):
        label = torch.full_like(half_log_snr, -1).long() if label is None else label
        bend = self.shift[label + 1] + torch.sin(half_log_snr)[:, None]
        return torch.tanh(nn.functional.conv2d(x, self.mix, padding=1) + bend[..., None, None])


def model(process="edm", parametrization="karras", sampler="dpm-solver++2m", records=()):
    trained = Trained(Bend(), SDES[process](), PARAMETRIZATIONS[parametrization](), SHAPE, Labels((3, 5, 7), ("a", "b", "c")), records)
    return GenerativeModel.of(trained, sampler=sampler, device="cpu", verbose=False)


@pytest.mark.parametrize("parametrization", ["karras", "epsilon", "v", "x0", "flow"])
@pytest.mark.parametrize("process", SDES.names())
def test_the_function_is_the_denoiser_of_any_process(process, parametrization):
    made = model(process, parametrization)
    graph, shape = graph_of(made)
    # kappa between the ends of training, and beyond both
    like = VE(math.exp(-graph.high) / 3, 3 * math.exp(-graph.low))
    levels = torch.linspace(graph.low - 1, graph.high + 1, 9, dtype=torch.float64)
    label = torch.arange(9) % 4 - 1
    x = torch.exp(-levels)[:, None, None, None] * NoiseSource.of(0, 9).normal(shape, "prior", dtype=torch.float64)
    expected = made.trained.denoiser().under(like)(x.float(), like.time_of_half_log_snr(levels), {"label": label}).x0
    assert (graph(x.float(), levels, label) - expected).abs().max() <= 2e-5 * max(1, expected.abs().max())


FIXED = [name for name in SAMPLERS.names() if SAMPLERS[name]().evaluations(4) is not None and name != "consistency"]


@pytest.mark.parametrize("sampler", FIXED)
def test_a_sampler_as_a_graph_draws_what_generate_draws(sampler):
    made = model("vp", "v", sampler)
    graph, shape = graph_of(made, n_steps=5)
    images = graph(noise_of(NoiseSource.of(5, 3), graph.draws, shape), torch.tensor([0, 1, -1]))
    for k, name in enumerate(("a", "b", None)):
        assert (made.generate(1, 5, 5, name, first=k)[0] - images[k]).abs().max() < 2e-3


def test_a_student_is_exported_with_its_own_sampler():
    student = model("edm", sampler=Consistency(), records=({"distilled": {"guidance_scale": 2.0}},))
    graph, shape = graph_of(student, n_steps=2)
    assert graph.draws == [("prior", 0), ("step", 0), ("step", 1)]
    images = graph(noise_of(NoiseSource.of(5, 2), graph.draws, shape), torch.tensor([2, 2]))
    assert (student.generate(2, 2, 5, "c") - images).abs().max() < 1e-5
    card = card_of(student, graph, shape)
    assert card["distilled"] and card["draws"] == [["prior", 0], ["step", 0], ["step", 1]] and list(card["inputs"]) == ["noise", "label"]


def test_a_program_of_pytorch_says_what_it_is_and_answers_the_same(tmp_path):
    made, path = model(), tmp_path / "model.pt2"
    done = made.export(path, weights="float16", licence="MIT")
    assert done.difference <= 1e-6 and done.size == path.stat().st_size
    assert b"exporting.py" not in path.read_bytes()  # no paths of whoever wrote it
    card = read_card(path)
    assert card == done.card == json.loads(json.dumps(done.card))
    told = {"range": [-1, 1], "shape": [1, 4, 6], "labels": [3, 5, 7], "names": ["a", "b", "c"], "licence": "MIT", "weights": "float16"}
    assert told.items() <= card.items() and card["half_log_snr"] == pytest.approx([-math.log(80), -math.log(0.002)])
    assert card["sampler"]["name"] == "dpm-solver++2m" and len(card["sampler"]["half_log_snr"]) == card["sampler"]["n_steps"] == 20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path).module()
    graph, _ = graph_of(made)
    for n in (1, 7):
        x, levels, label = torch.randn(n, *SHAPE), torch.linspace(-4, 6, n), torch.arange(n) % 4 - 1
        assert (program(x, levels, label) - graph(x, levels, label)).abs().max() < 2e-3  # the rounding of its weights


@pytest.mark.parametrize("process, parametrization, n_steps", [("vp", "v", None), ("flow-matching", "flow", 2)])
def test_onnxruntime_answers_as_pytorch_does(process, parametrization, n_steps, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    path = tmp_path / "model.onnx"
    done = model(process, parametrization).export(path, n_steps)
    assert done.difference <= 1e-4 and read_card(path) == done.card and list(done.card["output"]) == ["x0" if n_steps is None else "image"]


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS.names())
@pytest.mark.parametrize("process", SDES.names())
def test_the_process_is_left_out_where_the_numbers_are_the_same_without(process, parametrization):
    graph, _ = graph_of(model(process, parametrization))
    straight = process in ("ve", "ve-power", "edm")  # alpha is 1
    assert isinstance(graph.sde, VE) == (parametrization != "flow" or straight)


def test_what_cannot_be_recorded_is_told(tmp_path):
    with pytest.raises(ValueError, match="cannot be recorded by torch.export"):  # the rates of this process come by automatic differentiation
        model("sub-vp", "flow").export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_what_onnxruntime_cannot_compute_is_told(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)

    class Odd(Bend):
        def forward(self, x, half_log_snr, label=None):
            return super().forward(x, half_log_snr, label) + torch.asinh(x.double()).to(x.dtype)

    odd = GenerativeModel.of(Trained(Odd(), SDES["edm"](), PARAMETRIZATIONS["v"](), SHAPE, Labels((3, 5, 7))), device="cpu", verbose=False)
    with pytest.raises(ValueError, match="cannot be run by onnxruntime.*Asinh.*NAME.pt2"):
        odd.export(tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def other_answer(recorded, card):
    return b"", lambda inputs: inputs["x"] + 1


class Texts(Bend):
    condition_names = ("text",)


REFUSED = {
    "another ending": (lambda m: m.export("model.bin"), ValueError, "NAME.onnx or NAME.pt2"),
    "other weights": (lambda m: m.export("model.pt2", weights="int4"), ValueError, "'float32' or 'float16'"),
    "no steps": (lambda m: m.export("model.pt2", 0), ValueError, "n_steps must be"),
    "another folder": (lambda m: m.export("there is none/model.pt2"), FileNotFoundError, "no folder"),
    "a text": (lambda m: m.of(Trained(Texts(), m.sde, m.parametrization, SHAPE, Labels()), device="cpu").export("model.pt2"), ValueError, "text"),
    "untrained": (lambda m: GenerativeModel().export("model.pt2"), RuntimeError, "has not been trained"),
}


@pytest.mark.parametrize("call, error, said", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_told_in_a_sentence(call, error, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffnb.model.exporting._recorded", lambda graph, inputs: graph)
    monkeypatch.setattr("diffnb.model.exporting._as_pt2", lambda graph, card: (b"", lambda inputs: graph(**inputs)))
    with pytest.raises(error, match=said):
        call(model())
    assert not list(tmp_path.iterdir())


def test_a_sampler_that_chooses_its_steps_is_no_graph():
    adaptive = [name for name in SAMPLERS.names() if SAMPLERS[name]().evaluations(4) is None]
    assert adaptive
    for name in adaptive:
        with pytest.raises(ValueError, match="no fixed graph"):
            graph_of(model(sampler=name), n_steps=4)


def test_a_file_that_would_answer_otherwise_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("diffnb.model.exporting._recorded", lambda graph, inputs: graph)
    monkeypatch.setattr("diffnb.model.exporting._as_pt2", other_answer)
    with pytest.raises(ArithmeticError, match="nothing was written"):
        model().export(tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
