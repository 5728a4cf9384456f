"""Models of text through the facade: what is drawn, what is refused, and what a file keeps."""

import warnings

import pytest
import torch

from diffnb import GenerativeModel
from diffnb.core import NoiseSource, to_unit
from diffnb.data import ImageSet, image_set
from diffnb.files.report import inspect
from diffnb.guidance import ClassifierFree
from diffnb.networks import TextUNet, UNet, first_weights


@pytest.fixture(scope="module")
def captioned():
    return image_set("emoji", size=8, limit=64, verbose=False)


@pytest.fixture(scope="module")
def model(captioned):
    """A model that has learned next to nothing, but whose answers depend on text and class."""
    model = GenerativeModel("edm", "dpm-solver++2m", network="tiny", device="cpu", verbose=False)
    model.train(captioned, steps=12, batch_size=16, lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, layer in model.trained.network.named_modules():  # branches that start at zero would hide a mistake
            if isinstance(getattr(layer, "weight", None), torch.nn.Parameter) and layer.weight.abs().max() < 0.05:
                layer.weight.copy_(0.2 * torch.randn(layer.weight.shape, generator=generator))
    return model


FEW = {"n_steps": 3, "seed": 5}


def test_text_and_class_are_taken_each_for_its_own_image(model):
    assert model.trained.network.condition_names == ("text", "label") and model.label_names == ["noto", "flat"]
    texts, styles = ["red apple", None, "green heart, flat style"], ["noto", None, "flat"]
    together = model.generate(3, prompt=texts, class_labels=styles, guidance_scale=2.0, **FEW)
    for k, (text, style) in enumerate(zip(texts, styles)):
        if text is not None:
            alone = model.generate(1, first=k, prompt=text, class_labels=style, guidance_scale=2.0, **FEW)
            torch.testing.assert_close(together[k : k + 1], alone, atol=2e-4, rtol=0)
    plain = model.generate(3, **FEW)
    torch.testing.assert_close(together[1], plain[1], atol=2e-4, rtol=0)  # nothing was asked for, so that there is nothing to exaggerate
    assert (together - plain).abs().amax((1, 2, 3))[[0, 2]].min() > 1e-3
    assert (model.generate(3, prompt="red apple", **FEW)[0] - model.generate(3, prompt="blue boat", **FEW)[0]).abs().max() > 1e-3


def test_scales_by_condition_and_a_negative_prompt_are_those_of_the_guidance(model):
    network, scale = model.trained.network, {"label": 2.0, "text": 3.0}
    made = model.generate(2, prompt="red apple", negative_prompt="blue", class_labels="noto", guidance_scale=scale, **FEW)
    condition = {"text": network.encode(["red apple"] * 2), "negative_text": network.encode(["blue"] * 2), "label": torch.tensor([0, 0])}
    denoiser = ClassifierFree(model.denoiser(), scale)
    x = model.sampler(denoiser, shape=(2, 3, 8, 8), n_steps=3, seeds=NoiseSource.of(5, 2), condition=condition).x
    torch.testing.assert_close(made, to_unit(x).float(), atol=1e-5, rtol=0)
    other = model.generate(2, prompt="red apple", class_labels="noto", guidance_scale=scale, **FEW)
    assert (made - other).abs().max() > 1e-3


def test_a_file_keeps_the_words(model, tmp_path):
    model.save(tmp_path / "words.safetensors")
    again = GenerativeModel.load(tmp_path / "words.safetensors", "cpu", verbose=False)
    asked = {"prompt": f"red {model.trained.network.vocabulary.further[0]}", "guidance_scale": 3.0} | FEW
    assert torch.equal(again.generate(2, **asked), model.generate(2, **asked))


def test_training_goes_on_and_a_network_of_text_alone_leaves_the_classes(model, captioned):
    network = TextUNet(
        3, widths=(8,), blocks=1, attention_levels=(0,), groups=4, head_width=8, text_width=16, further=model.trained.network.vocabulary.further
    )
    alone = GenerativeModel("edm", network=network, device="cpu", verbose=False)
    for _ in range(2):
        alone.train(captioned, steps=2, batch_size=16)
    assert alone.labels == [] and len(alone.records) == 2
    alone.generate(1, 1, prompt="heart", seed=0)


def test_restoring_and_editing_listen_to_the_text(model):
    picture = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(1, 8, 8)
    mask[:, :4] = 0
    calls = {
        "imputation": lambda **text: model.imputation(picture, mask, method="ddnm", **text, **FEW),
        "colorize": lambda **text: model.colorize(picture.mean(1, keepdim=True), method="ddnm", variants=2, **text, **FEW),
        "upscale": lambda **text: model.upscale(picture[..., ::2, ::2], method="ddnm", **text, **FEW),
        "denoise": lambda **text: model.denoise(picture, 0.1, method="pigdm", **text, **FEW),
        "reconstruct": lambda **text: model.reconstruct(picture, **text, **FEW),
        "edit": lambda **text: model.edit(picture, 0.5, from_prompt="red apple", **text, **FEW),
        "decode": lambda **text: model.decode(picture, n_steps=3, **text),
    }
    for name, call in calls.items():
        told, untold = call(prompt=["red apple", "blue boat"]), call()
        assert told.shape == untold.shape and (told - untold).abs().max() > 1e-4, name
    back = model.edit(picture, 0.3, prompt="red apple", from_prompt="red apple", n_steps=40)
    away = model.edit(picture, 0.3, prompt="blue boat", from_prompt="red apple", n_steps=40)
    assert (back - picture).abs().mean() < 0.3 * (away - picture).abs().mean()  # up under a text and down under the same is the way back


def test_a_student_of_a_model_of_text(model, captioned):
    student = model.distill(captioned, steps=2, batch_size=16, guidance_scale=2.0)
    assert student.generate(2, 1, seed=0, prompt="red apple").shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match="cannot be chosen for a distilled model"):
        student.generate(1, 1, seed=0, prompt="red apple", guidance_scale=2.0)


