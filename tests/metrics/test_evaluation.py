"""Scores of two sets: wherever they come from, what they are compared with, and what is refused."""

import json
import math
import os
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from diffnb.data import ImageSet, image_set
from diffnb.likelihood import bits_per_dim
from diffnb.metrics import (
    EXTRACTORS,
    BitsPerDim,
    Evaluator,
    Extractor,
    FrechetDistance,
    Metric,
    Sampled,
    as_extractor,
    content_hash,
    extractor_of,
    find_fid_weights,
    floor_sets,
    frechet_distance,
    frechet_of_features,
    gather,
    kernel_distance,
    make_metric,
    reference,
    sampled,
    score,
    source,
)
from diffnb.model import GenerativeModel


def has_fid_weights():
    """Whether DIFFNB_WEIGHTS holds the FID's Inception."""
    try:
        return bool(os.environ.get("DIFFNB_WEIGHTS")) and bool(find_fid_weights(os.environ["DIFFNB_WEIGHTS"]))
    except FileNotFoundError:
        return False


def coarse(images):
    """Means over 7 x 7 pixels: 16 features of a 28 x 28 image, in float64 arithmetic."""
    return torch.nn.functional.avg_pool2d(images.double(), 7).flatten(1).float()


@pytest.fixture(scope="module")
def sets():
    """Real images and others, 600 and 400 with labels."""
    images = image_set("packaged", verbose=False)
    return images.select(torch.arange(600)), images.select(torch.arange(5000, 5400))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own for each test, and no weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFNB_WEIGHTS", raising=False)
    extractor_of.cache_clear()  # where tests before have loaded weights


def moments(x):
    """Mean and covariance in float64."""
    return x.double().mean(0), torch.cov(x.double().T)


def test_the_value_is_the_distance_of_the_features(sets):
    real, other = sets
    got = score(real, other, ["frechet"], extractor=coarse)["frechet"]
    a, b = (coarse(s.images.float() / 255) for s in sets)
    assert got.value == pytest.approx(frechet_distance(*moments(a), *moments(b)), rel=1e-6)
    assert (got.name, got.n_real, got.n_generated) == ("frechet[coarse]", 600, 400)


def test_any_source_of_the_same_images_scores_the_same(sets, tmp_path):
    from PIL import Image

    real, other = sets
    for i, image in enumerate(other.images):
        folder = tmp_path / "folder" / str(other.labels[i].item())
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{i:04}.png")
    unit = other.images.float() / 255
    data = TensorDataset(unit, other.labels)
    sources = {
        "bytes": other.images,
        "floats": unit,
        "pair": (unit, other.labels),
        "dataset": data,
        "plain dataset": [data[i] for i in range(0)] or torch.utils.data.Subset(data, range(400)),
        "loader": DataLoader(data, batch_size=64),
        "folder": tmp_path / "folder",
        "folder as text": str(tmp_path / "folder"),
        "function": lambda first, m: unit[first : first + m],
        "function of bytes": lambda first, m: other.images[first : first + m],
        "Sampled": Sampled(lambda first, m: (unit[first : first + m], other.labels[first : first + m]), 400),
    }
    evaluator = Evaluator(real, ["frechet", "kernel"], extractor=coarse)
    want = evaluator(other)
    for name, data in sources.items():
        got = evaluator(data, n=400 if name.startswith("function") else None)
        for key in ("frechet", "kernel"):
            assert got[key].value == pytest.approx(want[key].value, rel=1e-5, abs=1e-9), (name, key)
            assert got.row(key).floor.value == want.row(key).floor.value
    # and the same for the real images
    for data in (real.images, (real.images.float() / 255, real.labels), DataLoader(TensorDataset(real.images), batch_size=50)):
        assert score(data, other, ["frechet"], extractor=coarse)["frechet"].value == pytest.approx(want["frechet"].value, rel=1e-6)


def test_drawn_images_are_forgotten():
    alive, most = weakref.WeakSet(), 0

    def draw(first, m):
        nonlocal most
        images = torch.full((m, 1, 8, 8), 0.5)
        alive.add(images)
        most = max(most, len(alive))
        return images

    found = gather(Sampled(draw, 1000), {"coarse": as_extractor(lambda_free)}, batch_size=50)
    assert found.n == 1000 and found.images is None and most <= 2


def lambda_free(images):
    """Two features."""
    return images.flatten(1)[:, :2]


