"""Metrics of sets against definitions, exact expectations and other programs."""

import itertools
import math

import pytest
import torch

from diffnb.metrics import (
    METRICS,
    KernelDistance,
    LabelAgreement,
    Memorisation,
    PolynomialKernel,
    PrecisionRecall,
    Vendi,
    as_extractor,
    kernel_distance,
    kernel_distance_of_blocks,
    kernel_distance_of_subsets,
    label_agreement,
    nearest_neighbours,
    plot_pairs,
    precision_recall,
    vendi_score,
)


def draws(n, d, seed, dtype=torch.float32):
    """Gaussian features."""
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def flat(images):
    """Pixels."""
    return images.flatten(1)


@pytest.mark.parametrize("kernel", [PolynomialKernel(), PolynomialKernel(degree=2, gamma=0.3, shift=0.5)])
def test_kernel_distance_pair_by_pair(kernel):
    x, y = draws(23, 4, 0, torch.float64), draws(31, 4, 1, torch.float64) + 0.3

    def k(a, b):
        return ((a @ b) * (kernel.gamma or 1 / 4) + kernel.shift) ** kernel.degree

    def within(s):
        return sum(k(a, b) for a, b in itertools.permutations(s, 2)) / (len(s) * (len(s) - 1))

    want = within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))
    for block in (1, 7, 1024):
        assert kernel_distance(x, y, kernel, block)[0] == pytest.approx(want.item(), rel=1e-12)


@pytest.mark.parametrize("n, m", [(12, 15), (12, 60), (60, 12)])
def test_kernel_distance_error_is_the_jackknife(n, m):
    x, y = draws(n, 3, 2, torch.float64), draws(m, 3, 3, torch.float64)
    left_out = [
        torch.stack(
            [torch.tensor(kernel_distance(*(s if t is not other else torch.cat([s[:i], s[i + 1 :]]) for t, s in pair))[0]) for i in range(len(other))]
        )
        for other, pair in ((x, ((x, x), (y, y))), (y, ((x, x), (y, y))))
    ]
    variance = sum((len(v) - 1) ** 2 / len(v) * v.var(correction=0) * len(v) / (len(v) - 1) for v in left_out)
    assert kernel_distance(x, y)[1] == pytest.approx(variance.sqrt().item(), rel=0.25)  # differs by terms of order 1 / n


def test_kernel_distance_is_unbiased():
    exact = 3 * 0.5**2 + 3 * 0.25**2 + (13 / 8) ** 2  # moments of N(0, 1) and N(1/2, 1)
    values = torch.tensor([kernel_distance(draws(10, 1, 2 * s), 0.5 + draws(12, 1, 2 * s + 1))[0] for s in range(1500)])
    assert abs(values.mean() - exact) < 4 * values.std() / 1500**0.5
    same = torch.tensor([kernel_distance(draws(10, 5, 2 * s), draws(10, 5, 2 * s + 1))[0] for s in range(1500)])
    assert abs(same.mean()) < 4 * same.std() / 1500**0.5


def test_kernel_distance_equals_torch_fidelity():
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = draws(700, 64, 5), 1.1 * draws(700, 64, 6) + 0.05
    for dtype, close in ((torch.float32, 1e-6), (torch.float64, 1e-12)):
        theirs = metric_kid.kid_features_to_metric(x.to(dtype), y.to(dtype), kid_subsets=1, kid_subset_size=700, rng_seed=0, verbose=False)
        assert kernel_distance(x.to(dtype), y.to(dtype))[0] == pytest.approx(theirs["kernel_inception_distance_mean"], abs=close)


