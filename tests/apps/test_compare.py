"""A comparison: bad settings are one sentence, cells are known by their content, and whatever is killed and when, the table is the same."""

import json
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from commands import Fork  # noqa: E402

from diffnb.apps import Comparison, WorkPlan, claimed, compare_runs, result_rows, rows_to_csv, run_comparison, work, write_results  # noqa: E402
from diffnb.data import image_set  # noqa: E402
from diffnb.metrics import KernelDistance  # noqa: E402
from diffnb.model import GenerativeModel  # noqa: E402

TINY = {
    "data": "packaged",
    "limit": 60,
    "processes": ["ve", "vp"],
    "schedules": "cosine",
    "samplers": ["ddim", "euler-maruyama"],
    "networks": [{"widths": [4], "blocks": 1, "attention_levels": [], "groups": 2, "unshuffle": 4}],
    "steps": 2,
    "images": 8,
    "train_steps": 3,
    "batch_size": 8,
    "seeds": 1,
    "metrics": "kernel",
}


def table(plan):
    """All that does not depend on how fast the machine was."""
    return rows_to_csv([{name: value for name, value in row.items() if name != "seconds"} for row in result_rows(plan)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison that nobody disturbed."""
    plan, failed = run_comparison(TINY, tmp_path_factory.mktemp("whole"), progress=False)
    assert (failed, plan.missing(), len(plan.cells)) == ({}, [], 4)
    return plan


WRONG = [  # what is changed, and what the sentence must say
    ({"data": None}, "data must be known sets or folders"),
    ({"data": []}, "data must hold at least one value"),
    ({"dtaa": "mnist"}, "no key 'dtaa' (did you mean 'data'?)"),
    ({"colour": "red"}, "no key 'colour'; its keys are data, processes"),
    ({"processes": "vee"}, "processes: unknown diffusion process 'vee'"),
    ({"processes": [1]}, "processes must be names, such as 'vp', got 1"),
    ({"schedules": "cosin"}, "schedules: unknown noise schedule 'cosin'"),
    ({"samplers": ["ddim", "best"]}, "samplers: unknown sampler 'best'"),
    ({"tasks": "painting"}, "tasks: unknown task 'painting'"),
    ({"classes": [0, 1]}, "classes must be a list of subsets, each 'all' or a list of labels"),
    ({"classes": [[]]}, "classes must be a list of subsets"),
    ({"networks": "huge"}, "networks must be 'tiny', 'small'"),
    ({"methods": "magic"}, "methods: unknown restoration method 'magic'"),
    ({"metrics": "beauty"}, "metrics: unknown metric 'beauty'"),
    ({"metrics": "bpd"}, "metrics: 'bpd' is of a model"),
    ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
    ({"steps": [5, "many"]}, "steps must be a whole number of at least 1, got 'many'"),
    ({"images": 2}, "images must be a whole number of at least 8, got 2"),
    ({"train_steps": True}, "train_steps must be a whole number of at least 1, got True"),
    ({"seeds": 0}, "seeds must be a whole number of at least 1, got 0"),
    ({"seeds": [-1]}, "seeds must be a whole number of at least 0, got -1"),
    ({"guidance_scale": -1}, "guidance_scale must be a number of at least 0, got -1"),
    ({"lr": "fast"}, "lr must be a number, got 'fast'"),
    ({"lr": float("nan")}, "lr must be a number above 0, got nan"),
    ({"aside": 1}, "aside must be a number between 0 and 1, got 1"),
    ({"batch_size": None}, "batch_size must be a whole number of at least 1, got None"),
    ({"limit": 3}, "limit must be a whole number of at least 10, got 3"),
    ({"retrain": 1}, "retrain must be True or False, got 1"),
    ({"extractor": 3}, "extractor must be the name of an extractor, got 3"),
]


@pytest.mark.parametrize("change, said", WRONG, ids=[json.dumps(change) for change, _ in WRONG])
def test_what_is_wrong_is_said_in_a_sentence_that_names_it(change, said):
    with pytest.raises(ValueError) as stop:
        Comparison.of(TINY | change)
    assert said in str(stop.value) and "\n" not in str(stop.value)


FILES = [
    ("a.yaml", "data: mnist", "ending in .toml or .json"),
    ("a.json", "[1]", "must hold an object"),
    ("a.json", "{", "is no JSON"),
    ("a.json", "{}", "needs the key data"),
    pytest.param("a.toml", "data = [", "is no TOML", marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="TOML is read from Python 3.11 on")),
]


@pytest.mark.parametrize("name, text, said", FILES)
def test_a_file_that_cannot_be_read_is_said(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=said):
        Comparison.of(tmp_path / name)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"classes": [["hat"]]}, "unknown class 'hat'"),
        ({"tasks": "colorization"}, "its images are grey"),
        ({"limit": 20}, "20|16 images to train on and 4 aside"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_suit_the_images_is_said_before_anything_is_made(tmp_path, change, said):
    with pytest.raises((ValueError, OSError), match=said):
        run_comparison(TINY | change, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_scores_are_those_of_the_images_that_the_model_makes(whole):
    """Not by the evaluator: the model's file, its sampler, the metric."""
    images = whole.sets["packaged", "all"].train.images.float() / 255
    for digest, cell in whole.cells.items():
        model = GenerativeModel.load(whole.model_file(digest), verbose=False)
        model.sampler = cell.sampler
        made = (model.generate(8, 2, 0) * 255).round() / 255  # as they are scored
        found = json.loads(whole.result_file(digest).read_text())
        again = KernelDistance(extractor="fashion-classifier")(images, made).value
        assert found["values"]["kernel"] == pytest.approx(again, rel=1e-3, abs=1e-5)
        assert found["values"]["spread"] == pytest.approx((made.var(0).sum() / images.var(0).sum()).sqrt().item(), rel=0.02)
        assert (found["nfe"], found["n_generated"], found["n_real"]) == (2, 8, 48)
        assert model.record["steps"] == 3


def test_nothing_is_done_twice(whole, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*.json")}
    for name in ("train_model", "evaluate_cell"):
        monkeypatch.setattr(compare_runs, name, lambda *arguments: pytest.fail("it was done again"))
    plan, failed = run_comparison(TINY, whole.folder, progress=False)
    assert failed == {} and before == {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*.json")}


def test_other_settings_have_results_of_their_own(whole, tmp_path):
    """In the same folder."""
    before = table(whole)
    plan, _ = run_comparison(TINY | {"processes": "ve", "lr": 1e-4}, whole.folder, progress=False)
    assert not set(plan.cells) & set(whole.cells) and len(plan.cells) == 2
    assert table(WorkPlan(Comparison.of(TINY), whole.folder)) == before
    more, _ = run_comparison(TINY | {"processes": "ve", "steps": 3}, whole.folder, progress=False)
    assert set(more.model_of.values()) < set(whole.model_of.values())  # the training is shared, and was not done again
    assert {row["steps"] for row in result_rows(more)} == {3}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killing(name, at, before=True):
    """Replace a function of the module that works by one that ends the process when it is called for the at-th time."""
    original, calls = getattr(compare_runs, name), []

    def deadly(*arguments, **settings):
        calls.append(1)
        if len(calls) == at and before:
            kill()
        result = original(*arguments, **settings)
        if len(calls) == at:
            kill()
        return result

    setattr(compare_runs, name, deadly)


def killing_in_training(at):
    """End the process after some steps of training, the state being written after each."""
    from diffnb.training import checkpoints

    original = checkpoints.ResumeCallback.__init__
    checkpoints.ResumeCallback.__init__ = lambda self, path, **settings: original(self, path, every=1, **settings)
    train, count = compare_runs.train_model, []

    def deadly(plan, digest, device, tick):
        def told(n):
            count.append(n)
            if len(count) == at:
                kill()

        train(plan, digest, device, told)

    compare_runs.train_model = deadly


POINTS = {
    "before the first training": lambda: killing("train_model", 1),
    "in the first training": lambda: killing_in_training(3),
    "before the model's file": lambda: killing("write_atomically", 1),
    "after the first training": lambda: killing("train_model", 1, before=False),
    "in a cell": lambda: killing("_made", 2),
    "before a picture": lambda: killing("write_picture", 2),
    "between a picture and a result": lambda: killing("write_picture", 1, before=False),
    "after a result": lambda: killing("evaluate_cell", 2, before=False),
    "in the second training": lambda: killing_in_training(5),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_point_changes_nothing(whole, tmp_path, point):
    def start():
        POINTS[point]()
        run_comparison(TINY, tmp_path, progress=False)

    assert Fork(start).end()[0] == -signal.SIGKILL
    left = WorkPlan(Comparison.of(TINY), tmp_path).missing()
    assert 0 < len(left) <= 4
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*.json")}
    plan, failed = run_comparison(TINY, tmp_path, progress=False)
    assert failed == {} and table(plan) == table(whole)
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # finished cells are not done again
    assert not list(tmp_path.glob("models/*/training")) and not list((tmp_path / "claims").iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_workers_give_what_one_gives(whole, tmp_path):
    plan, failed = run_comparison(TINY, tmp_path, workers=2, progress=False)
    assert failed == {} and table(plan) == table(whole)
    assert len(list(tmp_path.glob("models/*"))) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_starts_share_the_work(whole, tmp_path):
    both = [Fork(lambda: run_comparison(TINY, tmp_path, progress=False)) for _ in range(2)]
    assert [one.end()[0] for one in both] == [0, 0]
    plan = WorkPlan(Comparison.of(TINY), tmp_path)
    assert plan.missing() == [] and table(plan) == table(whole)


def test_a_start_by_torchrun_trains_by_itself(whole, tmp_path, monkeypatch):
    """As one of two: a training that were shared would wait for the other for ever."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    plan, failed = run_comparison(TINY, tmp_path, progress=False)
    assert failed == {} and table(plan) == table(whole)
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("1", "2")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_claim_ends_with_its_process(tmp_path):
    place = tmp_path / "claims" / "a"

    def hold():
        with claimed(place) as mine:
            assert mine
            kill()

    with claimed(place) as mine, claimed(place) as second:
        assert mine and not second
    assert not place.exists()
    assert Fork(hold).end()[0] == -signal.SIGKILL
    assert place.exists()  # what is left behind blocks nobody
    with claimed(place) as mine:
        assert mine


def test_a_cell_that_fails_stops_no_other_and_is_tried_again(whole, tmp_path, monkeypatch):
    bad = next(iter(whole.cells))
    original = compare_runs.evaluate_cell

    def failing(plan, digest, device, tick):
        if digest == bad:
            raise ValueError("frechet of 8 images is nan")
        return original(plan, digest, device, tick)

    monkeypatch.setattr(compare_runs, "evaluate_cell", failing)
    plan, failed = run_comparison(TINY, tmp_path, progress=False)
    assert failed == {bad: "ValueError: frechet of 8 images is nan"} and plan.missing() == [bad]
    assert "3 of 4 cells are finished" in write_results(plan, pictures=False)[1].read_text()
    monkeypatch.undo()
    assert work(plan) == {} and table(plan) == table(whole)


def test_all_tasks_and_subsets(tmp_path, monkeypatch):
    """Colours, holes and classes; each seed trains a model of its own."""
    monkeypatch.delenv("DIFFNB_WEIGHTS", raising=False)  # with Inception's weights it would take them, and long
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where another test may have put them
    colours = image_set("cifar10_samples", verbose=False)
    assert colours.shape[0] == 3
    settings = {"data": ["packaged", "cifar10_samples"], "size": 16, "processes": "vp", "samplers": "ddim", "seeds": 2, "retrain": True, "limit": 100}
    settings |= {"tasks": ["generation", "class-generation", "imputation", "colorization"], "guidance_scale": 2, "methods": ["ddnm"]}
    plan, failed = run_comparison(TINY | settings, tmp_path, progress=False)
    rows = result_rows(plan)
    assert failed == {} and list(plan.left_out) == ["colorization of packaged is left out: its images are grey"]
    assert len(rows) == 2 * (3 + 4) and len(list(tmp_path.glob("models/*"))) == 4
    assert {row["nfe"] for row in rows if row["task"] == "class-generation"} == {4}  # guidance evaluates twice
    assert {row["task"] for row in rows if "rmse" in row} == {"imputation", "colorization"}
    assert {row["extractor"] for row in rows} == {"cifar10-resnet20"}
    part = WorkPlan(Comparison.of(TINY | {"classes": ["all", [0, "Trouser"]], "limit": None}), tmp_path)
    assert part.sets["packaged", "0,Trouser"].train.num_classes == 2
    assert len({sets.digest for sets in part.sets.values()}) == 2


def test_the_command_goes_from_a_look_to_tables(diffnb, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(json.dumps(TINY))
    code, out, err = diffnb("compare", "c.json", "--out", "res", "--dry-run")
    assert code == 0 and "4 of 4 cells to do, and 2 models to train: about" in out and not Path("res").exists(), err
    code, out, err = diffnb("compare", "c.json", "--out", "res", "--print-jobs", "--only", "process=ve")
    jobs = out.splitlines()
    assert code == 0 and len(jobs) == 2 and all(job.startswith("diffnb compare c.json --out res --cell ") for job in jobs)
    for job in jobs:
        assert diffnb(*shlex.split(job, comments=True)[1:])[0] == 0
    code, out, err = diffnb("compare", "c.json", "--out", "res")
    assert code == 0 and out == f"res: 4 of 4 cells finished; tables in {Path('res', 'tables.md')}\n", err
    assert table(WorkPlan(Comparison.of(TINY), "res")) == table(whole)
    assert {"results.csv", "tables.md", "quality_evaluations.png", "quality_time.png", "times.png"} < {path.name for path in Path("res").iterdir()}
    assert diffnb("compare", "c.json", "--out", "res", "--print-jobs")[:2] == (0, "")


def test_a_quick_run_has_a_folder_of_its_own(diffnb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.json").write_text(json.dumps(TINY | {"processes": "ve", "samplers": "ddim", "seeds": 3}))
    code, out, err = diffnb("compare", "c.json", "--out", "res", "--quick")
    assert code == 0 and "1 of 1 cell finished" in out and [path.name for path in Path("res").iterdir()] == ["quick"], err


def test_floors_are_of_as_many_real_images(whole):
    rows = result_rows(whole)
    assert len({row["kernel floor"] for row in rows}) == 1
    assert all(torch.isfinite(torch.tensor(row["kernel floor"])) for row in rows)
    assert {round(row["detail floor"], 1) for row in rows} <= {0.8, 0.9, 1.0, 1.1, 1.2}  # of real images, against others
