"""Linear operators: adjoints, pseudo-inverses, and what they compute, against dense matrices and other implementations."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffnb.guidance import (
    REC601,
    Blur,
    Composition,
    Downsample,
    Grayscale,
    Identity,
    LinearOperator,
    Mask,
    Observation,
    Stacked,
    check_operator,
    colour_rotation,
    gaussian_kernel,
    solve,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = (normal(8, 12, seed=3) > 0).double()
OPERATORS = {
    "mask": (Mask(MASK), 1e-12),
    "mask of each": (Mask((normal(2, 1, 8, 12, seed=4) > 0).double()), 1e-12),
    "grey": (Grayscale(), 1e-12),
    "any weights": (Grayscale((0.2, -0.5, 2.0)), 1e-12),
    "box": (Downsample(2), 1e-12),
    "bicubic": (Downsample(4, "bicubic"), 1e-10),
    "circular blur": (Blur(normal(3, 5, seed=5)), 1e-7),
    "reflected blur": (Blur(gaussian_kernel(0.6), "reflect"), 1e-4),
    "identity": (Identity(), 1e-12),
    "composition": (Downsample(2) @ Blur(gaussian_kernel(0.7)) @ Grayscale(), 1e-4),
    "stack": (Stacked((Grayscale(), Mask(MASK)), (1, 3)), 1e-5),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_and_pseudo_inverse(name):
    operator, tolerance = OPERATORS[name]
    check_operator(operator, (2, 3, 8, 12), tolerance)


@pytest.mark.parametrize("name", ["box", "bicubic", "circular blur", "reflected blur", "composition", "stack", "any weights"])
def test_against_the_dense_matrix(name):
    """Adjoint and pseudo-inverse of the matrix that the operator is."""
    operator, tolerance = OPERATORS[name]
    if name == "stack":
        operator = Stacked((Grayscale(), Mask(MASK[:4, :4])), (1, 3))
    basis = torch.eye(48, dtype=torch.float64).view(48, 3, 4, 4)
    made = operator.A(basis)
    matrix = made.flatten(1).T
    y = normal(*made[:2].shape, seed=7)
    torch.testing.assert_close(operator.At(y).flatten(1), y.flatten(1) @ matrix)
    exact = y.flatten(1) @ torch.linalg.pinv(matrix, rtol=1e-6).T
    assert (operator.pinv(y).flatten(1) - exact).abs().max() < max(10 * tolerance, 1e-8) * exact.abs().max()


def test_what_they_compute():
    x = normal(2, 3, 8, 12)
    torch.testing.assert_close(Downsample(4).A(x), F.avg_pool2d(x, 4))
    torch.testing.assert_close(Downsample(2, "bicubic").A(x), F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True))
    torch.testing.assert_close(Grayscale().A(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    kernel = normal(3, 5, seed=9)
    flipped = kernel.flip(0, 1)[None, None].expand(3, 1, 3, 5)
    torch.testing.assert_close(Blur(kernel).A(x), F.conv2d(F.pad(x, (2, 2, 1, 1), mode="circular"), flipped, groups=3))
    # a delta blurred is the kernel, centred
    delta = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    delta[..., 4, 4] = 1
    torch.testing.assert_close(Blur(kernel).A(delta)[0, 0, 3:6, 2:7], kernel)
    hidden = Mask(MASK).A(x)
    assert (hidden[:, :, MASK == 1] == 0).all() and (hidden[:, :, MASK == 0] == x[:, :, MASK == 0]).all()
    both = Composition(Downsample(2), Grayscale())
    torch.testing.assert_close(both.A(x), Downsample(2).A(Grayscale().A(x)))


def test_a_gaussian_kernel_has_the_width_that_it_is_given():
    for std in (0.8, 1.7):
        kernel, x = gaussian_kernel(std, 15), torch.arange(-15, 16, dtype=torch.float64)
        assert kernel.sum().item() == pytest.approx(1)
        for line in (kernel.sum(0), kernel.sum(1)):
            assert ((line * x**2).sum().sqrt().item(), (line * x).sum().item()) == pytest.approx((std, 0), abs=1e-4)
        assert gaussian_kernel(std).shape == (2 * math.ceil(3 * std) + 1,) * 2


def test_symmetric_blur_keeps_constants_with_either_boundary():
    white = torch.ones(1, 1, 7, 9, dtype=torch.float64)
    for boundary in ("circular", "reflect"):
        torch.testing.assert_close(Blur(gaussian_kernel(3.0), boundary).A(white), white)


@pytest.mark.parametrize("weights", [REC601, (1.0, 0.0, 0.0), (-0.3, 0.8, 0.1, 0.4)])
def test_colour_rotation(weights):
    rotation, w = colour_rotation(weights), torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(len(w), dtype=torch.float64))
    torch.testing.assert_close(rotation[0], w / w.norm())
    torch.testing.assert_close(rotation[1:] @ w, torch.zeros(len(w) - 1, dtype=torch.float64), atol=1e-12, rtol=0)


def test_conjugate_gradients_solve_each_sample_by_itself():
    root = normal(4, 7, 7, seed=1)
    matrices, b = root @ root.mT, normal(4, 7, seed=2)
    b[2] = 0  # solved before it begins
    x = solve(lambda p: torch.einsum("nij,nj->ni", matrices, p), b, 60, 1e-13)
    torch.testing.assert_close(torch.einsum("nij,nj->ni", matrices, x), b, atol=1e-7, rtol=0)
    assert (x[2] == 0).all()
    alone = solve(lambda p: torch.einsum("nij,nj->ni", matrices[1:2], p), b[1:2], 60, 1e-13)
    torch.testing.assert_close(x[1:2], alone, atol=1e-6, rtol=1e-6)


def test_check_operator_names_what_is_wrong():
    class Shifted(LinearOperator):
        def A(self, x):
            return x.roll(1, -1)

        At = A

    class Affine(LinearOperator):
        def A(self, x):
            return x + 1

        At = A

    with pytest.raises(AssertionError, match="adjoint"):
        check_operator(Shifted(), (2, 1, 4, 4))
    with pytest.raises(AssertionError, match="linearity"):
        check_operator(Affine(), (2, 1, 4, 4))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: Mask(torch.full((2, 2), 0.5)), "threshold a soft mask"),
        (lambda: Grayscale((0.0, 0.0, 0.0)), "not all zero"),
        (lambda: Downsample(0), "factor must be"),
        (lambda: Downsample(2, "area"), "'box' or 'bicubic'"),
        (lambda: Downsample(3).A(torch.zeros(1, 1, 4, 4)), "crop or pad"),
        (lambda: Blur(torch.ones(3)), "shape \\(kh, kw\\)"),
        (lambda: Blur(torch.ones(3, 3), "zero"), "'circular' or 'reflect'"),
        (lambda: Observation(Identity(), torch.zeros(1), float("nan")), "noise must be"),
        (lambda: Grayscale().A(torch.zeros(1, 1, 2, 2)), "3 weights, the images 1 channels"),
    ],
)
def test_bad_input(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()
