"""What a training says of its length: the steps that are left where it goes on, and never more than were asked for."""

from types import SimpleNamespace

import pytest

from diffnb.training import ForecastCallback, forecast


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
    assert told == [f"{steps} (epochs of 10), in about {left} s"]


def test_a_time_limit_that_is_long_makes_no_steps():
    """A hundred steps within a day are still a hundred, and too few; a limit that ends the training earlier says how long would do."""
    long, short = (forecast(100, 10, 10, 1.0, limit=limit) for limit in (86400.0, 50.0))
    assert long.startswith("100 steps (epochs of 10), in about 1.7 min. So few steps") and long.endswith("steps=2000")
    assert short.startswith("about 50 steps within the time limit of 50 s") and short.endswith("time_limit=2000")
    assert "So few" not in forecast(1000, 10, 100, 1.0, limit=86400.0)
