"""What a training says of its length: the steps that are left where it goes on, and never more than were asked for."""

from types import SimpleNamespace

import pytest

import diffnb.training.plans
from diffnb.training import ForecastCallback, LossProgress, forecast, planned_epochs


@pytest.mark.parametrize(
    "epoch, done, max_steps, left",
    [(0, 0, None, 50), (2, 20, None, 30), (2, 23, None, 27), (4, 40, None, 10), (2, 20, 32, 12)],
)
@pytest.mark.parametrize("apart", [0, 100])
def test_the_forecast_of_a_training_that_goes_on_counts_what_is_left(epoch, done, max_steps, left, apart):
    """Of five epochs of ten steps, or up to a number of steps where that is less; steps of a training before this one count only in all."""
    told = []
    callback = ForecastCallback(tell=told.append)
    callback.learn = SimpleNamespace(
        n_iter=10,
        n_epoch=5,
        epoch=epoch,
        gradient=SimpleNamespace(accumulate=1),
        schedule=SimpleNamespace(max_steps=max_steps, time_limit=None),
        ema=SimpleNamespace(steps=apart + done + 3),
        seen_before=(apart, 0),
        diffusion=SimpleNamespace(aims=(1, 2)),
    )
    callback.told, callback.times, callback.first = False, [0.0, 1.0, 2.0], epoch
    callback.after_train()
    steps = f"{left} more steps, {apart + done + left} in all" if apart + done else f"{left} steps"
    assert told == [f"{steps} (10 steps an epoch), in about {left} s"]


def test_a_time_limit_that_is_long_makes_no_steps():
    """A hundred steps within a day are still a hundred, and too few; a limit that ends the training earlier says how long would do."""
    long, short = (forecast(100, 10, 10, 1.0, limit=limit) for limit in (86400.0, 50.0))
    assert long.startswith("100 steps (10 steps an epoch), in about 1.7 min. So few steps") and long.endswith("steps=2000")
    assert short.startswith("about 50 steps within the time limit of 50 s") and short.endswith("time_limit=2000")
    assert forecast(2500, 100, 25, 0.2, limit=60.0, before=200).endswith("would do, in 6.0 min: time_limit=360")  # for the 1,800 that are lacking
    assert "So few" not in forecast(1000, 10, 100, 1.0, limit=86400.0)


@pytest.mark.parametrize(
    "steps, processes, accumulate, epochs", [(1, 1, 1, 1), (20, 1, 1, 1), (21, 1, 1, 2), (21, 2, 1, 3), (21, 3, 4, 11), (5, 50, 1, 5)]
)
def test_epochs_are_those_that_the_steps_take(monkeypatch, steps, processes, accumulate, epochs):
    """Of 20 batches, which processes share; the last group of an epoch may be smaller than the others, and there is always a batch."""
    monkeypatch.setattr(diffnb.training.plans, "launched", lambda: (0, processes))
    assert planned_epochs(SimpleNamespace(train=range(20)), None, steps, accumulate) == epochs
    assert planned_epochs(SimpleNamespace(train=range(20)), 7, steps, accumulate) == 7


def test_a_step_that_was_held_up_does_not_change_the_forecast():
    """The time of a step is the median: of 1, 1, 1 and 97 seconds a mean would be 25."""
    told = []
    callback = ForecastCallback(tell=told.append)
    callback.learn = SimpleNamespace(
        n_iter=10,
        n_epoch=1,
        epoch=0,
        gradient=SimpleNamespace(accumulate=1),
        schedule=SimpleNamespace(max_steps=None, time_limit=None),
        ema=SimpleNamespace(steps=5),
        seen_before=(0, 0),
        diffusion=SimpleNamespace(aims=(1, 2)),
    )
    callback.told, callback.times, callback.first = False, [0.0, 1.0, 2.0, 99.0, 100.0], 0
    callback.after_train()
    assert told == ["10 steps (10 steps an epoch), in about 10 s"]


def test_the_bar_of_a_limited_training_ends_where_the_limit_will_be():
    """At three tenths of a training that goes on from one tenth, 20 batches have been seen since: there will be 90."""
    callback = LossProgress()
    callback.learn = SimpleNamespace(training=True, schedule=SimpleNamespace(part_done=0.1))
    callback.bar = SimpleNamespace(n=0, total=1000, update=lambda n: None)
    callback.limited, callback.begun = True, None
    callback.after_batch()
    callback.bar.n, callback.learn.schedule.part_done = 20, 0.3
    callback.after_batch()
    assert (callback.begun, callback.bar.total) == (0.1, 91)  # and the batch that ends it
