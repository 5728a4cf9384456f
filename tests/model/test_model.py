"""The facade: names, labels, seeds, chunks, training and files."""

from pathlib import Path

import pytest
import torch
from torch import nn

from diffnb import GenerativeModel
from diffnb.data import image_set
from diffnb.model import Labels, Trained, resolve_process
from diffnb.networks import UNet
from diffnb.noise import SCHEDULES, SDES, VE, VP, X0, Cosine, Linear, SubVP, V
from diffnb.samplers import SAMPLERS, DPMSolverPP2M, EulerMaruyama, ExponentialIntegrator, PredictorCorrector, ProbabilityFlow

ALIASES = [
    (SDES, VE, "variance exploding/varianceexploding/ve"),
    (SDES, VP, "variance preserving/variancepreserving/vp"),
    (SDES, SubVP, "sub-variance preserving/sub variance preserving/subvariancepreserving/sub-vp/subvp/svp"),
    (SCHEDULES, Linear, "linear/lin/l"),
    (SCHEDULES, Cosine, "cosine/cos/c"),
    (SAMPLERS, EulerMaruyama, "euler-maruyama/euler/em"),
    (SAMPLERS, ExponentialIntegrator, "exponential integrator/exponential/exp"),
    (SAMPLERS, ProbabilityFlow, "ode probability flow/ode flow/ode"),
    (SAMPLERS, PredictorCorrector, "predictor-corrector/pred"),
]


@pytest.mark.parametrize(("registry", "cls", "names"), ALIASES, ids=lambda value: value if isinstance(value, str) else "")
def test_aliases(registry, cls, names):
    for name in names.split("/"):
        for spelling in (name, name.upper(), name.title()):
            assert registry[spelling] is cls


@pytest.mark.parametrize("names", ["bpd", "fid/frechet", "is/inception"])
def test_metric_aliases(names):
    metrics = pytest.importorskip("diffnb.metrics.scores", reason="metrics are not part of this build")
    found = {metrics.METRICS[spelling] for name in names.split("/") for spelling in (name, name.upper())}
    assert len(found) == 1


def test_every_alias_reaches_the_facade():
    for registry, cls, names in ALIASES:
        for name in names.split("/"):
            if registry is SDES:
                assert type(GenerativeModel(name).sde) is cls
            elif registry is SCHEDULES:
                assert type(GenerativeModel("vp", noise_schedule=name).noise_schedule) is cls
            else:
                assert type(GenerativeModel(sampler=name).sampler) is cls


def test_schedules_stand_only_where_they_are_needed():
    assert GenerativeModel("vp").noise_schedule == Linear() and GenerativeModel("ve").noise_schedule is None
    for process in ("ve", VE, "edm", "flow-matching"):
        with pytest.raises(ValueError, match="no noise schedule"):
            GenerativeModel(process, noise_schedule="linear")
    with pytest.raises(ValueError):
        GenerativeModel(VP(Cosine()), noise_schedule="linear")


@pytest.mark.parametrize("setting", ["diffusion", "sampler", "noise_schedule", "network", "parametrization"])
def test_unknown_names_are_errors_that_list_the_known(setting):
    with pytest.raises(ValueError, match="known: "):
        GenerativeModel(**{"diffusion": "vp", setting: "nonsense"})


class Exact(nn.Module):
    """The exact denoiser of pixels N(m_c, 0.1^2) under any process with alpha = 1, for X0(sigma_data=0.5)."""

    condition_names, num_classes = ("label",), 2

    def forward(self, x, half_log_snr, label):
        sigma = torch.exp(-half_log_snr).view(-1, 1, 1, 1)
        x = x * torch.sqrt(0.25 + sigma**2)
        mean = torch.tensor([-0.4, 0.4, 0.0])[label].view(-1, 1, 1, 1)
        return mean + 0.01 / (0.01 + sigma**2) * (x - mean)


def exact(sampler="heun"):
    return GenerativeModel.of(Trained(Exact(), VE(), X0(0.5), (1, 8, 8), Labels((3, 7))), sampler=sampler, device="cpu", verbose=False)


@pytest.fixture(scope="module")
def packaged():
    return GenerativeModel.pretrained("fashion_mnist", device="cpu", verbose=False)


