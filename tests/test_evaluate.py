"""``evaluate`` against closed forms and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg

from ddpm_lite.data import digits
from ddpm_lite.evaluate import frechet_distance, two_sample_accuracy


def normal(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(
        n, d, generator=generator, dtype=torch.float64
    ) @ torch.randn(d, d, generator=generator, dtype=torch.float64)


def distance_by_scipy(x, y, root=linalg.sqrtm) -> float:
    a, b = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + np.trace(cov_a + cov_b - 2 * root(cov_a @ cov_b).real)
    )


@given(st.integers(2, 6), st.integers(0, 1000), st.floats(0.1, 5), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_frechet_distance_is_that_of_scipys_matrix_root(d, seed, scale, shift):
    x, y = normal(60, d, seed), normal(80, d, seed + 1, scale, shift)
    assert frechet_distance(x, y) == pytest.approx(
        distance_by_scipy(x, y), rel=1e-5, abs=1e-5
    )
    assert frechet_distance(x, y) == pytest.approx(
        frechet_distance(y, x), rel=1e-6, abs=1e-6
    )


def test_wrong_distances_are_rejected():
    x, y = normal(60, 3, 0), normal(80, 3, 1, shift=1)
    entry_by_entry = distance_by_scipy(x, y, root=lambda c: np.sqrt(np.abs(c)))
    assert frechet_distance(x, y) != pytest.approx(entry_by_entry, rel=1e-5), (
        "the root taken entry by entry"
    )
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    not_squared = distance_by_scipy(x, y) - mean + mean**0.5
    assert frechet_distance(x, y) != pytest.approx(not_squared, rel=1e-5), (
        "the norm of the means not squared"
    )


def test_distance_of_a_set_to_itself_is_zero_even_with_constant_pixels():
    x = digits("test").x_0
    assert float(x.std(0).min()) == 0
    assert frechet_distance(8 * x, 8 * x) == pytest.approx(0, abs=1e-3)


def test_distance_of_a_shifted_set_is_the_square_of_the_shift():
    x = normal(100, 3, 0)
    assert frechet_distance(x, x + torch.tensor([1.0, 2.0, -2.0])) == pytest.approx(
        9, rel=1e-6
    )


@pytest.mark.parametrize("shape", [(100, 1), (100,)])
def test_distance_of_numbers_is_that_of_their_means_and_deviations(shape):
    x, y = normal(100, 1, 0).view(shape), normal(100, 1, 1, 2, 0.5).view(shape)
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_images_are_flattened():
    x, y = digits("train").x_0[:200], digits("test").x_0[:200]
    assert frechet_distance(x, y) == pytest.approx(
        frechet_distance(x.flatten(1), y.flatten(1))
    )


def test_training_digits_are_about_28_from_held_out_digits():
    """The reference of the project, on the scale 0..16, all 360 held-out digits against as many of training."""
    assert 15 < frechet_distance(8 * digits("train").x_0, 8 * digits("test").x_0) < 40


def test_two_sample_accuracy_is_half_for_one_law_and_one_for_two():
    """Two sets of 500 of one law: the accuracy has a standard deviation near 0.016, so 0.1 is 6 of them."""
    x, y = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(0))
    assert two_sample_accuracy(x, y) == pytest.approx(0.5, abs=0.1)
    assert two_sample_accuracy(x, y + 10) == 1
    assert 0.6 < two_sample_accuracy(x, y + 0.5) < 0.9


def test_two_sample_accuracy_of_a_set_with_itself_is_not_above_half():
    x = digits("test").x_0
    assert two_sample_accuracy(x, x) < 0.55


def test_two_sample_accuracy_is_balanced_and_fixed_by_its_seed():
    x, y = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).split(
        [350, 50]
    )
    assert two_sample_accuracy(x, y) < 0.75, (
        "with 7 of 8 from one set a constant answer would give 0.875"
    )
    assert two_sample_accuracy(x, y, seed=1) == two_sample_accuracy(x, y, seed=1)


@pytest.mark.parametrize("measure", [frechet_distance, two_sample_accuracy])
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (
            torch.zeros(20, 2),
            torch.zeros(20, 3),
            ValueError,
            r"one shape, got \(20, 2\) and \(20, 3\)",
        ),
        (
            torch.zeros(20, 2),
            torch.zeros(9, 2),
            ValueError,
            r"at least 10 items .* got \(20, 2\) and \(9, 2\)",
        ),
        (
            torch.zeros(20, 2).byte(),
            torch.zeros(20, 2),
            TypeError,
            r"x must be floating point, got torch\.uint8",
        ),
        (
            torch.zeros(20, 2),
            np.zeros((20, 2)),
            TypeError,
            r"y must be a torch\.Tensor, got ndarray",
        ),
        (
            torch.full((20, 2), torch.nan),
            torch.zeros(20, 2),
            ValueError,
            "x must .*(finite|NaN)",
        ),
        (
            torch.zeros(20, 2),
            torch.full((20, 2), torch.inf),
            ValueError,
            "y must .*(finite|NaN)",
        ),
    ],
)
def test_bad_input_is_refused_by_name(measure, x, y, error, message):
    with pytest.raises(error, match=message):
        measure(x, y)
