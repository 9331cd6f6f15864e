"""``ExactEps`` against the score of the density that scipy computes, and against Gaussian conditioning."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddpm_lite import ExactEps, linear_schedule

SCHEDULE = linear_schedule()
MEANS = np.array([[1.0, 0.5], [-1.0, 0.3], [0.2, -0.8]])
COVS = np.array(
    [[[0.5, 0.2], [0.2, 0.3]], [[0.1, -0.05], [-0.05, 0.4]], [[0.2, 0.0], [0.0, 0.2]]]
)
WEIGHTS = np.array([0.5, 0.2, 0.3])
X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def eps_by_scipy(x, t, means, covs, weights):
    """E[ε | x_t] = -√(1 - ᾱ_t) ∇ log q(x_t), the gradient by central differences of scipy's density."""
    a = float(SCHEDULE.alpha_bar[t])

    def log_density(x):
        laws = [
            stats.multivariate_normal(a**0.5 * m, a * c + (1 - a) * np.eye(2))
            for m, c in zip(means, covs)
        ]
        return np.logaddexp.reduce(
            [law.logpdf(x) + np.log(w) for law, w in zip(laws, weights)]
        )

    h = 1e-5
    gradient = [
        (log_density(x + h * e) - log_density(x - h * e)) / (2 * h) for e in np.eye(2)
    ]
    return -((1 - a) ** 0.5) * np.array(gradient)


def matches_scipy(eps_model, t, covs=COVS) -> bool:
    ours = eps_model(X, torch.full((20,), t)).numpy()
    theirs = np.array([eps_by_scipy(x, t, MEANS, covs, WEIGHTS) for x in X.numpy()])
    return np.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [1, 50, 400, 1000])
def test_eps_of_a_mixture_is_the_score_of_its_density(t):
    assert matches_scipy(ExactEps(SCHEDULE, MEANS, COVS, WEIGHTS), t)


def test_weights_need_not_sum_to_one():
    assert matches_scipy(ExactEps(SCHEDULE, MEANS, COVS, 10 * WEIGHTS), 400)


@pytest.mark.parametrize("t", [100, 400])
def test_eps_of_a_finite_set_is_the_score_of_its_density(t):
    assert matches_scipy(
        ExactEps(SCHEDULE, MEANS, weights=WEIGHTS), t, covs=np.zeros((3, 2, 2))
    )


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(ExactEps(SCHEDULE, MEANS, COVS), id="weights left out"),
        pytest.param(
            ExactEps(SCHEDULE, MEANS, weights=WEIGHTS), id="covariances left out"
        ),
        pytest.param(
            lambda x, t: ExactEps(SCHEDULE, MEANS, COVS, WEIGHTS)(x, t - 20),
            id="another time",
        ),
        pytest.param(
            lambda x, t: sum(
                w * ExactEps(SCHEDULE, m[None], c[None])(x, t)
                for m, c, w in zip(MEANS, COVS, WEIGHTS)
            ),
            id="prior weights for responsibilities",
        ),
    ],
)
def test_scipy_rejects_wrong_eps(wrong):
    assert not matches_scipy(wrong, 400)


@pytest.mark.parametrize("t", [1, 300, 1000])
def test_estimate_of_x_0_for_gaussian_data_is_the_conditional_mean(diffusion, t):
    a = float(SCHEDULE.alpha_bar[t])
    gain = a**0.5 * COVS[0] @ np.linalg.inv(a * COVS[0] + (1 - a) * np.eye(2))
    expected = MEANS[0] + (X.numpy() - a**0.5 * MEANS[0]) @ gain.T
    eps = ExactEps(SCHEDULE, MEANS[:1], COVS[:1])(X, t)
    assert np.allclose(diffusion.predict_x_0(X, t, eps).numpy(), expected, atol=1e-9)


def test_a_covariance_without_full_rank_is_accepted(diffusion):
    line = np.array([[[1.0, 1.0], [1.0, 1.0]]])
    x_0 = diffusion.predict_x_0(
        X, 10, ExactEps(SCHEDULE, np.zeros((1, 2)), line)(X, 10)
    )
    assert torch.allclose(x_0[:, 0], x_0[:, 1], atol=1e-9)


def test_one_point_is_always_recognised(diffusion):
    point = torch.tensor([[[0.3, -0.7, 1.0]]])
    x_t = torch.randn(
        4, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for t in (1, 1000):
        x_0 = diffusion.predict_x_0(x_t, t, ExactEps(SCHEDULE, point)(x_t, t))
        assert torch.allclose(x_0, point.double().expand(4, 1, 3), atol=1e-9)


def test_far_away_the_nearest_component_wins_and_nothing_overflows():
    x = torch.tensor([[1e4, -1e4], [-1e4, 1e4]])
    for model in (ExactEps(SCHEDULE, MEANS, COVS, WEIGHTS), ExactEps(SCHEDULE, MEANS)):
        for t in (1, 500, 1000):
            assert bool(model(x, t).isfinite().all())


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.integers(1, 1000),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_and_dtype_keeps_both(shape, dtype, t):
    model = ExactEps(
        SCHEDULE, torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    )
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    eps = model(x, torch.tensor([t, t]))
    assert (eps.shape, eps.dtype) == (x.shape, dtype)
    assert torch.equal(eps, model(x.double(), t).to(dtype))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(2),), r"means must have shape \(K, ...\), got \(2,\)"),
        ((np.zeros((0, 2)),), r"means must have shape .* got \(0, 2\)"),
        (
            (MEANS, COVS[:2]),
            r"covariances must have shape \(3, 2, 2\), got \(2, 2, 2\)",
        ),
        ((MEANS[:1], [[[1.0, 0.5], [0.0, 1.0]]]), "covariances must be symmetric"),
        (
            (MEANS[:1], [[[1.0, 2.0], [2.0, 1.0]]]),
            "covariances must have no negative eigenvalue, got -1",
        ),
        (
            (MEANS, COVS, [1.0, 2.0]),
            r"weights must be 3 positive numbers, .* got \[1.0, 2.0\]",
        ),
        ((MEANS, COVS, [1.0, 0.0, 2.0]), "weights must be 3 positive numbers"),
        ((MEANS, COVS, [1.0, float("nan"), 2.0]), "weights must be 3 positive numbers"),
    ],
)
def test_bad_laws_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        ExactEps(SCHEDULE, *arguments)


@pytest.mark.parametrize(
    ("x_t", "t", "error", "message"),
    [
        (
            torch.zeros(4, 3),
            1,
            ValueError,
            r"x_t must have shape \(B, 2\), got \(4, 3\)",
        ),
        (
            torch.zeros(4, 2, dtype=torch.uint8),
            1,
            TypeError,
            r"x_t must be floating point, got torch\.uint8",
        ),
        (X, 0, ValueError, "t must be between 1 and 1000, got 0"),
        (X, 1001, ValueError, "t must be between 1 and 1000, got 1001"),
        (X, 1.0, TypeError, "t must be an int or an integer tensor, got 1.0"),
        (
            X,
            torch.ones(20),
            TypeError,
            r"t must be an integer tensor, got torch\.float32",
        ),
    ],
)
def test_bad_input_is_refused_by_name(x_t, t, error, message):
    with pytest.raises(error, match=message):
        ExactEps(SCHEDULE, MEANS, COVS)(x_t, t)