@pytest.mark.parametrize("sampler", ["heun", "dpm-solver++2m", "ddim", "ode", "exp"])
def test_classes_have_their_exact_moments(sampler):
    model = exact(sampler)
    for label, mean in ((3, 0.3), (7, 0.7), (None, 0.5)):
        pixels = model.generate(300, n_steps=100, seed=0, class_labels=label)
        assert abs(pixels.mean() - mean) < 0.003 and abs(pixels.std() - 0.05) < 0.003


def test_guidance_moves_the_mean_as_it_should():
    for scale, mean in ((0.0, 0.5), (0.5, 0.6), (2.0, 0.9)):
        pixels = exact().generate(200, n_steps=60, seed=0, class_labels=7, guidance_scale=scale)
        assert abs(pixels.mean() - mean) < 0.004


def test_images_are_the_same_however_they_are_chunked(packaged):
    whole = packaged.generate(7, n_steps=6, seed=11, class_labels=[0, 1, 2, None, 4, 5, "bag"])
    for size in (1, 3, 64):
        chunked = packaged.generate(7, n_steps=6, seed=11, class_labels=[0, 1, 2, None, 4, 5, "bag"], batch_size=size)
        assert (whole - chunked).abs().max() < 1e-3
    later = packaged.generate(3, n_steps=6, seed=11, class_labels=[4, 5, 8], first=4)
    assert (whole[4:] - later).abs().max() < 1e-3
    stochastic = exact("euler-maruyama")
    whole = stochastic.generate(5, n_steps=50, seed=1)
    assert (whole - stochastic.generate(5, n_steps=50, seed=1, batch_size=2)).abs().max() < 1e-5


def test_results_are_ordinary_tensors(packaged):
    images = packaged.generate(2, n_steps=2, seed=0)
    assert images.dtype == torch.float32 and images.shape == (2, 1, 28, 28) and 0 <= images.min() <= images.max() <= 1
    images.requires_grad_()
    (images**2).sum().backward()


def test_bfloat16_is_near(packaged):
    full, brief = (packaged.generate(2, n_steps=4, seed=0, class_labels=1, precision=p) for p in ("float32", "bfloat16"))
    assert 0 < (full - brief).abs().mean() < 2e-2


def test_global_random_state_is_untouched(packaged):
    before = torch.get_rng_state()
    packaged.generate(1, n_steps=2)
    GenerativeModel.pretrained("fashion_mnist")
    assert torch.equal(torch.get_rng_state(), before)


def test_fresh_seeds_are_reported_and_repeat(packaged, capsys):
    model = GenerativeModel.pretrained("fashion_mnist", device="cpu")
    images = model.generate(1, n_steps=2)
    assert f"seed {model.last_seed}" in capsys.readouterr().out
    assert torch.equal(images, packaged.generate(1, n_steps=2, seed=model.last_seed))


def test_callback_sees_each_chunk(packaged):
    seen = []

    def note(step, n_steps, x0):
        return seen.append((step, n_steps, tuple(x0.shape), 0 <= x0.min() <= x0.max() <= 1))

    packaged.generate(3, n_steps=5, seed=0, batch_size=2, progress_callback=note, callback_frequency=2)
    assert seen == [(step, 5, (n, 1, 28, 28), True) for n in (2, 1) for step in (2, 4, 5)]


def test_steps_default_to_the_samplers_own():
    counted = []
    model = exact("em")
    model.generate(1, seed=0, progress_callback=lambda *call: counted.append(call[1]), callback_frequency=500)
    model.sampler = DPMSolverPP2M
    model.generate(1, seed=0, progress_callback=lambda *call: counted.append(call[1]), callback_frequency=500)
    assert counted == [500, 20]


def test_another_size(packaged):
    assert packaged.generate(1, n_steps=2, seed=0, size=(20, 36)).shape == (1, 1, 20, 36)
    with pytest.raises(ValueError, match="size"):
        packaged.generate(1, size=0)
    with pytest.warns(UserWarning, match="16 x 28 is far from 28 x 28, the size that this model was trained at"):
        packaged.generate(1, n_steps=1, seed=0, size=(16, 28))