WRONG = [
    ({"prompt": ""}, "prompt has no word in ''; say what to draw, or leave it out"),
    ({"prompt": " ...! "}, "prompt has no word in"),
    ({"prompt": "a gren haert"}, "unknown words in the text: 'gren' .known: .*green.*; 'haert' .known: .*heart"),
    ({"prompt": "very " * 24 + "green"}, "a text may have 23 words, got 25"),
    ({"prompt": ["red", "green", "blue"]}, "prompt holds 3 texts for 2 samples; give one for all, or one each"),
    ({"prompt": []}, "prompt holds 0 texts for 2 samples"),
    ({"prompt": 3}, "prompt must be a text, or a text for each sample, got 3"),
    ({"prompt": ["red", 3]}, "prompt must be a text, or a text for each sample, got 3"),
    ({"prompt": "red\x1b[2Japple"}, r"a text must not hold control characters, got U\+001B"),
    ({"prompt": "red", "negative_prompt": "zzqw", "guidance_scale": 2}, "unknown words in the text: 'zzqw'"),
    ({"prompt": "red", "negative_prompt": "blue"}, "negative_prompt leads away from something only where guidance_scale is above 1"),
    ({"guidance_scale": 2}, "guidance_scale=2 strengthens a class or a text; give class_labels or prompt too"),
    ({"prompt": "red", "guidance_scale": {"txet": 2}}, "guidance needs a condition with txet, got label, text"),
    ({"prompt": "red", "guidance_scale": {"text": -1}}, "guidance_scale must be a number of at least 0"),
    ({"prompt": "red", "guidance_scale": [1.0, 2.0, 3.0]}, "a finite number for each of the 2 samples"),
    ({"prompt": "red", "class_labels": "oil"}, "unknown label 'oil'; this model knows"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[f"{list(a)[-1]} {n}" for n, (a, _) in enumerate(WRONG)])
def test_what_cannot_be_drawn_is_told_in_a_sentence(model, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message) as told:
        model.generate(2, 1, seed=0, **arguments)
    assert "\n" not in str(told.value) and "\x1b" not in str(told.value)


@pytest.mark.parametrize("argument", ["prompt", "negative_prompt"])
def test_a_model_of_classes_says_that_it_takes_no_text(argument):
    model = GenerativeModel.pretrained("fashion_mnist", "cpu", verbose=False)
    with pytest.raises(ValueError, match=f"{argument}='bag' was asked for, but this model takes no text; it knows classes: 0 .T-shirt/top."):
        model.generate(1, 1, seed=0, guidance_scale=2.0, **{argument: "bag"})


def test_a_folder_of_captioned_pictures_is_trained_on_and_drawn_from(tmp_path):
    from PIL import Image

    for k, name in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), name).save(tmp_path / f"{k}.png")
    (tmp_path / "captions.csv").write_text("image,caption\n0.png,a red square\n1.png,a green square\n2.png,a blue square\n2.png,something blue\n")
    images = image_set(str(tmp_path), verbose=False)
    assert images.captions == [("a red square",), ("a green square",), ("a blue square", "something blue")] and images.labels is None
    assert repr(images).endswith("3 images, 3 x 8 x 8, 4 captions")
    network = TextUNet(3, widths=(16,), blocks=1, attention_levels=(0,), groups=4, head_width=8, text_width=32, text_depth=1)
    model = GenerativeModel("edm", "dpm-solver++2m", network=network, device="cpu", verbose=False)
    model.train(images.select(torch.arange(3).repeat(500)), steps=60, batch_size=24, valid_fraction=0.02, lr=1e-2)
    drawn = model.generate(3, 8, seed=0, prompt=["red square", "green square", "blue square"], guidance_scale=3.0).mean((2, 3))
    assert (drawn.argmax(1) == torch.tensor([0, 1, 2])).all(), drawn