# torch-fidelity 0.4 on those features, so that they are compared where it is not installed:
# python -c "import torch; from torch_fidelity.metric_kid import kid_features_to_metric as kid; g = torch.Generator
# x, y = torch.randn(700, 64, generator=g().manual_seed(5)), 1.1 * torch.randn(700, 64, generator=g().manual_seed(6)) + 0.05
# print(kid(x.double(), y.double(), kid_subsets=1, kid_subset_size=700, rng_seed=0, verbose=False))
# print(kid(x.double(), y.double(), kid_subsets=30, kid_subset_size=200, rng_seed=2020, verbose=False))"
FIDELITY_ALL, FIDELITY_SUBSETS = 0.009816985166112513, (0.010709281366955044, 0.00567067716984928)


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-6), (torch.float64, 1e-11)])
def test_kernel_distance_equals_what_torch_fidelity_gave(dtype, close):
    x, y = draws(700, 64, 5).to(dtype), (1.1 * draws(700, 64, 6) + 0.05).to(dtype)
    assert kernel_distance(x, y)[0] == pytest.approx(FIDELITY_ALL, abs=close)
    assert kernel_distance_of_subsets(x, y, 30, 200) == pytest.approx(FIDELITY_SUBSETS, abs=close)


def test_subsets_are_those_of_torch_fidelity():
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity is not installed; what it gave is stored above")
    x, y = draws(300, 64, 5), 1.1 * draws(350, 64, 6) + 0.05
    for seed in (0, 2020):
        theirs = metric_kid.kid_features_to_metric(x, y, kid_subsets=7, kid_subset_size=200, rng_seed=seed, verbose=False)
        want = theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]
        assert kernel_distance_of_subsets(x, y, 7, 200, seed=seed) == pytest.approx(want, abs=1e-6)


def like_inception(n, seed, shift=0.0):
    """Features that are never negative, with a mean, and deviations that fall over two decades."""
    z = (shift + draws(n, 64, seed)) * torch.logspace(0, -2, 64) * 2
    return (0.3 + z @ draws(64, 512, 99) / 8 + 0.1 * draws(n, 512, seed + 1000)).relu()


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_products_in_bfloat16_change_less_than_the_seventh_digit(shift):
    x, y = like_inception(1000, 1), like_inception(1200, 2, shift)
    value, error = kernel_distance(x.double(), y.double())
    got = kernel_distance(x, y, products=torch.bfloat16, block=300)
    assert got[0] == pytest.approx(value, abs=2e-7) and got[1] == pytest.approx(error, rel=1e-3)


def test_products_in_bfloat16_have_no_bias_where_rounding_is_the_same_for_all():
    corner = 1 + torch.arange(64) / 64 * 0.003  # rounded to nearest, most of this is lost, for all vectors alike
    for n in (200, 1000):
        x, y = corner + 0.1 * draws(n, 64, 20), 1.0005 * corner + 0.1 * draws(n, 64, 21)
        want, error = kernel_distance(x.double(), y.double())
        got = kernel_distance(x, y, products=torch.bfloat16)[0]
        assert abs(got - want) < 1e-3 * error
    spread = torch.where(torch.arange(1000)[:, None] % 2 == 0, 1.0, -1.0) * corner  # two points: every pair is rounded alike
    want = kernel_distance(spread.double(), 0.99 * spread.double())[0]
    assert kernel_distance(spread, 0.99 * spread, products=torch.bfloat16)[0] == pytest.approx(want, abs=2e-6 * 8)  # the kernel is up to 8


@pytest.mark.parametrize("kernel", [PolynomialKernel(3, 0.01, 0.3), PolynomialKernel(3, 1.0, 2.0)])
def test_products_in_bfloat16_for_any_cubic_kernel(kernel):
    x, y = draws(900, 16, 30) + 0.5, 1.2 * draws(700, 16, 31)
    want, error = kernel_distance(x.double(), y.double(), kernel)
    got = kernel_distance(x, y, kernel, products=torch.bfloat16)
    assert abs(got[0] - want) < 0.01 * error and got[1] == pytest.approx(error, rel=0.01)