def test_the_process_is_changed_by_under_only(packaged):
    with pytest.raises(AttributeError, match="under"):
        packaged.sde = "vp"
    with pytest.raises(AttributeError):
        packaged.shape = (1, 2, 3)
    other = packaged.under("vp")
    assert other.sde == VP() and packaged.sde != VP() and other.trained is packaged.trained
    a, b = (m.generate(2, n_steps=40, seed=0, class_labels="bag") for m in (packaged, other))
    assert (a - b).abs().mean() < 0.01
    with pytest.raises(ValueError, match="under"):
        other.train(torch.rand(20, 1, 28, 28))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": 2.0}, "num_samples"),
        ({"n_steps": 0}, "n_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"callback_frequency": 0}, "callback_frequency"),
        ({"class_labels": "hat"}, "Ankle boot"),
        ({"class_labels": 10}, "knows 0"),
        ({"class_labels": [1, 2, 3], "num_samples": 2}, "3 labels for 2"),
        ({"guidance_scale": 2.0}, "class_labels"),
        ({"guidance_scale": -1.0, "class_labels": 0}, "guidance_scale"),
        ({"precision": "float8"}, "precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments_are_named(packaged, arguments, words):
    with pytest.raises(ValueError, match=words):
        packaged.generate(**arguments)


def two_classes(n=48, channels=1, size=(12, 10)):
    """Dark images labelled 3 and bright ones labelled 7."""
    y = torch.tensor([3, 7]).repeat(n // 2)
    noise = torch.rand(n, channels, *size, generator=torch.Generator().manual_seed(0))
    return 0.1 * noise + torch.where(y == 7, 0.8, 0.1)[:, None, None, None], y


def network(channels=1, num_classes=0):
    return UNet(channels, widths=(16, 16), blocks=1, attention_levels=(), num_classes=num_classes, groups=4)


@pytest.fixture(scope="module")
def trained():
    model = GenerativeModel("edm", "dpm++2m", network=network(num_classes=2), device="cpu", verbose=False)
    model.train(two_classes(), epochs=12, batch_size=8, lr=6e-3)
    return model


def test_a_model_trained_on_3_and_7_generates_7_when_asked_for_7(trained):
    assert trained.labels == [3, 7] and trained.num_classes == 2 and trained.shape == (1, 12, 10) and trained.num_channels == 1
    dark, bright = (trained.generate(8, seed=0, class_labels=label).mean() for label in (3, 7))
    assert bright - dark > 0.35
    each = trained.generate(4, seed=0, class_labels=torch.tensor([7, 3, 7, 3])).mean((1, 2, 3))
    assert min(each[0], each[2]) > max(each[1], each[3])
    with pytest.raises(ValueError, match="knows 3, 7"):
        trained.generate(1, class_labels=5)


def test_names_can_be_given(trained):
    named = trained.under("edm").set_labels({7: "bright", 3: "dark"})
    assert named.label_names == ["dark", "bright"] and trained.label_names is None
    assert torch.equal(named.generate(2, seed=0, class_labels="Bright"), trained.generate(2, seed=0, class_labels=7))
    for wrong in (["one"], {3: "dark"}, "ab", ["same", "same"]):
        with pytest.raises(ValueError, match="name"):
            named.set_labels(wrong)


def test_files_keep_everything(trained, tmp_path):
    path = tmp_path / "model.safetensors"
    named = trained.under("vp", Cosine(s=0.01)).set_labels(["dark", "bright"])
    named.save(path)
    loaded = GenerativeModel.load(path, device="cpu", verbose=False)
    for fact in ("sde", "sampler", "noise_schedule", "parametrization", "labels", "label_names", "shape", "record", "version"):
        assert getattr(loaded, fact) == getattr(named, fact), fact
    assert loaded.trained.sde == trained.sde
    for key, weight in named.trained.network.state_dict().items():
        assert torch.equal(weight, loaded.trained.network.state_dict()[key]), key
    assert torch.equal(loaded.generate(2, seed=0), named.generate(2, seed=0))


def test_training_goes_on_from_the_weights(trained, tmp_path):
    trained.save(tmp_path / "model.safetensors")
    model = GenerativeModel.load(tmp_path / "model.safetensors", device="cpu", verbose=False)
    x, y = two_classes()
    record = model.train((x[y == 7], y[y == 7]), epochs=1, batch_size=8, lr=1e-4)
    assert record["valid_loss"][0] < 1.3 * trained.record["valid_loss"][-1] and len(model.trained.records) == 2
    assert model.labels == [3, 7] and model.generate(4, seed=0, class_labels=7).mean() > 0.6
    for data in ((x, y + 1), torch.rand(8, 1, 9, 9)):
        with pytest.raises(ValueError):
            model.train(data)


def test_a_failed_run_leaves_the_model_as_it_was(tmp_path):
    model = GenerativeModel("vp", network=network(), device="cpu", verbose=False)
    x, _ = two_classes()
    model.train(x, epochs=1, batch_size=8)
    before = {key: weight.clone() for key, weight in model.trained.network.state_dict().items()}
    with pytest.raises(ArithmeticError):
        model.train(x, epochs=3, batch_size=8, lr=1e30)
    for key, weight in model.trained.network.state_dict().items():
        assert torch.equal(weight, before[key])


def test_training_is_repeatable():
    def weights():
        model = GenerativeModel("edm", network="tiny", device="cpu", verbose=False)
        model.train(image_set("packaged", limit=40, verbose=False), epochs=1, batch_size=8, seed=5, precision="float32")
        return torch.cat([p.flatten() for p in model.trained.network.parameters()])

    before = torch.get_rng_state()
    assert torch.equal(weights(), weights())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("process", ["ve", "vp", "sub-vp", "flow-matching"])
def test_colour_images_without_labels_under_any_process(process):
    x, _ = two_classes(channels=3, size=(9, 14))
    model = GenerativeModel(process, "dpm++2m", network=network(3), parametrization=V, device="cpu", verbose=False)
    model.train(x, epochs=1, batch_size=16)
    assert model.generate(2, n_steps=4, seed=0).shape == (2, 3, 9, 14) and model.labels == []
    with pytest.raises(ValueError, match="without labels"):
        model.generate(1, class_labels=0)


def test_what_has_not_been_trained_says_so():
    model = GenerativeModel()
    assert model.shape is None and model.num_classes == 0 and model.record == {} and "not trained" in repr(model)
    for use in (model.generate, model.denoiser, lambda: model.save("x"), lambda: model.set_labels([])):
        with pytest.raises(RuntimeError, match="not been trained"):
            use()
    model.sde = "vp"
    assert model.diffusion == VP()


def test_a_network_of_ones_own_saves_its_weights_and_is_brought_along(tmp_path):
    model = exact()
    model.save(tmp_path / "model")
    with pytest.raises(PermissionError, match="components={'Exact': Exact}"):
        GenerativeModel.load(tmp_path / "model")
    again = GenerativeModel.load(tmp_path / "model", verbose=False, components={"Exact": Exact})
    assert torch.equal(again.generate(2, 5, seed=0), model.generate(2, 5, seed=0))


def test_classes_and_instances_are_taken_too():
    assert resolve_process(VP, Cosine) == VP(Cosine())
    model = GenerativeModel(VE(0.02, 30.0), PredictorCorrector(corrector_steps=2), parametrization=V(0.7))
    assert model.sde == VE(0.02, 30.0) and model.sampler == PredictorCorrector(corrector_steps=2)
    with pytest.raises(TypeError):
        GenerativeModel(sampler=VE)


def test_what_is_packaged_is_small():
    from diffnb.model import packaged_models

    assert sorted(packaged_models()) == [
        "cifar10",
        "cifar10_fast",
        "emoji",
        "emoji_128",
        "emoji_fast",
        "fashion_mnist",
        "fashion_mnist_fast",
    ]  # and none of the classifiers and word vectors beside them
    file = Path(packaged_models()["fashion_mnist"])
    model = GenerativeModel.pretrained("fashion_mnist", verbose=False)
    assert file.stat().st_size <= 8_000_000
    assert sum(p.numel() for p in model.trained.network.parameters()) <= 3_900_000
    assert (file.parent / "LICENSE-fashion-mnist.txt").is_file()


def test_one_label_of_a_denoiser_stands_for_any_batch():
    model = GenerativeModel.pretrained("fashion_mnist", verbose=False)
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    one, each = (model.denoiser(class_labels=labels)(x, 0.5).x0 for labels in ("Bag", ["Bag"] * 3))
    assert torch.equal(one, each) and not torch.equal(one, model.denoiser()(x, 0.5).x0)
    with pytest.raises(ValueError, match="one entry for each of the 3 samples"):
        model.denoiser(class_labels=["Bag", "Coat"])(x, 0.5)
