"""The appendix on normal laws: each identity by a route of its own, and the wrong versions that people write."""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import integrate, linalg, stats

from ddpm_lite import GaussianDiffusion, gaussian, linear_schedule, symbolic
from ddpm_lite.evaluate import frechet_distance
from ddpm_lite.symbolic import alpha, alpha_bar_s, x_0, x_t

X, Y, S, U = sp.symbols("x y s u", real=True)
MU, SIGMA = sp.Symbol("mu", real=True), sp.Symbol("sigma", positive=True)
STANDARD = sp.exp(-(X**2) / 2) / sp.sqrt(2 * sp.pi)
MOMENTS = [sp.integrate(X**k * STANDARD, (X, -sp.oo, sp.oo)) for k in range(9)]


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(left - right) == 0


def average(polynomial: sp.Expr, *variables: sp.Symbol) -> sp.Expr:
    """The expectation of a polynomial in independent standard normal numbers."""
    for variable in variables:
        terms = sp.Poly(polynomial, variable).terms()
        polynomial = sp.expand(sum(factor * MOMENTS[k] for (k,), factor in terms))
    return polynomial


def random_law(rng: np.random.Generator, d: int) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a covariance with no special structure."""
    L = rng.standard_normal((d, d))
    return rng.standard_normal(d), L @ L.T + 0.2 * np.eye(d)


def log_density(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    return float(stats.multivariate_normal(mean, covariance).logpdf(x))


def root(M: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(M)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


# The density.


@pytest.mark.equation("eq-gauss-integral")
def test_integral_by_polar_coordinates() -> None:
    r, angle = sp.symbols("r varphi", positive=True)
    disc = sp.exp(-(r**2) / 2)
    area = sp.integrate(disc * r, (r, 0, sp.oo), (angle, 0, 2 * sp.pi))
    assert area == 2 * sp.pi
    by_quadrature, _ = integrate.quad(lambda x: np.exp(-(x**2) / 2), -np.inf, np.inf)
    assert by_quadrature**2 == pytest.approx(float(area), rel=1e-10)
    without_r = sp.integrate(
        disc, (r, 0, sp.oo), (angle, 0, 2 * sp.pi)
    )  # the r of r dr dφ forgotten
    assert not same(without_r, area)


@pytest.mark.equation("eq-gauss-density", "eq-gauss-density-vector")
def test_density_against_scipy() -> None:
    x, mean, variance = np.linspace(-3, 3, 7), 0.3, 0.49
    ours = np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
    assert ours == pytest.approx(stats.norm(mean, variance**0.5).pdf(x), rel=1e-12)
    as_deviation = stats.norm(mean, variance).pdf(
        x
    )  # the variance taken for the standard deviation
    assert np.abs(ours - as_deviation).max() > 0.05

    rng = np.random.default_rng(0)
    mean, covariance = random_law(rng, 3)
    at = rng.standard_normal(3)
    e = at - mean
    exponent = -0.5 * e @ np.linalg.inv(covariance) @ e
    determinant = np.linalg.det(covariance)
    density = np.exp(exponent) / ((2 * np.pi) ** 1.5 * determinant**0.5)
    assert density == pytest.approx(
        np.exp(log_density(at, mean, covariance)), rel=1e-10
    )
    for wrong in (
        (2 * np.pi) ** 1.5 * determinant,
        (2 * np.pi) ** 0.5 * determinant**0.5,
    ):
        assert np.exp(exponent) / wrong != pytest.approx(density, rel=1e-3)


# The exponent.


@pytest.mark.equation("eq-gauss-log", "eq-gauss-square")
def test_completing_the_square_in_the_plane() -> None:
    """The stationary point and the value there, by solving for them; and the expansion of the exponent."""
    l11, l12, l22, b1, b2, x1, x2 = sp.symbols("l11 l12 l22 b1 b2 x1 x2", real=True)
    precision = sp.Matrix([[l11, l12], [l12, l22]])
    b, x = sp.Matrix([b1, b2]), sp.Matrix([x1, x2])
    quadratic = sp.expand((x.T * precision * x - 2 * b.T * x)[0])
    solution = sp.solve([sp.diff(quadratic, v) for v in x], [x1, x2])
    m = sp.Matrix([solution[x1], solution[x2]])
    assert sp.simplify(m - precision.inv() * b) == sp.zeros(2, 1)
    constant = (b.T * precision.inv() * b)[0]
    completed = ((x - m).T * precision * (x - m))[0]
    assert same(quadratic, completed - constant)
    assert not same(quadratic, completed)  # the constant forgotten
    assert not same(quadratic, completed + constant)

    mean = sp.Matrix(sp.symbols("mu1 mu2", real=True))
    log = sp.expand((-(x - mean).T * precision * (x - mean) / 2)[0])
    linear = [sp.diff(log, v).subs({x1: 0, x2: 0}) for v in x]
    assert sp.expand(sp.Matrix(linear) - precision * mean) == sp.zeros(2, 1)
    assert sp.expand(sp.hessian(log, [x1, x2]) + precision) == sp.zeros(2)
    assert sp.expand(sp.Matrix(linear) - mean) != sp.zeros(
        2, 1
    )  # the mean is not the linear part


# Linear maps.


@pytest.mark.equation("eq-gauss-mgf")
def test_moment_generating_function() -> None:
    one = sp.simplify(sp.integrate(sp.exp(S * X) * STANDARD, (X, -sp.oo, sp.oo)))
    assert same(one, sp.exp(S**2 / 2))
    assert not same(one, sp.exp(S**2))
    L = sp.Matrix(2, 2, sp.symbols("L11 L12 L21 L22", real=True))
    s, mean = (
        sp.Matrix(sp.symbols("s1 s2", real=True)),
        sp.Matrix(sp.symbols("m1 m2", real=True)),
    )
    u = L.T * s
    log = (s.T * mean)[0] + sum(
        sp.expand_log(sp.log(one.subs(S, v)), force=True) for v in u
    )
    assert same(log, (s.T * mean + s.T * L * L.T * s / 2)[0])
    assert not same(log, (s.T * mean + s.T * L.T * L * s / 2)[0])

    for turn in (0.3, 2.0):  # another root of the same Σ gives the same function
        Q = sp.Matrix([[sp.cos(turn), -sp.sin(turn)], [sp.sin(turn), sp.cos(turn)]])
        turned = (L * Q).T * s
        point = dict(zip([*L, *s], (1.0, 0.5, -0.2, 2.0, 0.7, -1.1)))
        norm = [float(sum(c**2 for c in v).subs(point)) for v in (u, turned)]
        assert norm[0] == pytest.approx(norm[1], rel=1e-12)


@pytest.mark.equation("eq-gauss-affine", "eq-gauss-sum")
def test_affine_map_and_sum() -> None:
    """In the plane by the change of variables, with scipy's densities; a sum by convolution."""
    rng = np.random.default_rng(1)
    mean, covariance = random_law(rng, 2)
    A, c = rng.standard_normal((2, 2)), rng.standard_normal(2)
    for y in rng.standard_normal((5, 2)):
        x = np.linalg.solve(A, y - c)
        right = log_density(x, mean, covariance) - np.log(abs(np.linalg.det(A)))
        assert log_density(y, A @ mean + c, A @ covariance @ A.T) == pytest.approx(
            right
        )
        transposed = log_density(y, A @ mean + c, A.T @ covariance @ A)
        assert abs(transposed - right) > 1e-3

    for z in (-1.0, 0.4, 3.0):

        def product(x: float, z: float = z) -> float:
            return stats.norm(0.5, 0.7).pdf(x) * stats.norm(-1, 1.2).pdf(z - x)

        convolution, _ = integrate.quad(product, -np.inf, np.inf)
        right = stats.norm(-0.5, (0.7**2 + 1.2**2) ** 0.5).pdf(z)
        assert convolution == pytest.approx(right, rel=1e-7)
        assert convolution != pytest.approx(
            stats.norm(-0.5, 0.7 + 1.2).pdf(z), rel=0.03
        )


