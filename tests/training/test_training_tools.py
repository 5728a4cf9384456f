"""What training is given and what it hands on: bad input, a full disk, checkpoints of others, TensorBoard and W&B, accumulation and compilation."""

import ctypes
import math
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Fork
from fastai.callback.core import Callback, CancelFitException
from fastai.data.core import DataLoaders
from scipy.optimize import brentq
from scipy.stats import beta
from torch import nn

from diffnb.data import ImageSet, image_loaders, image_set
from diffnb.model import GenerativeModel
from diffnb.networks import MLP, UNet, build_network
from diffnb.noise import EDM, VP, Epsilon, Karras
from diffnb.training import (
    QUANTILES,
    RATES,
    Average,
    CheckpointError,
    ConstantRate,
    EarlyStopCallback,
    HalfLife,
    HistoryCallback,
    InverseSqrtRate,
    LevelLossCallback,
    LogNormal,
    NonFiniteLoss,
    PowerLaw,
    Rate,
    ResumeCallback,
    Sigmoid,
    TrainingError,
    TrainingSettings,
    Uncertainty,
    binned,
    diffusion_learner,
    fit,
    load_state,
    log_callbacks,
    lr_factor,
    posthoc_coefficients,
)

IMAGES = torch.randint(0, 256, (48, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def pictures(n=48, classes=3):
    """A set of random pictures."""
    return ImageSet(IMAGES[:n], torch.arange(n) % classes if classes else None)


def tiny(classes=3, seed=0, **settings):
    """The smallest U-Net, from the same start each time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet(
            **{
                "channels": 1,
                "num_classes": classes,
                "widths": (8,),
                "blocks": 1,
                "attention_levels": (),
                "embedding_width": 8,
                "groups": 4,
                **settings,
            }
        )


def train(loaders=None, network=None, **settings):
    """Train the smallest U-Net for an epoch of three steps."""
    loaders = loaders or image_loaders(pictures(), pictures(16), batch_size=16, device="cpu")
    return fit(loaders, network or tiny(), EDM(), Karras(0.5), **{"epochs": 1, "progress": False, **settings})


# --- bad input ---------------------------------------------------------------------------------------------------------------------------------


def test_no_image_is_refused():
    with pytest.raises(ValueError, match="there is no image"):
        image_set(torch.zeros(0, 1, 8, 8), verbose=False)


def test_an_empty_folder_and_mixed_sizes_are_refused(tmp_path):
    from PIL import Image

    with pytest.raises((ValueError, FileNotFoundError), match="no image"):
        image_set(tmp_path, verbose=False)
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 9)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="size"):
        GenerativeModel(network="tiny", verbose=False).train(tmp_path, epochs=1)


def test_labels_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="48 images but 47 labels"):
        GenerativeModel(network="tiny", verbose=False).train((IMAGES / 255, torch.zeros(47, dtype=torch.int64)), epochs=1)
    with pytest.raises(TrainingError, match="a label is 2, but the network is made for 2 classes, 0 to 1") as caught:
        train(network=tiny(classes=2))
    assert str(caught.value).startswith("a label is 2")  # without fastai's own words
    with pytest.raises(ValueError, match="train and valid must agree"):
        image_loaders(pictures(), pictures(16, classes=2), device="cpu")


def test_a_loader_without_a_batch_is_refused():
    class Empty:
        n, bs = 10, 64

        def __len__(self):
            return 0

        def to(self, device):
            return self

    with pytest.raises(ValueError, match="no batch to be had for training: 10 samples do not fill a batch of 64"):
        diffusion_learner(DataLoaders(Empty(), Empty()), tiny(), EDM())


def test_a_misspelt_setting_and_settings_out_of_range_are_refused():
    with pytest.raises(TypeError, match="learning_rate"):
        train(learning_rate=1e-3)
    for settings, words in [
        ({"accumulate": 0}, "accumulate must be a whole number"),
        ({"max_norm": 0.0}, "max_norm > 0"),
        ({"warmup": -1}, "warmup must be"),
        ({"rate": "parabola"}, "unknown decay of the learning rate"),
        ({"quantiles": "sobol"}, "unknown way to draw quantiles"),
        ({"ema": "half-live"}, "did you mean 'half-life'"),
        ({"weight": Uncertainty}, None),
    ]:
        if words is None:
            train(**settings)
            continue
        with pytest.raises(ValueError, match=words):
            train(**settings)


def test_settings_may_come_as_one_object_and_be_changed_by_name():
    by_name = train(lr=2e-3, ema=PowerLaw(0.1), quantiles="shifted")
    as_one = train(settings=TrainingSettings(lr=2e-3, ema=PowerLaw(0.1), quantiles="shifted"))
    changed = train(settings=TrainingSettings(lr=5e-3, ema=PowerLaw(0.1)), lr=2e-3, quantiles="shifted")
    assert by_name.record["train_loss"] == as_one.record["train_loss"] == changed.record["train_loss"]
    assert by_name.record["ema"] == "PowerLaw(sigma_rel=0.1)"


# --- checkpoints -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"network": lambda: tiny(widths=(16,))}, r"weight stem.weight is \(8, 1, 3, 3\) there and \(16, 1, 3, 3\) here"),
        ({"lr": 2e-3}, "lr is 0.001 there and 0.002 here"),
        ({"weight": "min-snr"}, "weight is 'equal' there and 'min-snr' here"),
        ({"loaders": lambda: image_loaders(pictures(32), pictures(16), batch_size=16, device="cpu")}, "batches an epoch is 3 there and 2 here"),
        ({"callbacks": HistoryCallback}, "state of callback history is absent there and present here"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_by_name(tmp_path, change, words):
    path = tmp_path / "training.safetensors"
    train(callbacks=[ResumeCallback(path)])
    before = path.read_bytes()
    settings = {k: v() if callable(v) else v for k, v in change.items()}
    extra = [settings.pop("callbacks")] if "callbacks" in settings else []
    network = settings.pop("network", None) or tiny()
    start = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(TrainingError, match=words) as caught:
        train(network=network, callbacks=[*extra, ResumeCallback(path, resume=True)], **settings)
    assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == before
    assert all(torch.equal(p, q) for p, q in zip(start, network.parameters()))


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "training.safetensors"
    train(callbacks=[ResumeCallback(path)])
    before = path.read_bytes()
    with pytest.raises(TrainingError, match="holds a training already; go on with resume=True"):
        train(callbacks=[ResumeCallback(path)])
    assert path.read_bytes() == before


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_a_full_disk_while_saving_is_a_clear_error_and_earlier_files_are_whole(tmp_path):
    import resource

    path, limits = tmp_path / "training.safetensors", resource.getrlimit(resource.RLIMIT_FSIZE)
    train(callbacks=[ResumeCallback(path)])
    before, handler = path.read_bytes(), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not write .*training.safetensors \(0.\d MB\): File too large; the earlier file is intact"):
            train(epochs=2, callbacks=[ResumeCallback(path, every=1, resume=True)])
        with pytest.raises(CheckpointError, match="there is no earlier file"):
            train(callbacks=[ResumeCallback(tmp_path / "other" / "training.safetensors", every=1)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == ["training.safetensors"]
    assert train(epochs=2, callbacks=[ResumeCallback(path, resume=True)]).record["epochs"] == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("name", ["training.safetensors", "history.csv"])
def test_a_device_without_space_is_named_and_earlier_files_are_whole(tmp_path, monkeypatch, name):
    path = tmp_path / name

    def write(epochs):
        train(epochs=epochs, callbacks=[HistoryCallback(tmp_path), ResumeCallback(tmp_path / "training.safetensors", resume="if there")])

    write(1)
    before = path.read_bytes()
    opened = os.open

    def full(file, *how, **more):  # what is written there meets ENOSPC, as the kernel has it
        return opened("/dev/full", os.O_WRONLY) if Path(file).name.startswith(f".{path.name}.") else opened(file, *how, **more)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match=f"could not write .*{path.name}.*No space left on device; the earlier file is intact"):
        write(2)
    monkeypatch.undo()
    assert path.read_bytes() == before and not list(tmp_path.glob(".*"))
    write(2)  # there is room again


def cramped(folder):
    """Train on a small disk that only this process sees."""
    maps = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}  # root, in there
    assert ctypes.CDLL(None).unshare(0x10020000) == 0  # CLONE_NEWUSER | CLONE_NEWNS
    for name, text in maps.items():
        Path(f"/proc/self/{name}").write_text(text)

    def room(kib, again=""):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}size={kib}k", "none", folder], check=True)

    room(10_000)
    path = folder / "training.safetensors"
    train(callbacks=[ResumeCallback(path)])
    before = path.read_bytes()
    room(4 * (len(before) // 4096 + 2) + len(before) // 2048, "remount,")  # room for this one, and for half of the next
    with pytest.raises(CheckpointError, match="No space left on device; the earlier file is intact"):
        train(epochs=2, callbacks=[ResumeCallback(path, every=1, resume=True)])
    assert path.read_bytes() == before and os.listdir(folder) == [path.name]
    room(10_000, "remount,")
    assert train(epochs=2, callbacks=[ResumeCallback(path, every=1, resume=True)]).record["epochs"] == 2
    print("went on")


def test_a_small_disk_that_fills_up_in_the_middle_of_a_file(tmp_path):
    namespace = ["unshare", "--user", "--map-root-user", "--mount"]  # where this process may mount a disk of its own
    if not shutil.which("unshare") or subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", tmp_path], capture_output=True).returncode:
        pytest.skip("needs leave to mount a small disk in a namespace of its own")
    code, out, err = Fork(lambda: cramped(tmp_path)).end()
    assert code == 0 and out.endswith("went on\n") and not list(tmp_path.iterdir()), err[-2000:]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "training.safetensors"
    train(callbacks=[ResumeCallback(path)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        train(callbacks=[ResumeCallback(path, resume=True)])
    torch.save({"weight": torch.zeros(2)}, path)  # a pickle
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_state(path)


# --- steps -------------------------------------------------------------------------------------------------------------------------------------


class Fixed(Callback):
    """Give every sample the noise and time of its index, in whatever batch it comes."""

    order = -1

    def before_fit(self):
        diffusion = self.learn.diffusion
        diffusion._draw = lambda x0: diffusion._fixed(x0, self.yb[-1] if self.yb else self.xb[-1])


@pytest.mark.parametrize("batch_size, accumulate, max_norm", [(24, 2, 0.05), (16, 3, 0.05), (20, 3, 0.05), (20, 3, math.inf), (8, 100, 0.05)])
def test_accumulated_parts_have_the_gradient_of_one_large_batch(batch_size, accumulate, max_norm):
    def gradient(batch_size, accumulate):
        loaders = image_loaders(pictures(), pictures(16), batch_size=batch_size, device="cpu")
        loaders.train.drop_last, seen = False, []  # batches of 20, 20 and 8

        class Look(Callback):
            order = 46  # after it was clipped

            def before_step(self):
                seen.append(torch.cat([p.grad.flatten() for p in self.model.parameters()]))

        network = tiny(classes=0, zero_init=False)
        result = train(loaders, network, callbacks=[Fixed(), Look()], accumulate=accumulate, max_norm=max_norm, precision="float32")
        assert len(seen) == 1 == result.record["steps"] and result.record["images_seen"] == 48
        return seen[0]

    whole, parts = gradient(48, 1), gradient(batch_size, accumulate)
    assert whole.norm() == pytest.approx(0.05, rel=1e-4) if max_norm < math.inf else whole.norm() > 0.1
    assert (whole - parts).abs().max() < 1e-5 * whole.norm() + 1e-6


def test_a_loss_that_is_not_finite_ends_training_at_the_next_look_and_not_only_at_the_end_of_the_epoch():
    class Spoil(Callback):
        order, run_valid, batches = -1, False, 0

        def after_loss(self):
            if self.iter == 3:
                self.learn.loss = self.learn.loss * math.nan

        def after_batch(self):
            self.batches += 1

    spoil = Spoil()
    with pytest.raises(NonFiniteLoss, match="not finite at epoch 0, batch 3 "):
        train(image_loaders(pictures(), pictures(16), batch_size=2, device="cpu"), callbacks=[spoil])
    assert spoil.batches == 20  # of 24: the first look


def test_compiled_steps_learn_the_same(monkeypatch):
    plain = train(epochs=2, lr=1e-3)
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network: compiled(network, backend="aot_eager"))  # what is fused differs, not what is traced
    traced = train(epochs=2, lr=1e-3, compile=True)
    assert traced.record["train_loss"] == pytest.approx(plain.record["train_loss"], rel=1e-4)
    assert list(traced.ema_state) == list(plain.ema_state)


def test_the_learned_weight_finds_the_loss_of_each_level():
    class Zero(nn.Module):
        """A network that says 0: with the Karras target of unit variance its loss is the base weight, at every level."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x, half_log_snr):
            return torch.zeros_like(x) + 0 * self.weight

    class Rows:
        def __init__(self, n):
            self.x = 0.5 * torch.randn(n, 64, generator=torch.Generator().manual_seed(n))

        def __len__(self):
            return len(self.x) // 128

        def __iter__(self):
            for rows in torch.arange(len(self.x)).split(128):
                yield self.x[rows], torch.full((128,), -1), rows

        def to(self, device):
            return self

    learn = diffusion_learner(
        DataLoaders(Rows(4096), Rows(512), device="cpu"), Zero(), VP(), Karras(0.5), weight=Uncertainty("min-snr"), times="log-snr", progress=False
    )
    learn.fit(30, 0.02)
    base = learn.diffusion.weight
    half_log_snr = torch.linspace(-3, 0.5, 41)  # below the kink of min-SNR
    t = VP().time_of_half_log_snr(half_log_snr)
    with torch.no_grad():
        u = learn.uncertainty.network(half_log_snr)
    exact = base(Karras(0.5), VP(), t).log()
    assert (u - exact).abs().max() < 0.25 and exact.max() - exact.min() > 3
    # the validation loss is that of the base weight: 1 times its mean over the levels
    assert learn.recorder.values[0][1] == pytest.approx(learn.recorder.values[-1][1], rel=1e-6)
    assert learn.recorder.values[-1][0] == pytest.approx(1.0, abs=0.05)  # in training each level contributes 1
    group = learn.opt.opt.param_groups[-1]
    assert group["weight_decay"] == 0.0 and group["params"][0] is learn.uncertainty.network.weight


def test_the_half_life_is_short_at_first_and_then_what_it_says():
    profile = HalfLife(images=1000, growth=0.05)
    assert profile.keep(1, 200, 100) == 0.5 ** (100 / (0.05 * 200))  # at most a twentieth of what was seen
    assert profile.keep(500, 50_000, 100) == profile.keep(200, 20_000, 100) == 0.5 ** (100 / 1000)


def test_the_sigmoid_weight_is_one_half_at_its_bias_and_the_bias_is_two():
    half_log_snr = torch.tensor([1.0, -10.0, 5.0], dtype=torch.float64)
    weight = Sigmoid()(Epsilon(0.5), VP(), VP().time_of_half_log_snr(half_log_snr).double())
    # on the error of epsilon: sigmoid(2 - log SNR), 1 at much noise, e^2 / SNR at little
    torch.testing.assert_close(weight, torch.sigmoid(2 - 2 * half_log_snr), rtol=1e-4, atol=0)
    assert weight[0] == pytest.approx(0.5, rel=1e-4) and weight[2] == pytest.approx(math.exp(2 - 10), rel=1e-3)


def test_history_and_levels_are_written_for_whole_trainings(tmp_path):
    history, levels = HistoryCallback(tmp_path), LevelLossCallback(4, tmp_path)
    result = train(epochs=3, callbacks=[history, levels])
    assert [row["valid_loss"] for row in history.rows] == result.record["valid_loss"]
    assert [row["step"] for row in history.rows] == [3, 6, 9] and history.rows[-1]["images"] == result.record["images_seen"] == 144
    assert history.rows[0]["gradient_norm"] > 0
    for row, bins in zip(history.rows, levels.level_history):  # with equal weights the loss is the mean of the bins, of 4 items each
        assert sum(bins["loss"]) / 4 == pytest.approx(row["valid_loss"], rel=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history.csv", "history.png", "levels.csv", "levels.png"]


# --- TensorBoard and W&B: the modules are replaced by ones that write down what they are told --------------------------------------------------


class Told:
    """A stand-in for TensorBoard's SummaryWriter, which keeps what it is told."""

    writers = []

    def __init__(self, log_dir):
        self.place, self.scalars, self.is_closed = log_dir, [], False
        self.writers.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, float(value), step))

    def close(self):
        self.is_closed = True


def test_losses_and_scores_reach_tensorboard(monkeypatch, tmp_path):
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Told))
    import fastai.callback.tensorboard as board

    monkeypatch.setattr(board, "SummaryWriter", Told)
    result = train(epochs=2, callbacks=log_callbacks("tensorboard", tmp_path))
    told = Told.writers[-1]
    assert told.place == tmp_path / "tensorboard" and told.is_closed
    assert [value for name, value, _ in told.scalars if name == "valid_loss"] == pytest.approx(result.record["valid_loss"])
    assert {step for name, _, step in told.scalars if name == "train_loss"} >= set(range(1, 7))
    assert [value for name, value, step in told.scalars if name == "lr_0"][0] > 0


