"""The equations of chapter 1, each by a route of its own, and the mistakes that people make with them.

The mistakes: Jensen's inequality and the KL the wrong way round, the prior in place of the posterior, the average of
log p(x|z) over the prior or the logarithm of a Monte Carlo average for log p(x), and a variance taken for a deviation.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import integrate, optimize, stats

from ddpm_lite import gaussian, symbolic

x, z, b, m = sp.symbols("x z b m", real=True)
w, s, v = sp.symbols("w s v", positive=True)

PRIOR = symbolic.log_density(z, 0, 1)
LIKELIHOOD = symbolic.log_density(x, w * z + b, s**2)
GUESS = symbolic.log_density(z, m, v)
EVIDENCE = symbolic.log_density(x, b, w**2 + s**2)
POSTERIOR = symbolic.Gaussian(w * (x - b) / (w**2 + s**2), s**2 / (w**2 + s**2))
ELBO = (
    -((x - b - w * m) ** 2 + w**2 * v) / (2 * s**2)
    - (m**2 + v) / 2
    + sp.log(v / (2 * sp.pi * s**2)) / 2
    + sp.Rational(1, 2)
)


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    difference = sp.expand_log(left - right, force=True)
    return sp.simplify(difference) == 0


def integral(f: sp.Expr, log_density: sp.Expr = GUESS) -> sp.Expr:
    """E[f(z)] by integration; of the powers of z, one by one, if f is a polynomial in z."""
    density = sp.exp(log_density).simplify()
    f = sp.expand(f)
    if not f.is_polynomial(z):
        return sp.simplify(sp.integrate(f * density, (z, -sp.oo, sp.oo)))
    return sum(
        factor * sp.simplify(sp.integrate(z**power * density, (z, -sp.oo, sp.oo)))
        for (power,), factor in sp.Poly(f, z).terms()
    )


def probabilities(size: int, least: float = 1e-3) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(np.float64, size, elements=st.floats(least, 1)).map(
        lambda weights: weights / weights.sum()
    )


def kl(q: np.ndarray, p: np.ndarray) -> float:
    return float((q * np.log(q / p)).sum())


# The chain rule and Bayes' rule.


@pytest.mark.equation("eq-latent-chain", "eq-latent-bayes")
def test_joint_over_posterior_is_the_evidence_whatever_z() -> None:
    """The posterior comes from completing the square, the evidence from the integral."""
    posterior = symbolic.complete_the_square(LIKELIHOOD + PRIOR, z)
    evidence = integral(sp.S(1), LIKELIHOOD + PRIOR)
    ratio = LIKELIHOOD + PRIOR - symbolic.log_density(z, *posterior)
    assert same(sp.diff(ratio, z), 0)
    assert sp.simplify(sp.exp(2 * (ratio - sp.log(evidence)))) == 1
    for wrong in (PRIOR, LIKELIHOOD, symbolic.log_density(z, posterior.mean, s**2)):
        assert not same(sp.diff(LIKELIHOOD + PRIOR - wrong, z), 0)


# The three tools.


@pytest.mark.equation("eq-lotus")
def test_expectation_of_a_function_without_its_density() -> None:
    """E[z²], from the density of y = z² (the derivative of its distribution function) and without it."""
    y = sp.Symbol("y", positive=True)
    standard = symbolic.log_density(z, 0, 1)
    distribution = sp.integrate(sp.exp(standard), (z, -sp.sqrt(y), sp.sqrt(y)))
    density = sp.diff(distribution, y)
    assert sp.integrate(density, (y, 0, sp.oo)) == 1
    for power in (1, 2, 3):
        with_density = sp.integrate(y**power * density, (y, 0, sp.oo))
        assert same(with_density, integral(z ** (2 * power), standard))
        assert with_density != integral(z, standard) ** (2 * power)  # f(E[z])
    # The density carried over without the factor 1/f'(z) is none.
    forgotten = sp.exp(standard.subs(z, sp.sqrt(y)))
    assert sp.integrate(forgotten, (y, 0, sp.oo)) != 1


@pytest.mark.equation("eq-lotus")
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.7, 0.4), (1.2, 0.9)])
def test_expectation_of_an_exponential_is_that_of_the_lognormal_law(
    mean, deviation
) -> None:
    law = stats.norm(mean, deviation)
    ours = integrate.quad(lambda at: np.exp(at) * law.pdf(at), -20, 25)[0]
    outside = stats.lognorm(deviation, scale=np.exp(mean)).mean()
    assert ours == pytest.approx(outside, rel=1e-8)
    assert np.exp(mean) != pytest.approx(outside, rel=0.05)  # f(E[z])


@pytest.mark.equation("eq-monte-carlo-error")
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_error_of_an_average_by_enumeration(n: int) -> None:
    """All n-tuples of draws from a law on three values, in exact fractions."""
    law = {
        Fraction(-1): Fraction(1, 2),
        Fraction(2): Fraction(1, 3),
        Fraction(5): Fraction(1, 6),
    }
    mean = sum(p * f for f, p in law.items())
    variance = sum(p * (f - mean) ** 2 for f, p in law.items())
    of_average, of_square = Fraction(0), Fraction(0)
    for draws in itertools.product(law, repeat=n):
        probability = Fraction(1)
        for draw in draws:
            probability *= law[draw]
        average = sum(draws) / n
        of_average += probability * average
        of_square += probability * average**2
    assert of_average == mean
    assert of_square - of_average**2 == variance / n
    if n > 1:
        assert of_square - of_average**2 not in (variance, variance / n**2)


@pytest.mark.equation("eq-log-inequality")
def test_logarithm_lies_below_its_tangent() -> None:
    r = sp.Symbol("r", positive=True)
    gap = r - 1 - sp.log(r)
    assert sp.solve(sp.diff(gap, r), r) == [1]
    assert gap.subs(r, 1) == 0
    assert sp.diff(
        gap, r, 2
    ).is_positive  # convex: the stationary point is the only minimum
    for wrong in (r - sp.log(r), r / 2 - sp.log(r)):  # no touch; not a bound
        assert wrong.subs(r, 1) != 0
    assert (r / 2 - 1 - sp.log(r)).subs(r, 1) < 0


@pytest.mark.equation("eq-jensen")
@given(probabilities(4), hnp.arrays(np.float64, 4, elements=st.floats(1e-3, 1e3)))
@settings(max_examples=200, deadline=None)
def test_jensen_on_laws_with_four_values(law: np.ndarray, values: np.ndarray) -> None:
    gap = np.log(law @ values) - law @ np.log(values)
    assert gap >= -1e-12
    if values.max() > 1.01 * values.min():
        assert (
            gap > 0
        )  # strict, unless Y is constant; the other direction is refused here


@pytest.mark.equation("eq-jensen")
def test_jensen_for_a_lognormal_variable() -> None:
    """log E[Y] - E[log Y] is half the variance of log Y: positive, and zero only without spread."""
    standard = symbolic.log_density(z, 0, 1)
    log_of_mean = sp.log(integral(sp.exp(m + 2 * z), standard))
    mean_of_log = integral(m + 2 * z, standard)
    assert same(log_of_mean - mean_of_log, sp.Integer(2))


# The bound.


@pytest.mark.equation("eq-importance", "eq-elbo", "eq-elbo-gap-steps", "eq-elbo-gap")
@given(
    probabilities(5),
    hnp.arrays(np.float64, 5, elements=st.floats(1e-3, 5)),
    probabilities(5),
)
@settings(max_examples=200, deadline=None)
def test_gap_is_the_kl_for_any_discrete_model(
    prior: np.ndarray, likelihood: np.ndarray, q: np.ndarray
) -> None:
    joint = prior * likelihood
    evidence = joint.sum()
    posterior = joint / evidence
    elbo = float((q * np.log(joint / q)).sum())
    assert float((q * (joint / q)).sum()) == pytest.approx(evidence, rel=1e-12)
    assert elbo <= np.log(evidence) + 1e-12
    assert np.log(evidence) - elbo == pytest.approx(kl(q, posterior), abs=1e-11)
    steps = [
        (q * np.log(evidence)).sum(),
        (q * np.log(joint / posterior)).sum(),
        (q * np.log((joint / q) * (q / posterior))).sum(),
        (q * np.log(joint / q)).sum() + (q * np.log(q / posterior)).sum(),
    ]
    assert steps == pytest.approx([np.log(evidence)] * 4, abs=1e-11)


@pytest.mark.equation("eq-importance", "eq-elbo-gap")
def test_gap_refuses_the_other_kl_and_the_prior() -> None:
    prior, likelihood = np.array([0.5, 0.5]), np.array([0.1, 0.3])
    q = np.array([0.9, 0.1])
    posterior = prior * likelihood / 0.2
    gap = np.log(0.2) - float((q * np.log(prior * likelihood / q)).sum())
    assert gap == pytest.approx(kl(q, posterior), rel=1e-12)
    ratio = prior * likelihood / q
    assert q @ ratio == pytest.approx(0.2, rel=1e-12)
    assert prior @ ratio != pytest.approx(
        0.2, rel=0.05
    )  # drawn from the prior, weighted as if from q
    for wrong in (kl(posterior, q), kl(q, prior), kl(prior, posterior)):
        assert wrong != pytest.approx(gap, rel=0.05)


@pytest.mark.equation("eq-elbo-gap", "eq-elbo", "eq-importance")
@pytest.mark.parametrize(("mean", "deviation"), [(1.2, 0.12), (0.0, 1.2), (0.4, 0.5)])
def test_gap_is_the_kl_for_the_squared_cause(mean: float, deviation: float) -> None:
    """The model of the first picture, x = z² + noise, with scipy's densities and quadrature."""
    seen, noise, q = 1.5, 0.3, stats.norm(mean, deviation)

    def over_z(f) -> float:
        points = [-1.3, -1.0, 0.0, 1.0, 1.3]
        return integrate.quad(f, -6, 6, points=points, limit=500, epsabs=1e-12)[0]

    def log_joint(at: float) -> float:
        return stats.norm.logpdf(seen, at**2, noise) + stats.norm.logpdf(at)

    log_evidence = np.log(over_z(lambda at: np.exp(log_joint(at))))

    def log_posterior(at: float) -> float:
        return log_joint(at) - log_evidence

    gap = log_evidence - over_z(lambda at: q.pdf(at) * (log_joint(at) - q.logpdf(at)))
    to_posterior = over_z(lambda at: q.pdf(at) * (q.logpdf(at) - log_posterior(at)))
    backwards = over_z(
        lambda at: np.exp(log_posterior(at)) * (log_posterior(at) - q.logpdf(at))
    )
    assert gap > 0
    assert gap == pytest.approx(to_posterior, abs=1e-5)
    assert gap != pytest.approx(backwards, rel=0.05)