# Parts.


@pytest.mark.equation(
    "eq-gauss-conditional-log", "eq-gauss-block-inverse", "eq-gauss-conditional"
)
def test_conditional_from_the_joint_density() -> None:
    """One entry given two others: the coefficients of the joint log-density, nothing else."""
    cov = sp.Matrix(3, 3, lambda i, j: sp.Symbol(f"S{min(i, j)}{max(i, j)}", real=True))
    e = sp.Matrix(sp.symbols("e0 e1 e2", real=True))
    precision = cov.adjugate() / cov.det()
    log_joint = sp.expand((-e.T * precision * e / 2)[0])
    minus_half_a, linear, _ = sp.Poly(log_joint, e[0]).all_coeffs()
    S_ab, S_bb = cov[:1, 1:], cov[1:, 1:]
    gain = S_ab * S_bb.inv()
    schur = cov[0, 0] - (gain * S_ab.T)[0]
    assert same(minus_half_a, -precision[0, 0] / 2)
    assert same(linear, -(precision[:1, 1:] * e[1:, :])[0])
    assert same(-1 / (2 * minus_half_a), schur)
    assert same(-linear / (2 * minus_half_a), (gain * e[1:, :])[0])
    assert not same(-1 / (2 * minus_half_a), cov[0, 0])  # the block of Σ
    assert not same(
        minus_half_a, -1 / (2 * cov[0, 0])
    )  # the precision taken for 1 / variance


