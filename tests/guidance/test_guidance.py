"""Guidance against exact answers on labelled mixtures, for every process."""

import pytest
import torch

from diffnb.denoise import BaseDenoiser, Gaussian, GaussianMixture, check_denoiser
from diffnb.guidance import AutoGuided, ClassifierFree, ClassifierGuided
from diffnb.noise import EDM, VE, VP, FlowMatching, SubVP
from diffnb.samplers import DPMSolverPP2M, Heun

PROCESSES = [VP(), SubVP(), VE(), EDM(), FlowMatching()]
by_process = pytest.mark.parametrize("sde", PROCESSES, ids=lambda sde: type(sde).__name__)
THREE = GaussianMixture(
    [[-1.0, 0.5], [0.9, 0.7], [0.2, -0.9]],
    [[[0.12, 0.0], [0.0, 0.12]], [[0.15, 0.08], [0.08, 0.1]], [[0.2, 0.0], [0.0, 0.06]]],
    weights=[0.3, 0.3, 0.4],
)
PARTS = [Gaussian(m, c) for m, c in zip(THREE.means, THREE.covariances)]
LABEL = torch.arange(60) % 3


class Labelled(BaseDenoiser):
    """The exact denoiser of a mixture whose components are its classes; label -1 means any."""

    def __init__(self, sde):
        self.sde, self.calls = sde, []

    def x0(self, x, t, condition):
        self.calls.append(len(x))
        answers = torch.stack([THREE.posterior_mean(x, self.sde, t)] + [part.posterior_mean(x, self.sde, t) for part in PARTS])
        return answers[condition["label"] + 1, torch.arange(len(x))]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_classifier(sde):
    def log_prob(x, t):
        joint = torch.stack([part.log_prob(x, sde, t) for part in PARTS], 1) + THREE.weights.log()
        return joint.log_softmax(1)[torch.arange(len(x)), LABEL[: len(x)]]

    return log_prob


@by_process
@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.0, 7.5])
def test_classifier_free_is_the_classifier_counted_w_times(sde, w):
    exact = Labelled(sde)
    for t in torch.linspace(sde.t_min, sde.t_max, 4, dtype=torch.float64):
        x = sde.perturb(THREE.sample(60, seed=1), t, normal(60, 2, seed=2))
        mine = ClassifierFree(exact, w)(x, t, {"label": LABEL}).x0
        by_gradient = ClassifierGuided(THREE.denoiser(sde), log_classifier(sde), w)(x, t).x0
        torch.testing.assert_close(mine, by_gradient, atol=1e-7, rtol=1e-7)


@by_process
def test_the_exact_classifier_gives_the_conditional_model(sde):
    x = sde.perturb(THREE.sample(60, seed=1), 0.4, normal(60, 2, seed=2))
    guided = ClassifierGuided(THREE.denoiser(sde), log_classifier(sde))
    torch.testing.assert_close(guided(x, 0.4).x0, Labelled(sde)(x, 0.4, {"label": LABEL}).x0, atol=1e-9, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(guided(x.clone(), 0.4).x0, Labelled(sde)(x, 0.4, {"label": LABEL}).x0, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sde", [VP(), FlowMatching()], ids=lambda sde: type(sde).__name__)
def test_samples_at_scale_one_have_the_moments_of_their_class(sde):
    n = 3000
    label = torch.arange(n) % 3
    x = DPMSolverPP2M()(ClassifierFree(Labelled(sde)), shape=(n, 2), n_steps=60, seeds=0, condition={"label": label}, dtype=torch.float64).x
    for k in range(3):
        assert (x[label == k].mean(0) - THREE.means[k]).abs().max() < 0.06
        assert (x[label == k].T.cov() - THREE.covariances[k]).abs().max() < 0.04


def two_gaussians(sde, wide, narrow):
    class Two(BaseDenoiser):
        def __init__(self):
            self.sde = sde

        def x0(self, x, t, condition):
            answers = torch.stack([Gaussian(0.0, s**2).posterior_mean(x, sde, t) for s in (wide, narrow)])
            return answers[condition["label"] + 1, torch.arange(len(x))]

    return Two()


@pytest.mark.parametrize("w", [0.0, 1.0, 2.0, 3.0])
def test_standard_deviation_at_any_scale(w):
    """Samples of N(0, a^2) guided to N(0, b^2) have standard deviation a^(1-w) b^w; autoguidance is the same formula."""
    start = EDM().prior_std * torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    guided = ClassifierFree(two_gaussians(EDM(), 1.0, 0.5), w)
    centre, one_off = Heun()(guided, x=start, n_steps=200, condition={"label": torch.zeros(2, dtype=torch.int64)}).x[:, 0]
    assert abs((one_off - centre) / 0.5**w - 1) < 3e-3
    auto = AutoGuided(Gaussian(0.0, 0.25).denoiser(EDM()), Gaussian(0.0, 1.0).denoiser(VP()), w)
    centre, one_off = Heun()(auto, x=start, n_steps=200).x[:, 0]
    assert abs((one_off - centre) / 0.5**w - 1) < 1e-2  # the weak model knows VP's range of levels only


def test_one_call_of_twice_the_size_and_only_where_it_is_needed():
    exact, x = Labelled(VP()), normal(60, 2)
    for denoiser, time, size in [
        (ClassifierFree(exact, 0.0), 0.5, 60),
        (ClassifierFree(exact, 1.0), 0.5, 60),
        (ClassifierFree(exact, 3.0), 0.5, 120),
        (ClassifierFree(exact, 3.0, (0.3, 5.0)), 0.3, 120),
        (ClassifierFree(exact, 3.0, (0.3, 5.0)), 0.02, 60),
        (ClassifierFree(exact, 3.0, (0.3, 5.0)), 0.98, 60),
    ]:
        exact.calls.clear()
        denoiser(x, time, {"label": LABEL})
        assert exact.calls == [size]


class Two(BaseDenoiser):
    """Answers from a table, whose rows are one condition and whose columns the other; number 0 of each is that of none."""

    sde, table = VP(), normal(3, 3, seed=4)

    def null(self, name):
        return torch.tensor(-1)

    def x0(self, x, t, condition):
        return self.table[condition["a"] + 1, condition["b"] + 1][:, None].expand(len(x), 2)


@pytest.mark.parametrize("v, w", [(2.0, 3.0), (1.0, 3.0), (0.0, 3.0), (2.0, 2.0), (2.0, 1.0), (2.0, 0.0), (0.0, 0.0)])
def test_the_second_of_two_conditions_is_asked_beside_the_first(v, w):
    """Equation 3 of Brooks et al.: f(0, 0) + v (f(a, 0) - f(0, 0)) + w (f(a, b) - f(a, 0)); one order of the names is not the other."""
    a, b = torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])
    f, none = Two.table, torch.zeros(3, dtype=torch.int64)
    for scale, both in (({"a": v, "b": w}, f[a + 1, none]), ({"b": v, "a": w}, f[none, b + 1])):
        mine = ClassifierFree(Two(), scale)(torch.zeros(3, 2, dtype=torch.float64), 0.5, {"a": a, "b": b}).x0
        expected = f[0, 0] + v * (both - f[0, 0]) + w * (f[a + 1, b + 1] - both)
        torch.testing.assert_close(mine, expected[:, None].expand(3, 2), atol=1e-12, rtol=0)
    away = ClassifierFree(Two(), {"b": w})(torch.zeros(3, 2, dtype=torch.float64), 0.5, {"a": a, "b": b, "negative_b": 1 - b}).x0
    expected = f[a + 1, 2 - b] + w * (f[a + 1, b + 1] - f[a + 1, 2 - b])
    torch.testing.assert_close(away, expected[:, None].expand(3, 2), atol=1e-12, rtol=0)


