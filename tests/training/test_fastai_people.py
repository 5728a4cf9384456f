"""What people who know fastai try on a learner: each works, or says in a sentence what to do."""

import warnings

import numpy as np
import pytest
import torch

import diffnb.training  # noqa: F401  (which imports fastai without its warnings)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastai.vision import all as fastai

from diffnb.data import ImageSet, image_loaders
from diffnb.networks import UNet
from diffnb.noise import EDM
from diffnb.training import TrainingError, diffusion_learner

IMAGES = ImageSet(torch.randint(256, (48, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(48) % 3)
CPU = torch.device("cpu")


def learner(dls=None, classes=3, **settings):
    """A small network on small images."""
    channels, dls = (1, image_loaders(IMAGES, batch_size=8, device="cpu")) if dls is None else (3, dls)
    network = UNet(channels, widths=(8, 8), blocks=1, attention_levels=(), num_classes=classes, groups=4, embedding_width=8)
    return diffusion_learner(dls, network, EDM(), progress=False, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of two classes."""
    folder = tmp_path_factory.mktemp("fastai")
    random = np.random.default_rng(0)
    for i in range(12):
        (folder / "set" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        fastai.PILImage.create(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / "set" / str(i % 2) / f"{i}.png")
    return folder


WORKS = {
    "fit": lambda f: learner().fit(1, 1e-3),
    "fit_one_cycle": lambda f: learner().fit_one_cycle(2, 1e-3),
    "fit_flat_cos": lambda f: learner().fit_flat_cos(2, 1e-3),
    "fit_sgdr": lambda f: learner().fit_sgdr(2, 1, 1e-3),
    "a NumPy rate": lambda f: learner().fit(1, np.float32(1e-3)),
    "fine_tune": lambda f: learner().fine_tune(1),
    "lr_find": lambda f: learner().lr_find(num_it=12, show_plot=False),
    "to_fp16": lambda f: learner().to_fp16().fit(1),
    "to_bf16": lambda f: learner().to_bf16().fit(1),
    "get_preds": lambda f: learner().get_preds(),
    "freeze": lambda f: learner().freeze(),
    "plateau": lambda f: learner().fit(2, cbs=fastai.ReduceLROnPlateau(patience=1)),
    "early stopping": lambda f: learner().fit(2, cbs=fastai.EarlyStoppingCallback(patience=1)),
    "save the best": lambda f: learner().fit(1, cbs=fastai.SaveModelCallback(fname=str(f / "best"))),
    "clip": lambda f: learner().fit(1, cbs=fastai.GradientClip(0.1)),
    "csv": lambda f: learner().fit(1, cbs=fastai.CSVLogger(fname=str(f / "history.csv"))),
}


@pytest.mark.parametrize("name", WORKS)
def test_it_works_as_ever(name, folder):
    WORKS[name](folder)


def test_pictures_and_words(folder):
    learn = learner()
    learn.fit(1)
    assert len(learn.show_batch(max_n=4).axes) == 4 and len(learn.dls.show_batch(max_n=5).axes) == 6
    figure = learn.show_results(max_n=3)
    assert [ax.get_ylabel() for ax in figure.axes][::3] == ["noised", "predicted", "original"]
    shown = torch.as_tensor(figure.axes[6].images[0].get_array())
    assert (shown * 255 - learn.dls.valid.dataset.images[0, 0]).abs().max() < 1e-3  # the last row is what was given
    words = learn.summary()
    assert "numbers are trained" in words and "EDM" in words and "lr: 0.001" in words
    state = learn.model.state_dict()
    learn.save(str(folder / "weights"))
    assert all(torch.equal(v, learn.load(str(folder / "weights")).model.state_dict()[k]) for k, v in state.items())


class Values(fastai.Callback):
    """What the optimizer has at each step."""

    order, run_valid = 90, False

    def __init__(self, read):
        self.read, self.seen = read, []

    def before_step(self):
        self.seen.append(self.read(self.opt.opt.param_groups[0]))


@pytest.mark.parametrize(
    "name, start, end, read",
    [
        ("lr", 1e-3, 1e-5, lambda group: group["lr"]),
        ("wd", 0.1, 0.01, lambda group: group["weight_decay"]),
        ("mom", 0.95, 0.85, lambda group: group["betas"][0]),
        ("sqr_mom", 0.99, 0.9, lambda group: group["betas"][1]),
        ("eps", 1e-6, 1e-8, lambda group: group["eps"]),
    ],
)
def test_any_hyper_parameter_can_be_scheduled(name, start, end, read):
    values = Values(read)
    learner().fit(2, cbs=[fastai.ParamScheduler({name: fastai.SchedLin(start, end)}), values])
    steps = len(values.seen)
    assert values.seen == pytest.approx([start + (end - start) * k / steps for k in range(steps)], rel=1e-5)


def pairs(folder, **how):
    return fastai.ImageDataLoaders.from_folder(folder / "set", valid_pct=0.3, bs=4, num_workers=0, device=CPU, item_tfms=fastai.Resize(8), **how)


def block(folder, *blocks, **how):
    made = fastai.DataBlock(blocks=blocks, get_items=fastai.get_image_files, item_tfms=fastai.Resize(8), **how)
    return made.dataloaders(folder / "set", bs=4, num_workers=0, device=CPU)


LOADERS = {
    "ImageDataLoaders": (2, pairs),
    "with augmentation": (2, lambda f: pairs(f, batch_tfms=fastai.aug_transforms(size=8))),
    "DataBlock (x, y)": (2, lambda f: block(f, fastai.ImageBlock, fastai.CategoryBlock, get_y=fastai.parent_label)),
    "DataBlock (x,)": (0, lambda f: block(f, fastai.ImageBlock)),
    "(x, y), labels not wanted": (0, pairs),
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_of_fastai_are_taken(name, folder):
    classes, make = LOADERS[name]
    learn, seen = learner(make(folder), classes), []
    learn.add_cb(type("Look", (fastai.Callback,), {"order": 1, "after_pred": lambda self: seen.append(self.yb[0].clone())})())
    learn.fit(1)
    assert learn.diffusion.images_seen == 8 and torch.isfinite(learn.recorder.losses[0]) and all(type(y) is torch.Tensor for y in seen)
    learn.validate()
    assert learn.validate() == learn.validate()  # the noise of an item is its own
    assert len(learn.show_results(max_n=3).axes) == 3 * min(3, len(learn.dls.valid.one_batch()[0]))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda f: learner().fit(1, cbs=fastai.MixUp()), "MixUp mixes images"),
        (lambda f: learner(callbacks=[fastai.CutMix()]).fit(1), "CutMix mixes images"),
        (lambda f: learner().export(), r"save\('model.safetensors'\)"),
        (lambda f: learner(pairs(f, batch_tfms=[fastai.Normalize.from_stats(*fastai.imagenet_stats)]), 2).fit(1), "leave Normalize out"),
        (lambda f: learner(block(f, fastai.ImageBlock, fastai.ImageBlock, get_y=lambda p: p), 0).fit(1), "label must hold one whole number"),
    ],
)
def test_what_does_not_fit_says_what_to_do(call, words, folder):
    with pytest.raises(TrainingError, match=words):
        call(folder)