@EXTRACTORS.register("test-counting")
class Counting(Extractor):
    """An extractor that counts the images that it sees."""

    name, n_features, seen, offset = "test-counting", 16, 0, 0.0

    def config(self):
        """With a setting."""
        return super().config() | {"offset": self.offset}

    def features(self, x):
        """Count, and take coarse pixels."""
        Counting.seen += len(x)
        return coarse(x) + self.offset


def test_real_images_are_looked_at_once(sets, tmp_path):
    real, other = sets
    folder = tmp_path / "features"

    def seen(images, extractor="test-counting"):
        before = Counting.seen
        result = score(images, other, ["frechet"], extractor=extractor, cache=folder)["frechet"]
        return result.value, Counting.seen - before

    value, n = seen(real)
    assert n == 600 + 400 and len(list(folder.iterdir())) == 1
    assert seen(real) == (value, 400)
    assert seen(real.images.float() / 255) == (value, 400)  # the content counts
    changed = real.images.clone()
    changed[0, 0, 0, 0] ^= 255
    assert seen(changed)[1] == 1000 and len(list(folder.iterdir())) == 2
    assert seen(real.images.flip(0))[1] == 1000  # the order is part of it
    other_settings = Counting()
    other_settings.offset = 1.0
    assert seen(real, other_settings)[1] == 1000
    file = next(p for p in folder.iterdir())
    for damaged in (file.read_bytes()[:-1], b"", file.read_bytes()[:-4] + b"\1\2\3\4"):
        for path in folder.iterdir():
            path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="computed anew"):
            assert seen(real) == (value, 1000)
        assert seen(real) == (value, 400)
    assert not [p for p in folder.iterdir() if p.suffix != ".safetensors"]


