"""The equations of chapter 6, each by a route of its own, and the wrong bounds that people have published.

Averages over paths are Gauss-Hermite quadratures over a chain of three steps, whose model is imperfect on purpose:
affine, so that p(x_0) and the law of its paths are known exactly, without any bound.

The wrong bounds: without L_T, with a KL at t = 1, with log p(x_0) for log p(x_0 | x_1), with q not given x_0, and
the sum of KL(q(x_t | x_{t-1}) || p(x_t | x_{t+1})).
"""

from __future__ import annotations

from itertools import product

import mpmath
import numpy as np
import pytest
import sympy as sp
from scipy import stats

from ddpm_lite import linear_schedule, symbolic
from ddpm_lite.symbolic import alpha, alpha_bar_s, x_0, x_s, x_t


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(sp.expand_log(sp.expand(left - right), force=True)) == 0


# A chain of three steps. Index 0 of each array is not used.

T, X_0 = 3, 0.7
BETA = np.array([0, 0.2, 0.4, 0.6])
ALPHA = 1 - BETA
ABAR = np.cumprod(ALPHA)
SIGMA2 = np.array([0, 0.25, 0.3, 0.5])  # of the model's steps
SLOPE, OFFSET = np.array([0, 0.9, 0.6, 0.3]), np.array([0, 0.1, -0.2, 0.15])


def posterior(t: int, x_t: np.ndarray) -> tuple[np.ndarray, float]:
    """q(x_{t-1} | x_t, x_0) by conditioning the pair (x_{t-1}, x_t) given x_0."""
    gain = ALPHA[t] ** 0.5 * (1 - ABAR[t - 1]) / (1 - ABAR[t])
    mean = ABAR[t - 1] ** 0.5 * X_0 + gain * (x_t - ABAR[t] ** 0.5 * X_0)
    return mean, (1 - ABAR[t - 1]) - gain * ALPHA[t] ** 0.5 * (1 - ABAR[t - 1])


def log_normal(x: np.ndarray, mean: np.ndarray | float, variance: float) -> np.ndarray:
    return stats.norm.logpdf(x, mean, variance**0.5)


def log_model(t: int, x_s: np.ndarray, x_t: np.ndarray) -> np.ndarray:
    """log p(x_{t-1} | x_t)."""
    return log_normal(x_s, SLOPE[t] * x_t + OFFSET[t], SIGMA2[t])


def kl(mean_q, variance_q, mean_p, variance_p):
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean_q - mean_p) ** 2 / variance_p)


def log_p_x_0() -> float:
    """Exactly: x_0 is an affine function of independent normal numbers."""
    mean, variance = 0.0, 1.0
    for t in range(T, 0, -1):
        mean, variance = (
            SLOPE[t] * mean + OFFSET[t],
            SLOPE[t] ** 2 * variance + SIGMA2[t],
        )
    return float(log_normal(X_0, mean, variance))


