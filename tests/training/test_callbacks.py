"""What all our callbacks promise: they leave the learner's own names alone, and keep out of `lr_find`."""

import importlib
import pkgutil
import warnings

import pytest
import torch
from fastai.callback.core import Callback

import diffnb
from diffnb.data import ImageSet, image_loaders
from diffnb.networks import UNet
from diffnb.noise import EDM
from diffnb.training import (
    AgainCallback,
    CheckpointCallback,
    ConsistencyCallback,
    EarlyStopCallback,
    ForecastCallback,
    HistoryCallback,
    LevelLossCallback,
    MetricCallback,
    PostHocCallback,
    ResumeCallback,
    SampleCallback,
    ScheduleCallback,
    diffusion_learner,
)

IMAGES = ImageSet(torch.randint(256, (48, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(48) % 3)


def callback_classes():
    """Every callback that diffnb defines, but for that of the folder of a run, which tests/apps has."""
    for module in pkgutil.walk_packages(diffnb.__path__, "diffnb."):
        if module.name != "diffnb.files.worker":  # what runs inside the sandbox
            importlib.import_module(module.name)

    def below(cls):
        return {one for sub in cls.__subclasses__() for one in {sub, *below(sub)}}

    return sorted(
        (cls for cls in below(Callback) if cls.__module__.startswith("diffnb.") and not cls.__module__.startswith("diffnb.apps.")),
        key=lambda cls: cls.__name__,
    )


def pixels(images):
    """Features of images."""
    return images.flatten(1)[:, :7]


def learner(folder, **settings):
    """A learner with all of them, and a network with labels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(1, num_classes=3, widths=(8,), blocks=1, attention_levels=(), embedding_width=8, groups=4)
    callbacks = [
        CheckpointCallback(lambda name, state: None),
        EarlyStopCallback(),
        HistoryCallback(folder),
        LevelLossCallback(3, folder),
        MetricCallback("kernel", n=6, extractor=pixels, n_steps=2),
        PostHocCallback(folder / "ema", every=2),
        ResumeCallback(folder / "training.safetensors", every=2),
        SampleCallback(n=3, n_steps=2, folder=folder / "samples"),
        ScheduleCallback(1e-3, time_limit=600),
        AgainCallback(),
        ForecastCallback(tell=lambda line: None),
    ]
    loaders = image_loaders(IMAGES, IMAGES.select(torch.arange(16)), batch_size=16, device="cpu")
    return diffusion_learner(loaders, network, EDM(), weight="uncertainty", progress=True, callbacks=callbacks, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The learner after a validation, two epochs and a second fit, and all that was warned of on the way."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn = learner(tmp_path_factory.mktemp("callbacks"))
        learn.logger = lambda row: None
        learn.validate()
        learn.fit(2)
        learn.resume.is_asked = True
        learn.fit(3)
    return learn, [str(one.message) for one in caught]


def test_every_callback_is_in_the_learner(trained):
    in_its_place = {ConsistencyCallback}  # stands where `DiffusionCallback` stands when a model is distilled
    assert len(callback_classes()) > 15 and {type(cb) for cb in trained[0].cbs} >= set(callback_classes()) - in_its_place


def own_names(cb):
    """What our class and its instance define beside what every callback of fastai has."""
    classes = [cls for cls in type(cb).__mro__ if cls.__module__.startswith("diffnb.")]
    fastais = next(cls for cls in type(cb).__mro__ if cls not in classes)
    kept_by_fastai = set() if fastais is Callback else set(vars(fastais()))  # attributes of its recorder and progress bar
    names = {*vars(cb), *(name for cls in classes for name in vars(cls))} - set(dir(fastais)) - kept_by_fastai - {"learn"}
    return {name for name in names if not name.startswith("_")}


def test_no_callback_shadows_what_the_learner_has(trained):
    learn, caught = trained
    assert not [text for text in caught if "shadowing" in text]  # fastai's own look, while they ran
    learners = {*dir(type(learn)), *vars(learn)}  # with the names of the callbacks
    shadows = []
    for cb in learn.cbs:
        if type(cb) in callback_classes():
            shadows += [f"{type(cb).__name__}.{name}" for name in sorted(own_names(cb) & learners)]
            shadows += [
                f"{type(cb).__name__}.{name} (of the network)" for name in sorted(own_names(cb) & set(vars(cb))) if hasattr(learn.model, name)
            ]
    assert not shadows


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_validate_leaves_no_trace(tmp_path, precision):
    learn = learner(tmp_path, precision=precision)
    first = list(learn.validate())  # before there is an optimizer, a row or a score
    assert not list(tmp_path.iterdir()) and learn.history.rows == learn.level_loss.level_history == learn.metric.scores == []
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
        files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert len(files) > 8
        rows, levels, scores = list(learn.history.rows), list(learn.level_loss.level_history), list(learn.metric.scores)
        (after,) = learn.validate()
        assert after == pytest.approx(rows[-1]["valid_loss"], rel=1e-6) and after != first[0]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files
    assert (learn.history.rows, learn.level_loss.level_history, learn.metric.scores) == (rows, levels, scores)


def test_lr_find_leaves_no_trace(tmp_path):
    learn = learner(tmp_path / "run")
    learn.path = tmp_path
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=3, show_plot=False)
    assert not (tmp_path / "run").exists() and learn.ema.steps == learn.schedule.steps == 0
    assert learn.history.rows == learn.level_loss.level_history == learn.metric.scores == []