@pytest.mark.parametrize(
    ("captions", "message"),
    [
        ([("a",)], "3 images but captions of 1; give captions for each image"),
        ([("a",), (), ("b",)], r"the captions of an image must be a list of one text or more, got \(\)"),
        (["a", "b", "c"], "the captions of an image must be a list of one text or more, got 'a'"),
        ([("a",), ("b", 3), ("c",)], "one text or more, got .'b', 3."),
    ],
)
def test_captions_that_do_not_fit(captions, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), captions=captions)


@pytest.fixture(scope="module")
def bright():
    """A model of flat grey pictures whose brightness is one attribute, and that are mirrored in a second one."""
    level = torch.linspace(0, 1, 800)
    dark_left = (torch.arange(800) % 2).bool()
    images = (level[:, None, None, None] * 200 + 20).expand(-1, 1, 8, 8).clone()
    images[..., :4] += 35 * (1 - 2 * dark_left.float())[:, None, None, None]
    known = torch.where(torch.arange(800) % 5 == 0, torch.nan, 100 * level)  # in per cent, of every fifth nobody knows it
    data = ImageSet(images.clamp(0, 255).round().byte(), attributes={"brightness": known, "dark_left": dark_left})
    with first_weights(0):
        network = UNet(1, widths=(24, 24), blocks=1, attention_levels=(), groups=4, attributes=data.scales)
    model = GenerativeModel("edm", "dpm-solver++2m", network=network, device="cpu", verbose=False)
    model.train(data, steps=200, batch_size=32, valid_fraction=0.04, lr=4e-3)
    return data, model


def test_attributes_are_drawn_as_asked_for(bright, tmp_path):
    data, model = bright
    assert data.scales[1] == ("dark_left", 0.5, 0.5) and model.trained.attribute_names == ("brightness", "dark_left")
    asked = [level for level in (10.0, 50.0, 90.0, None) for _ in range(8)]
    drawn = model.generate(32, 12, seed=0, attributes={"brightness": asked, "dark_left": True})
    means = drawn[:24, ..., 4:].mean((1, 2, 3)).view(3, 8).mean(1)
    expected = (torch.tensor([10.0, 50.0, 90.0]) / 100 * 200 + 20) / 255
    assert (means - expected).abs().max() < 0.12, (means, expected)
    assert (drawn[..., :4].mean((1, 2, 3)) < drawn[..., 4:].mean((1, 2, 3))).float().mean() > 0.85
    model.save(tmp_path / "a.safetensors")
    again = GenerativeModel.load(tmp_path / "a.safetensors", "cpu", verbose=False)
    assert torch.equal(again.generate(32, 12, seed=0, attributes={"brightness": asked, "dark_left": True}), drawn)


def test_a_report_says_what_a_model_takes(model, bright, tmp_path):
    for one, told, words in ((model, ["text"], "takes text"), (bright[1], ["the attribute brightness"], "attributes brightness")):
        one.save(tmp_path / "model.safetensors")
        report = inspect(tmp_path / "model.safetensors")
        assert report.told[: len(told)] == told and f"takes {', '.join(report.told)}" in str(report) and words in repr(one)