@pytest.mark.equation("eq-gauss-marginal")
def test_marginal_by_quadrature() -> None:
    mean, covariance = np.array([0.4, -1.0]), np.array([[1.3, 0.8], [0.8, 0.9]])
    for value in (-1.0, 0.0, 2.0):

        def joint(other: float, value: float = value) -> float:
            return np.exp(log_density(np.array([value, other]), mean, covariance))

        integral, _ = integrate.quad(joint, -15, 15)
        assert integral == pytest.approx(stats.norm(0.4, 1.3**0.5).pdf(value), rel=1e-7)
        precision = np.linalg.inv(covariance)
        wrong = stats.norm(0.4, precision[0, 0] ** -0.5).pdf(
            value
        )  # the block of the precision
        assert integral != pytest.approx(wrong, rel=0.05)


@pytest.mark.equation("eq-gauss-conditional")
def test_conditional_times_marginal_is_the_joint() -> None:
    rng = np.random.default_rng(2)
    mean, cov = random_law(rng, 5)
    a, b = slice(0, 2), slice(2, 5)
    gain = cov[a, b] @ np.linalg.inv(cov[b, b])
    schur = cov[a, a] - gain @ cov[b, a]
    for x in rng.standard_normal((5, 5)):
        shifted = mean[a] + gain @ (x[b] - mean[b])
        rest = log_density(x, mean, cov) - log_density(x[b], mean[b], cov[b, b])
        assert log_density(x[a], shifted, schur) == pytest.approx(rest)
        assert log_density(x[a], shifted, cov[a, a]) != pytest.approx(rest, abs=1e-2)
    assert np.linalg.eigvalsh(cov[a, a] - schur).min() > 0  # never larger than before


# Products.


@pytest.mark.equation("eq-gauss-product", "eq-gauss-product-constant")
def test_product_and_its_constant() -> None:
    a, b = sp.symbols("a b", real=True)
    A, B = sp.symbols("A B", positive=True)
    both = symbolic.log_density(X, a, A) + symbolic.log_density(X, b, B)
    c, C = symbolic.complete_the_square(both, X)
    assert same(C, 1 / (1 / A + 1 / B))
    assert same(c, C * (a / A + b / B))
    assert not same(C, A + B)  # the variances of a sum
    assert not same(c, (a * A + b * B) / (A + B))  # weighted by variance
    left_over = sp.expand_log(both - symbolic.log_density(X, c, C), force=True)

    def is_the_constant(variance: sp.Expr) -> bool:
        wanted = sp.expand_log(symbolic.log_density(b, a, variance), force=True)
        return sp.simplify(sp.logcombine(left_over - wanted, force=True)) == 0

    assert is_the_constant(A + B)
    assert not is_the_constant(C)

    rng = np.random.default_rng(3)
    (a, A), (b, B), x = random_law(rng, 3), random_law(rng, 3), rng.standard_normal(3)
    C = np.linalg.inv(np.linalg.inv(A) + np.linalg.inv(B))
    c = C @ (np.linalg.solve(A, a) + np.linalg.solve(B, b))
    product = log_density(x, a, A) + log_density(x, b, B)
    assert product == pytest.approx(log_density(b, a, A + B) + log_density(x, c, C))
    assert abs(product - log_density(x, c, C)) > 0.1  # without the constant