def test_scales_and_intervals_of_each_sample():
    exact, x, scales = Labelled(VP()), normal(60, 2), torch.linspace(0, 5, 60, dtype=torch.float64)
    times = torch.linspace(0.02, 0.98, 60, dtype=torch.float64)
    together = ClassifierFree(exact, scales, (0.3, 5.0))(x, times, {"label": LABEL}).x0
    named = ClassifierFree(exact, 1.0, (0.3, 5.0))(x, times, {"label": LABEL, "guidance_scale": scales}).x0
    assert torch.equal(together, named)
    kappa = VP().sigma(times) / VP().alpha(times)
    for k in range(0, 60, 7):
        w = scales[k].item() if 0.3 <= kappa[k] <= 5 else 1.0
        alone = ClassifierFree(exact, w)(x[k : k + 1], times[k], {"label": LABEL[k : k + 1]}).x0[0]
        torch.testing.assert_close(together[k], alone)


def test_guided_denoisers_are_denoisers():
    condition = {"label": torch.arange(6) % 3}
    for guided in (
        ClassifierFree(Labelled(VP()), 3.0, (0.3, 5.0)),
        AutoGuided(Labelled(VP()), Labelled(EDM()), 2.0),
        ClassifierGuided(THREE.denoiser(VP()), lambda x, t: -x.square().sum(1)),
    ):
        check_denoiser(guided, (6, 2), {} if isinstance(guided, ClassifierGuided) else condition, dtype=torch.float64, tolerance=1e-6)


@pytest.mark.parametrize(
    "make, error, sentence",
    [
        (lambda: ClassifierFree(Labelled(VP()), -1.0), ValueError, "at least 0"),
        (lambda: ClassifierFree(Labelled(VP()), [1.0, float("nan")]), ValueError, "at least 0"),
        (lambda: ClassifierFree(Labelled(VP()), 2.0, (3.0, 1.0)), ValueError, "the lower first"),
        (
            lambda: ClassifierFree(Labelled(VP()), [1.0, 2.0])(normal(3, 2), 0.5, {"label": torch.zeros(3).long()}),
            ValueError,
            "each of the 3 samples",
        ),
        (lambda: ClassifierFree(Labelled(VP()), 2.0)(normal(3, 2), 0.5), ValueError, "such as label, got none"),
        (lambda: ClassifierGuided(Labelled(VP()), 1.0), TypeError, "must be a function"),
        (lambda: ClassifierGuided(THREE.denoiser(VP()), lambda x, t: x.sum())(normal(3, 2), 0.5), ValueError, "each of the 3 samples"),
    ],
)
def test_bad_input(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()