def test_products_are_chosen_by_what_is_accurate(monkeypatch):
    import diffnb.metrics.kernel as module

    used = []
    monkeypatch.setattr(module, "_sums_by_halves", lambda *a: used.append("halves") or module._sums_of_pairs(*a))
    for units, n, dtype, kernel, want in (
        (True, 1000, torch.float32, PolynomialKernel(), ["halves"]),
        (False, 1000, torch.float32, PolynomialKernel(), []),
        (True, 999, torch.float32, PolynomialKernel(), []),
        (True, 1000, torch.float64, PolynomialKernel(), []),
        (True, 1000, torch.float32, PolynomialKernel(2), []),
    ):
        monkeypatch.setattr(module, "has_matrix_units", lambda units=units: units)
        used.clear()
        kernel_distance(draws(n, 4, 0, dtype), draws(1000, 4, 1, dtype), kernel)
        assert used == want
    for products in (torch.float16, torch.float64):
        with pytest.raises(ValueError, match="products must be torch.bfloat16, torch.float32"):
            kernel_distance(draws(5, 4, 0), draws(5, 4, 1), products=products)
    with pytest.raises(ValueError, match="degree 3"):
        kernel_distance(draws(5, 4, 0), draws(5, 4, 1), PolynomialKernel(2), products=torch.bfloat16)


def test_blocks_are_kernel_distances_of_disjoint_parts():
    x, y = draws(95, 6, 7, torch.float64), draws(80, 6, 8, torch.float64) + 0.2
    generator = torch.Generator().manual_seed(3)
    i, j = (torch.randperm(len(s), generator=generator) for s in (x, y))
    values = torch.tensor([kernel_distance(x[i[a : a + 20]], y[j[a : a + 20]])[0] for a in range(0, 80, 20)], dtype=torch.float64)
    got = kernel_distance_of_blocks(x, y, 20, seed=3)
    assert got == pytest.approx((values.mean().item(), values.std().item() / 2), rel=1e-9)


@pytest.mark.parametrize("same", [False, True])
def test_nearest_neighbours_by_brute_force(same):
    x, y = draws(57, 5, 9, torch.float64), draws(90, 5, 10, torch.float64)
    all_pairs = torch.cdist(x, x if same else y)
    if same:
        all_pairs.fill_diagonal_(math.inf)
    want = all_pairs.topk(4, largest=False)
    for block in (10, 1024):
        distances, indices = nearest_neighbours(x, None if same else y, 4, block)
        assert torch.allclose(distances, want.values) and torch.equal(indices, want.indices)


def test_copies_are_at_distance_zero_whatever_the_offset():
    y = draws(300, 64, 11) + 3000
    distances, indices = nearest_neighbours(y[50:60], y)
    assert torch.equal(indices[:, 0], torch.arange(50, 60)) and bool((distances == 0).all())
    few = nearest_neighbours(y[:3], None, 2)  # all others are neighbours
    assert [sorted(row.tolist()) for row in few[1]] == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize("n, m, d, k", [(60, 60, 2, 1), (80, 50, 3, 4), (50, 120, 10, 2)])
def test_coverage_of_equal_distributions_is_known(n, m, d, k):
    runs = [precision_recall(draws(n, d, 2 * s), draws(m, d, 2 * s + 1), k, block=32) for s in range(150)]
    coverage = torch.tensor([r["coverage"] for r in runs], dtype=torch.float64)
    want = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert abs(coverage.mean() - want) < 4 * coverage.std() / 150**0.5


def test_precision_recall_by_definition():
    x, y = draws(40, 3, 12, torch.float64), 0.8 * draws(30, 3, 13, torch.float64) + 0.4
    k = 3
    radius = [torch.cdist(s, s).sort(1).values[:, k] for s in (x, y)]
    across = torch.cdist(x, y)
    in_real, in_generated = across <= radius[0][:, None], across <= radius[1][None]
    want = {"precision": in_real.any(0), "recall": in_generated.any(1), "density": in_real.sum(0) / k, "coverage": in_real.any(1)}
    got = precision_recall(x, y, k, block=16)
    assert got == pytest.approx({name: v.double().mean().item() for name, v in want.items()}, abs=1e-6)