@pytest.fixture(scope="module")
def paths() -> tuple[list[np.ndarray], np.ndarray]:
    """x_0, x_1, x_2, x_3 at the nodes of a quadrature for q(x_1, x_2, x_3 | x_0), and the weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    grid = [z.ravel() for z in np.meshgrid(nodes, nodes, nodes, indexing="ij")]
    weight = np.prod(np.meshgrid(weights, weights, weights, indexing="ij"), axis=0)
    path = [np.full(60**3, X_0)]
    for t in range(1, T + 1):
        path.append(ALPHA[t] ** 0.5 * path[-1] + BETA[t] ** 0.5 * grid[t - 1])
    return path, weight.ravel()


def log_ratios(path: list[np.ndarray]) -> np.ndarray:
    """log p(x_{0:T}) / q(x_{1:T} | x_0), step by step forwards: the bound before the rearrangement, negated."""
    total = log_normal(path[T], 0, 1)
    for t in range(1, T + 1):
        total = total + log_model(t, path[t - 1], path[t])
        total = total - log_normal(path[t], ALPHA[t] ** 0.5 * path[t - 1], BETA[t])
    return total


@pytest.mark.equation("eq-vlb-expectation")
def test_average_over_forward_paths_is_the_probability(paths) -> None:
    path, weight = paths
    average = weight @ np.exp(log_ratios(path))
    assert average == pytest.approx(np.exp(log_p_x_0()), rel=1e-6)
    upside_down = weight @ np.exp(-log_ratios(path))
    assert upside_down != pytest.approx(np.exp(log_p_x_0()), rel=0.01)


@pytest.mark.equation("eq-vlb-jensen", "eq-vlb-naive", "eq-vlb-gap")
def test_bound_exceeds_the_truth_by_the_divergence_of_paths(paths) -> None:
    """The KL of paths by linear algebra: both laws of (x_1, x_2, x_3) given x_0 are normal."""
    path, weight = paths
    bound = weight @ -log_ratios(path)

    # Forwards: x_t = sqrt(alpha) x_{t-1} + sqrt(beta) z.
    mean_q, map_q = np.zeros(T + 1), np.zeros((T + 1, T))
    mean_q[0] = X_0
    for t in range(1, T + 1):
        mean_q[t] = ALPHA[t] ** 0.5 * mean_q[t - 1]
        map_q[t] = ALPHA[t] ** 0.5 * map_q[t - 1]
        map_q[t, t - 1] = BETA[t] ** 0.5
    mean_q, cov_q = mean_q[1:], (map_q @ map_q.T)[1:, 1:]
    # Backwards, jointly with x_0, and then given x_0.
    mean_p, map_p = np.zeros(T + 1), np.zeros((T + 1, T + 1))
    map_p[T, T] = 1
    for t in range(T, 0, -1):
        mean_p[t - 1] = SLOPE[t] * mean_p[t] + OFFSET[t]
        map_p[t - 1] = SLOPE[t] * map_p[t]
        map_p[t - 1, t - 1] = SIGMA2[t] ** 0.5
    joint = map_p @ map_p.T
    assert log_p_x_0() == pytest.approx(log_normal(X_0, mean_p[0], joint[0, 0]))
    gain = joint[1:, 0] / joint[0, 0]
    given_mean = mean_p[1:] + gain * (X_0 - mean_p[0])
    given_cov = joint[1:, 1:] - np.outer(gain, joint[0, 1:])

    def divergence(m_q, c_q, m_p, c_p) -> float:
        inverse = np.linalg.inv(c_p)
        difference = m_p - m_q
        return 0.5 * (
            np.trace(inverse @ c_q)
            - len(m_q)
            + difference @ inverse @ difference
            + np.linalg.slogdet(c_p)[1]
            - np.linalg.slogdet(c_q)[1]
        )

    gap = divergence(mean_q, cov_q, given_mean, given_cov)
    assert gap > 0.05
    assert bound == pytest.approx(-log_p_x_0() + gap, rel=1e-10)
    backwards = divergence(given_mean, given_cov, mean_q, cov_q)
    assert bound != pytest.approx(-log_p_x_0() + backwards, rel=1e-3)
    assert bound != pytest.approx(-log_p_x_0() - gap, rel=1e-3)


# The rearrangement.


@pytest.mark.equation("eq-vlb-flip")
def test_forward_step_turned_around() -> None:
    """All three laws as sympy derives them; at rational points to 40 digits, and for all states by derivative."""
    product_ = alpha * alpha_bar_s
    step = symbolic.log_density(x_t, *symbolic.forward_step())
    turned = (
        symbolic.log_density(x_s, *symbolic.posterior())
        + symbolic.log_density(x_t, sp.sqrt(product_) * x_0, 1 - product_)
        - symbolic.log_density(x_s, *symbolic.forward_marginal())
    )
    without_marginals = symbolic.log_density(x_s, *symbolic.posterior())
    for a, b, values in [("2/3", "1/5", (1, -2, "1/2")), ("9/10", "1/2", (0, 3, 1))]:
        point = dict(
            zip((alpha, alpha_bar_s, x_0, x_s, x_t), map(sp.Rational, (a, b, *values)))
        )
        assert abs((step - turned).subs(point).evalf(40)) < 1e-35
        assert abs((step - without_marginals).subs(point).evalf(40)) > 1e-3
    for symbol in (x_0, x_s, x_t):
        assert same(sp.diff(step - turned, symbol), 0)


def log_marginal(t: int, x: np.ndarray) -> np.ndarray:
    return log_normal(x, ABAR[t] ** 0.5 * X_0, 1 - ABAR[t])


@pytest.mark.equation("eq-vlb-telescope", "eq-vlb-backward")
def test_forward_law_told_backwards(paths) -> None:
    path, _ = paths
    forwards = sum(
        log_normal(path[t], ALPHA[t] ** 0.5 * path[t - 1], BETA[t])
        for t in range(1, T + 1)
    )
    ratios = [
        log_marginal(t, path[t]) - log_marginal(t - 1, path[t - 1]) for t in (2, 3)
    ]
    ends = log_marginal(T, path[T]) - log_marginal(1, path[1])
    np.testing.assert_allclose(sum(ratios), ends, atol=1e-10)
    assert np.abs(sum(ratios) - log_marginal(T, path[T])).max() > 0.1
    steps = sum(log_normal(path[t - 1], *posterior(t, path[t])) for t in (2, 3))
    np.testing.assert_allclose(log_marginal(T, path[T]) + steps, forwards, atol=1e-9)
    assert np.abs(steps + ends - forwards).max() > 0.1  # the first step forgotten


@pytest.mark.equation("eq-vlb-ratios")
def test_rearranged_sum_is_the_same_on_every_path(paths) -> None:
    path, weight = paths
    first = log_marginal(T, path[T]) - log_normal(path[T], 0, 1)
    steps = sum(
        log_normal(path[t - 1], *posterior(t, path[t]))
        - log_model(t, path[t - 1], path[t])
        for t in (2, 3)
    )
    last = -log_model(1, path[0], path[1])
    np.testing.assert_allclose(first + steps + last, -log_ratios(path), atol=1e-9)
    assert abs(weight @ (steps + last + log_ratios(path))) > 0.01  # without L_T


@pytest.mark.equation("eq-vlb", "eq-vlb-prior", "eq-vlb-step", "eq-vlb-decoder")
def test_three_kinds_of_terms_sum_to_the_bound(paths) -> None:
    path, weight = paths
    bound = weight @ -log_ratios(path)
    L_T = kl(ABAR[T] ** 0.5 * X_0, 1 - ABAR[T], 0, 1)
    L_t = [
        weight @ kl(*posterior(t, path[t]), SLOPE[t] * path[t] + OFFSET[t], SIGMA2[t])
        for t in (2, 3)
    ]
    L_0 = weight @ -log_model(1, path[0], path[1])
    assert L_T + sum(L_t) + L_0 == pytest.approx(bound, rel=1e-10)
    assert sum(L_t) + L_0 != pytest.approx(bound, rel=1e-3)  # without L_T
    circular = L_T + sum(L_t) - log_p_x_0()  # log p(x_0) for log p(x_0 | x_1)
    assert circular != pytest.approx(bound, rel=1e-3)
    with np.errstate(divide="ignore"):
        mean, variance = posterior(1, path[1])
        assert variance == pytest.approx(0, abs=1e-15)
        assert kl(mean, 0.0, SLOPE[1] * path[1] + OFFSET[1], SIGMA2[1]).min() == np.inf
    swapped = [
        weight @ kl(SLOPE[t] * path[t] + OFFSET[t], SIGMA2[t], *posterior(t, path[t]))
        for t in (2, 3)
    ]
    assert L_T + sum(swapped) + L_0 != pytest.approx(bound, rel=1e-3)


@pytest.mark.equation("eq-vlb-total-variance")
def test_variance_of_a_log_ratio_is_that_of_its_kl_and_more(paths) -> None:
    path, weight = paths
    t = 2
    mean, variance = posterior(t, path[t])
    model_mean = SLOPE[t] * path[t] + OFFSET[t]
    log_ratio = log_normal(path[t - 1], mean, variance) - log_model(
        t, path[t - 1], path[t]
    )
    average = kl(mean, variance, model_mean, SIGMA2[t])  # given x_t
    # Given x_t, with x = mean + sqrt(variance) z, the log-ratio is (r - 1) z²/2 + d z + const.
    r = variance / SIGMA2[t]
    d = (mean - model_mean) * variance**0.5 / SIGMA2[t]
    within = (r - 1) ** 2 / 2 + d**2

    def spread(y: np.ndarray) -> float:
        return weight @ y**2 - (weight @ y) ** 2

    assert weight @ log_ratio == pytest.approx(weight @ average, rel=1e-9)
    assert spread(log_ratio) == pytest.approx(
        spread(average) + weight @ within, rel=1e-9
    )
    assert spread(log_ratio) != pytest.approx(spread(average), rel=0.1)


# The closed forms.

MU_Q, MU_P, X = sp.symbols("mu_q mu_p x", real=True)
S_Q, S_P = sp.symbols("s_q s_p", positive=True)  # standard deviations


@pytest.fixture(scope="module")
def kl_integrated() -> sp.Expr:
    """The integral of q (log q - log p), done by sympy; nothing else is known of it."""
    log_q = symbolic.log_density(X, MU_Q, S_Q**2)
    log_p = symbolic.log_density(X, MU_P, S_P**2)
    difference = sp.expand(sp.expand_log(log_q - log_p, force=True))
    return sp.simplify(sp.integrate(difference * sp.exp(log_q), (X, -sp.oo, sp.oo)))


def kl_by_hand(mean_q, variance_q, mean_p, variance_p) -> sp.Expr:
    ratio = variance_q / variance_p
    return (ratio - 1 - sp.log(ratio)) / 2 + (mean_q - mean_p) ** 2 / (2 * variance_p)


@pytest.mark.equation("eq-kl-expand", "eq-kl-gaussians")
def test_kl_of_two_gaussians(kl_integrated: sp.Expr) -> None:
    assert same(kl_integrated, kl_by_hand(MU_Q, S_Q**2, MU_P, S_P**2))
    density = sp.exp(symbolic.log_density(X, MU_Q, S_Q**2))
    inside = (
        sp.log(S_P / S_Q)
        - (X - MU_Q) ** 2 / (2 * S_Q**2)
        + (X - MU_P) ** 2 / (2 * S_P**2)
    )
    expanded = sp.integrate(sp.expand(inside) * density, (X, -sp.oo, sp.oo))
    assert same(kl_integrated, expanded)
    ratio = S_Q**2 / S_P**2
    for wrong in (
        kl_by_hand(MU_P, S_P**2, MU_Q, S_Q**2),  # p and q swapped
        kl_by_hand(MU_Q, S_Q, MU_P, S_P),  # deviations for variances
        (ratio - 1 - sp.log(ratio)) / 2 + (MU_Q - MU_P) ** 2 / (2 * S_Q**2),
        (ratio - 1 - sp.log(ratio)) / 2 + (MU_Q - MU_P) ** 2 / S_P**2,
    ):
        assert not same(kl_integrated, wrong)


@pytest.mark.equation("eq-kl-second-moment")
def test_second_moment_about_another_mean() -> None:
    density = sp.exp(symbolic.log_density(X, MU_Q, S_Q**2))
    moment = sp.integrate(sp.expand((X - MU_P) ** 2) * density, (X, -sp.oo, sp.oo))
    assert same(moment, S_Q**2 + (MU_Q - MU_P) ** 2)
    assert not same(moment, S_Q**2)


@pytest.mark.equation("eq-vlb-prior-closed")
def test_L_T_in_closed_form(kl_integrated: sp.Expr) -> None:
    abar = sp.Symbol("abar", positive=True)
    derived = kl_integrated.subs(
        {MU_Q: sp.sqrt(abar) * x_0, S_Q: sp.sqrt(1 - abar), MU_P: 0, S_P: 1}
    )
    by_hand = (abar * x_0**2 - abar - sp.log(1 - abar)) / 2
    wrong = (abar * x_0**2 - sp.log(1 - abar)) / 2
    for point in (
        {abar: sp.Rational(1, 3), x_0: 2},
        {abar: sp.Rational(9, 10), x_0: 0},
    ):
        assert abs((derived - by_hand).subs(point).evalf(40)) < 1e-35
        assert abs((derived - wrong).subs(point).evalf(40)) > 1e-3
    for symbol in (x_0, abar):
        assert same(sp.diff(derived - by_hand, symbol), 0)


@pytest.mark.equation("eq-vlb-step-closed", "eq-vlb-step-snr")
def test_L_t_in_closed_form(kl_integrated: sp.Expr) -> None:
    """With the posterior as sympy derives it, and the model's step made from a guess of x_0."""
    guess = sp.Symbol("guess", real=True)
    law = symbolic.posterior()
    model_mean = law.mean.subs(x_0, guess)
    sigma = sp.Symbol("sigma", positive=True)
    tilde = sp.Symbol("tilde", positive=True)  # the posterior's standard deviation
    derived = kl_integrated.subs(
        {MU_Q: law.mean, MU_P: model_mean, S_Q: tilde, S_P: sigma}
    )
    by_hand = kl_by_hand(sp.S(0), tilde**2, sp.S(0), sigma**2)
    by_hand += (law.mean - model_mean) ** 2 / (2 * sigma**2)
    assert same(derived, by_hand)
    assert not same(derived, (law.mean - model_mean) ** 2 / (2 * sigma**2))
    # At sigma = tilde.
    price = sp.simplify(
        derived.subs(sigma, tilde).subs(tilde, sp.sqrt(law.variance))
        / (x_0 - guess) ** 2
    )
    abar_t = alpha * alpha_bar_s
    snr_s, snr_t = alpha_bar_s / (1 - alpha_bar_s), abar_t / (1 - abar_t)
    assert same(price, (snr_s - snr_t) / 2)
    assert not same(price, snr_s - snr_t)
    assert not same(price, (sp.sqrt(snr_s) - sp.sqrt(snr_t)) / 2)


