"""Training as a whole: what the callbacks do together, and what is left when something goes wrong."""

import json
import math
import random
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from torch import nn

from diffnb.data import image_loaders, image_set
from diffnb.denoise import Denoiser, GaussianMixture
from diffnb.networks import MLP, UNet
from diffnb.noise import EDM, PARAMETRIZATIONS, VE, VP, FlowMatching, Karras, SubVP
from diffnb.samplers import DPMSolverPP2M
from diffnb.training import (
    DiffusionCallback,
    EMACallback,
    LogNormal,
    LossWeight,
    NonFiniteLoss,
    SampleCallback,
    data_scale,
    diffusion_learner,
    fit,
    lr_factor,
)

MIXTURE = GaussianMixture(torch.tensor([[-1.0, 0.0], [0.7, 0.8], [0.7, -0.8]]), 0.04 * torch.eye(2).expand(3, 2, 2))
SCALE = 0.764  # root mean square of the mixture
TRAIN, VALID = MIXTURE.sample(4096, dtype=torch.float32), MIXTURE.sample(1000, seed=1, dtype=torch.float32)


class Points:
    """Batches (x0, label, index) of a tensor; in order, or in an order that depends on seed and epoch."""

    def __init__(self, x, batch_size, shuffle=False, drop_last=True):
        self.x, self.batch_size, self.shuffle, self.drop_last = x, batch_size, shuffle, drop_last
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return len(self.x) // self.batch_size if self.drop_last else math.ceil(len(self.x) / self.batch_size)

    def __iter__(self):
        order = torch.randperm(len(self.x), generator=self.generator) if self.shuffle else torch.arange(len(self.x))
        for index in order.split(self.batch_size)[: len(self)]:
            yield self.x[index], index % 3, index

    def to(self, device):
        return self