# Bayes' rule for a linear measurement.


@pytest.mark.equation(
    "eq-gauss-linear-joint",
    "eq-gauss-linear-posterior",
    "eq-gauss-linear-posterior-precision",
)
def test_linear_measurement() -> None:
    rng = np.random.default_rng(4)
    (mean, cov), (c, R) = random_law(rng, 3), random_law(rng, 2)
    A = rng.standard_normal((2, 3))
    evidence = A @ cov @ A.T + R
    K = cov @ A.T @ np.linalg.inv(evidence)
    P = np.linalg.inv(np.linalg.inv(cov) + A.T @ np.linalg.inv(R) @ A)
    np.testing.assert_allclose(P, cov - K @ A @ cov, atol=1e-10)  # Woodbury
    joint = np.block([[cov, cov @ A.T], [A @ cov, evidence]])
    for _ in range(5):
        x, y = rng.standard_normal(3), rng.standard_normal(2)
        both = log_density(x, mean, cov) + log_density(y, A @ x + c, R)
        stacked = log_density(np.r_[x, y], np.r_[mean, A @ mean + c], joint)
        assert stacked == pytest.approx(both)
        given = both - log_density(y, A @ mean + c, evidence)
        by_gain = mean + K @ (y - A @ mean - c)
        by_precision = P @ (
            np.linalg.solve(cov, mean) + A.T @ np.linalg.solve(R, y - c)
        )
        assert log_density(x, by_gain, P) == pytest.approx(given)
        assert log_density(x, by_precision, P) == pytest.approx(given)
        no_noise = cov @ A.T @ np.linalg.inv(A @ cov @ A.T)  # R forgotten in the gain
        wrong_mean = mean + no_noise @ (y - A @ mean - c)
        assert log_density(x, wrong_mean, P) != pytest.approx(given, abs=1e-2)
        offset_forgotten = mean + K @ (y - A @ mean)
        assert log_density(x, offset_forgotten, P) != pytest.approx(given, abs=1e-2)


@pytest.mark.equation("eq-gauss-ddpm-posterior")
def test_posterior_of_a_step_is_a_special_case() -> None:
    mean, variance = sp.sqrt(alpha_bar_s) * x_0, 1 - alpha_bar_s
    A, R = sp.sqrt(alpha), 1 - alpha
    K = variance * A / (A**2 * variance + R)
    derived = symbolic.posterior()  # by completing the square
    assert same(mean + K * (x_t - A * mean), derived.mean)
    assert same(variance - K * A * variance, derived.variance)
    product = alpha * alpha_bar_s
    assert same(K, sp.sqrt(alpha) * (1 - alpha_bar_s) / (1 - product))
    assert not same(K, sp.sqrt(alpha) * (1 - alpha_bar_s) / (1 - alpha))

    diffusion = GaussianDiffusion(linear_schedule(T=1000))  # and the package's numbers
    t = 300
    step, before = (
        diffusion.schedule.alpha[t].item(),
        diffusion.schedule.alpha_bar[t - 1].item(),
    )
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    weight, beta_tilde = diffusion.q_posterior(zero, one, t)
    at = {alpha: step, alpha_bar_s: before}
    assert weight.item() == pytest.approx(float(K.subs(at)), rel=1e-9)
    assert beta_tilde.item() == pytest.approx(
        float(derived.variance.subs(at)), rel=1e-9
    )


# Divergence and entropy.


def lower(name: str) -> tuple[sp.Matrix, sp.Expr]:
    """A general matrix L with Σ = L Lᵀ, and its determinant."""
    l11, l22 = sp.symbols(f"{name}11 {name}22", positive=True)
    L = sp.Matrix([[l11, 0], [sp.Symbol(f"{name}21", real=True), l22]])
    return L, l11 * l22


@pytest.mark.equation("eq-gauss-quadratic-mean")
def test_mean_of_a_quadratic() -> None:
    L, _ = lower("L")
    z, shift = (
        sp.Matrix(sp.symbols("z1 z2", real=True)),
        sp.Matrix(sp.symbols("d1 d2", real=True)),
    )
    M = sp.Matrix(2, 2, sp.symbols("M11 M12 M21 M22", real=True))
    deviation = L * z + shift  # x - m, with shift = μ - m
    derived = average(sp.expand((deviation.T * M * deviation)[0]), *z)
    right = (M * L * L.T).trace() + (shift.T * M * shift)[0]
    assert same(derived, right)
    assert not same(derived, (M * L * L.T).trace())
    assert not same(derived, M.trace() + (shift.T * M * shift)[0])