def test_losses_and_scores_reach_wandb(monkeypatch, tmp_path):
    logged, begun = [], []
    fake = types.ModuleType("wandb")
    fake.run, fake.config = None, types.SimpleNamespace(update=lambda values, allow_val_change: None)
    fake.log = lambda values, step=None: logged.append(values)

    def init(**settings):
        begun.append(settings)
        fake.run = types.SimpleNamespace(step=0, summary={})

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    import fastai.callback.wandb as board

    monkeypatch.setattr(board, "wandb", fake)
    result = train(epochs=2, callbacks=log_callbacks("wandb", tmp_path / "first", {"data": "digits"}))
    assert begun == [{"project": "diffnb", "name": "first", "dir": str(tmp_path / "first"), "config": {"data": "digits"}}]
    assert [float(row["valid_loss"]) for row in logged if "valid_loss" in row] == pytest.approx(result.record["valid_loss"])
    assert len([row for row in logged if "raw_loss" in row]) == 6
    train(callbacks=log_callbacks("wandb", tmp_path / "second"))
    assert len(begun) == 1  # a run that its owner has begun is used


def test_what_cannot_be_logged_to_is_said(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'wandb'"):
        log_callbacks("wandbb", tmp_path)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert log_callbacks("tensorboard", tmp_path) == []  # the first process logs for all


def test_names_stay_importable_from_one_place():
    import diffnb.training as training

    assert all(hasattr(training, name) for name in training.__all__)
    for name in "Equal MinSNR LogNormal UniformTime stratified EMACallback SampleCallback MetricCallback CheckpointCallback lr_factor fit".split():
        assert name in training.__all__
    assert build_network("tiny", (1, 8, 8), 0) is not None and MLP(2) is not None


# --- averages, rates and quantiles against what they are by definition -------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_rel", [0.05, 0.15, 12**-0.5])
def test_a_power_law_remembers_a_share_of_training(sigma_rel):
    """Steps that are unit vectors leave the share of each in the average: it grows with a power, and is as wide as it says."""
    n, batch = 2000, 32
    average = Average([torch.zeros(n, dtype=torch.float64)], PowerLaw(sigma_rel))
    for step in torch.eye(n, dtype=torch.float64):
        average.update([step], batch)
    (share,), t = average.tensors, (torch.arange(n, dtype=torch.float64) + 0.5) / n
    mean = (share * t).sum()
    assert share.sum() == pytest.approx(1)
    assert (share * (t - mean) ** 2).sum().sqrt() == pytest.approx(sigma_rel, rel=2e-3)
    slopes = torch.log(share[[200, 400, 800, 1600]]).diff() / math.log(2)  # of a power law one and the same
    assert (slopes - slopes.mean()).abs().max() < 0.02 * (1 + slopes.mean())


def test_saved_averages_are_combined_as_least_squares_has_it():
    """Profiles as columns of numbers, the wanted one as their combination; and a saved one is itself."""
    n, times, sigma_rels = 200_000, [400.0, 400.0, 1000.0, 1000.0], [0.05, 0.1, 0.05, 0.1]
    t = (np.arange(n) + 0.5) / n * 1000

    def profile(end, sigma_rel):  # of the power whose distribution has this width
        gamma = brentq(lambda g: beta(g + 1, 1).std() - sigma_rel, 0, 1000)
        return np.where(t <= end, (gamma + 1) * np.minimum(t / end, 1) ** gamma / end, 0)

    columns = np.stack([profile(end, s) for end, s in zip(times, sigma_rels)], 1)
    for wanted in (0.07, 0.13, 0.2):
        target = profile(1000.0, wanted)
        exact, squares = np.linalg.lstsq(columns, target, rcond=None)[:2]
        found, residual = posthoc_coefficients(times, sigma_rels, 1000.0, wanted)
        assert found.tolist() == pytest.approx(exact.tolist(), rel=1e-4, abs=1e-6)
        assert residual == pytest.approx(math.sqrt(squares[0]) / np.linalg.norm(target), rel=1e-3)
    found, residual = posthoc_coefficients(times, sigma_rels, 1000.0, 0.1)
    assert found.tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6) and residual < 1e-6