def test_a_list_of_texts_says_how_many_images(model):
    assert len(model.generate(prompt=["red", None, "blue"], n_steps=2, seed=0)) == 3
    assert len(model.generate(prompt="red", n_steps=2, seed=0)) == 1
    assert model.generate(prompt=["red", "blue"], n_steps=2, seed=0).equal(model.generate(2, prompt=["red", "blue"], n_steps=2, seed=0))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (0.5, r"attributes must be a mapping from names .brightness, dark_left. to values, got 0.5"),
        ({"age": 3}, "unknown attribute 'age'; this model knows brightness, dark_left"),
        ({"brightness": "high"}, "attribute 'brightness' must be a number or a truth value, or one for each of the 2 samples, got 'high'"),
        ({"brightness": [1, 2, 3]}, "or one for each of the 2 samples"),
    ],
)
def test_attributes_that_cannot_be_asked_for(bright, attributes, message):
    with pytest.raises(ValueError, match=message):
        bright[1].generate(2, 1, seed=0, attributes=attributes)


def test_a_shell_trains_on_captions_too(tmp_path, monkeypatch, no_pictures):
    from PIL import Image

    from diffnb.apps.commands import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for k in range(12):
        Image.new("RGB", (8, 8), ("red", "blue")[k % 2]).save(tmp_path / "photos" / f"{k}.png")
        (tmp_path / "photos" / f"{k}.txt").write_text(f"a {('red', 'blue')[k % 2]} square")
    assert not app(["train", "photos", "--steps", "2", "--network", "tiny", "--metric", "none", "--out", "run"], standalone_mode=False)
    assert not app(["draw", "red square", "--model", "run", "--num", "1", "--steps", "1", "--out", "drawn.png"], standalone_mode=False)
    assert (tmp_path / "drawn.png").is_file()


def test_a_shell_trains_on_columns_of_numbers_and_asks_for_them(tmp_path, monkeypatch, capsys, no_pictures):
    from PIL import Image

    from diffnb.apps.commands import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    rows = ["image,age,happy,artist"]
    for k in range(12):
        Image.new("L", (8, 8), 20 * k).save(tmp_path / "photos" / f"{k}.png")
        rows.append(f"{k}.png,{k + 20},{('yes', 'no')[k % 2]},{('Monet', 'Manet')[k % 2]}")
    (tmp_path / "photos" / "metadata.csv").write_text("\n".join(rows))
    assert not app(["train", "photos", "--steps", "2", "--network", "tiny", "--metric", "none", "--out", "run"], standalone_mode=False)
    told = capsys.readouterr().err
    assert "2 attributes (age, happy)" in told and "columns that are left out: artist (holds 'Monet')" in told
    line = ["generate", "run", "--num", "1", "--steps", "1", "--attribute", "age=30", "--attribute", "happy=yes", "--out", "a.png"]
    assert not app(line, standalone_mode=False)
    assert app([*line[:-1], "b.png", "--attribute", "artist=1"], standalone_mode=False) == 2
    assert "unknown attribute 'artist'; this model knows age, happy" in capsys.readouterr().err


def test_attributes_keep_their_places_when_a_model_is_trained_again():
    """A network sees attributes by their place alone: in the other order, with others beside them, and with one missing, it must learn the same."""
    images = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    a, b = torch.arange(24.0), torch.arange(24.0) % 3
    first = ImageSet(images, attributes={"a": a, "b": b})
    weights = []
    for attributes in ({"a": a, "b": b}, {"b": b, "a": a}, {"c": a, "b": b, "a": a}):
        model = GenerativeModel("edm", "dpm-solver++2m", network="tiny", device="cpu", verbose=False)
        model.train(first, steps=2, batch_size=8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.train(ImageSet(images, attributes=attributes), steps=2, batch_size=8)
        assert [str(one.message) for one in caught if "attributes" in str(one.message)] == (
            ["attributes that are left out: c; this model knows a, b"] if "c" in attributes else []
        )
        weights.append(torch.cat([p.flatten() for p in model.trained.network.parameters()]))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
