"""``symbolic`` against the package's numbers, scipy and a second derivation in sympy."""

import ast
import inspect

import pytest
import sympy as sp
import torch
from scipy import stats

from ddpm_lite import symbolic
from ddpm_lite.symbolic import alpha, alpha_bar_s, eps, x_0, x_s, x_t

PRODUCT = alpha * alpha_bar_s


def same(a: sp.Expr, b: sp.Expr) -> bool:
    return sp.simplify(a - b) == 0


def by_conditioning() -> symbolic.Gaussian:
    """x_s given x_t and x_0 from the 2×2 covariance of (x_s, x_t) given x_0: no density, no completed square."""
    gain = sp.sqrt(alpha) * (1 - alpha_bar_s) / (1 - PRODUCT)
    mean = sp.sqrt(alpha_bar_s) * x_0 + gain * (x_t - sp.sqrt(PRODUCT) * x_0)
    return symbolic.Gaussian(
        mean, (1 - alpha_bar_s) - gain * sp.sqrt(alpha) * (1 - alpha_bar_s)
    )


def test_posterior_is_that_of_gaussian_conditioning():
    ours, theirs = symbolic.posterior(), by_conditioning()
    assert same(ours.mean, theirs.mean)
    assert same(ours.variance, theirs.variance)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda mean: mean.subs(alpha_bar_s, PRODUCT), id="index shifted"),
        pytest.param(
            lambda mean: mean.subs({x_0: x_t, x_t: x_0}, simultaneous=True),
            id="weights swapped",
        ),
        pytest.param(
            lambda mean: mean.subs(x_0, sp.sqrt(alpha_bar_s) * x_0), id="no square root"
        ),
    ],
)
def test_wrong_posterior_means_are_rejected(wrong):
    assert not same(symbolic.posterior().mean, wrong(by_conditioning().mean))


@pytest.mark.parametrize(
    ("t", "s"), [(1, 0), (2, 1), (500, 499), (1000, 0), (700, 300)]
)
def test_posterior_has_the_numbers_of_the_package(diffusion, t, s):
    a = diffusion.schedule.alpha_bar
    values = {alpha: float(a[t] / a[s]), alpha_bar_s: float(a[s]), x_0: 0.7, x_t: -1.3}
    entry = (
        torch.tensor([[0.7]], dtype=torch.float64),
        torch.tensor([[-1.3]], dtype=torch.float64),
    )
    for expression, number in zip(
        symbolic.posterior(), diffusion.q_posterior(*entry, t, s)
    ):
        assert float(expression.subs(values)) == pytest.approx(
            float(number), rel=1e-9, abs=1e-12
        )


def test_eps_form_is_that_of_the_paper_for_one_step():
    """Ho et al., equation 11: (x_t - β_t/√(1 - ᾱ_t) ε) / √α_t."""
    ours = symbolic.posterior_mean_from_eps()
    assert same(ours, (x_t - (1 - alpha) / sp.sqrt(1 - PRODUCT) * eps) / sp.sqrt(alpha))
    assert not same(ours, (x_t - (1 - alpha) / (1 - PRODUCT) * eps) / sp.sqrt(alpha)), (
        "β/(1 - ᾱ)"
    )
    assert not same(
        ours, (x_t - (1 - alpha) / sp.sqrt(1 - alpha) * eps) / sp.sqrt(alpha)
    ), "β/√(1 - α)"
    assert not same(
        ours, (x_t - (1 - alpha) / sp.sqrt(1 - PRODUCT) * eps) / sp.sqrt(PRODUCT)
    ), "1/√ᾱ"


def test_forward_steps_compose_to_the_marginal():
    """x_t = √α x_s + ..., x_s = √ᾱ_s x_0 + ... give mean √ᾱ_t x_0 and variance 1 - ᾱ_t, with ᾱ_t = α ᾱ_s."""
    step, marginal = symbolic.forward_step(), symbolic.forward_marginal()
    assert same(step.mean.subs(x_s, marginal.mean), sp.sqrt(PRODUCT) * x_0)
    assert same(alpha * marginal.variance + step.variance, 1 - PRODUCT)


def test_log_density_is_that_of_scipy():
    value = float(
        symbolic.log_density(sp.Rational(3, 10), sp.Rational(-1, 2), sp.Rational(9, 4))
    )
    assert value == pytest.approx(stats.norm.logpdf(0.3, -0.5, 1.5), rel=1e-12)


def test_completing_the_square_finds_the_mean_and_variance_of_a_density():
    mean, variance = sp.symbols("m v", positive=True)
    assert symbolic.complete_the_square(
        symbolic.log_density(x_s, mean, variance) + 7 * mean, x_s
    ) == (mean, variance)


@pytest.mark.parametrize(
    "expression",
    [
        sp.Integer(0),
        x_s,
        -(x_s**3),
        sp.log(x_s),
        -sp.Abs(x_s),
        -(x_s**2) - x_s**4,
        -(x_t**2),
    ],
)
def test_what_is_not_quadratic_is_refused(expression):
    with pytest.raises(ValueError, match="log_density must be quadratic in x_s, got"):
        symbolic.complete_the_square(expression, x_s)


def test_a_square_with_the_wrong_sign_is_no_density():
    with pytest.raises(ValueError, match="log_density"):
        symbolic.complete_the_square(x_s**2, x_s)


def test_the_module_imports_no_torch():
    tree = ast.parse(inspect.getsource(symbolic))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    names |= {
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert names == {"__future__", "typing", "sympy"}
