"""``process`` against Gaussian conditioning of the whole chain, sympy-free algebra and simulation."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lite import GaussianDiffusion, NoiseSchedule, linear_schedule

BETA = np.array([0.02, 0.3, 0.05, 0.4, 0.6, 0.25, 0.5, 0.95])
DTYPES = {
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
    torch.float32: 2e-6,
    torch.float64: 1e-14,
}
PAIRS = [(t, s) for t in range(1, len(BETA) + 1) for s in range(t)]


@pytest.fixture(scope="module")
def short():
    """Eight uneven steps, in which no two coefficients look alike. ᾱ_T is 0.0016; too large to sample from."""
    with pytest.warns(UserWarning, match="alpha_bar"):
        return GaussianDiffusion(NoiseSchedule(BETA))


def chain() -> tuple[np.ndarray, np.ndarray]:
    """Mean per unit of x_0, and covariance, of (x_0, x_1, ..., x_T) given x_0, from x_t = √(1-β_t) x_{t-1} + √β_t ε_t.

    Written with the single steps only: no ᾱ and no formula of the book enters.
    """
    T = len(BETA)
    mean, noise = np.ones(T + 1), np.zeros((T + 1, T))
    for t in range(1, T + 1):
        mean[t] = np.sqrt(1 - BETA[t - 1]) * mean[t - 1]
        noise[t] = np.sqrt(1 - BETA[t - 1]) * noise[t - 1]
        noise[t, t - 1] = np.sqrt(BETA[t - 1])
    return mean, noise @ noise.T


def conditioned(t: int, s: int, x_0: float, x_t: float) -> tuple[float, float]:
    """Mean and variance of x_s given x_0 and x_t, by conditioning the joint covariance of the chain."""
    mean, cov = chain()
    gain = cov[s, t] / cov[t, t]
    return mean[s] * x_0 + gain * (x_t - mean[t] * x_0), cov[s, s] - gain * cov[t, s]


def posterior(diffusion, t, s, x_0, x_t):
    mean, variance = diffusion.q_posterior(
        torch.tensor([[x_0]], dtype=torch.float64),
        torch.tensor([[x_t]], dtype=torch.float64),
        t,
        s,
    )
    return float(mean), float(variance)


# What people publish in place of the posterior. a = ᾱ, indexed by t; each returns the mean and the variance.


def index_shifted(a, b, t, x_0, x_t):
    """ᾱ_{t-1} read from an array that starts at t = 1, so that it is ᾱ_t, and ᾱ_t is ᾱ_{t+1}."""
    t = min(t + 1, len(a) - 1)
    return right(a, b, t, x_0, x_t)


def no_square_root(a, b, t, x_0, x_t):
    s = t - 1
    mean = (a[s] * b[t] * x_0 + (1 - b[t]) * (1 - a[s]) * x_t) / (1 - a[t])
    return mean, b[t] * (1 - a[s]) / (1 - a[t])


def weights_swapped(a, b, t, x_0, x_t):
    return right(a, b, t, x_t, x_0)


def variance_is_beta(a, b, t, x_0, x_t):
    return right(a, b, t, x_0, x_t)[0], b[t]


def variance_upside_down(a, b, t, x_0, x_t):
    return right(a, b, t, x_0, x_t)[0], b[t] * (1 - a[t]) / max(1 - a[t - 1], 1e-9)


def deviation_for_variance(a, b, t, x_0, x_t):
    mean, variance = right(a, b, t, x_0, x_t)
    return mean, variance**0.5


def eps_form_without_root(a, b, t, x_0, x_t):
    """β_t / (1 - ᾱ_t) for β_t / √(1 - ᾱ_t)."""
    eps = (x_t - a[t] ** 0.5 * x_0) / (1 - a[t]) ** 0.5
    return (x_t - b[t] / (1 - a[t]) * eps) / (1 - b[t]) ** 0.5, right(
        a, b, t, x_0, x_t
    )[1]


def eps_form_with_alpha_for_alpha_bar(a, b, t, x_0, x_t):
    """β_t / √(1 - α_t) for β_t / √(1 - ᾱ_t)."""
    eps = (x_t - a[t] ** 0.5 * x_0) / (1 - a[t]) ** 0.5
    return (x_t - b[t] ** 0.5 * eps) / (1 - b[t]) ** 0.5, right(a, b, t, x_0, x_t)[1]


def eps_form(a, b, t, x_0, x_t):
    eps = (x_t - a[t] ** 0.5 * x_0) / (1 - a[t]) ** 0.5
    return (x_t - b[t] / (1 - a[t]) ** 0.5 * eps) / (1 - b[t]) ** 0.5, right(
        a, b, t, x_0, x_t
    )[1]


def right(a, b, t, x_0, x_t):
    s = t - 1
    mean = (a[s] ** 0.5 * b[t] * x_0 + (1 - b[t]) ** 0.5 * (1 - a[s]) * x_t) / (
        1 - a[t]
    )
    return mean, b[t] * (1 - a[s]) / (1 - a[t])


@pytest.mark.equation("eq-posterior-mean")
@pytest.mark.parametrize("t", range(1, len(BETA) + 1))
def test_posterior_mean_is_the_conditional_mean_of_the_chain(short, t):
    assert posterior(short, t, None, 0.7, -1.3)[0] == pytest.approx(
        conditioned(t, t - 1, 0.7, -1.3)[0], rel=1e-12
    )


@pytest.mark.equation("eq-posterior-variance")
@pytest.mark.parametrize("t", range(1, len(BETA) + 1))
def test_posterior_variance_is_the_conditional_variance_of_the_chain(short, t):
    expected = conditioned(t, t - 1, 0.7, -1.3)[1]
    assert posterior(short, t, None, 0.7, -1.3)[1] == pytest.approx(
        expected, rel=1e-12, abs=1e-15
    )


@pytest.mark.equation("eq-posterior-any-s")
@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_for_any_s_is_the_conditional_law_of_the_chain(short, t, s):
    assert posterior(short, t, s, 0.7, -1.3) == pytest.approx(
        conditioned(t, s, 0.7, -1.3), rel=1e-12, abs=1e-15
    )


@pytest.mark.parametrize(
    "wrong",
    [
        index_shifted,
        no_square_root,
        weights_swapped,
        variance_is_beta,
        variance_upside_down,
        deviation_for_variance,
        eps_form_without_root,
        eps_form_with_alpha_for_alpha_bar,
    ],
)
def test_the_chain_rejects_wrong_posteriors(short, wrong):
    a, b = short.schedule.alpha_bar.tolist(), short.schedule.beta.tolist()
    for t in range(2, len(BETA)):
        expected = pytest.approx(conditioned(t, t - 1, 0.7, -1.3), rel=1e-12, abs=1e-15)
        assert right(a, b, t, 0.7, -1.3) == expected
        assert eps_form(a, b, t, 0.7, -1.3) == expected
        assert wrong(a, b, t, 0.7, -1.3) != expected


def test_posterior_at_s_0_is_x_0_and_certain(diffusion):
    x_0, x_t = torch.randn(
        2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for t in (1, 10, 1000):
        mean, variance = diffusion.q_posterior(x_0, x_t, t, 0)
        assert torch.allclose(mean, x_0, rtol=1e-12)
        assert float(variance.abs().max()) == 0


def test_posterior_on_a_sub_schedule_is_that_of_the_full_chain(diffusion):
    """One formula for every pair (t, s): the coarser schedule, with its own β and index, must say the same."""
    times = diffusion.schedule.times(7)[::-1]
    coarse = GaussianDiffusion(diffusion.schedule.subschedule(times))
    x_0, x_t = torch.randn(
        2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    for i in range(1, 8):
        for ours, theirs in zip(
            diffusion.q_posterior(x_0, x_t, times[i], times[i - 1]),
            coarse.q_posterior(x_0, x_t, i),
        ):
            assert torch.allclose(ours, theirs, rtol=1e-9)
    wrong = diffusion.q_posterior(x_0, x_t, times[4])[
        0
    ]  # s left out: one small step in place of a large one
    assert not torch.allclose(wrong, coarse.q_posterior(x_0, x_t, 4)[0], rtol=1e-9)


def test_transition_variance_is_beta_for_one_step_and_composes(short):
    x = torch.zeros(len(BETA), 1, dtype=torch.float64)
    steps = short.transition_variance(x, torch.arange(1, len(BETA) + 1))
    assert np.allclose(steps.flatten().numpy(), BETA, rtol=1e-12)
    for t, s in PAIRS:
        variance = 0.0
        for beta in BETA[s:t]:
            variance = (1 - beta) * variance + beta
        assert float(short.transition_variance(x[:1], t, s)) == pytest.approx(
            variance, rel=1e-12
        )


def test_q_sample_is_add_noise_of_diffusers(diffusion):
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 64, 1, 4, 4, generator=generator)
    t = torch.randint(1, 1001, (64,), generator=generator)
    theirs = DDPMScheduler(beta_schedule="linear").add_noise(x_0, eps, t - 1)
    assert torch.allclose(diffusion.q_sample(x_0, t, eps), theirs, atol=1e-4)
    shifted = diffusion.q_sample(x_0, (t - 1).clamp(min=1), eps)
    assert not torch.allclose(shifted, theirs, atol=1e-4), "the index shifted by one"


def marginal_p_value(p_value, draw, diffusion, t) -> float:
    """How well 20,000 draws of x_t given x_0 = (0.8, -0.5) fit the law that single steps give it."""
    mean, cov = chain()
    x = draw(
        torch.tensor([0.8, -0.5], dtype=torch.float64).expand(20_000, 2), diffusion, t
    )
    return p_value(x.numpy(), mean[t] * np.array([0.8, -0.5]), cov[t, t] * np.eye(2))


def one_shot(x_0, diffusion, t):
    eps = torch.randn(
        x_0.shape, generator=torch.Generator().manual_seed(0), dtype=x_0.dtype
    )
    return diffusion.q_sample(x_0, t, eps)


def step_by_step(x_0, diffusion, t):
    return list(diffusion.q_chain(x_0, torch.Generator().manual_seed(0)))[t - 1]


@pytest.mark.parametrize("draw", [one_shot, step_by_step])
def test_one_shot_and_chain_have_the_same_law(p_value, short, draw):
    """False-alarm probability 1e-6 a time."""
    for t in range(1, len(BETA) + 1):
        assert marginal_p_value(p_value, draw, short, t) > 1e-6


@pytest.mark.parametrize(
    ("signal", "noise"),
    [
        pytest.param(
            lambda a: a, lambda a: (1 - a) ** 0.5, id="alpha_bar for its square root"
        ),
        pytest.param(
            lambda a: a**0.5, lambda a: 1 - a, id="variance for the deviation"
        ),
        pytest.param(lambda a: a**0.5, lambda a: 1 - a**0.5, id="1 - sqrt(alpha_bar)"),
    ],
)
def test_the_law_of_the_chain_rejects_wrong_amplitudes(p_value, short, signal, noise):
    def wrong(x_0, diffusion, t):
        a = float(diffusion.schedule.alpha_bar[t])
        return signal(a) * x_0 + noise(a) * torch.randn(
            x_0.shape, generator=torch.Generator().manual_seed(0)
        )

    assert marginal_p_value(p_value, wrong, short, 4) < 1e-6


def test_q_chain_yields_every_state_once(short):
    states = list(short.q_chain(torch.zeros(2, 3), torch.Generator().manual_seed(0)))
    assert [x.shape for x in states] == [(2, 3)] * 8


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_conversions_undo_each_other(diffusion, t):
    x_0, eps = torch.randn(
        2, 6, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    x_t, v = diffusion.q_sample(x_0, t, eps), diffusion.velocity(x_0, t, eps)
    assert torch.allclose(diffusion.predict_x_0(x_t, t, eps), x_0, atol=1e-9)
    assert torch.allclose(diffusion.predict_eps(x_t, t, x_0), eps, atol=1e-9)
    assert torch.allclose(diffusion.predict_x_0_from_v(x_t, t, v), x_0, atol=1e-9)
    assert torch.allclose(diffusion.predict_eps_from_v(x_t, t, v), eps, atol=1e-9)


def test_velocity_is_that_of_diffusers(diffusion):
    x_0, eps = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    t = torch.arange(1, 1001, 130)
    theirs = DDPMScheduler(beta_schedule="linear").get_velocity(x_0, eps, t - 1)
    assert torch.allclose(diffusion.velocity(x_0, t, eps), theirs, atol=1e-4)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.sampled_from(list(DTYPES)),
    st.integers(1, 1000),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_and_dtype_keeps_both_and_agrees_with_float64(
    diffusion, shape, dtype, t, data
):
    s = data.draw(st.integers(0, t - 1))
    x_0, x_t = torch.randn(
        2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).to(dtype)
    mean, variance = diffusion.q_posterior(x_0, x_t, t, s)
    expected, expected_variance = diffusion.q_posterior(
        x_0.double(), x_t.double(), t, s
    )
    assert mean.dtype == variance.dtype == dtype
    assert mean.shape == x_0.shape
    assert variance.shape == (shape[0], *[1] * (len(shape) - 1))
    assert torch.allclose(
        mean.double(), expected, rtol=DTYPES[dtype], atol=4 * DTYPES[dtype]
    )
    assert torch.allclose(
        variance.double(), expected_variance, rtol=DTYPES[dtype], atol=1e-7
    )
    noisy = diffusion.q_sample(x_0, t, x_t)
    assert noisy.dtype == dtype
    assert torch.allclose(
        noisy.double(),
        diffusion.q_sample(x_0.double(), t, x_t.double()),
        rtol=DTYPES[dtype],
        atol=4 * DTYPES[dtype],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coefficients_are_cast_last(diffusion, dtype):
    """ᾱ_1 = 0.9999 is 1 in half precision: cast first, the first step would add no noise at all."""
    noise = diffusion.q_sample(
        torch.zeros(1, 1, dtype=dtype), 1, torch.ones(1, 1, dtype=dtype)
    )
    assert float(noise) == pytest.approx(0.01, rel=DTYPES[dtype])
    assert float(
        (1 - diffusion.schedule.alpha_bar[1].to(dtype)).sqrt()
    ) != pytest.approx(0.01, rel=DTYPES[dtype])


def test_steps_may_differ_within_a_batch(diffusion):
    x_0, eps = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0))
    t, s = torch.tensor([1, 500, 1000]), torch.tensor([0, 20, 999])
    together, _ = diffusion.q_posterior(x_0, eps, t, s)
    for i in range(3):
        alone, _ = diffusion.q_posterior(
            x_0[i : i + 1], eps[i : i + 1], int(t[i]), int(s[i])
        )
        assert torch.equal(together[i : i + 1], alone)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_any_integer_dtype_serves_as_time(diffusion, dtype):
    x = torch.ones(2, 3)
    assert torch.equal(
        diffusion.q_sample(x, torch.tensor([5, 9], dtype=dtype), x),
        diffusion.q_sample(x, torch.tensor([5, 9]), x),
    )


X = torch.zeros(2, 1, 4, 4)
METHODS = [
    "q_sample",
    "predict_x_0",
    "predict_eps",
    "velocity",
    "predict_x_0_from_v",
    "predict_eps_from_v",
]
BAD_TIMES = [
    (0, ValueError, "t must be between 1 and 1000, got 0"),
    (1001, ValueError, "t must be between 1 and 1000, got 1001"),
    (-1, ValueError, "t must be between 1 and 1000, got -1"),
    (3.0, TypeError, "t must be an int or an integer tensor, got 3.0 of type float"),
    (True, TypeError, "t must be an int or an integer tensor, got True of type bool"),
    (None, TypeError, "t must be an int or an integer tensor, got None"),
    (torch.tensor([0, 5]), ValueError, "t must be between 1 and 1000, got 0 to 5"),
    (
        torch.tensor([5, 1001]),
        ValueError,
        "t must be between 1 and 1000, got 5 to 1001",
    ),
    (
        torch.tensor([1.0, 2.0]),
        TypeError,
        "t must be an integer tensor, got torch.float32",
    ),
    (
        torch.tensor([True, True]),
        TypeError,
        "t must be an integer tensor, got torch.bool",
    ),
    (torch.tensor([1, 2, 3]), ValueError, r"t must have shape \(2,\), .* got \(3,\)"),
    (torch.tensor(3), ValueError, r"t must have shape \(2,\), .* got \(\)"),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("t", "error", "message"), BAD_TIMES)
def test_bad_times_are_refused_by_name(diffusion, method, t, error, message):
    with pytest.raises(error, match=message):
        getattr(diffusion, method)(X, t, X)


@pytest.mark.parametrize(("t", "error", "message"), BAD_TIMES)
def test_bad_times_of_the_posterior_are_refused_by_name(diffusion, t, error, message):
    with pytest.raises(error, match=message):
        diffusion.q_posterior(X, X, t)
    with pytest.raises(error, match=message):
        diffusion.transition_variance(X, t)


@pytest.mark.parametrize(
    ("s", "error", "message"),
    [
        (5, ValueError, "s must be between 0 and 4, got 5"),
        (torch.tensor([0, 7]), ValueError, "s must be between 0 and 4, got 0 to 7"),
        (-1, ValueError, "s must be between 0 and 4, got -1"),
        (2.0, TypeError, "s must be an int or an integer tensor, got 2.0"),
        (False, TypeError, "s must be an int or an integer tensor, got False"),
    ],
)
def test_bad_s_is_refused_by_name(diffusion, s, error, message):
    with pytest.raises(error, match=message):
        diffusion.q_posterior(X, X, 5, s)
    with pytest.raises(error, match=message):
        diffusion.transition_variance(X, 5, s)


@pytest.mark.parametrize(
    ("s", "message"),
    [
        (4, "s must be smaller than t, got 4 to 4"),
        (torch.tensor([4, 9]), "s must be smaller than t, got 4 to 9"),
        (torch.tensor([2, 1001]), "s must be between 0 and 1000, got 2 to 1001"),
    ],
)
def test_each_s_is_compared_with_its_own_t(diffusion, s, message):
    with pytest.raises(ValueError, match=message):
        diffusion.q_posterior(X, X, torch.tensor([4, 9]), s)
    diffusion.q_posterior(X, X, torch.tensor([4, 9]), torch.tensor([3, 8]))


@pytest.mark.parametrize(
    ("first", "second", "error", "message"),
    [
        (
            X.to(torch.uint8),
            X,
            TypeError,
            "must be floating point, got torch.uint8; .*from_uint8",
        ),
        (X.long(), X, TypeError, "must be floating point, got torch.int64"),
        (X, X.to(torch.uint8), TypeError, "must be floating point, got torch.uint8"),
        (X.numpy(), X, TypeError, "must be a torch.Tensor, got ndarray"),
        (X, 0.0, TypeError, "must be a torch.Tensor, got float"),
        (X[0, 0, 0, 0], X, ValueError, "must have a batch dimension"),
        (
            X,
            X[:1],
            ValueError,
            r"must have the shape of .*\(2, 1, 4, 4\), got \(1, 1, 4, 4\)",
        ),
        (X, X.to("meta"), ValueError, "is on meta, but .* is on cpu"),
    ],
)
@pytest.mark.parametrize("method", [*METHODS, "q_posterior"])
def test_bad_data_is_refused(diffusion, method, first, second, error, message):
    arguments = (first, second, 5) if method == "q_posterior" else (first, 5, second)
    with pytest.raises(error, match=message):
        getattr(diffusion, method)(*arguments)


def test_integer_images_are_refused_by_the_chain(diffusion):
    with pytest.raises(
        TypeError, match=r"x_0 must be floating point, got torch\.uint8"
    ):
        next(diffusion.q_chain(X.to(torch.uint8)))


def test_only_a_noise_schedule_makes_a_diffusion():
    with pytest.raises(TypeError, match="schedule must be a NoiseSchedule, got Tensor"):
        GaussianDiffusion(linear_schedule().beta)
