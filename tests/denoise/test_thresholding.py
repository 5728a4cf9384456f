"""Thresholding against its definition and torch's quantiles."""

import pytest
import torch

from diffnb.denoise import BaseDenoiser, DynamicThreshold, Gaussian, StaticThreshold, check_denoiser, dynamic_threshold, static_threshold
from diffnb.noise import EDM, VP
from diffnb.samplers import DPMSolverPP2M

X0 = 2 * torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("limit", [1.0, 0.7])
def test_dynamic(percentile, limit):
    """s is the quantile of each image; what is inside is left alone; the result fills the range."""
    s = torch.quantile(X0.flatten(1).abs(), percentile, 1).clamp(min=limit).view(5, 1, 1, 1)
    got = dynamic_threshold(X0, percentile, limit)
    assert (got - X0.clamp(-s, s) / s * limit).abs().max() < 1e-12
    assert got.abs().flatten(1).amax(1).sub(limit).abs().max() < 1e-12
    small = X0 / 100
    assert torch.equal(dynamic_threshold(small, percentile, limit), small)
    assert torch.equal(dynamic_threshold(X0, percentile, limit)[:2], dynamic_threshold(X0[:2], percentile, limit))
    bounded = dynamic_threshold(X0, percentile, limit, maximum=1.2)
    s = s.clamp(max=1.2)
    assert (bounded - X0.clamp(-s, s) / s * limit).abs().max() < 1e-12


def test_static():
    """A clamp."""
    assert torch.equal(static_threshold(X0, 0.5), X0.clamp(-0.5, 0.5))


@pytest.mark.parametrize("make", [StaticThreshold, DynamicThreshold])
def test_denoisers(make):
    """No sample depends on its batch, in any precision; conditions and processes pass through."""
    wide = Gaussian(torch.zeros(16), 4.0 * torch.eye(16)).denoiser(VP())
    check_denoiser(make(wide).under(EDM()), (4, 16), tolerance=1e-9, dtype=torch.float64)
    assert make(wide)(torch.full((2, 16), 9.0, dtype=torch.float32), 0.01).x0.abs().max() <= 1
    run = DPMSolverPP2M()(make(wide), shape=(8, 16), n_steps=10, seeds=0)
    assert run.x.abs().max() <= 1
    assert DPMSolverPP2M()(wide, shape=(8, 16), n_steps=10, seeds=0).x.abs().max() > 3
    seen = []

    class Conditional(BaseDenoiser):
        sde = VP()

        def x0(self, x, t, condition):
            """Note the condition."""
            seen.append(dict(condition))
            return 0 * x

    make(Conditional())(torch.zeros(2, 16), 0.5, {"label": torch.tensor([1, 2])})
    assert seen[0]["label"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "settings, message",
    [({"percentile": 99.5}, "share in"), ({"percentile": 0.0}, "share in"), ({"limit": 0.0}, "limit must"), ({"maximum": 0.5}, "at least limit")],
)
def test_errors(settings, message):
    """Named arguments."""
    with pytest.raises(ValueError, match=message):
        DynamicThreshold(Gaussian(0.0, 1.0).denoiser(VP()), **settings)