def test_rates_by_hand():
    thirds = [0, 1 / 3, 1 / 2, 2 / 3, 1]
    for name, values in {"cosine": [1, 0.75, 0.5, 0.25, 0], "linear": [1, 2 / 3, 0.5, 1 / 3, 0], "constant": [1] * 5}.items():
        assert [RATES.resolve(name, Rate)(1000, progress) for progress in thirds] == pytest.approx(values)
    assert [InverseSqrtRate(100)(step, 0.9) for step in (0, 100, 400, 900)] == pytest.approx([1, 1, 1 / 2, 1 / 3])
    # warm-up: by steps in a long training, by a hundredth of a short one
    assert [lr_factor(step, 0.0, 10, rate=ConstantRate()) for step in (0, 4, 9, 99)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [lr_factor(0, progress, 300, rate=ConstantRate()) for progress in (0.002, 0.005, 0.01, 0.5)] == pytest.approx([0.2, 0.5, 1, 1])
    assert lr_factor(4, 0.5, 10, 1.0) == pytest.approx(0.5 * 0.5)


@pytest.mark.parametrize("is_lower_better", [True, False])
def test_training_ends_when_nothing_has_improved_by_as_much_as_was_asked_for(is_lower_better):
    losses, sign = [5.0, 3.0, 2.9, 2.85, 2.4, 2.6, 2.35, 2.3], 1 if is_lower_better else -1
    stop, stopped = EarlyStopCallback(3, is_lower_better=is_lower_better, min_delta=0.2), None
    stop.learn = types.SimpleNamespace(recorder=types.SimpleNamespace(metric_names=["epoch", "train_loss", "valid_loss", "time"], values=[]))
    for epoch, loss in enumerate(losses):
        stop.learn.recorder.values.append([0.0, sign * loss])
        try:
            stop.after_epoch()
        except CancelFitException:
            stopped = epoch
            break
    assert stopped == 7 and stop.best == 2.4  # 2.9 and 2.85 are no gain on 3.0, nor is what follows on 2.4


@pytest.mark.parametrize("name, even, apart", [("stratified", 1, None), ("shifted", 1, 1 / 16), ("independent", 16, None)])
def test_quantiles_are_uniform_and_as_even_as_they_say(name, even, apart):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([QUANTILES[name](16, generator) for _ in range(4000)]).double()
    counts = torch.stack([torch.bincount((row * 16).long(), minlength=16) for row in drawn])
    assert int(counts.max()) <= even and (even == 1 or int(counts.max()) > 3)
    if apart is not None:
        torch.testing.assert_close(drawn.sort(1).values.diff(dim=1), torch.full((4000, 15), apart, dtype=torch.float64), rtol=0, atol=1e-6)
    within = (drawn[:, 0] * 16) % 1  # where the first lies in its interval
    for values in (drawn[:, 0] if apart is None else within, within):
        assert (values.sort().values - (torch.arange(4000) + 0.5) / 4000).abs().max() < 1.63 / math.sqrt(4000)  # Kolmogorov and Smirnov, at 1%


def test_the_losses_that_are_shown_are_means_of_the_losses_that_there_were():
    class Look(Callback):
        order = 99

        def __init__(self):
            self.losses, self.sizes, self.shown = {True: [], False: []}, [], []

        def after_batch(self):
            self.losses[self.training].append(float(self.loss))
            if not self.training:
                self.sizes.append(len(self.yb[0]))

        def after_epoch(self):
            self.shown.append(float(self.recorder.smooth_loss.value))

    look, levels = Look(), LevelLossCallback(4)
    loaders = image_loaders(pictures(), pictures(20), batch_size=16, device="cpu")
    result = train(loaders, epochs=2, times=LogNormal(-2.0, 0.1), lr=0.01, callbacks=[look, levels])
    assert look.sizes == [16, 4] * 2
    last = look.losses[False][2:]
    assert result.record["valid_loss"][-1] == pytest.approx((16 * last[0] + 4 * last[1]) / 20, rel=1e-5)
    # an exponential average with the weights of 0.98, as if it had begun long ago
    weights = 0.98 ** np.arange(6)[::-1]
    assert look.shown[-1] == pytest.approx(np.dot(weights, look.losses[True]) / weights.sum(), rel=1e-4)
    for bins in levels.level_history:
        assert bins["log_sigma"] == pytest.approx([-2.0] * 4, abs=0.3) and sorted(bins["log_sigma"]) == bins["log_sigma"]
    found = binned(torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]), torch.tensor([30.0, 10.0, 20.0, 50.0, 40.0]), 2)
    assert found == {"log_sigma": [2.0, 4.5], "loss": [20.0, 45.0]}
