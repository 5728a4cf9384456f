"""Recipes: facts that resolve to what the library's own functions take, and survive being written down."""

import json
import math

import pytest
import torch
from PIL import Image

import diffnb.apps.recipes as module
from diffnb.apps import RECIPES, Recipe, recipe_from_plain, recipe_images, recipe_network, recipe_process, recipe_table, to_plain, train_recipe
from diffnb.data import image_set, read_picture, resize_images
from diffnb.noise import EDM, PARAMETRIZATIONS, Discrete, Karras
from diffnb.samplers import SAMPLERS
from diffnb.training import TIMES, InverseSqrtRate, LogNormal, MinSNR, PowerLaw, TrainingResult, TrainingSettings


class Flowers102:
    """Torchvision's class of this name from outside: 10, 10 and 20 photos, each filled with a number of its own."""

    counts = {"train": (0, 10), "val": (10, 10), "test": (20, 20)}

    def __init__(self, root, split, download):
        self.first, self.count = self.counts[split]

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return photo(self.first + i), i % 3


def photo(i):
    """A photo with a pattern finer than 64 pixels can show, and a level that says which it is."""
    picture = Image.new("RGB", (300, 260), (6 * i, 0, 0))
    for x in range(0, 300, 2):
        picture.paste((6 * i, 80, 0), (x, 0, x + 1, 260))
    return picture


def test_flowers_are_what_the_recipe_promises(monkeypatch, tmp_path):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "Flowers102", Flowers102)
    flowers = RECIPES["flowers"]()
    train, valid = recipe_images(flowers, tmp_path, verbose=False)
    assert (len(train), len(valid), train.shape, train.labels) == (32, 8, (3, 64, 64), None)  # all splits, then 80 to 20
    reds = torch.cat([train.images, valid.images])[:, 0, 30, 30]
    assert reds.sort().values.tolist() == [6 * i for i in range(40)]
    # a central box, resized with the widened filter: the stripes become gray, and PIL says the same
    expected = resize_images(read_picture(photo(7))[None], 64)[0]
    found = next(image for image in train.images.tolist() + valid.images.tolist() if image[0][30][30] == 42)
    assert (torch.tensor(found) - expected.int()).abs().max() <= 1
    assert expected[1].float().std() < 2 and abs(expected[1].float().mean() - 40) < 2
    assert (flowers.flip, flowers.training.lr, flowers.training.ema, flowers.metric, flowers.metric_every) == (True, 2e-4, 0.999, "kid", 10)
    assert (flowers.parametrization, flowers.training.times, flowers.training.weight) == ("epsilon", "uniform", "equal")
    network = recipe_network(flowers.changed(network=dict(flowers.network, widths=(8, 16, 32, 64), embedding_width=16)), train)
    assert (network.config["blocks"], network.num_classes) == (2, 0)
    assert tuple(flowers.network["widths"]) == (64, 128, 256, 512)


def test_the_range_of_beta_is_scaled_to_the_number_of_steps():
    process = recipe_process(RECIPES["flowers"]())
    betas = torch.tensor(process.betas, dtype=torch.float64)
    assert (process.T, betas[0].item(), betas[-1].item()) == (500, pytest.approx(2e-4), pytest.approx(0.04))
    left = process.alpha(torch.tensor(1.0, dtype=torch.float64)).item()
    assert left == pytest.approx((1 - betas).prod().sqrt().item(), rel=1e-9)
    assert left == pytest.approx(math.exp(-(betas + betas**2 / 2 + betas**3 / 3).sum().item() / 2), rel=1e-3)
    assert left < 0.01 < 0.05 < (1 - betas / 2).prod().sqrt().item()  # unscaled, 8% of the image would be left