def test_vendi_counts_groups():
    for n, d in ((5, 9), (50, 5)):
        x = torch.eye(5, d)[torch.arange(n) % 5] * torch.arange(1, n + 1)[:, None]
        assert vendi_score(x) == pytest.approx(5, rel=1e-9)
    assert vendi_score(torch.ones(9, 3)) == pytest.approx(1, rel=1e-9)
    pair = torch.tensor([[1.0, 0.0], [math.cos(1), math.sin(1)]])  # eigenvalues (1 +- cos 1) / 2
    p = (1 + math.cos(1)) / 2
    assert vendi_score(pair) == pytest.approx(math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p)), rel=1e-6)


def test_memorisation_finds_planted_copies():
    training, fresh = draws(400, 20, 14), draws(100, 20, 15)
    fresh[:30] = training[200:230] + 0.01 * draws(30, 20, 16)
    result = Memorisation(flat).from_features(training, fresh)
    assert result.value == pytest.approx(0.3, abs=1e-9) and result.values["authenticity"] <= 0.7
    assert result.name == "memorisation[flat]" and result.is_lower_better


def test_plot_pairs_shows_the_nearest():
    images = torch.rand(6, 1, 4, 4)
    figure = plot_pairs(images, images, torch.arange(6.0), torch.arange(6), n=3)
    assert len(figure.axes) == 6 and figure.axes[0].get_title() == "0"
    with pytest.raises(ValueError, match="there must be one each"):
        plot_pairs(images, images, torch.zeros(5), torch.arange(6))


def test_label_agreement():
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    assert label_agreement(p, torch.tensor([0, 1, 1, 1])) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)), {0: 1.0, 1: pytest.approx(2 / 3)})

    def classes(images):
        return torch.stack([1 - images.mean((1, 2, 3)), images.mean((1, 2, 3))], 1)

    metric = LabelAgreement(as_extractor(classes, probabilities=classes, classes=["dark", "bright"]))
    result = metric(torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.9, 0.2])[:, None, None, None].expand(3, 1, 4, 4))
    assert result.values == {"dark": 1.0, "bright": 0.5} and result.name == "agreement[classes]"
    for labels in (torch.tensor([0, 2, 0, 0]), torch.tensor([0, -1, 0, 0]), torch.zeros(4), torch.zeros(3, dtype=torch.long)):
        with pytest.raises(ValueError, match="labels"):
            label_agreement(p, labels)


@pytest.mark.parametrize("name, cls", [("kid", KernelDistance), ("prdc", PrecisionRecall), ("vendi", Vendi), ("memorisation", Memorisation)])
def test_metrics_carry_what_they_depend_on(name, cls):
    assert METRICS[name] is cls
    x, y = torch.rand(30, 1, 3, 3, generator=torch.Generator().manual_seed(0)), torch.rand(25, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    result = cls(flat, batch_size=7)(x, y)
    assert (result.n_real, result.n_generated, result.config["extractor"]) == (30, 25, "flat") and "flat" in result.name and "flat" in str(result)
    assert result.value == pytest.approx(cls(flat).from_features(x.flatten(1), y.flatten(1)).value, abs=1e-6)
    with pytest.raises(ValueError, match="resize one of them"):
        cls(flat)(x, y[..., :2])
    bad = x.flatten(1).clone()
    bad[3, 0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        cls(flat).from_features(bad, y.flatten(1))
    with pytest.raises(ValueError):
        cls(flat).from_features(x.flatten(1), y.flatten(1)[:0])


def test_set_metrics_leave_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    kernel_distance_of_blocks(draws(20, 3, 0), draws(20, 3, 1), 5)
    assert torch.equal(before, torch.get_rng_state())