def toy(x=TRAIN, batch_size=128, valid_batch=500, shuffle=True, num_classes=0, width=32, network=None):
    """Loaders and a network that starts from the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = network or MLP(2, width=width, num_classes=num_classes)
    return DataLoaders(Points(x, batch_size, shuffle), Points(VALID, valid_batch, drop_last=False), device="cpu"), network


class Watch(Callback):
    """Keep what the network is asked and answers, and its weights after each step."""

    order = 98

    def __init__(self):
        self.seen, self.trail, self.lrs = [], [], []

    def before_batch(self):
        if self.training:
            self.seen.append([x.clone() for x in self.xb])
            self.lrs.append(self.opt.hypers[-1]["lr"])

    def after_step(self):
        self.trail.append([p.detach().clone() for p in self.model.parameters()])


def test_labels_are_dropped_sample_by_sample_and_nothing_else_changes():
    runs = {}
    for rate in (0.0, 0.2):
        watch = Watch()
        dls, network = toy(num_classes=3)
        fit(dls, network, VP(), Karras(SCALE), epochs=4, lr=1e-3, label_dropout=rate, progress=False, callbacks=[watch])
        runs[rate] = watch.seen
    assert all((label >= 0).all() for _, _, label in runs[0.0])
    shares = torch.stack([(label < 0).float().mean() for _, _, label in runs[0.2]])
    assert len(shares) == 128
    assert abs(shares.mean() - 0.2) < 4 * math.sqrt(0.2 * 0.8 / (128 * 128))
    assert abs(shares.std() / math.sqrt(0.2 * 0.8 / 128) - 1) < 0.25  # binomial scatter: one coin a batch would have 0.4
    for (x, level, label), (x_dropped, level_dropped, label_dropped) in zip(runs[0.0], runs[0.2]):
        assert torch.equal(x, x_dropped) and torch.equal(level, level_dropped)
        kept = label_dropped >= 0
        assert torch.equal(label[kept], label_dropped[kept])


def test_training_levels_follow_the_distribution_in_every_batch():
    watch = Watch()
    dls, network = toy()
    fit(dls, network, EDM(), Karras(SCALE), epochs=1, times=LogNormal(-0.5, 1.0), progress=False, callbacks=[watch])
    for _, half_log_snr in watch.seen:
        quantiles = torch.special.ndtr(-half_log_snr + 0.5)
        counts = torch.bincount((quantiles * 16).long().clamp(0, 15), minlength=16)
        assert (counts - 8).abs().max() <= 1  # independent draws would scatter by about 3


def test_validation_asks_the_same_of_an_item_in_any_company():
    losses = []
    for batch in (500, 37, 1000):
        dls, network = toy(valid_batch=batch)
        with torch.no_grad():
            network.head.weight.fill_(0.1)
        learn = diffusion_learner(dls, network, VP(), Karras(SCALE), progress=False)
        losses.append(float(learn.validate()[0]))
        assert learn.validate()[0] == pytest.approx(losses[-1], abs=0)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_validation_loss_of_the_exact_denoiser_is_the_floor_under_any_process():
    # (u, noise) belong to the item, so that the same levels are asked under every process and the floor is the same number
    class Exact(nn.Module):
        def __init__(self, sde):
            super().__init__()
            self.sde, self.unused = sde, nn.Parameter(torch.zeros(1))

        def forward(self, x_in, half_log_snr):
            t = self.sde.time_of_half_log_snr(half_log_snr)
            scale = Karras(SCALE).input_scale(self.sde, t)[:, None]
            a, b = Karras(SCALE).to_x0(self.sde, t)
            x = x_in / scale
            return (MIXTURE.posterior_mean(x, self.sde, t) - a[:, None] * x) / b[:, None]

    floors = []
    for sde in (VP(), SubVP(), EDM(), VE(0.001, 100.0), FlowMatching()):
        dls, network = toy(network=Exact(sde))
        floors.append(float(diffusion_learner(dls, network, sde, Karras(SCALE), progress=False).validate()[0]))
    assert floors == pytest.approx([floors[0]] * 5, rel=0.01)
    assert 0.6 < floors[0] < 0.8


class AsWeight(LossWeight):
    """A weight that is the half log-SNR of the time it is asked about."""

    def __call__(self, parametrization, sde, t):
        return sde.half_log_snr(t)


@pytest.mark.parametrize("parametrization", ["epsilon", "x0", "v", "karras", "flow"])
@pytest.mark.parametrize("sde", [VP(), SubVP(), VE(0.01, 50.0), EDM(), FlowMatching()], ids=lambda sde: type(sde).__name__)
def test_the_weight_of_a_loss_is_that_of_the_noise_in_the_input(sde, parametrization):
    """The level is read off what the network is given for pure data and for pure noise, the error of x_0 off what it is asked for."""
    u, one, none = torch.linspace(0.2, 0.8, 9).double(), torch.ones(9, 1).double(), torch.zeros(9, 1).double()
    for weight, of_x0 in {
        "edm": lambda snr: SCALE**-2 + snr,
        "min-snr": lambda snr: snr.clamp(max=5.0),
        "sigmoid": lambda snr: snr / (1 + snr * math.exp(-2.0)),
        AsWeight(): None,
    }.items():
        diffusion = DiffusionCallback(sde, PARAMETRIZATIONS[parametrization](SCALE), LogNormal(-0.5, 1.0), weight)
        diffusion.learn = SimpleNamespace(model=None)
        (data, level), (p, found) = diffusion.problem(one, {}, u, none)
        (noise, _), (q, _) = diffusion.problem(none, {}, u, one)
        data, noise, p, q = (x[:, 0] for x in (data, noise, p, q))
        torch.testing.assert_close(level, torch.log(data / noise), rtol=1e-6, atol=1e-6)
        # x_0 from the input and the target, by Cramer's rule
        expected = of_x0((data / noise) ** 2) * (noise / (data * q - noise * p)) ** 2 if of_x0 else level
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_times_and_noise_of_validation_are_independent_of_each_other_and_from_item_to_item():
    class Asked(Callback):
        """What the network is asked; of data that are zero, the noise and its level."""

        order, seen = 98, []

        def before_batch(self):
            self.seen.append(self.xb)

    asked, n, times = Asked(), 20_000, LogNormal(-1.0, 1.3)
    dls, network = toy()
    dls.valid.x = torch.zeros(n, 2)
    diffusion_learner(dls, network, EDM(), Karras(0.5), times=times, progress=False, callbacks=[asked]).validate()
    x, level = (torch.cat(parts).double() for parts in zip(*asked.seen))
    noise = x * (1 + (0.5 * torch.exp(level[:, None])) ** 2).sqrt()
    u = torch.special.ndtr((-level - times.mean) / times.std)  # what is cut off at the ends is a thousandth
    # functions of mean 0 and variance 1, orthogonal to each other: of the time, of the noise, and the same of the next item
    a, b = noise.T
    functions = torch.stack(
        [*(math.sqrt(2) * torch.cos(k * math.pi * u) for k in range(1, 7)), a, b, (a**2 - 1) / math.sqrt(2), (b**2 - 1) / math.sqrt(2), a * b]
    )
    assert functions.mean(1).abs().max() < 5 / math.sqrt(n)
    products = functions @ torch.cat([functions, functions.roll(1, 1)]).T / n
    assert (products - torch.eye(11, 22)).abs().max() < 10 / math.sqrt(n)  # their products have a standard deviation of 4 at most


def test_the_average_is_the_formula_applied_to_the_weights_of_every_step():
    watch = Watch()
    dls, network = toy()
    start = [p.detach().clone() for p in network.parameters()]
    result = fit(dls, network, VP(), Karras(SCALE), epochs=2, lr=1e-2, ema=0.8, progress=False, callbacks=[watch])
    assert len(watch.trail) == 64 == result.record["steps"]
    average = [p.double() for p in start]
    for n, weights in enumerate(watch.trail, start=1):
        d = min(0.8, (1 + n) / (10 + n))
        average = [d * a + (1 - d) * w.double() for a, w in zip(average, weights)]
    for a, (name, _) in zip(average, network.named_parameters()):
        torch.testing.assert_close(result.ema_state[name].double(), a, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(result.ema_state[k], v) for k, v in network.state_dict().items())
    # the network itself ends with its raw weights
    for p, w in zip(network.parameters(), watch.trail[-1]):
        assert torch.equal(p, w)


def test_validation_uses_the_average():
    dls, network = toy()
    result = fit(dls, network, VP(), Karras(SCALE), epochs=1, lr=1e-2, progress=False)
    raw = diffusion_learner(dls, network, VP(), Karras(SCALE), progress=False).validate()[0]
    network.load_state_dict(result.ema_state)
    averaged = diffusion_learner(dls, network, VP(), Karras(SCALE), progress=False).validate()[0]
    assert result.record["valid_loss"][-1] == pytest.approx(averaged, rel=1e-6)
    assert raw != pytest.approx(averaged, rel=1e-6)


@pytest.mark.parametrize("epochs, bad", [(1, 3), (3, 0)])
def test_a_loss_that_is_not_finite_stops_training_and_names_its_batch(epochs, bad):
    x = TRAIN[:1024].clone()
    x[bad * 128 + 5] = math.inf
    dls, network = toy(x, shuffle=False)
    with pytest.raises(NonFiniteLoss, match=f"epoch 0, batch {bad} .*hold values that are not finite") as caught:
        fit(dls, network, VP(), Karras(SCALE), epochs=epochs, lr=1e-3, progress=False)
    assert str(caught.value).startswith("loss or gradient")  # fastai's own words are kept out of it


def test_a_bad_gradient_is_caught_in_a_later_epoch():
    class Spoiler(Callback):
        def before_batch(self):
            if self.training and (self.epoch, self.iter) == (1, 4):
                self.learn.yb = (self.yb[0] * math.nan, self.yb[1])

    dls, network = toy(TRAIN[:1024])
    with pytest.raises(NonFiniteLoss, match="epoch 1, batch 4 "):
        fit(dls, network, VP(), Karras(SCALE), epochs=5, progress=False, callbacks=[Spoiler()])


def test_validation_data_that_are_not_finite_are_reported():
    dls, network = toy(TRAIN[:256])
    dls.valid.x = VALID.clone().index_fill_(0, torch.tensor([7]), math.nan)
    with pytest.raises(NonFiniteLoss, match="validation loss is nan after epoch 0"):
        fit(dls, network, VP(), Karras(SCALE), epochs=2, progress=False)


def test_the_learning_rate_follows_its_schedule():
    watch = Watch()
    dls, network = toy()
    fit(dls, network, VP(), Karras(SCALE), epochs=5, lr=2e-3, progress=False, callbacks=[watch])
    n = 5 * 32
    assert watch.lrs == pytest.approx([2e-3 * lr_factor(i, i / n) for i in range(n)])
    assert max(watch.lrs) > 1.9e-3 and watch.lrs[0] < 1e-4 and watch.lrs[-1] < 1e-6
    assert max(range(n), key=lambda i: watch.lrs[i]) == pytest.approx(0.01 * n, abs=1)


@dataclass(frozen=True)
class Heavy(LossWeight):
    """A weight that makes gradients large."""

    factor: float = 1000.0

    def __call__(self, parametrization, sde, t):
        return torch.full_like(t, self.factor)


def test_gradients_are_clipped_to_norm_one_and_keep_their_direction():
    class Norms(Callback):
        order = 46  # after clipping

        def before_step(self):
            grads.append(torch.cat([p.grad.flatten().clone() for p in self.model.parameters()]))

    runs = []
    for factor in (1000.0, 1e-3):
        grads = []
        dls, network = toy(TRAIN[:256])
        fit(dls, network, VP(), Karras(SCALE), epochs=1, lr=1e-3, weight=Heavy(factor), progress=False, callbacks=[Norms()])
        runs.append(grads)
    large, small = runs
    assert all(g.norm() <= 1.0001 for g in large) and large[0].norm() > 0.99
    assert 0 < small[0].norm() < 0.1  # a small gradient is left as it is
    assert torch.nn.functional.cosine_similarity(large[0], small[0], dim=0) > 0.999


def test_a_time_limit_ends_training_in_good_order():
    watch = Watch()
    dls, network = toy()
    record = fit(dls, network, VP(), Karras(SCALE), epochs=100_000, lr=2e-3, time_limit=1.0, progress=False, callbacks=[watch]).record
    assert record["stopped"] == "time" and 1.0 <= record["seconds"] < 5
    assert record["epochs"] == len(record["train_loss"]) == len(record["valid_loss"])
    assert record["steps"] == len(watch.lrs) and record["images_seen"] == 128 * len(watch.lrs)
    assert watch.lrs[-1] < 0.1 * max(watch.lrs)  # the decay was laid over the time
    assert all(math.isfinite(loss) for loss in record["train_loss"] + record["valid_loss"])
    assert json.loads(json.dumps(record)) == record


class Dropping(nn.Module):
    """A network with dropout, which draws from torch's global generator."""

    def __init__(self):
        super().__init__()
        self.inside = MLP(2, width=32)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x, half_log_snr):
        return self.dropout(self.inside(x, half_log_snr))


