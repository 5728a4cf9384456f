"""Several processes: the same training, the same scores, and what happens when one of them dies."""

import os
import signal
import subprocess
import sys
from functools import partial

import distributed_worker as worker
import pytest
import torch
import torch._dynamo  # noqa: F401  (optimizers import it at their first step: once here, and not in every process)
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from diffnb.data import image_loaders
from diffnb.noise import EDM
from diffnb.parallel import launched, rank, run_together
from diffnb.training import ScaledOptimizer, diffusion_learner, load_state

pytest.importorskip("accelerate", reason="accelerate shares training between processes")


def torchrun(*arguments):
    """Have torchrun's launcher start two processes and watch over them: forks of this one, which need not import all that it has imported."""
    how = LaunchConfig(1, 1, 2, start_method="fork", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.1)
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
    handlers = {getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names}
    try:
        elastic_launch(how, worker.launched_main)(*arguments)
    finally:  # the launcher leaves its own behind, for tests that come after
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The training of one process with batches of 8, and of each of two with batches of 4."""
    out = tmp_path_factory.mktemp("two")
    run_together(worker.main, 2, args=[out])
    two = [torch.load(out / f"rank{r}.pt") for r in range(2)]
    torch.set_num_threads(1)
    return {"sgd": worker.train(torch.optim.SGD, 0.05, 1), "adamw": worker.train(torch.optim.AdamW, 1e-3, 1)}, two


def test_two_processes_see_the_batch_of_one_with_its_noise(runs):
    one, two = runs
    assert torch.equal(torch.cat([found["sgd"]["rows"] for found in two]), one["sgd"]["rows"])


def test_the_gradient_is_that_of_twice_the_batch(runs):
    one, two = runs
    size = one["sgd"]["gradient"].abs().max()
    assert size > 0.05
    for found in two:
        assert (found["sgd"]["gradient"] - one["sgd"]["gradient"]).abs().max() < 1e-6
        # and no less is asked for: the gradient of one half alone is far away
    assert (two[0]["sgd"]["gradient"] - two[1]["sgd"]["gradient"]).abs().max() == 0


def test_the_weights_are_those_of_one_process_after_20_steps(runs):
    one, two = runs
    for found in two:
        assert found["sgd"]["steps"] == 20 and found["sgd"]["images"] == one["sgd"]["images"] == 160
        assert (found["sgd"]["weights"] - one["sgd"]["weights"]).abs().max() < 1e-6
        assert (found["sgd"]["average"] - one["sgd"]["average"]).abs().max() < 1e-6
        assert (found["adamw"]["weights"] - one["adamw"]["weights"]).abs().max() < 2e-3  # twice the learning rate
        assert found["sgd"]["names"] == one["sgd"]["names"] == sorted(worker.network().state_dict())
    start = worker.flat(worker.network())
    assert (one["sgd"]["weights"] - start).abs().max() > 1e-2 and (one["adamw"]["weights"] - start).abs().max() > 5e-3
    for name in ("sgd", "adamw"):  # process 1 has what process 0 has
        assert torch.equal(two[0][name]["weights"], two[1][name]["weights"])


def test_losses_and_scores_are_those_of_one_process(runs):
    one, two = runs
    expected = torch.tensor([row[1] for row in one["sgd"]["losses"]])
    for found in two:
        assert (torch.tensor([row[1] for row in found["sgd"]["losses"]]) - expected).abs().max() < 1e-6  # 13 items in unequal shares
        assert found["sgd"]["losses"] == two[0]["sgd"]["losses"] and found["sgd"]["scores"] == two[0]["sgd"]["scores"]
        for ours, theirs in zip(found["sgd"]["scores"], one["sgd"]["scores"], strict=True):
            assert abs(ours - theirs) < 1e-4 * abs(theirs) + 1e-6


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    """Where the training of `whole` leaves its state."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(whole_folder):
    """What each of two processes has at the end of a training that nothing interrupts."""
    return run_together(worker.resumable, 2, args=[whole_folder, 2])


