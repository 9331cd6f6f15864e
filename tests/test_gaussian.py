"""``gaussian`` against scipy's densities and numeric integration."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from ddpm_lite import gaussian

MEANS = st.floats(-5, 5)
VARIANCES = st.floats(0.01, 20)


def tensors(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def kl_by_integration(
    mean_q: float, variance_q: float, mean_p: float, variance_p: float
) -> float:
    q, p = stats.norm(mean_q, variance_q**0.5), stats.norm(mean_p, variance_p**0.5)
    return integrate.quad(
        lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)),
        *q.interval(1 - 1e-14),
        limit=200,
    )[0]


@given(MEANS, MEANS, VARIANCES)
@settings(max_examples=50, deadline=None)
def test_log_density_is_that_of_scipy(x, mean, variance):
    ours = gaussian.log_density(*tensors(x, mean, variance))
    assert float(ours) == pytest.approx(
        stats.norm.logpdf(x, mean, variance**0.5), rel=1e-12, abs=1e-12
    )


def test_log_density_of_scipy_rejects_a_standard_deviation_in_place_of_the_variance():
    wrong = gaussian.log_density(*tensors(0.3, 0.1, 0.5**0.5))
    assert float(wrong) != pytest.approx(
        stats.norm.logpdf(0.3, 0.1, 0.5**0.5), rel=1e-12
    )


@given(MEANS, VARIANCES, MEANS, VARIANCES)
@settings(max_examples=50, deadline=None)
def test_kl_is_the_integral_that_defines_it(mean_q, variance_q, mean_p, variance_p):
    ours = float(gaussian.kl(*tensors(mean_q, variance_q, mean_p, variance_p)))
    assert ours == pytest.approx(
        kl_by_integration(mean_q, variance_q, mean_p, variance_p), rel=1e-6, abs=1e-7
    )
    assert ours >= 0


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(
            lambda mq, vq, mp, vp: gaussian.kl(mp, vp, mq, vq), id="p and q swapped"
        ),
        pytest.param(
            lambda mq, vq, mp, vp: gaussian.kl(mq, vq.sqrt(), mp, vp.sqrt()),
            id="standard deviations",
        ),
        pytest.param(
            lambda mq, vq, mp, vp: (
                gaussian.kl(mq, vq, mp, vp) + 0.5 * (mq - mp) ** 2 / vp
            ),
            id="factor 2",
        ),
    ],
)
def test_the_integral_rejects_wrong_kl(wrong):
    assert float(wrong(*tensors(0.3, 0.5, -0.4, 2.0))) != pytest.approx(
        kl_by_integration(0.3, 0.5, -0.4, 2.0), rel=1e-6
    )


def test_kl_of_a_law_with_itself_is_zero():
    assert float(gaussian.kl(*tensors(0.3, 0.5, 0.3, 0.5))) == 0


def test_functions_work_entry_by_entry_and_broadcast():
    x, mean, variance = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.zeros(3),
        torch.ones(4, 1),
    )
    assert gaussian.log_density(x, mean, variance).shape == (4, 3)
    assert gaussian.kl(x, variance, mean, variance).shape == (4, 3)


def test_sample_has_the_mean_and_the_variance(p_value):
    """50,000 draws; false-alarm probability 1e-6."""
    mean, variance = torch.tensor([1.0, -2.0]), torch.tensor([0.25, 4.0])
    x = gaussian.sample(
        mean.expand(50_000, 2), variance, torch.Generator().manual_seed(0)
    ).numpy()
    assert p_value(x, mean.numpy(), np.diag([0.25, 4.0])) > 1e-6
    assert p_value(x, mean.numpy(), np.diag([0.25**2, 4.0**2])) < 1e-6, (
        "the variance taken for a deviation"
    )


def test_sample_of_variance_zero_is_the_mean():
    mean = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gaussian.sample(mean, torch.zeros(5, 1)), mean)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_randn_has_the_dtype_asked_for_and_leaves_the_global_generator_alone(dtype):
    like = torch.empty(0, dtype=dtype)
    before = torch.get_rng_state()
    noise = gaussian.randn((3, 4), like, torch.Generator().manual_seed(7))
    assert noise.dtype == dtype
    assert torch.equal(
        noise, gaussian.randn((3, 4), like, torch.Generator().manual_seed(7))
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_randn_without_generator_follows_the_global_seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first = gaussian.randn((5,), torch.empty(0))
        torch.manual_seed(3)
        assert torch.equal(first, torch.randn(5))