@pytest.mark.equation("eq-gauss-cross-entropy", "eq-gauss-entropy", "eq-gauss-kl")
def test_kl_and_entropies_in_the_plane() -> None:
    """Averages of the definitions, for full covariances."""
    (L_q, det_q), (L_p, det_p) = lower("q"), lower("p")
    z, delta = (
        sp.Matrix(sp.symbols("z1 z2", real=True)),
        sp.Matrix(sp.symbols("d1 d2", real=True)),
    )
    S_q, S_p = L_q * L_q.T, L_p * L_p.T
    seen = L_p.inv() * (L_q * z + delta)
    minus_log_p = sp.log(2 * sp.pi) + sp.log(det_p) + (seen.T * seen)[0] / 2
    minus_log_q = sp.log(2 * sp.pi) + sp.log(det_q) + (z.T * z)[0] / 2
    cross, entropy = (average(sp.expand(f), *z) for f in (minus_log_p, minus_log_q))

    distance = (delta.T * S_p.inv() * delta)[0]
    trace = (S_p.inv() * S_q).trace()

    def log_det(d: sp.Expr) -> sp.Expr:
        return 2 * sp.log(d)  # log |Σ|

    right = (2 * sp.log(2 * sp.pi) + log_det(det_p) + trace + distance) / 2
    assert same(cross, right)
    assert same(entropy, (2 * sp.log(2 * sp.pi) + 2 + log_det(det_q)) / 2)
    kl = cross - entropy
    formula = (trace - 2 + log_det(det_p) - log_det(det_q) + distance) / 2
    assert same(kl, formula)
    exchanged = (S_q.inv() * S_p).trace() - 2 + log_det(det_q) - log_det(det_p)
    exchanged = (exchanged + (delta.T * S_q.inv() * delta)[0]) / 2
    for wrong in (
        exchanged,
        formula + 1,
        formula - distance / 2,
        formula + log_det(det_q),
    ):
        assert not same(kl, wrong)


def kl(
    mean_q: np.ndarray, S_q: np.ndarray, mean_p: np.ndarray, S_p: np.ndarray
) -> float:
    delta, inverse = mean_q - mean_p, np.linalg.inv(S_p)
    logs = np.linalg.slogdet(S_p)[1] - np.linalg.slogdet(S_q)[1]
    return float(
        (np.trace(inverse @ S_q) - len(delta) + logs + delta @ inverse @ delta) / 2
    )


def oracle_kl(*laws: np.ndarray) -> float:
    laws = [torch.as_tensor(value) for value in laws]
    q, p = (
        torch.distributions.MultivariateNormal(*pair) for pair in (laws[:2], laws[2:])
    )
    return torch.distributions.kl_divergence(q, p).item()


@pytest.mark.equation(
    "eq-gauss-kl", "eq-gauss-kl-diagonal", "eq-gauss-kl-standard", "eq-gauss-kl-same"
)
def test_kl_against_torch_distributions() -> None:
    rng = np.random.default_rng(5)
    (m_q, S_q), (m_p, S_p) = random_law(rng, 4), random_law(rng, 4)
    assert kl(m_q, S_q, m_p, S_p) == pytest.approx(oracle_kl(m_q, S_q, m_p, S_p))
    assert kl(m_p, S_p, m_q, S_q) != pytest.approx(
        oracle_kl(m_q, S_q, m_p, S_p), rel=1e-2
    )

    v_q, v_p = np.diag(S_q), np.diag(S_p)
    tensors = [torch.as_tensor(value.copy()) for value in (m_q, v_q, m_p, v_p)]
    by_entries = gaussian.kl(*tensors).sum().item()
    assert by_entries == pytest.approx(oracle_kl(m_q, np.diag(v_q), m_p, np.diag(v_p)))
    assert by_entries != pytest.approx(
        oracle_kl(m_q, S_q, m_p, S_p), rel=1e-2
    )  # full covariances differ

    zero, eye = np.zeros(4), np.eye(4)
    standard = (np.trace(S_q) - 4 - np.linalg.slogdet(S_q)[1] + m_q @ m_q) / 2
    assert standard == pytest.approx(oracle_kl(m_q, S_q, zero, eye))
    assert standard + np.linalg.slogdet(S_q)[1] != pytest.approx(
        oracle_kl(m_q, S_q, zero, eye), rel=1e-2
    )

    delta = m_q - m_p
    equal = delta @ np.linalg.solve(S_p, delta) / 2
    assert equal == pytest.approx(oracle_kl(m_q, S_p, m_p, S_p))
    assert equal == pytest.approx(oracle_kl(m_p, S_p, m_q, S_p))
    assert delta @ delta / 2 != pytest.approx(oracle_kl(m_q, S_p, m_p, S_p), rel=1e-2)