def test_the_same_seed_trains_the_same_network_and_global_generators_are_left_alone():
    results = []
    for seed, disturbance in ((3, 0), (3, 1), (4, 0)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = Dropping()
        dls, network = toy(network=network)
        torch.manual_seed(disturbance)
        before, before_python = torch.get_rng_state(), random.getstate()
        results.append(fit(dls, network, VP(), Karras(SCALE), epochs=2, seed=seed, progress=False))
        assert torch.equal(torch.get_rng_state(), before) and random.getstate() == before_python
    first, again, other = results
    assert first.record["train_loss"] == again.record["train_loss"]
    assert all(torch.equal(v, again.ema_state[k]) for k, v in first.ema_state.items())
    assert first.record["train_loss"] != other.record["train_loss"]


def test_lr_find_leaves_no_trace(tmp_path):
    losses = []
    for look_first in (False, True):
        dls, network = toy(shuffle=False)
        learn = diffusion_learner(dls, network, VP(), Karras(SCALE), progress=False)
        learn.path = tmp_path
        if look_first:
            learn.lr_find(num_it=60, show_plot=False)
            assert learn.ema.steps == 0
        learn.fit(1, 1e-3, reset_opt=True)
        losses.append(learn.recorder.values[0])
    assert list(losses[0]) == list(losses[1])


@pytest.mark.parametrize(
    "sde, parametrization, times",
    [
        (VP(), "epsilon", "log-normal"),
        (FlowMatching(), "flow", "uniform"),
        # targets and losses of these are compared with their formulas in tests/noise and below; a bound on what is learned is much wider
        pytest.param(EDM(), "karras", "log-normal", marks=pytest.mark.slow),
        pytest.param(VE(), "v", "log-normal", marks=pytest.mark.slow),
    ],
)
def test_the_learned_denoiser_is_near_the_exact_one(sde, parametrization, times):
    dls, network = toy(width=64, batch_size=256)
    parametrization = PARAMETRIZATIONS[parametrization](SCALE)
    result = fit(dls, network, sde, parametrization, epochs=20, lr=6e-3, times=times, progress=False)
    network.load_state_dict(result.ema_state)
    denoiser = Denoiser(network.eval(), sde, parametrization)
    generator = torch.Generator().manual_seed(5)
    for level in (0.1, 0.3, 1.0, 3.0):
        t = sde.time_of_half_log_snr(torch.tensor(-math.log(level)))
        x = sde.perturb(VALID, t, torch.randn(VALID.shape, generator=generator))
        with torch.no_grad():
            learned = denoiser(x, t).x0
        exact = MIXTURE.posterior_mean(x, sde, t)
        # as a share of what the noise leaves to be found out at this level, level * SCALE / hypot(level, SCALE)
        error = (learned - exact).square().mean().sqrt() * math.hypot(level, SCALE) / (level * SCALE)
        assert error < 0.15, (level, error)


def test_the_network_stays_itself_when_training_steps_are_compiled(monkeypatch):
    calls = []

    def compiled(network):
        def run(*inputs):
            calls.append(network.training)
            return network(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    dls, network = toy()
    result = fit(dls, network, VP(), Karras(SCALE), epochs=2, compile=True, progress=False)
    assert calls == [True] * 64  # training steps, and those only
    assert list(result.ema_state) == list(network.state_dict())
    dls, plain = toy()
    assert fit(dls, plain, VP(), Karras(SCALE), epochs=2, progress=False).record["train_loss"] == result.record["train_loss"]


@pytest.mark.parametrize("where", ["training", "validation"])
def test_an_interruption_leaves_the_plain_network_and_training_can_go_on(where):
    class Interrupted(MLP):
        armed = True

        def forward(self, *inputs):
            if self.armed and self.training == (where == "training"):
                raise KeyboardInterrupt
            return super().forward(*inputs)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Interrupted(2, width=32)
    dls, network = toy(network=network)
    learn = diffusion_learner(dls, network, VP(), Karras(SCALE), precision="bfloat16", progress=False)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1)
    assert learn.model is network
    assert not torch.is_autocast_enabled("cpu")
    network.armed = False
    raw = [p.clone() for p in network.parameters()]
    learn.ema.before_fit()  # what the next fit begins with
    assert all(torch.equal(p, q) for p, q in zip(raw, network.parameters()))
    if where == "validation":  # interrupted with the average in the network: it has come out again
        assert not torch.equal(raw[0], learn.ema.averages[0])
    learn.fit(1)
    assert math.isfinite(learn.recorder.values[0][1])


def test_images_train_in_either_precision_and_samples_are_drawn(tmp_path):
    garments = image_set("packaged", classes=["Trouser", "Ankle boot"], limit=160, size=14, verbose=False)
    scale, losses = data_scale(garments), {}
    assert scale == pytest.approx(garments.rms, abs=1e-3)
    for precision in ("float32", "bfloat16"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = UNet(1, widths=(8, 8), blocks=1, attention_levels=(1,), num_classes=garments.num_classes, groups=4, head_width=8)
        loaders = image_loaders(garments, batch_size=16, device="cpu")
        samples = SampleCallback(every=5, n=4, n_steps=3, folder=tmp_path / precision)
        result = fit(loaders, network, VE(), Karras(scale), epochs=2, lr=3e-3, precision=precision, progress=False, callbacks=[samples])
        assert result.record["precision"] == precision
        assert all(v.dtype == torch.float32 and v.is_contiguous() for v in result.ema_state.values())
        losses[precision] = result.record["valid_loss"]
    assert losses["float32"][1] < losses["float32"][0] < 1.1
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert [f.name for f in (tmp_path / "float32").iterdir()] == ["epoch_002.png"]
    # the pictures are those of the averaged weights, which the facade saves
    network.load_state_dict(result.ema_state)
    again = DPMSolverPP2M()(
        Denoiser(network.eval(), VE(), Karras(scale)), shape=(4, *garments.shape), n_steps=3, seeds=0, condition={"label": torch.tensor([0, 1, 0, 1])}
    )
    torch.testing.assert_close(samples.images, ((again.x + 1) / 2).clamp(0, 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"epochs": 0}, "epochs must be a whole number"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"label_dropout": 1.5}, "label_dropout is a probability"),
        ({"ema": 1.0}, "decay must lie in"),
        ({"precision": "half"}, "precision must be"),
        ({"time_limit": -1}, "time_limit must be a positive"),
        ({"times": "sometimes"}, "unknown distribution of training times"),
        ({"weight": "heavy"}, "unknown loss weight"),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    dls, network = toy(TRAIN[:256])
    with pytest.raises(ValueError, match=words):
        fit(dls, network, VP(), Karras(SCALE), **{"epochs": 1, "progress": False, **settings})


def test_a_second_fit_goes_on_where_the_first_ended():
    dls, network = toy()
    learn = diffusion_learner(dls, network, VP(), Karras(SCALE), progress=False)
    learn.fit(1, 1e-3)
    average = EMACallback.state(learn.ema)
    learn.fit(1, 1e-3)
    assert learn.ema.steps == 64
    moved = max((learn.ema.state()[k] - v).abs().max().item() for k, v in average.items())
    assert 0 < moved < 0.2