# Normal data.

C = sp.Symbol("c", positive=True)


@pytest.mark.equation("eq-vlb-gaussian-guess")
def test_best_guess_for_normal_data() -> None:
    abar_t = alpha * alpha_bar_s
    noisy = symbolic.log_density(x_t, sp.sqrt(abar_t) * x_0, 1 - abar_t)
    prior = symbolic.log_density(x_0, sp.S(0), C)
    law = symbolic.complete_the_square(noisy + prior, x_0)
    total = C * abar_t + 1 - abar_t
    assert same(law.mean, C * sp.sqrt(abar_t) / total * x_t)
    assert same(law.variance, C * (1 - abar_t) / total)
    assert not same(law.mean, x_t / sp.sqrt(abar_t))  # the noise ignored
    assert not same(law.variance, 1 - abar_t)


@pytest.mark.equation("eq-vlb-entropy")
def test_entropy_of_normal_data() -> None:
    log_q = symbolic.log_density(X, sp.S(0), C)
    integrand = sp.expand(sp.expand_log(-log_q, force=True)) * sp.exp(log_q)
    entropy = sp.integrate(integrand, (X, -sp.oo, sp.oo))
    assert same(entropy, sp.log(2 * sp.pi * sp.E * C) / 2)
    assert not same(entropy, sp.log(2 * sp.pi * C) / 2)