@pytest.mark.equation("eq-gauss-max-entropy")
def test_normal_law_has_the_largest_entropy() -> None:
    largest = 0.5 * np.log(2 * np.pi * np.e)
    assert stats.multivariate_normal(
        np.zeros(3), np.diag([1.0, 2, 3])
    ).entropy() == pytest.approx(
        0.5 * np.log(np.linalg.det(2 * np.pi * np.e * np.diag([1.0, 2, 3])))
    )
    others = [
        stats.uniform(),
        stats.laplace(),
        stats.logistic(),
        stats.t(5),
        stats.gamma(2),
        stats.triang(0.3),
    ]
    for law in others:
        standardised = law.entropy() - np.log(
            law.std()
        )  # of the same law with variance 1
        assert standardised < largest - 1e-3
        # The argument of the proof: the cross-entropy with the normal law is the same number for every law.
        g = stats.norm(law.mean(), law.std())
        cross = -law.expect(g.logpdf)
        assert cross - np.log(law.std()) == pytest.approx(largest, abs=1e-6)
    wide = stats.laplace(
        scale=2
    )  # without the condition on the variance there is no largest entropy
    assert wide.entropy() > largest


# The length of a noise vector.


@pytest.mark.equation("eq-gauss-norm")
def test_squared_length() -> None:
    z = sp.symbols("z1:4", real=True)
    squared = sum(v**2 for v in z)
    mean = average(squared, *z)
    variance = average(sp.expand(squared**2), *z) - mean**2
    assert (mean, variance) == (3, 6)
    assert variance != 3  # d in place of 2 d
    for d in (1, 7, 300):
        assert stats.chi2(d).mean() == pytest.approx(d)
        assert stats.chi2(d).var() == pytest.approx(2 * d)


@pytest.mark.equation("eq-gauss-shell")
def test_shell() -> None:
    """The bound, from scipy's law of the length; and the limit one half, which a bound of 1/4 would miss."""
    distances = []
    for d in (1, 2, 16, 256, 3072, 196_608):
        distances.append(
            2 * d - 2 * d**0.5 * stats.chi(d).mean()
        )  # E|x|² - 2 √d E|x| + d
        assert distances[-1] <= 2
    assert distances[-2] == pytest.approx(0.5, abs=1e-3)
    assert min(distances[:-1]) > 0.25
    law = stats.chi(3072)
    assert law.cdf(3072**0.5 + 2) - law.cdf(3072**0.5 - 2) > 0.99
    assert stats.chi(3072).cdf(0.9 * 3072**0.5) < 1e-8  # nobody is near 0


# Integration by parts.


@pytest.mark.equation("eq-gauss-score")
def test_score() -> None:
    rng = np.random.default_rng(6)
    mean, cov = random_law(rng, 3)
    x = torch.as_tensor(rng.standard_normal(3)).requires_grad_()
    law = torch.distributions.MultivariateNormal(
        torch.as_tensor(mean), torch.as_tensor(cov)
    )
    (score,) = torch.autograd.grad(law.log_prob(x), x)
    e = x.detach().numpy() - mean
    np.testing.assert_allclose(score, -np.linalg.solve(cov, e), atol=1e-10)
    for wrong in (np.linalg.solve(cov, e), -e, -cov @ e):
        assert np.abs(score.numpy() - wrong).max() > 1e-2