def test_a_process_that_is_killed_ends_all_and_leaves_a_whole_checkpoint(whole, tmp_path):
    with pytest.raises(ChildFailedError, match="SIGKILL"):
        torchrun(tmp_path, "die")
    state = load_state(tmp_path / "training.safetensors")
    # that of the last time that the state was due, or of the step that the other process ended when it was told to stop
    assert state["position"]["epoch"] == 1 and 12 <= state["position"]["train_iter"] == 10 + state["position"]["batch"] <= 14
    # and both go on from there, to the same end as if nothing had happened
    again = run_together(worker.resumable, 2, args=[tmp_path, 2, True])
    for (weights, losses, images), (expected, expected_losses, n) in zip(again, whole):
        assert torch.equal(weights, expected) and losses == expected_losses and images == n == 160


@pytest.mark.slow  # torchrun's launcher starts the processes of the test before; this starts them by another one, from a shell
def test_accelerate_launch_starts_them_too(whole, tmp_path):
    # "--multi_gpu" is how accelerate starts several processes, with GPUs or without; its "--cpu" starts one, or leaves it to MPI
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", worker.__file__, str(tmp_path), "short"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-3000:]
    for number, (weights, losses, images) in enumerate(whole):
        own, own_losses, own_images, world = torch.load(tmp_path / f"rank{number}.pt")
        assert world == 2 and torch.equal(own, weights) and own_losses == losses and own_images == images


def killed_while_writing(folder):
    """Process 0 dies between writing its second checkpoint and putting it in place."""
    count, replace = [], os.replace

    def dying(*paths):
        count.append(paths)
        if len(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(*paths)

    os.replace = dying if rank() == 0 else replace
    worker.resumable(folder, 2)


def test_a_process_that_is_killed_while_it_writes_leaves_the_earlier_checkpoint(tmp_path):
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):  # the other may be the first to be missed
        run_together(killed_while_writing, 2, args=[tmp_path])
    assert load_state(tmp_path / "training.safetensors")["position"]["train_iter"] == 4


def test_a_checkpoint_of_two_processes_is_refused_by_one(whole, whole_folder):
    with pytest.raises(ValueError, match="processes is 2 there and 1 here"):
        worker.resumable(whole_folder, 1, True)


def stopped_by_the_clock():
    """Train against a time limit of 15 seconds on clocks that differ."""
    learn = diffusion_learner(worker.loaders(2), worker.network(), EDM(), progress=False)
    learn.opt_func = partial(ScaledOptimizer, opt=torch.optim.SGD)
    schedule = worker.UnequalClock(0.1, time_limit=15)
    with worker.together(learn):
        learn.fit(3, cbs=schedule)
    return learn.ema.steps, schedule.stopped, worker.flat(learn.model)


def test_the_clock_of_process_0_decides():
    zero, one = run_together(stopped_by_the_clock, 2, timeout=120)
    assert zero[:2] == one[:2] == (15, "time") and torch.equal(zero[2], one[2])


def test_processes_that_have_not_found_each_other_are_told():
    import fastai.distributed  # noqa: F401  (gives learners the context)

    os.environ |= {"RANK": "0", "WORLD_SIZE": "2"}
    try:
        assert launched() == (0, 2)
        learn = diffusion_learner(worker.loaders(2), worker.network(), EDM(), progress=False)
        with learn.distrib_ctx(sync_bn=False), pytest.raises(RuntimeError, match="cpu=True"):
            learn.fit(1)
    finally:
        del os.environ["RANK"], os.environ["WORLD_SIZE"]


def with_a_foreign_loader():
    """Train from loaders that diffnb cannot share."""
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader

    items = [(torch.zeros(1, 8, 8), torch.tensor(0), torch.tensor(0))] * 8
    learn = diffusion_learner(DataLoaders(DataLoader(items, bs=2), DataLoader(items, bs=2)), worker.network(), EDM(), progress=False)
    with worker.together(learn):
        learn.fit(1)


def too_large_a_batch():
    """Ask for more images a step than there are."""
    learn = diffusion_learner(image_loaders(worker.IMAGES, worker.VALID, batch_size=50, device="cpu"), worker.network(), EDM(), progress=False)
    with worker.together(learn):
        learn.fit(1)


def test_what_cannot_be_shared_is_said():
    with pytest.raises(ProcessRaisedException, match="DataLoader cannot be shared"):
        run_together(with_a_foreign_loader, 2)
    with pytest.raises(ProcessRaisedException, match="do not fill one batch of 2 processes with 50 images each; take a batch_size of at most 41"):
        run_together(too_large_a_batch, 2)