def average_L_t(alpha_bar: np.ndarray, beta: np.ndarray, c: float, sigma2: np.ndarray):
    """E[L_{t-1}] for t = 2..T by the law of the pair (x_0, x_t), with the guess E[x_0 | x_t]; and the β̃_t."""
    now, before = alpha_bar[2:], alpha_bar[1:-1]
    tilde = (1 - before) / (1 - now) * beta[2:]
    weight = before**0.5 * beta[2:] / (1 - now)
    ignorance = c - c**2 * now / (c * now + 1 - now)
    return kl(0, tilde, weight * ignorance**0.5, sigma2[2:]), tilde


@pytest.mark.equation("eq-vlb-two-variances")
def test_first_steps_of_a_long_chain_cost_the_same_for_every_chain() -> None:
    for b, c in product((1e-7, 1e-8), (0.2, 1.0, 5.0)):
        beta = np.full(30, b)
        beta[0] = 0
        alpha_bar = np.exp(np.cumsum(np.log1p(-beta)))
        # 1 - alpha_bar has few digits left here: build it from its own sum.
        n = np.arange(2, 30)
        with_beta, tilde = average_L_t(alpha_bar, beta, c, beta)
        with_tilde = kl(0, tilde, (tilde * 2 * 0.5 / (n - 1)) ** 0.5, tilde)
        measured, _ = average_L_t(alpha_bar, beta, c, np.append([0, 0], tilde))
        np.testing.assert_allclose(measured, 0.5 / (n - 1), rtol=1e-3)
        np.testing.assert_allclose(measured, with_tilde, rtol=1e-3)
        np.testing.assert_allclose(with_beta, 0.5 * np.log(n / (n - 1)), rtol=1e-3)
        assert np.all(measured > with_beta * 1.01)
        assert np.abs(measured - 0.5 / n).max() > 0.1