@pytest.mark.equation("eq-gauss-stein")
def test_stein() -> None:
    """The two integrands differ by a derivative, for any f; and in the plane for polynomials."""
    f = sp.Function("f")(X)
    g = sp.exp(symbolic.log_density(X, MU, SIGMA**2))
    derivative = sp.diff(-(SIGMA**2) * f * g, X)
    assert same(derivative, (X - MU) * f * g - SIGMA**2 * sp.diff(f, X) * g)
    assert not same(derivative, (X - MU) * f * g - sp.diff(f, X) * g)
    assert MOMENTS[4] == 3 * MOMENTS[2]  # f = x³

    L, _ = lower("L")
    z = sp.Matrix(sp.symbols("z1 z2", real=True))
    x1, x2 = sp.symbols("x1 x2", real=True)
    e = L * z
    for f in (x1**2 * x2, x1 * x2**2 + 3 * x1):
        at = {x1: e[0], x2: e[1]}
        left = sp.Matrix([average(sp.expand(v * f.subs(at)), *z) for v in e])
        gradient = sp.Matrix(
            [average(sp.expand(sp.diff(f, v).subs(at)), *z) for v in (x1, x2)]
        )
        assert sp.expand(left - L * L.T * gradient) == sp.zeros(2, 1)
        assert sp.expand(left - gradient) != sp.zeros(2, 1)
        assert sp.expand(left - L.T * L * gradient) != sp.zeros(2, 1)


@pytest.mark.equation("eq-gauss-stein-test", "eq-gauss-tweedie")
def test_tweedie_for_two_values_and_by_quadrature() -> None:
    weight = [sp.exp(-((Y - value) ** 2) / (2 * SIGMA**2)) for value in (-1, 1)]
    mean = (weight[1] - weight[0]) / (weight[1] + weight[0])
    score = sp.diff(sp.log(weight[0] + weight[1]), Y)
    assert same(sp.expand(Y + SIGMA**2 * score), mean)
    assert not same(sp.expand(Y - SIGMA**2 * score), mean)
    assert not same(sp.expand(Y + SIGMA * score), mean)

    # Data from a law that is not normal at all: exponential, with noise of deviation 0.5.
    sigma, prior = 0.5, stats.expon()
    grid = np.linspace(0, 40, 400_001)
    ys = np.array([-0.5, 0.1, 0.7, 2.5])

    def density(y: float) -> float:
        return integrate.trapezoid(
            prior.pdf(grid) * stats.norm(y, sigma).pdf(grid), grid
        )

    for y in ys:
        posterior = prior.pdf(grid) * stats.norm(y, sigma).pdf(grid)
        conditional_mean = integrate.trapezoid(
            grid * posterior, grid
        ) / integrate.trapezoid(posterior, grid)
        score = (np.log(density(y + 1e-4)) - np.log(density(y - 1e-4))) / 2e-4
        assert conditional_mean == pytest.approx(y + sigma**2 * score, abs=1e-5)
        assert abs(conditional_mean - (y + sigma * score)) > 1e-2

    # The chain of equalities with a test function, f(y) = exp(-y²): E[(y - x) f], σ² E[f'], -σ² E[f score].
    y = np.linspace(-6, 20, 4001)
    x = np.linspace(0, 20, 4001)[:, None]
    joint = prior.pdf(x) * stats.norm(x, sigma).pdf(y)
    p = integrate.trapezoid(joint, x[:, 0], axis=0)
    f, slope = np.exp(-(y**2)), -2 * y * np.exp(-(y**2))
    first = integrate.trapezoid(
        integrate.trapezoid((y - x) * f * joint, y, axis=1), x[:, 0]
    )
    second = sigma**2 * integrate.trapezoid(p * slope, y)
    third = -(sigma**2) * integrate.trapezoid(f * np.gradient(p, y), y)
    assert first == pytest.approx(second, abs=1e-5)
    assert third == pytest.approx(second, abs=1e-5)
    assert -third != pytest.approx(
        second, abs=1e-2
    )  # the sign of the integration by parts


# The distance of two normal laws.


def wasserstein(
    m_x: np.ndarray, S_x: np.ndarray, m_y: np.ndarray, S_y: np.ndarray
) -> float:
    cross = linalg.sqrtm(root(S_x) @ S_y @ root(S_x)).real
    return float((m_x - m_y) @ (m_x - m_y) + np.trace(S_x + S_y - 2 * cross))