# The divergence.


@pytest.mark.equation("eq-kl-nonnegative", "eq-kl-pointwise")
@given(probabilities(6), probabilities(6))
@settings(max_examples=200, deadline=None)
def test_kl_is_not_negative_and_zero_only_for_equal_laws(
    q: np.ndarray, p: np.ndarray
) -> None:
    assert kl(q, p) >= -1e-12
    assert (np.log(q / p) >= 1 - p / q - 1e-12).all()
    assert kl(q, q) == 0
    # Pinsker's inequality, from outside: a KL near 0 forces the laws together.
    assert kl(q, p) >= np.abs(q - p).sum() ** 2 / 2 - 1e-12


@pytest.mark.equation("eq-kl-nonnegative", "eq-kl-pointwise")
def test_the_average_under_the_other_law_may_be_negative() -> None:
    """A single term may be negative, and so may the average under p in place of q."""
    q, p = np.array([0.8, 0.2]), np.array([0.4, 0.6])
    assert np.log(q / p).min() < 0
    assert float((p * np.log(q / p)).sum()) < 0 < kl(q, p)
    assert not (np.log(q / p) >= 1 - q / p + 0.1).all()  # the ratio upside down


@pytest.mark.equation("eq-kl-proof")
@given(probabilities(6), st.integers(1, 6), probabilities(6))
@settings(max_examples=100, deadline=None)
def test_proof_when_q_does_not_reach_everywhere(
    q: np.ndarray, reach: int, p: np.ndarray
) -> None:
    """q > 0 on the first ``reach`` values only; p everywhere."""
    q = q[:reach] / q[:reach].sum()
    first = kl(q, p[:reach])
    second = float((q - p[:reach]).sum())
    assert first >= second - 1e-12
    assert second == pytest.approx(1 - p[:reach].sum(), abs=1e-12)
    assert second >= -1e-12
    if reach < 6:  # equality would need a q that reaches wherever p does
        assert second > 0


