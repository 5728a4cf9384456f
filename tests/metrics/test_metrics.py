"""Metrics against formulas from elsewhere, and the FID network against its original."""

import math
import warnings

import numpy as np
import pytest
import torch

from diffnb.denoise import Gaussian
from diffnb.metrics import (
    FID_WEIGHTS,
    METRICS,
    BitsPerDim,
    FeatureStatistics,
    FrechetDistance,
    FrechetInfinity,
    InceptionFeatures,
    InceptionScore,
    as_extractor,
    extractor_of,
    find_fid_weights,
    frechet_distance,
    frechet_infinity,
    frechet_of_features,
    inception_score,
)
from diffnb.noise import VP


def draws(n, d, seed):
    """Correlated Gaussian features in float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + torch.randn(d, generator=generator, dtype=torch.float64)


def moments(x):
    """Mean and covariance by numpy."""
    return torch.as_tensor(x.numpy().mean(0)), torch.as_tensor(np.cov(x.numpy(), rowvar=False))


def test_frechet_distance_equals_the_matrix_square_root():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    for d in (1, 2, 64):
        (mean_a, cov_a), (mean_b, cov_b) = moments(draws(300, max(d, 2), 1)), moments(draws(400, max(d, 2), 2))
        root = np.real(scipy_linalg.sqrtm((cov_a @ cov_b).numpy()))
        want = float(((mean_a - mean_b) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * np.trace(root))
        assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(want, rel=1e-9)


def test_frechet_distance_in_thirty_digits():
    mpmath = pytest.importorskip("mpmath")
    (mean_a, cov_a), (mean_b, cov_b) = moments(draws(100, 24, 3)), moments(draws(120, 24, 4))
    with mpmath.workdps(30):
        values, vectors = mpmath.eigsy(mpmath.matrix(cov_a.tolist()))
        half = vectors * mpmath.diag([mpmath.sqrt(v) for v in values]) * vectors.T
        inner = mpmath.eigsy(half * mpmath.matrix(cov_b.tolist()) * half, eigvals_only=True)
        trace = sum(mpmath.mpf(v) for v in (cov_a.diagonal() + cov_b.diagonal()).tolist())
        want = sum((mpmath.mpf(p) - mpmath.mpf(q)) ** 2 for p, q in zip(mean_a.tolist(), mean_b.tolist())) + trace - 2 * sum(map(mpmath.sqrt, inner))
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(float(want), rel=1e-12)


@pytest.mark.slow  # scipy's root of a matrix of 2048 takes tens of seconds
def test_frechet_distance_of_2048_features():
    scipy_linalg = pytest.importorskip("scipy.linalg")
    falling = 10 ** torch.linspace(0, -3, 2048, dtype=torch.float64)
    turn = torch.linalg.qr(draws(2048, 2048, 30))[0]
    sets = [(torch.randn(4000, 2048, generator=torch.Generator().manual_seed(s), dtype=torch.float64) * falling) @ turn for s in (31, 32)]
    (mean_a, cov_a), (mean_b, cov_b) = map(moments, sets)
    root = np.real(scipy_linalg.sqrtm((cov_a @ cov_b).numpy()))
    want = float(((mean_a - mean_b) ** 2).sum() + cov_a.trace() + cov_b.trace() - 2 * np.trace(root))
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(want, rel=1e-9)


# torch-fidelity 0.4 on those features, so that they are compared where it is not installed; `draws` as above:
# from torch_fidelity.metric_fid import fid_features_to_statistics as s, fid_statistics_to_metric as fid
# fid(s(draws(300, 64, 80)), s(draws(400, 64, 81)), verbose=False); fid(s(draws(65, 64, 82)), s(draws(70, 64, 83)), verbose=False)
FIDELITY = {(300, 80, 400, 81): 164.88739693889573, (65, 82, 70, 83): 162.29098239532757}


@pytest.mark.parametrize("case", FIDELITY)
def test_frechet_distance_equals_what_torch_fidelity_gave(case):
    x, y = draws(case[0], 64, case[1]), draws(case[2], 64, case[3])
    assert frechet_distance(*moments(x), *moments(y)) == pytest.approx(FIDELITY[case], rel=1e-9)


@pytest.mark.parametrize("kind", ["falling", "rising"])
def test_no_digits_are_lost_where_variances_fall_over_many_decades(kind):
    d = 256
    scales = 10 ** torch.linspace(0, -3, d, dtype=torch.float64)
    turn = torch.linalg.qr(draws(d, d, 70))[0]
    sets = [(draws(4 * d, d, s) * (scales if kind == "falling" else scales.flip(0))) @ turn for s in (71, 72)]
    (mean_a, cov_a), (mean_b, cov_b) = map(moments, sets)
    cross = torch.linalg.svdvals(torch.linalg.cholesky(cov_a).mT @ torch.linalg.cholesky(cov_b)).sum()  # small ones are right to their own size
    want = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(want.item(), rel=1e-10)


def test_frechet_distance_where_covariances_commute():
    turn = torch.linalg.qr(draws(30, 30, 5))[0]
    a, b = torch.linspace(0.1, 3, 30, dtype=torch.float64), torch.linspace(2, 0, 30, dtype=torch.float64).square()  # b has a zero
    got = frechet_distance(torch.zeros(30), turn @ a.diag() @ turn.T, torch.ones(30), turn @ b.diag() @ turn.T)
    assert got == pytest.approx(30 + (a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-9)


@pytest.mark.parametrize("n_a, n_b", [(10, 12), (10, 500), (500, 10), (64, 65), (2, 2)])
def test_frechet_distance_of_fewer_samples_than_features(n_a, n_b):
    x, y = draws(n_a, 64, 6), draws(n_b, 64, 7)
    (mean_a, cov_a), (mean_b, cov_b) = moments(x), moments(y)
    cross = np.linalg.svd(((x - mean_a) @ (y - mean_b).T).numpy(), compute_uv=False).sum() / math.sqrt((n_a - 1) * (n_b - 1))
    want = float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()) - 2 * cross
    assert frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(want, rel=1e-9)
    assert frechet_distance(mean_b, cov_b, mean_a, cov_a) == pytest.approx(want, rel=1e-9)
    assert frechet_of_features(x, y) == pytest.approx(want, rel=1e-9)
    assert frechet_of_features(FeatureStatistics().update(y), x) == pytest.approx(want, rel=1e-9)


def test_low_rank_path_makes_no_covariance(monkeypatch):
    x, y = draws(20, 400, 40), draws(30, 400, 41)
    want = frechet_distance(*moments(x), *moments(y))
    monkeypatch.setattr(FeatureStatistics, "covariance", property(lambda self: pytest.fail("a covariance was made")))
    assert frechet_of_features(x, y) == pytest.approx(want, rel=1e-9)


def test_frechet_infinity_removes_the_bias():
    generator = torch.Generator().manual_seed(50)
    for shift in (0.0, 1.0):
        runs = [[torch.randn(400, 16, generator=generator) + s / 4 for s in (0, shift)] for _ in range(30)]
        got = torch.tensor([frechet_infinity(*r) for r in runs], dtype=torch.float64)
        plain = torch.tensor([frechet_of_features(*r) for r in runs], dtype=torch.float64)
        own = got[:, 0].std() / 30**0.5
        assert abs(got[:, 0].mean() - shift**2) < 4 * own + 0.005
        assert plain.mean() - shift**2 > 10 * own
        assert 0.8 < got[:, 1].mean() / got[:, 0].std() < 3.5  # cautious, not wild
    x, y = runs[0]
    assert frechet_infinity(x, y) == frechet_infinity(x, y) != frechet_infinity(x, y, seed=1)
    for call in (lambda: frechet_infinity(x[:9], y), lambda: frechet_infinity(x, y, levels=1)):
        with pytest.raises(ValueError, match="levels"):
            call()


@pytest.mark.parametrize("n", [5, 50])
def test_statistics_can_be_saved(n):
    statistics = FeatureStatistics().update(draws(n, 9, 60))
    again = FeatureStatistics.from_tensors(statistics.tensors())
    assert (again.n, again.is_low_rank) == (n, n <= 9)
    assert torch.equal(again.mean, statistics.mean) and torch.equal(again.covariance, statistics.covariance)
    again.update(draws(7, 9, 61))
    assert (again.n, statistics.n) == (n + 7, n)
    with pytest.raises(ValueError, match="'rows', or"):
        FeatureStatistics.from_tensors({"mean": torch.zeros(3)})


@pytest.mark.parametrize("n", [20, 64, 1000])
def test_a_set_is_at_distance_zero_from_itself(n):
    mean, covariance = moments(draws(n, 64, 8))
    assert frechet_distance(mean, covariance, mean, covariance) <= 1e-9 * covariance.trace()


def test_frechet_distance_of_gaussians_of_known_distance():
    generator = torch.Generator().manual_seed(9)
    sets = [FeatureStatistics().update(m + s * torch.randn(20000, 8, generator=generator)) for m, s in ((0.0, 1.0), (0.5, 2.0))]
    got = frechet_distance(sets[0].mean, sets[0].covariance, sets[1].mean, sets[1].covariance)
    assert got == pytest.approx(8 * (0.25 + 1), rel=0.03)


def test_frechet_distance_refuses_what_is_no_pair_of_gaussians():
    zero, eye = torch.zeros(3), torch.eye(3)
    for arguments, message in (
        ((zero, eye, torch.zeros(2), torch.eye(2)), "one extractor"),
        ((zero, torch.eye(2), zero, eye), "cov_a"),
        ((zero * math.nan, eye, zero, eye), "finite"),
        ((zero, eye, zero, -eye), "cov_b must be positive semi-definite"),
        ((zero, eye + torch.triu(torch.ones(3, 3), 1), zero, eye), "symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            frechet_distance(*arguments)


def test_statistics_do_not_depend_on_batches_or_offset():
    x = draws(501, 9, 10) + 1e5
    whole, parts, other = FeatureStatistics().update(x), FeatureStatistics(), FeatureStatistics().update(x[300:])
    for batch in x[:300].split(7):
        parts.update(batch)
    parts.merge(other).merge(FeatureStatistics())
    assert (whole.n, parts.n, other.n) == (501, 501, 201)
    for s in (whole, parts):
        assert torch.allclose(s.mean, x.mean(0), rtol=1e-14, atol=0)
        assert torch.allclose(s.covariance, torch.cov(x.T), rtol=1e-8, atol=1e-9)
    assert whole.covariance.dtype == torch.float64
    assert torch.equal(FeatureStatistics().update(x.float()).mean, x.float().double().mean(0))


def test_statistics_refuse_bad_features():
    statistics = FeatureStatistics()
    with pytest.raises(ValueError, match="at least 1"):
        statistics.mean
    statistics.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match="at least 2"):
        statistics.covariance
    with pytest.raises(ValueError, match="4 columns, those before had 3"):
        statistics.update(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="not finite"):
        statistics.update(torch.tensor([[0.0, math.inf, 1.0]]))
    with pytest.raises(ValueError, match=r"\(m, d\)"):
        statistics.update(torch.zeros(2, 3, 4))
    assert statistics.n == 1


def test_inception_score_of_closed_forms():
    k = 20
    certain = torch.eye(k).repeat(50, 1)
    assert inception_score(certain, splits=1) == pytest.approx((k, 0), rel=1e-6)
    assert inception_score(certain, splits=10, seed=None) == pytest.approx((k, 0), rel=1e-6)
    assert inception_score(torch.full((500, k), 1 / k)) == pytest.approx((1, 0), abs=1e-6)
    assert inception_score(certain[:1].repeat(500, 1)) == pytest.approx((1, 0), abs=1e-6)
    # two kinds of images, 3 to 1: exp(KL to the mean), by hand
    p = torch.tensor([[0.7, 0.2, 0.1]] * 3 + [[0.1, 0.3, 0.6]], dtype=torch.float64).repeat(50, 1)
    mean = [0.55, 0.225, 0.225]
    kl = [sum(a * math.log(a / m) for a, m in zip(row, mean)) for row in ((0.7, 0.2, 0.1), (0.1, 0.3, 0.6))]
    assert inception_score(p, splits=1)[0] == pytest.approx(math.exp(0.75 * kl[0] + 0.25 * kl[1]), rel=1e-12)
    # parts that differ: each is compared with its own mean
    p = p[p[:, 0].argsort(stable=True)]
    parts = [inception_score(p[i * 100 : (i + 1) * 100], splits=1)[0] for i in range(2)]
    assert inception_score(p, splits=2, seed=None) == pytest.approx((np.mean(parts), np.std(parts)), rel=1e-12)


def test_inception_score_refuses_few_images_and_logits():
    with pytest.raises(ValueError, match="fewer than 50 images"):
        inception_score(torch.full((499, 5), 0.2), splits=10)
    with pytest.raises(ValueError, match="softmax"):
        inception_score(torch.zeros(500, 5))
    with pytest.raises(ValueError, match=r"\(n, k\)"):
        inception_score(torch.zeros(500))


def test_no_metric_touches_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    inception_score(torch.full((500, 5), 0.2))
    BitsPerDim(Gaussian(torch.zeros(4), torch.eye(4)).denoiser(VP()), n_steps=1)(torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    assert torch.equal(before, torch.get_rng_state())


def flat(images):
    """Pixels."""
    return images.flatten(1)


def test_metrics_have_names_and_carry_what_they_depend_on():
    assert METRICS["fid"] is METRICS["Frechet"] is FrechetDistance
    assert METRICS["is"] is METRICS["inception"] is InceptionScore
    assert METRICS["bpd"] is BitsPerDim
    assert FrechetDistance().name == "fid" and FrechetDistance(flat).name == "frechet[flat]"
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(60, 1, 3, 3, generator=generator) for _ in range(2))
    result = FrechetDistance(flat)(x, y)
    assert (result.n_real, result.n_generated, result.is_lower_better, result.config) == (60, 60, True, {"extractor": "flat"})
    assert float(result) == pytest.approx(frechet_distance(*moments(x.flatten(1).double()), *moments(y.flatten(1).double())), rel=1e-6)
    assert FrechetDistance(flat, batch_size=7)(x, y).value == pytest.approx(result.value, rel=1e-9)
    as_bytes = (x * 255).round().to(torch.uint8)
    assert FrechetDistance(flat)(as_bytes, as_bytes.float() / 255).value < 1e-12
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FrechetDistance(flat)(x[:9], y)
    assert "9 images with 9 features" in str(caught[0].message)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        FrechetDistance(flat)(x, 2 * y - 1)
    with pytest.raises(ValueError, match="resize one of them"):
        FrechetDistance(flat)(x, y[:, :, :2])


def test_bits_per_dim_of_a_gaussian():
    oracle = Gaussian(torch.zeros(4), 0.09 * torch.eye(4))
    images = ((oracle.sample(400, seed=1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).view(400, 1, 2, 2)
    result = BitsPerDim(oracle.denoiser(VP()), n_steps=6, batch_size=400, n=None)(images)
    assert abs(result.value - math.log2(127.5 * 0.3 * math.sqrt(2 * math.pi * math.e))) < 3 * result.error + 1e-3
    assert result.name == "bpd" and result.n_real == 400 and result.config["dequantization"] == "uniform"


def test_missing_or_other_weights_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFNB_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extractor_of.cache_clear()
    for call in (find_fid_weights, InceptionFeatures, lambda: FrechetDistance()(torch.zeros(3, 1, 4, 4), torch.zeros(3, 1, 4, 4))):
        with pytest.raises(FileNotFoundError, match="4c9833f8a0931db5"):
            call()
    (tmp_path / FID_WEIGHTS).write_bytes(b"not the weights")
    with pytest.raises(ValueError, match="sha256"):
        find_fid_weights(tmp_path)


def test_names_of_metrics_do_not_load_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFNB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert FrechetDistance("inception-2015").name == "fid" and FrechetInfinity().name == "fid-infinity"
    assert FrechetDistance("fashion").name == "frechet[fashion-classifier]"
    assert FrechetInfinity(flat).name == "frechet-infinity[flat]"


def test_inception_score_of_the_packaged_classifier_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFNB_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from diffnb.metrics import classifier_of

    classifier_of.cache_clear()
    images = torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="packaged classifier"):
        result = InceptionScore(splits=2)(None, images)
    classifier_of.cache_clear()
    assert result.name == "is[fashion-classifier]" and result.config["splits"] == 2 and result.n_generated == 100

    def halves(images):
        return torch.stack([images.mean((1, 2, 3)), 1 - images.mean((1, 2, 3))], 1)

    two = InceptionScore(as_extractor(halves, probabilities=halves, classes=["a", "b"]), splits=2)
    with pytest.warns(UserWarning, match=r"is\[halves\] is the score by halves: its classes are not those of Inception"):
        assert two(None, images).value == pytest.approx(inception_score(halves(images), 2)[0], rel=1e-6)
    with pytest.raises(ValueError, match="probabilities"):
        InceptionScore(flat, splits=2)(None, images)


def test_non_finite_features_give_no_number():
    def broken(images):
        return images.flatten(1) * math.nan

    with pytest.raises(ValueError, match="not finite"):
        FrechetDistance(broken)(torch.rand(9, 1, 3, 3), torch.rand(9, 1, 3, 3))
    with pytest.raises(ValueError, match="not finite"):
        frechet_of_features(torch.full((5, 2), math.inf), torch.zeros(5, 2))


def test_the_extrapolated_distance_and_its_error_written_out(monkeypatch):
    """Distances 10, 13 and 18 of one, two and three parts lie about 17/3 + 4 k; the error is that of the mean of the three parts 15, 16 and 23."""
    parts = iter([10.0, 12.0, 14.0, 15.0, 16.0, 23.0])
    monkeypatch.setattr("diffnb.metrics.frechet.frechet_of_features", lambda x, y: next(parts))
    value, error = frechet_infinity(torch.zeros(12, 2), torch.zeros(12, 2), levels=3)
    assert value == pytest.approx(17 / 3)
    assert error == pytest.approx(19**0.5 / (math.pi**0.5 / 2) / 3**0.5)  # a standard deviation of three values is short by sqrt(pi) / 2