def with_moments(
    rng: np.random.Generator, n: int, mean: np.ndarray, cov: np.ndarray
) -> torch.Tensor:
    """n points that have exactly this mean and this covariance."""
    x = rng.standard_normal((n, len(mean)))
    x -= x.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), x.T)
    return torch.as_tensor(mean + (np.linalg.cholesky(cov) @ white).T)


@pytest.mark.equation("eq-gauss-wasserstein-1d")
def test_wasserstein_in_one_dimension() -> None:
    """The quantile coupling, which is the best one on a line, by quadrature over scipy's quantiles."""
    x, y = stats.norm(0.3, 0.8), stats.norm(-1, 1.7)
    cost, _ = integrate.quad(lambda u: (x.ppf(u) - y.ppf(u)) ** 2, 0, 1)
    assert cost == pytest.approx(1.3**2 + (0.8 - 1.7) ** 2, rel=1e-5)
    assert cost != pytest.approx(1.3**2 + (0.8**2 - 1.7**2) ** 2, rel=1e-2)
    independent = 1.3**2 + 0.8**2 + 1.7**2
    assert cost < independent - 1
    r, s_x, s_y = sp.symbols(
        "r s_x s_y", positive=True
    )  # how the cost depends on the correlation r
    u, v = sp.symbols("u v", real=True)
    difference = s_x * u - s_y * (r * u + sp.sqrt(1 - r**2) * v)
    derived = average(sp.expand(difference**2), u, v)
    assert same(derived, s_x**2 + s_y**2 - 2 * r * s_x * s_y)
    assert same(derived.subs(r, 1), (s_x - s_y) ** 2)


@pytest.mark.equation("eq-gauss-wasserstein")
def test_wasserstein_is_the_cheapest_coupling() -> None:
    rng = np.random.default_rng(7)
    (m_x, S_x), (m_y, S_y) = random_law(rng, 3), random_law(rng, 3)
    distance = wasserstein(m_x, S_x, m_y, S_y)
    fixed = (m_x - m_y) @ (m_x - m_y) + np.trace(S_x + S_y)
    # The largest trace of a possible cross-covariance is a sum of singular values.
    assert distance == pytest.approx(
        fixed - 2 * np.linalg.norm(root(S_y) @ root(S_x), "nuc")
    )
    # A linear map that carries the one law to the other at that cost.
    inverse = np.linalg.inv(root(S_x))
    carry = inverse @ root(root(S_x) @ S_y @ root(S_x)) @ inverse
    np.testing.assert_allclose(carry @ S_x @ carry.T, S_y, atol=1e-9)
    assert fixed - 2 * np.trace(S_x @ carry.T) == pytest.approx(distance)
    for _ in range(200):  # no other coupling is cheaper
        K = rng.standard_normal((3, 3))
        cross = root(S_x) @ (K / np.linalg.norm(K, 2)) @ root(S_y)
        joint = np.block([[S_x, cross], [cross.T, S_y]])
        assert np.linalg.eigvalsh(joint).min() > -1e-9
        assert fixed - 2 * np.trace(cross) > distance
    samples = with_moments(rng, 40, m_x, S_x), with_moments(rng, 50, m_y, S_y)
    assert frechet_distance(*samples) == pytest.approx(distance, rel=1e-7)
    as_if_commuting = (m_x - m_y) @ (m_x - m_y) + ((root(S_x) - root(S_y)) ** 2).sum()
    assert as_if_commuting > distance + 1e-3


@pytest.mark.equation("eq-gauss-wasserstein-commuting")
def test_wasserstein_of_commuting_covariances() -> None:
    rng = np.random.default_rng(8)
    Q, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    first, second = rng.uniform(0.1, 3, 4), rng.uniform(0.1, 3, 4)
    S_x, S_y = (Q * first) @ Q.T, (Q * second) @ Q.T
    np.testing.assert_allclose(S_x @ S_y, S_y @ S_x, atol=1e-12)
    zero = np.zeros(4)
    right = ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    assert wasserstein(zero, S_x, zero, S_y) == pytest.approx(right)
    assert ((first - second) ** 2).sum() != pytest.approx(right, rel=0.05)