@pytest.mark.equation("eq-em-step")
@given(
    hnp.arrays(np.float64, (2, 5), elements=st.floats(1e-3, 1)),
    st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_a_higher_elbo_from_a_tight_start_is_a_better_model(
    joints: np.ndarray, far: float
) -> None:
    """Two parameter values, as two tables of p(x, z); the second is any table on the way to a random one."""
    old = joints[0]
    new = old + far * (joints[1] - old)
    q = old / old.sum()

    def elbo(joint: np.ndarray) -> float:
        return float((q * np.log(joint / q)).sum())

    assert elbo(old) == pytest.approx(np.log(old.sum()), abs=1e-12)
    assert np.log(new.sum()) >= elbo(new) - 1e-12
    if elbo(new) >= elbo(old):
        assert np.log(new.sum()) >= np.log(old.sum()) - 1e-12


@pytest.mark.equation("eq-em-step")
def test_a_higher_elbo_from_a_loose_start_may_be_a_worse_model() -> None:
    """Without tightness the conclusion of eq-em-step is false."""
    q = np.array([0.5, 0.5])
    old, new = np.array([0.9, 0.01]), np.array([0.3, 0.3])

    def elbo(joint: np.ndarray) -> float:
        return float((q * np.log(joint / q)).sum())

    assert elbo(new) > elbo(old) + 0.5
    assert new.sum() < old.sum() - 0.2


# The linear-Gaussian model.


@pytest.mark.equation("eq-linear-gaussian-evidence")
def test_evidence_by_integration() -> None:
    derived = integral(sp.S(1), LIKELIHOOD + PRIOR)
    assert sp.simplify(sp.exp(2 * (sp.log(derived) - EVIDENCE))) == 1
    for variance in (s**2, (w + s) ** 2, w**2 * s**2):
        wrong = symbolic.log_density(x, b, variance)
        assert sp.simplify(sp.exp(2 * (sp.log(derived) - wrong))) != 1


@pytest.mark.equation(
    "eq-linear-gaussian-log-posterior", "eq-linear-gaussian-posterior"
)
def test_posterior_by_completing_the_square() -> None:
    square, slope, _ = sp.Poly(sp.expand(LIKELIHOOD + PRIOR), z).all_coeffs()
    assert same(-2 * square, (w**2 + s**2) / s**2)
    assert same(slope, w * (x - b) / s**2)
    assert not same(-2 * square, w**2 / s**2)  # the prior forgotten
    derived = symbolic.complete_the_square(LIKELIHOOD + PRIOR, z)
    assert same(derived.mean, POSTERIOR.mean)
    assert same(derived.variance, POSTERIOR.variance)
    assert not same(derived.mean, (x - b) / w)  # the line solved for z
    assert not same(derived.variance, s**2 / w**2)


@pytest.mark.equation("eq-normal-moments")
def test_moments_by_integration() -> None:
    line = (x - b - w * z) ** 2
    assert same(integral(line), (x - b - w * m) ** 2 + w**2 * v)
    assert same(integral(z**2), m**2 + v)
    assert same(integral((z - m) ** 2), v)
    assert not same(integral(line), (x - b - w * m) ** 2)  # the mean put in for z
    assert not same(integral(line), (x - b - w * m) ** 2 + w * v)


@pytest.mark.equation("eq-linear-gaussian-ratio", "eq-linear-gaussian-elbo")
def test_elbo_by_integration_of_its_definition() -> None:
    ratio = (
        -sp.log(2 * sp.pi * s**2) / 2
        - (x - b - w * z) ** 2 / (2 * s**2)
        - sp.log(2 * sp.pi) / 2
        - z**2 / 2
        + sp.log(2 * sp.pi * v) / 2
        + (z - m) ** 2 / (2 * v)
    )
    assert same(ratio, LIKELIHOOD + PRIOR - GUESS)
    derived = integral(LIKELIHOOD + PRIOR - GUESS)
    assert same(derived, ELBO)
    assert not same(
        derived, ELBO - sp.Rational(1, 2)
    )  # the entropy's constant forgotten
    assert not same(derived, ELBO + w**2 * v / (2 * s**2))  # the spread of q forgotten


@pytest.mark.equation("eq-linear-gaussian-optimum")
def test_the_elbo_is_highest_at_the_posterior() -> None:
    derived = integral(LIKELIHOOD + PRIOR - GUESS)
    by_m, by_v = sp.diff(derived, m), sp.diff(derived, v)
    assert same(by_m, w * (x - b - w * m) / s**2 - m)
    assert same(by_v, 1 / (2 * v) - w**2 / (2 * s**2) - sp.Rational(1, 2))
    (best,) = sp.solve([by_m, by_v], [m, v], dict=True)
    assert same(best[m], POSTERIOR.mean)
    assert same(best[v], POSTERIOR.variance)
    assert not same(best[v], s**2 / w**2)
    tight = derived.subs(best)
    assert same(tight, EVIDENCE)  # the gap is closed
    assert not same(derived.subs({m: 0, v: 1}), EVIDENCE)
    for second in (sp.diff(derived, m, 2), sp.diff(derived, v, 2)):
        assert sp.simplify(second).is_negative  # a maximum; the mixed derivative is 0
    assert same(sp.diff(derived, m, v), 0)


@pytest.mark.equation("eq-two-point")
def test_two_points_stand_for_a_normal_law_under_a_quadratic() -> None:
    c_0, c_1, c_2 = sp.symbols("c_0 c_1 c_2")
    f = c_0 + c_1 * z + c_2 * z**2

    def two_points(f: sp.Expr) -> sp.Expr:
        return (f.subs(z, m - sp.sqrt(v)) + f.subs(z, m + sp.sqrt(v))) / 2

    assert same(two_points(f), integral(f))
    assert not same((f.subs(z, m - v) + f.subs(z, m + v)) / 2, integral(f))
    assert not same(two_points(z**4), integral(z**4))  # only for quadratics


def test_the_gap_is_the_package_s_kl_to_machine_precision() -> None:
    """10,000 random linear-Gaussian models, with scipy's densities for everything but the KL."""
    random = np.random.default_rng(0)
    at_x, slope, intercept, mean = random.normal(size=(4, 10_000))
    noise, variance = 0.2 + 2 * random.random((2, 10_000))
    deviation = np.sqrt(variance)
    points = np.stack([mean - deviation, mean + deviation])
    inside = stats.norm.logpdf(at_x, slope * points + intercept, noise)
    inside += stats.norm.logpdf(points) - stats.norm.logpdf(points, mean, deviation)
    total = slope**2 + noise**2
    log_evidence = stats.norm.logpdf(at_x, intercept, np.sqrt(total))
    gap = log_evidence - inside.mean(0)
    laws = [mean, variance, slope * (at_x - intercept) / total, noise**2 / total]
    q_mean, q_variance, p_mean, p_variance = (torch.from_numpy(law) for law in laws)
    ours = gaussian.kl(q_mean, q_variance, p_mean, p_variance).numpy()
    backwards = gaussian.kl(p_mean, p_variance, q_mean, q_variance).numpy()
    scale = 1 + ours + np.abs(log_evidence)
    assert (np.abs(gap - ours) / scale).max() < 1e-14
    assert (np.abs(gap - backwards) / scale).max() > 0.1


# What goes wrong.


@pytest.mark.equation("eq-prior-average")
def test_average_of_the_log_likelihood_over_the_prior() -> None:
    average = integral(LIKELIHOOD, PRIOR)
    to_posterior = integral(PRIOR - symbolic.log_density(z, *POSTERIOR), PRIOR)
    assert same(average, EVIDENCE - to_posterior)
    assert not same(average, EVIDENCE)  # what people take it for
    to_prior = (
        POSTERIOR.mean**2 + POSTERIOR.variance - 1 - sp.log(POSTERIOR.variance)
    ) / 2
    assert not same(average, EVIDENCE - to_prior)  # the KL the other way round
    at = {w: 2, b: 1, s: 1, x: 4}
    assert float(to_posterior.subs(at)) == pytest.approx(4.795, abs=1e-3)


@pytest.mark.equation("eq-prior-sampling-factor", "eq-prior-sampling-cost")
def test_second_moment_of_the_likelihood_over_the_prior() -> None:
    second = sp.integrate(sp.exp(2 * LIKELIHOOD + PRIOR).simplify(), (z, -sp.oo, sp.oo))
    factor = sp.simplify(second / sp.exp(2 * EVIDENCE))
    base = (w**2 + s**2) / (s * sp.sqrt(2 * w**2 + s**2))
    exponent = (x - b) ** 2 / (w**2 + s**2) - (x - b) ** 2 / (2 * w**2 + s**2)
    assert same(factor, base * sp.exp(exponent))
    assert not same(factor, base * sp.exp(exponent / 2))
    squared = sp.exp(2 * symbolic.log_density(z, m, s**2))
    halved = sp.exp(symbolic.log_density(z, m, s**2 / 2)) / (2 * s * sp.sqrt(sp.pi))
    assert same(squared, halved)
    assert same(factor.subs(x, b), base)
    assert not same(factor.subs(x, b), (w**2 + s**2) / s**2)
    assert sp.expand((w**2 + s**2) ** 2 - s**2 * (2 * w**2 + s**2)) == w**4  # base > 1
    growth = sp.diff(sp.expand_log(sp.log(factor), force=True), x)
    expected = 2 * (x - b) * (1 / (w**2 + s**2) - 1 / (2 * w**2 + s**2))
    assert same(growth, expected)  # of the sign of x - b: lowest in the middle
    assert base.subs({w: 2, s: 1}) == sp.Rational(5, 3)


@pytest.mark.equation("eq-log-bias")
def test_bias_of_the_logarithm_of_an_average() -> None:
    """p(x|z) takes two values; how many of n draws hit the first is binomial, so all is exact."""
    hit, high, low = 0.3, 2.0, 0.5
    evidence = hit * high + (1 - hit) * low
    rho = hit * (1 - hit) * (high - low) ** 2 / evidence**2
    off = []
    for n in (1, 100, 1000, 10_000):
        count = np.arange(n + 1)
        average = (count * high + (n - count) * low) / n
        mean = stats.binom.pmf(count, n, hit) @ np.log(average)
        off.append((mean - np.log(evidence)) * n)
    assert all(bias < 0 for bias in off)
    assert off[1] == pytest.approx(-rho / 2, rel=0.03)
    assert off[2] == pytest.approx(-rho / 2, rel=0.003)
    assert off[3] == pytest.approx(-rho / 2, rel=0.0003)
    for wrong in (-rho, rho / 2, -rho / 2 * evidence**2, 0.0):
        assert off[3] != pytest.approx(wrong, rel=0.05)


@pytest.mark.equation("eq-moment-matching")
def test_the_covering_kl_is_lowest_at_mean_and_variance() -> None:
    """By hand-free calculus for any p with mean M and variance V, and by scipy for one with two humps."""
    M = sp.Symbol("M", real=True)
    V = sp.Symbol("V", positive=True)
    cross = -symbolic.log_density(
        z, m, v
    )  # E_p of this is the part of the KL with m and v
    averaged = sp.expand(cross).subs(z**2, M**2 + V).subs(z, M)
    assert same(
        averaged, sp.log(2 * sp.pi) / 2 + sp.log(v) / 2 + ((m - M) ** 2 + V) / (2 * v)
    )
    (best,) = sp.solve([sp.diff(averaged, m), sp.diff(averaged, v)], [m, v], dict=True)
    assert (best[m], best[v]) == (M, V)

    grid = np.linspace(-5, 5, 4001)
    humps = stats.norm.pdf(grid, -1.2, 0.2) + 2 * stats.norm.pdf(grid, 1.2, 0.3)
    p = humps / humps.sum()
    mean = p @ grid
    variance = p @ (grid - mean) ** 2

    def backwards(parameters: np.ndarray) -> float:
        deviation = np.exp(parameters[1] / 2)
        return float(-p @ stats.norm.logpdf(grid, parameters[0], deviation))

    found = optimize.minimize(backwards, [0.3, -0.5], method="Nelder-Mead", tol=1e-10)
    assert found.x[0] == pytest.approx(mean, abs=1e-4)
    assert np.exp(found.x[1]) == pytest.approx(variance, rel=1e-4)

    def forwards(parameters: np.ndarray) -> float:
        q = stats.norm.pdf(grid, parameters[0], np.exp(parameters[1] / 2))
        q /= q.sum()
        used = q > 1e-300
        return kl(q[used], p[used] + 1e-300)

    seeking = optimize.minimize(forwards, [1.0, -2.0], method="Nelder-Mead")
    assert seeking.x[0] == pytest.approx(1.2, abs=0.01)  # one hump, not the mean
    assert abs(seeking.x[0] - mean) > 0.5