def test_a_local_folder_takes_the_place_of_the_set_and_it_is_said(tmp_path, capsys):
    for i in range(10):
        (tmp_path / "flowers64" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        photo(i).save(tmp_path / "flowers64" / "ab"[i % 2] / f"{i}.png")
    train, valid = recipe_images(RECIPES["flowers"](), tmp_path)
    said = capsys.readouterr().out.splitlines()[0]
    assert said == "flowers64 lies under the data root and takes the place of flowers102: this run is on flowers64."
    assert (len(train), len(valid)) == (8, 2)
    elsewhere = RECIPES["flowers"]().changed(data=str(tmp_path / "flowers64"), local="not-there", split="train")
    assert len(recipe_images(elsewhere, tmp_path, verbose=False)[0]) == 8


def test_every_name_in_every_recipe_exists_and_the_table_has_them_all():
    table = recipe_table()
    for name in RECIPES.names():
        recipe = RECIPES[name]()
        recipe_process(recipe), PARAMETRIZATIONS[recipe.parametrization], SAMPLERS[recipe.sampler]
        assert isinstance(recipe.training.times, LogNormal) or recipe.training.times in TIMES
        assert f"| {name} |" in table and recipe.metric is not None
    assert {"mnist", "fashion_mnist", "cifar10", "pets", "celeba", "flowers"} <= set(RECIPES.names())
    assert not RECIPES["mnist"]().flip and RECIPES["cifar10"]().flip


def test_a_recipe_written_down_and_read_is_the_same():
    changed = {"ema": PowerLaw(0.1), "times": LogNormal(-0.5, 0.9), "classes": ("Bag", 3), "max_norm": math.inf, "size": (28, 32)}
    for recipe in [Recipe("mnist", process=Discrete.cosine(30)).changed(**changed), *(RECIPES[name]() for name in RECIPES.names())]:
        assert recipe_from_plain(json.loads(json.dumps(to_plain(recipe)))) == recipe
    odd = Recipe("mnist", process=type("Mine", (EDM,), {})())
    with pytest.raises(ValueError, match="its class has no registered name"):
        to_plain(odd)


def test_fit_is_called_with_the_facts_of_the_recipe(monkeypatch):
    calls = {}

    def fit(loaders, network, sde, parametrization, **settings):
        calls.update(loaders=loaders, sde=sde, parametrization=parametrization, **settings)
        return TrainingResult({}, network.state_dict())

    monkeypatch.setattr(module, "fit", fit)
    recipe = Recipe(
        "packaged", valid=0.25, limit=80, valid_limit=7, flip=True, network="tiny", process="vp", schedule="cosine", epochs=5, batch_size=16
    )
    recipe = recipe.changed(lr=3e-4, ema=0.9, seed=4, metric="kernel", metric_every=3, metric_images=50)
    train_recipe(recipe, progress=False, device="cpu")
    train = calls["loaders"].train
    assert (train.n, train.bs, train.flip, train.seed, calls["loaders"].valid.n) == (60, 16, True, 4, 7)
    assert calls["settings"] == TrainingSettings(lr=3e-4, ema=0.9, seed=4) and calls["epochs"] == 5
    assert type(calls["sde"].schedule).__name__ == "Cosine"
    assert calls["parametrization"] == Karras(sigma_data=round(train.dataset.rms, 3))
    (metric,) = calls["callbacks"]
    assert (metric.kind, metric.every, metric.n) == ("kernel", 3, 50)


def test_the_network_depends_on_the_seed_of_the_recipe_alone():
    images, networks = image_set("packaged", limit=20, verbose=False), {}
    for size in ("tiny", dict(widths=(8, 16), blocks=1, attention_levels=(), groups=4)):
        for key, (torch_seed, seed) in {"a": (1, 0), "b": (2, 0), "c": (1, 5)}.items():
            torch.manual_seed(torch_seed)
            state = torch.get_rng_state()
            networks[key] = recipe_network(Recipe("packaged", network=size).changed(seed=seed), images).stem.weight
            assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(networks["a"], networks["b"]) and not torch.equal(networks["a"], networks["c"])


def test_the_command_line_changes_what_is_given_and_nothing_else():
    from diffnb.apps import facts_from_text
    from diffnb.apps.commands import _recipe

    given = facts_from_text(size=32, ema="half-life", valid="0.2", epochs=7, lr=None, flip=False)
    assert given == {"size": 32, "ema": "half-life", "valid": 0.2, "epochs": 7, "flip": False}
    assert facts_from_text(ema="0.99", valid="test") == {"ema": 0.99, "valid": "test"}
    given = facts_from_text(ema="power-law:0.1", rate="inverse-sqrt:2000", times="log-normal:-1.2,1.2", weight="min-snr:3")
    given |= facts_from_text(snapshots="0.05,0.1", warmup=0)
    changed = Recipe("mnist").changed(ema=PowerLaw(0.1), rate=InverseSqrtRate(2000.0), times=LogNormal(-1.2, 1.2), weight=MinSNR(3.0))
    assert _recipe(None, "mnist", given) == changed.changed(snapshots=(0.05, 0.1), warmup=0)
    logged = {"quantiles": "shifted", "sample_every": 3, "snapshot_every": 7, "log_to": "wandb"}
    assert _recipe(None, "mnist", facts_from_text(**logged)) == Recipe("mnist").changed(**logged)
    flowers = RECIPES["flowers"]()
    assert _recipe("flowers", None, {"epochs": 7}) == flowers.changed(epochs=7)
    assert _recipe("flowers", None, {"metric": "none"}).metric is None
    own = _recipe("flowers", "photos", {})
    assert (own.data, own.local, own.split, own.process) == ("photos", None, "train", flowers.process)
    assert _recipe(None, "mnist", {"lr": 2e-3}) == Recipe("mnist").changed(lr=2e-3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Recipe("mnist").changed(learning_rate=1), "a recipe has no 'learning_rate'; it has accumulate"),
        (lambda: Recipe("mnist", epochs=2.5), "epochs must be a whole number of at least 1, got 2.5"),
        (lambda: Recipe("mnist", snapshots=(0.05, 2.0)), "sigma_rel must lie in .*; got 2.0"),
        (lambda: Recipe("mnist", valid=1.0), "valid must name a split, or be a share of at least 0 and less than 1, got 1.0"),
        (lambda: recipe_process(Recipe("mnist", process="ve", schedule="linear")), "VE has no noise schedule"),
        (lambda: RECIPES["flower"], "did you mean 'flowers'"),
    ],
)
def test_what_cannot_be_is_said(make, words):
    with pytest.raises((ValueError, TypeError), match=words):
        make()