def test_functions_are_not_cached_and_a_cache_that_fails_only_costs_time(sets, tmp_path):
    real, other = sets
    score(real, other, ["frechet"], extractor=coarse, cache=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("not a folder")
    with pytest.warns(UserWarning, match="not kept"):
        got = score(real, other, ["frechet"], extractor="test-counting", cache=tmp_path / "file")
    assert got["frechet"].value == pytest.approx(score(real, other, ["frechet"], extractor=coarse)["frechet"].value)


def test_probabilities_join_features_in_the_cache(sets, tmp_path):
    images, extractor = source(sets[0]), as_extractor("fashion-classifier")
    first = reference(images, {extractor.name: extractor}, tmp_path, progress=False)
    both = reference(images, {extractor.name: extractor}, tmp_path, with_probabilities=[extractor.name], progress=False)
    again = reference(images, {extractor.name: extractor}, tmp_path, with_probabilities=[extractor.name], progress=False)
    assert torch.equal(first.features[extractor.name], again.features[extractor.name])
    assert torch.equal(both.probabilities[extractor.name], again.probabilities[extractor.name])
    assert torch.allclose(both.probabilities[extractor.name], extractor.probabilities(images.images.unit(slice(None))), atol=1e-5)
    assert first.facts["sha256"] == content_hash(images.images.images)[:12]


def test_the_floor_is_of_disjoint_real_images(sets):
    real, other = sets
    gathered = gather(source(real), {"coarse": as_extractor(coarse)}, keep_images=True)
    for n in (2, 100, 299, 300, 5000):
        rest, part = floor_sets(gathered, n, seed=3)
        assert part.n == min(n, 300) == len(part.images) and rest.n == 600 - part.n == rest.facts["n"]
        together = torch.cat([rest.images, part.images]).flatten(1)
        assert torch.equal(together.unique(dim=0), real.images.flatten(1).unique(dim=0))
    row = score(real, other, ["frechet"], extractor=coarse).row("frechet")
    pairs = [floor_sets(gathered, 400, seed=seed) for seed in range(3)]
    want = [frechet_distance(*moments(rest.features["coarse"]), *moments(part.features["coarse"])) for rest, part in pairs]
    assert row.floor.value == pytest.approx(np.mean(want), rel=1e-9) and row.floor.error == pytest.approx(np.std(want, ddof=1), rel=1e-6)
    assert (row.floor.n_real, row.floor.n_generated, row.floor.config["choices"]) == (300, 300, 3)
    second = score(real, other.select(torch.arange(100)), ["frechet"], extractor=coarse, floor=other.select(torch.arange(100, 400))).row("frechet")
    assert (second.floor.n_real, second.floor.n_generated, second.floor.config["choices"]) == (600, 100, 3)
    all_of_it = score(real, other.select(torch.arange(300)), ["frechet"], extractor=coarse, floor=other.select(torch.arange(100, 400))).row("frechet")
    assert all_of_it.floor.config["choices"] == 1 and all_of_it.floor.error is None  # there is but one choice


def test_a_floor_is_computed_once(sets):
    real, other = sets
    evaluator, calls = Evaluator(real, [Counted()], floor_choices=4), Counted.calls
    first, again = evaluator(other.select(torch.arange(50))), evaluator(other.select(torch.arange(100, 150)))
    assert Counted.calls - calls == 1 + 4 + 1 and first.rows[0].floor == again.rows[0].floor != first.rows[0].result
    assert evaluator(other.select(torch.arange(60))).rows[0].floor.n_generated == 60 and Counted.calls - calls == 6 + 1 + 4
    assert "mean over 4 choices" in str(first)
    for wrong in ({"floor_choices": 0}, {"floor_choices": True}, {"few_images": "is"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Evaluator(real, **wrong)


class Counted(Metric):
    """Counts how often it is asked."""

    name, calls = "counted", 0

    def config(self):
        """Nothing."""
        return {}

    def __call__(self, real, generated):
        """Mean grey value of the second set."""
        Counted.calls += 1
        return generated.float().mean().item()


def test_real_images_score_at_the_floor_and_spoilt_ones_above(sets):
    real, other = sets
    noisy = (other.images.float() / 255 + 0.3 * torch.randn(other.images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    evaluator = Evaluator(real, ["frechet", "kernel"], extractor="fashion-classifier")
    good, bad = evaluator(other), evaluator(noisy)
    for name in ("frechet", "kernel"):
        assert bad[name].value > 5 * abs(good.row(name).floor.value)
    assert good["frechet"].value < 1.5 * good.row("frechet").floor.value


def test_few_images_give_the_kernel_distance(sets):
    real, other = sets
    few = other.select(torch.arange(16))
    with pytest.warns(UserWarning, match="16 images with 16 features is mostly bias"):
        got = score(real, few, ["frechet"], extractor=coarse)
    assert [r.result.name for r in got.rows] == ["kernel[coarse]"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        both = score(real, few, ["frechet", "kernel"], extractor=coarse)
        assert [r.result.name for r in both.rows] == ["kernel[coarse]"] and both["kernel"].value == got["kernel"].value
        insisted = score(real, few, [FrechetDistance(extractor=as_extractor(coarse))])
        extrapolated = score(real, few, ["frechet"], extractor=coarse, few_images="frechet infinity")
        as_asked = score(real, few, ["frechet"], extractor=coarse, few_images=None)
    assert insisted["frechet"].n_generated == 16 and as_asked["frechet"].value == insisted["frechet"].value
    assert [r.result.name for r in extrapolated.rows] == ["frechet-infinity[coarse]"]
    with pytest.warns(UserWarning, match="no straight line in 1/n"):
        score(real, few, ["frechet"], extractor=coarse, few_images="frechet infinity")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert score(real, other.select(torch.arange(17)), ["frechet"], extractor=coarse)["frechet"].n_generated == 17


def test_a_number_of_another_network_has_another_name(sets):
    real, other = sets
    with pytest.warns(UserWarning) as caught:
        got = score(real, other, ["fid", "kid", "is", "prdc"])
    said = sorted(str(one.message) for one in caught if "computed with" in str(one.message))
    assert len(said) == 2  # one for each reason, however many metrics it holds for
    assert said[0].startswith("'fid' and 'kid' are computed with fashion-classifier, and the results are named after it: ")
    assert ": FID and KID need Inception, by `diffnb weights` (" in said[0]
    assert said[1].startswith("'is' is computed with fashion-classifier") and said[1].endswith("; get them by `diffnb weights --release`")
    names = [r.result.name for r in got.rows]
    assert names == [f"{kind}[fashion-classifier]" for kind in ("frechet", "kernel", "is", "prdc")]
    assert all(r.floor is not None and r.result.config["extractor"] == "fashion-classifier" for r in got.rows)
    with pytest.warns(UserWarning, match="'fid' is computed with cifar10-resnet20"):
        colour = score(torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32), ["fid"])
    assert [r.result.name.split("[")[1] for r in colour.rows] == ["cifar10-resnet20]"]
    with pytest.raises(FileNotFoundError, match="sha256"):
        score(real, other, extractor="inception-2015")


def bent(images):
    """A feature of image 3 of a batch is not a number."""
    out = coarse(images)
    out[3, 0] = math.nan
    return out


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"generated": torch.rand(60, 1, 28, 28) * 2 - 1}, "generated: images have values from -.* must lie in"),
        ({"real": torch.rand(60, 1, 28, 28) * 255}, "real: images have values from .* must lie in"),
        ({"generated": torch.rand(60, 1, 32, 28)}, "generated images are 1 x 32 x 28, but those to compare with 1 x 28 x 28"),
        ({"generated": torch.rand(60, 3, 28, 28)}, "generated images are 3 x 28 x 28"),
        ({"floor": torch.rand(60, 1, 20, 28)}, "floor images are 1 x 20 x 28"),
        ({"generated": torch.rand(60, 1, 28, 28).round().byte()}, "bytes of 0 and 1 only"),
        ({"generated": torch.full((60, 1, 28, 28), math.nan)}, "generated: "),
        ({"generated": torch.rand(1, 1, 28, 28)}, "generated has 1 image"),
        ({"real": torch.rand(1, 1, 28, 28)}, "real has 1 image"),
        ({"generated": torch.rand(0, 1, 28, 28)}, "generated: there is no image"),
        ({"generated": 3}, "generated: data must be"),
        ({"generated": "no/such/folder"}, "generated: 'no/such/folder' is neither a folder nor a known data set"),
        ({"generated": lambda first, m: torch.rand(m, 1, 28, 28)}, "n must say how many"),
        (
            {"generated": lambda first, m: torch.rand(m, 1, 28, 28) - 1, "n": 4},
            r"must give uint8, or floats in \[0, 1\]; got torch.float32 with values in",
        ),
        ({"generated": lambda first, m: torch.rand(m, 1, 28, 28) / 0, "n": 4}, "not finite"),
        ({"generated": lambda first, m: torch.rand(1, 1, 28, 28), "n": 4}, "must give 4 images, got 1"),
        ({"generated": lambda first, m: [[0]], "n": 4}, "draw"),
        ({"real": lambda first, m: torch.rand(m, 1, 28, 28)}, "n must say how many|real images must be there"),
        ({"n": 1}, "n must be a whole number of at least 2"),
        ({"n": 2.5}, "n must be a whole number"),
        ({"metrics": "fid"}, "metrics must be a list"),
        ({"metrics": []}, "metrics must be a list"),
        ({"metrics": ["fod"]}, "unknown metric 'fod'"),
        ({"metrics": [3]}, "a metric is a name"),
        ({"metrics": ["is"], "n": 49}, "50"),
        ({"metrics": ["is"], "extractor": coarse}, "needs class probabilities"),
        ({"extractor": bent}, "real images 0 to 127: bent gave features that are not finite"),
        ({"extractor": "incepsion-2015"}, "did you mean 'inception-2015'"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(sets, wrong, message):
    arguments = {"real": sets[0], "generated": sets[1], "metrics": ["kernel"], "extractor": "fashion-classifier", "progress": False} | wrong
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        score(arguments.pop("real"), arguments.pop("generated"), arguments.pop("metrics"), **arguments)
    assert "\n" not in str(caught.value)


def test_classes_are_scored_on_their_own(sets):
    real, other = sets
    evaluator = Evaluator(real, ["kernel"], extractor=coarse)
    got = evaluator.by_class(other)
    assert list(got) == list(range(10))
    for label in (0, 7):
        alone = score(real.only([label]), other.only([label]), ["kernel"], extractor=coarse)["kernel"]
        assert got[label]["kernel"].value == pytest.approx(alone.value, rel=1e-5)
        assert got[label].real["class"] == label and got[label].generated["n"] == int((other.labels == label).sum())
    with pytest.raises(ValueError, match="the generated images have none"):
        evaluator.by_class(other.images)
    with pytest.raises(ValueError, match="share no label"):
        evaluator.by_class(ImageSet(other.images, torch.zeros(400, dtype=torch.int64), ["bag"]))


class Brightness(Metric):
    """Difference of the mean grey values."""

    name, is_lower_better = "brightness", True

    def config(self):
        """Nothing but the images counts."""
        return {}

    def __call__(self, real, generated):
        """A plain number is enough."""
        return abs(real.float().mean().item() - generated.float().mean().item()) / 255


def test_a_metric_of_ones_own(sets):
    real, other = sets
    for metric in (Brightness, Brightness()):
        row = score(real, other, [metric]).row("brightness")
        assert row.result.value == pytest.approx(abs(real.images.float().mean() - other.images.float().mean()).item() / 255, rel=1e-4)
        assert 0 <= row.floor.value < 0.05 and row.result.n_generated == 400
    with pytest.raises(ValueError, match="which is no score"):
        score(real, other, [type("Bad", (Brightness,), {"__call__": lambda *_: math.nan})])


@pytest.fixture(scope="module")
def model():
    """The packaged model, in few steps."""
    return GenerativeModel.pretrained("fashion_mnist", verbose=False)


def test_images_of_a_model_carry_how_they_were_made(model, sets):
    images = sampled(model, 12, n_steps=2, seed=5, guidance_scale=2.0)
    got = Evaluator(sets[0], ["kernel"], extractor=coarse, batch_size=8)(images)
    assert got.generated["n"] == 12 and got.generated["seed"] == 5 and got.generated["guidance_scale"] == 2.0
    assert got.generated["nfe"] == 2 * model.sampler.evaluations(2) and type(model.sampler).__name__ in got.generated["sampler"]
    made = model.generate(12, 2, 5, [model.labels[i % 10] for i in range(12)], 2.0, batch_size=12)
    assert got["kernel"].value == pytest.approx(score(sets[0], made, ["kernel"], extractor=coarse)["kernel"].value, rel=0.02, abs=1e-4)
    assert set(Evaluator(sets[0], ["kernel"], extractor=coarse).by_class(replace_n(images, 20))) == set(range(10))
    one = sampled(model, 3, n_steps=1, class_labels="bag")
    assert [label for _, labels in one.batches(2) for label in labels] == ["bag"] * 3


def test_bits_per_dim_of_a_model_draw_nothing(model, sets, monkeypatch):
    monkeypatch.setattr(GenerativeModel, "generate", lambda *a, **k: pytest.fail("images were made"))
    own = BitsPerDim(model.denoiser(), n=2, n_steps=1)
    row = Evaluator(sets[0], [own])(sampled(model, 1000)).row("bpd")
    ends = sets[0].images[[0, -1]]
    assert row.result.value == pytest.approx(bits_per_dim(model.denoiser(), ends, n_steps=1).mean, rel=1e-4)
    assert (row.result.n_real, row.result.n_generated, row.floor) == (2, 0, None) and "of real images only" in row.note
    with pytest.raises(ValueError, match="two images or more"):
        BitsPerDim(model.denoiser(), n=1)(ends)


WEIGHTS = os.environ.get("DIFFNB_WEIGHTS")


@pytest.mark.skipif(not has_fid_weights(), reason="no weights of the FID's Inception: `diffnb weights DIR`, DIFFNB_WEIGHTS=DIR")
def test_metrics_of_inception_through_the_evaluator(sets, monkeypatch):
    monkeypatch.setenv("DIFFNB_WEIGHTS", WEIGHTS)
    real, other = sets[0].select(torch.arange(6)), sets[1].select(torch.arange(4))
    with pytest.warns(UserWarning, match="fid of 4 images with 2048 features is mostly bias; kid is given instead"):
        got = Evaluator(real, ["fid", "kid", FrechetDistance(), "vendi"], floor_choices=1)(other)
    network = extractor_of("inception-2015")
    a, b = network(real.images.float() / 255), network(other.images.float() / 255)
    assert {r.result.name for r in got.rows} == {"kid", "fid", "vendi[fashion-classifier]"}
    assert got["kid"].value == pytest.approx(kernel_distance(a, b)[0], rel=1e-4) and got["kid"].config["extractor"] == "inception-2015"
    assert got["fid"].value == pytest.approx(frechet_of_features(a, b), rel=1e-4) and got["fid"].config["resize"] == "pytorch-fid"
    assert 0 < got.row("fid").floor.value and got.row("fid").floor.n_generated == 3


def replace_n(images, n):
    """The same with another number of images."""
    return Sampled(images.draw, n, images.facts, images.names)


def test_scores_are_plain_data_and_print_what_they_depend_on(sets):
    got = score(sets[0], sampled_facts(sets[1]), extractor="fashion-classifier")
    read = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert {m["name"].split("[")[0] for m in read["metrics"]} == {"frechet", "kernel", "prdc"}
    assert all(m["floor"]["value"] is not None and m["n_generated"] == 400 for m in read["metrics"])
    text = str(got)
    assert "the floor is of fewer images" in text
    for part in ("fashion-classifier", "resize 28", "600 / 400", "300 / 300", "seed 7", "nfe 18", "guidance_scale 1.5", "packaged", "precision"):
        assert part in text, part
    assert got["fid"] is got["frechet_inception_distance"] is got["frechet"] and got["fid"].name == "frechet[fashion-classifier]"
    with pytest.raises(KeyError, match="there are frechet"):
        got["is"]


def sampled_facts(images):
    """Images as if drawn from a model."""
    unit = images.images.float() / 255
    return Sampled(lambda first, m: unit[first : first + m], len(images), {"seed": 7, "nfe": 18, "guidance_scale": 1.5})


def test_the_split_and_size_are_named(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for i in range(8):
            Image.fromarray((torch.rand(20, 24, generator=torch.Generator().manual_seed(i)) * 255).byte().numpy()).save(tmp_path / split / f"{i}.png")
    got = score(tmp_path, tmp_path / "train", ["kernel"], split="test", size=16, extractor="fashion-classifier")
    assert got.real == {"set": tmp_path.name, "split": "test", "size": 16, "n": 8, "sha256": got.real["sha256"]}


def test_splits_of_the_inception_score_are_stated():
    assert [make_metric("is", "fashion-classifier", n=n).splits for n in (50, 99, 100, 499, 500, 10_000)] == [1, 1, 2, 9, 10, 10]


def test_scoring_leaves_the_global_generator_alone(sets, model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    score(sets[0], sampled(model, 4, n_steps=1), ["kernel"], extractor="fashion-classifier")
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_scores_itself_and_any_other_images(model, sets):
    real, other = sets
    own = model.score(real, metrics=["kernel", "agreement"], n=20, n_steps=2, seed=3, class_labels=["bag", "coat"])
    assert own.generated["n"] == 20 and own.generated["seed"] == 3 and own.generated["classes"] == "2 in turn"
    images = model.generate(20, 2, seed=3, class_labels=["bag", "coat"] * 10)
    assert own["kernel"].value == pytest.approx(model.score(real, images, ["kernel"])["kernel"].value, rel=0.02, abs=1e-3)
    assert set(own["agreement"].values) == {"Bag", "Coat"} or len(own["agreement"].values) == 2
    given = GenerativeModel(verbose=False).score(real, other, ["kernel"])  # given images need no trained model
    assert given["kernel"].value == score(real, other, ["kernel"])["kernel"].value
    with pytest.raises(RuntimeError, match="has not been trained"):
        GenerativeModel(verbose=False).score(real)
    with pytest.raises(ValueError, match="bpd needs denoiser"):
        score(real, other, ["bpd"])


def test_the_command_scores_two_folders(sets, tmp_path):
    from PIL import Image
    from typer.testing import CliRunner

    from diffnb.apps import app

    for name, images in zip("ab", sets):
        for i in range(60):
            folder = tmp_path / name / str(images.labels[i].item() % 2)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[i, 0].numpy()).save(folder / f"{i:02}.png")
    line = ["score", str(tmp_path / "a"), str(tmp_path / "b"), "--metrics", "frechet,prdc", "--json", str(tmp_path / "scores.json")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0 and "mostly bias" in result.stderr and "coverage" in result.stdout
    read = json.loads((tmp_path / "scores.json").read_text())
    want = score(tmp_path / "a", tmp_path / "b", ["kernel"])["kernel"].value
    assert read["metrics"][0]["name"] == "kernel[fashion-classifier]" and read["metrics"][0]["value"] == pytest.approx(want)
    result = CliRunner().invoke(app, [*line[:3], "--metrics", "kernel", "--by-class"])
    assert result.exit_code == 0 and result.stdout.count("class 1\nreal:") == 1
    result = CliRunner().invoke(app, ["score", str(tmp_path / "a"), str(tmp_path / "none")])
    assert result.exit_code == 2 and result.stderr.startswith("diffnb: B: there is no file or folder") and result.stderr.count("\n") == 1


def test_drawn_images_are_rounded_as_files_would_be():
    drawn = Sampled(lambda first, m: torch.tensor([0.0, 0.4, 0.9, 254.6]).view(1, 1, 2, 2).expand(m, -1, -1, -1) / 255, 2)
    assert next(drawn.batches(2))[0][1].flatten().tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("which", ["real", "floor"])
def test_real_images_are_there_before_they_are_compared(which):
    """Those for the floor too: what is drawn a batch at a time has no images to look at."""
    images = torch.rand(8, 1, 4, 4)
    given = {"real": images} | {which: Sampled(lambda first, m: images[first : first + m], 8)}
    with pytest.raises(ValueError, match=f"{which} images must be there before they are compared"):
        Evaluator(**given, metrics=["frechet"], extractor="pixels", progress=False)