@pytest.mark.equation("eq-vlb-euler")
def test_price_of_the_posterior_variance_is_half_of_eulers_constant() -> None:
    """mpmath sums the series; and chains of more and more steps approach it."""
    total = mpmath.nsum(lambda n: (1 / n - mpmath.log(1 + 1 / n)) / 2, [1, mpmath.inf])
    assert float(total) == pytest.approx(np.euler_gamma / 2, rel=1e-10)
    assert float(total) / np.log(2) == pytest.approx(0.416, abs=5e-4)
    assert float(total) != pytest.approx(np.euler_gamma, rel=0.1)
    excess = []
    for steps in (12_800, 51_200, 204_800):
        schedule = linear_schedule(steps)
        alpha_bar, beta = schedule.alpha_bar.numpy(), schedule.beta.numpy()
        with_beta, tilde = average_L_t(alpha_bar, beta, 0.25, beta)
        with_tilde, _ = average_L_t(alpha_bar, beta, 0.25, np.append([0, 0], tilde))
        excess.append((with_tilde - with_beta).sum())
    assert excess[0] > excess[1] > excess[2] > np.euler_gamma / 2
    assert excess[2] == pytest.approx(np.euler_gamma / 2, rel=0.02)


@pytest.mark.equation("eq-vlb-neighbours")
def test_kl_of_neighbours_is_not_the_log_ratio_averaged() -> None:
    """N(0, 1) data and the exact model, p(x_t | x_{t+1}) = N(√α x_{t+1}, β). 400,000 paths; 6 standard errors.

    Along a path the log-ratio log q(x_t | x_{t-1}) / p(x_t | x_{t+1}) averages to almost nothing; the KL, which draws
    x_t anew from x_{t-1}, to almost one nat. The formula of the exercise is confirmed, the claimed equality rejected.
    """
    rng = np.random.default_rng(0)
    n, now, after = 400_000, 0.02, 0.021
    previous = rng.standard_normal(n)
    x = (1 - now) ** 0.5 * previous + now**0.5 * rng.standard_normal(n)
    following = (1 - after) ** 0.5 * x + after**0.5 * rng.standard_normal(n)
    model_mean = (1 - after) ** 0.5 * following
    log_ratio = log_normal(x, (1 - now) ** 0.5 * previous, now)
    log_ratio = log_ratio - log_normal(x, model_mean, after)
    divergence = kl((1 - now) ** 0.5 * previous, now, model_mean, after)
    r, a, b = now / after, 1 - now, 1 - after
    formula = 0.5 * (r - 1 - np.log(r)) + (a + b - 2 * a * b) / (2 * after)
    error = 6 / n**0.5
    assert divergence.mean() == pytest.approx(formula, abs=error * divergence.std())
    on_paths = 0.5 * np.log(after / now)
    assert log_ratio.mean() == pytest.approx(on_paths, abs=error * log_ratio.std())
    assert divergence.mean() > log_ratio.mean() + 0.9
