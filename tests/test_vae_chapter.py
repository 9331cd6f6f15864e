"""The equations of chapter 2, each by a route of its own, and the wrong versions that people have published.

The wrong versions: a squared error averaged over pixels beside a KL that is summed, a KL with standard deviations for
variances or with its sides exchanged, a draw that blocks the gradient, a score function without its 1/σ.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import integrate, stats
from sklearn.decomposition import PCA

from ddpm_lite import VAE, data, gaussian, symbolic

z, mu, x, b, w, epsilon = sp.symbols("z mu x b w varepsilon", real=True)
sigma, s, k = sp.symbols("sigma s k", positive=True)
LOG_Q = symbolic.log_density(z, mu, sigma**2)
LOG_P = symbolic.log_density(z, 0, 1)
KL = (mu**2 + sigma**2 - 1 - sp.log(sigma**2)) / 2


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(sp.expand_log(left - right, force=True)) == 0


@lru_cache
def integral(f: sp.Expr, variable: sp.Symbol, log_density: sp.Expr) -> sp.Expr:
    return sp.simplify(sp.integrate(f * sp.exp(log_density), (variable, -sp.oo, sp.oo)))


def expectation(f: sp.Expr, variable: sp.Symbol, log_density: sp.Expr) -> sp.Expr:
    """E[f] by sympy's integral; of a polynomial, power by power."""
    f = sp.expand(f)
    if not f.is_polynomial(variable):
        return integral(f, variable, log_density)
    terms = sp.Poly(f, variable).terms()
    return sp.expand(
        sum(
            factor * integral(variable**n, variable, log_density)
            for (n,), factor in terms
        )
    )


def under_q(f: sp.Expr) -> sp.Expr:
    """E[f(z)] for z from N(mu, sigma²)."""
    return expectation(f, z, LOG_Q)


def under_noise(f: sp.Expr) -> sp.Expr:
    """E[f(ε)] for ε from N(0, 1); f has no z."""
    return expectation(f, epsilon, symbolic.log_density(epsilon, 0, 1))


# The bound and its two terms.


@pytest.mark.equation("eq-vae-elbo", "eq-vae-split")
def test_the_bound_splits_into_reconstruction_and_kl() -> None:
    """Linear decoder: the ELBO by its definition, reconstruction and KL, each by an integral of its own."""
    likelihood = symbolic.log_density(x, w * z + b, s**2)
    definition = under_q(sp.expand_log(likelihood + LOG_P - LOG_Q, force=True))
    reconstruction = under_q(likelihood)
    to_prior = under_q(sp.expand_log(LOG_Q - LOG_P, force=True))
    assert same(definition, reconstruction - to_prior)
    assert not same(definition, reconstruction + to_prior)
    decoded_mean = likelihood.subs(z, mu)  # log p(x | mean) in place of its average
    assert not same(definition, decoded_mean - to_prior)


@pytest.mark.equation("eq-vae-kl-sum")
def test_kl_of_independent_entries_is_a_sum() -> None:
    """Against torch's KL of full covariance matrices; with a correlation the sum is too small."""
    mean = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    variance = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal
    prior = normal(torch.zeros(3).double(), torch.eye(3).double())
    kl = torch.distributions.kl_divergence
    ours = gaussian.kl(mean, variance, torch.zeros(3).double(), torch.ones(3).double())
    assert ours.sum().item() == pytest.approx(
        kl(normal(mean, variance.diag()), prior).item(), rel=1e-12
    )
    correlated = variance.diag()
    correlated[0, 1] = correlated[1, 0] = 0.3
    assert kl(normal(mean, correlated), prior).item() > ours.sum().item() + 0.1
    assert ours.mean().item() != pytest.approx(ours.sum().item(), rel=0.1)


@pytest.mark.equation("eq-vae-kl-log", "eq-vae-kl")
def test_kl_by_integration() -> None:
    by_hand = -sp.log(sigma**2) / 2 - (z - mu) ** 2 / (2 * sigma**2) + z**2 / 2
    assert same(LOG_Q - LOG_P, by_hand)
    derived = under_q(sp.expand_log(LOG_Q - LOG_P, force=True))
    assert same(derived, KL)
    other_way = sp.integrate(
        sp.expand(sp.expand_log(LOG_P - LOG_Q, force=True)) * sp.exp(LOG_P),
        (z, -sp.oo, sp.oo),
    )
    wrong = {
        "deviation for variance": (mu**2 + sigma - 1 - sp.log(sigma)) / 2,
        "sign of the logarithm": (mu**2 + sigma**2 - 1 + sp.log(sigma**2)) / 2,
        "without the half": 2 * KL,
        "sides exchanged": other_way,
    }
    for expression in wrong.values():
        assert not same(derived, expression)
    at = sp.lambdify((mu, sigma), KL)
    one = torch.ones(()).double()
    for m, deviation in [(0.5, 0.2), (-2, 1.7), (0, 1)]:
        numbers = torch.tensor([m, deviation**2], dtype=torch.float64)
        code = gaussian.kl(numbers[0], numbers[1], 0 * one, one).item()
        q, p = stats.norm(m, deviation), stats.norm()
        integral = integrate.quad(
            lambda t, q=q, p=p: q.pdf(t) * (q.logpdf(t) - p.logpdf(t)),
            *q.interval(1 - 1e-14),
        )[0]
        assert code == pytest.approx(at(m, deviation), abs=1e-12)
        assert code == pytest.approx(integral, abs=1e-9)


@pytest.mark.equation("eq-vae-log-likelihood")
def test_log_likelihood_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    picture, mean = rng.normal(size=(2, 64))
    for s2 in (0.1, 1.0, 32.0):
        error = ((picture - mean) ** 2).sum()
        ours = -error / (2 * s2) - 64 / 2 * np.log(2 * np.pi * s2)
        truth = stats.multivariate_normal(mean, s2 * np.eye(64)).logpdf(picture)
        assert ours == pytest.approx(truth, rel=1e-12)
        of_one_pixel = -error / (2 * s2) - np.log(2 * np.pi * s2) / 2
        assert abs(of_one_pixel - truth) > 1


@pytest.mark.equation("eq-vae-rescaled", "eq-vae-mean-error")
def test_what_a_loss_without_variance_has_chosen() -> None:
    error, kl, D, s2 = sp.symbols("E K D s2", positive=True)
    elbo = -error / (2 * s2) - D / 2 * sp.log(2 * sp.pi * s2) - kl
    rest = D * s2 * sp.log(2 * sp.pi * s2)
    assert same(-2 * s2 * elbo, error + 2 * s2 * kl + rest)
    assert not same(-2 * s2 * elbo, error + s2 * kl + rest)

    def implied(loss: sp.Expr) -> list[sp.Expr]:
        """The s² for which -ELBO and the loss trade error for KL at the same rate."""
        rate = sp.diff(loss, kl) / sp.diff(loss, error)
        return sp.solve(sp.diff(-elbo, kl) / sp.diff(-elbo, error) - rate, s2)

    assert implied(error + kl) == [sp.Rational(1, 2)]
    assert implied(error / D + kl) == [D / 2]
    assert implied(error / 2 + kl) == [1]
    assert implied(error / D + kl) != [sp.Rational(1, 2)]


@pytest.mark.equation("eq-vae-best-variance")
def test_the_best_variance_is_the_mean_squared_error() -> None:
    error, kl, D, s2 = sp.symbols("E K D s2", positive=True)
    elbo = -error / (2 * s2) - D / 2 * sp.log(2 * sp.pi * s2) - kl
    assert sp.solve(sp.diff(elbo, s2), s2) == [error / D]
    assert same(s2 * sp.diff(elbo, s2), error / (2 * s2) - D / 2)
    assert sp.simplify(sp.diff(elbo, s2, 2).subs(s2, error / D)).is_negative
    # and in the package: the derivative of VAE.elbo by log s² vanishes there, not at twice the value
    torch.manual_seed(0)
    vae = VAE(shape=(6,), latent_dim=2, width=5, depth=1).double()
    pictures, noise = torch.randn(30, 6).double(), torch.randn(4, 30, 2).double()
    with torch.no_grad():
        mean, variance = vae.encode(pictures)
        best = (
            (pictures - vae.decode(mean + variance.sqrt() * noise)[0]).square().mean()
        )
    slopes = []
    for value in (best, 2 * best):
        vae.log_variance.data = value.log()
        total = vae.elbo(pictures, noise).total.mean()
        slopes.append(torch.autograd.grad(total, vae.log_variance)[0].item())
    assert abs(slopes[0]) < 1e-12
    assert slopes[1] == pytest.approx(-6 / 4)


# Gradients.


@pytest.mark.equation("eq-vae-reparameterization")
def test_law_of_the_moved_and_scaled_noise() -> None:
    """By the change of variables: the density of ε at (z - mu) / sigma, divided by sigma."""
    moved = symbolic.log_density((z - mu) / sigma, 0, 1) - sp.log(sigma)
    assert same(moved, LOG_Q)
    with_variance = symbolic.log_density((z - mu) / sigma**2, 0, 1)
    with_variance -= sp.log(sigma**2)  # z = mu + sigma² eps
    assert not same(with_variance, LOG_Q)


@pytest.mark.equation("eq-vae-swap")
def test_expectation_under_the_noise() -> None:
    for f in (z**4 - 3 * z, sp.exp(k * z)):
        left = under_q(f)
        assert same(left, under_noise(f.subs(z, mu + sigma * epsilon)))
        assert not same(left, under_noise(f.subs(z, mu + sigma**2 * epsilon)))


@pytest.mark.equation(
    "eq-vae-pathwise",
    "eq-vae-score",
    "eq-vae-score-normal",
    "eq-vae-gradient-blocked",
)
def test_two_estimators_are_unbiased() -> None:
    """Both, and the integral of f ∇q, against the derivative of the expectation, for two polynomials."""
    noisy = mu + sigma * epsilon
    scores = {mu: epsilon / sigma, sigma: (epsilon**2 - 1) / sigma}
    for parameter, score in scores.items():
        derived = sp.diff(LOG_Q, parameter).subs(z, noisy)
        assert same(derived, score)
    assert not same(sp.diff(LOG_Q, mu).subs(z, noisy), epsilon)
    for f in (z**3 + 2 * z, z**4 - z**2):
        value = under_q(f)
        for parameter, score in scores.items():
            truth = sp.diff(value, parameter)
            blocked = under_q(f * sp.diff(LOG_Q, parameter))  # f q ∇log q = f ∇q
            slope = sp.diff(f, z).subs(z, noisy)
            pathwise = under_noise(slope * sp.diff(noisy, parameter))
            assert same(pathwise, truth)
            assert same(under_noise(f.subs(z, noisy) * score), truth)
            assert same(blocked, truth)
            wrong = under_noise(f.subs(z, noisy) * score * sigma)  # 1/σ forgotten
            assert not same(wrong, truth)
        detached = sp.Integer(0)  # what a program without reparameterization gets
        assert not same(detached, sp.diff(value, mu))


@pytest.mark.equation("eq-vae-score-zero")
def test_the_score_has_mean_zero() -> None:
    assert under_noise(epsilon / sigma) == 0
    assert under_noise((epsilon**2 - 1) / sigma) == 0
    assert under_noise(epsilon**2 / sigma) != 0


@pytest.mark.equation("eq-vae-domination")
def test_difference_quotients_stay_below_the_common_bound() -> None:
    """f = sinh, |f'| = cosh ≤ e^|z|; for f = exp(z²) no bound of this kind holds, and the expectation is infinite."""
    rng = np.random.default_rng(0)
    m, deviation = 0.7, 1.3
    noise = 4 * rng.normal(size=2000)
    bound = np.exp(abs(m) + 1 + deviation * np.abs(noise))
    for h in (-1, -0.1, 1e-3, 0.5, 1):
        quotient = (
            np.sinh(m + h + deviation * noise) - np.sinh(m + deviation * noise)
        ) / h
        assert (np.abs(quotient) <= bound).all()
        growing = (
            np.exp((m + h + 0.3 * noise) ** 2) - np.exp((m + 0.3 * noise) ** 2)
        ) / h
        assert (np.abs(growing) > np.exp(m + 1 + 0.3 * np.abs(noise))).any()
    for edge in (
        12,
        24,
    ):  # the density has won long before: the mean of the bound is finite
        mean_of_bound = integrate.quad(
            lambda e: stats.norm.pdf(e) * np.exp(abs(m) + 1 + deviation * abs(e)),
            -edge,
            edge,
            points=[0],
        )[0]
        closed = 2 * np.exp(abs(m) + 1 + deviation**2 / 2) * stats.norm.cdf(deviation)
        assert mean_of_bound == pytest.approx(closed, rel=1e-6)


@pytest.mark.equation("eq-vae-step")
def test_a_jump_defeats_the_pathwise_estimator() -> None:
    probability = sp.integrate(sp.exp(LOG_Q), (z, 0, sp.oo))
    truth = sp.diff(probability, mu)
    assert same(truth, sp.exp(LOG_Q).subs(z, 0))
    assert sp.diff(sp.Heaviside(z), z).subs(z, 1) == 0, "pathwise: zero"
    assert not same(truth, sp.Integer(0))
    by_score = sp.integrate((z - mu) / sigma**2 * sp.exp(LOG_Q), (z, 0, sp.oo))
    assert same(by_score, truth)


@pytest.mark.equation("eq-vae-baseline")
def test_best_baseline() -> None:
    """f takes arbitrary values a on three points, with score g of mean zero: minimise the variance over c."""
    a = sp.symbols("a1:4", real=True)
    g, probability = (
        (1, -2, 3),
        (sp.Rational(1, 2), sp.Rational(2, 5), sp.Rational(1, 10)),
    )
    c = sp.Symbol("c", real=True)
    assert sum(p * u for p, u in zip(probability, g)) == 0

    def mean(values: list[sp.Expr]) -> sp.Expr:
        return sum(p * v for p, v in zip(probability, values))

    def variance(c: sp.Expr) -> sp.Expr:
        estimate = [(f - c) * u for f, u in zip(a, g)]
        return sp.expand(mean([e**2 for e in estimate]) - mean(estimate) ** 2)

    (best,) = sp.solve(sp.diff(variance(c), c), c)
    formula = mean([f * u**2 for f, u in zip(a, g)]) / mean([u**2 for u in g])
    assert same(best, formula)
    assert sp.diff(variance(c), c, 2) > 0
    assert not same(best, mean(list(a)))  # the plain average of f


@pytest.mark.equation("eq-vae-variances")
def test_variances_of_the_estimators() -> None:
    """For d = 1, 2, 3 with every entry of ε as a symbol of its own; moments of products factorise."""
    noises = sp.symbols("e1:4", real=True)

    def mean(expression: sp.Expr) -> sp.Expr:
        total = 0
        for powers, factor in sp.Poly(sp.expand(expression), *noises).terms():
            for power in powers:
                factor *= 0 if power % 2 else sp.factorial2(power - 1)
            total += factor
        return sp.expand(total)

    for d in (1, 2, 3):
        entries = [mu + sigma * e for e in noises[:d]]
        f = sum(entry**2 for entry in entries)
        score = noises[0] / sigma
        best = mean(f * score**2) / mean(score**2)

        def variance(estimate: sp.Expr) -> sp.Expr:
            assert same(mean(estimate), 2 * mu)
            return mean(estimate**2) - mean(estimate) ** 2

        assert same(variance(2 * entries[0]), 4 * sigma**2)
        with_baseline = 8 * mu**2 + 6 * sigma**2
        with_baseline += (d - 1) * (4 * mu**2 + 2 * sigma**2)
        assert same(variance((f - best) * score), with_baseline)
        plain = mu**4 / sigma**2 + 14 * mu**2 + 15 * sigma**2
        assert same(variance(f * score), plain) == (d == 1)
        assert not same(variance((f - mean(f)) * score), with_baseline)


@pytest.mark.equation("eq-vae-gradient-decoder")
def test_gradient_of_the_decoder_goes_inside() -> None:
    """d/dw E[log N(x; sin(w z), s²)]: quadrature of the derivative, and difference quotient of quadratures."""
    nodes, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()
    causes = 0.4 + 0.8 * nodes

    def value(slope: float) -> float:
        return weight @ stats.norm.logpdf(0.9, np.sin(slope * causes), 0.5)

    inside = weight @ (
        (0.9 - np.sin(1.2 * causes)) / 0.25 * np.cos(1.2 * causes) * causes
    )
    quotient = (value(1.2 + 1e-5) - value(1.2 - 1e-5)) / 2e-5
    assert inside == pytest.approx(quotient, rel=1e-7)
    at_the_mean = (0.9 - np.sin(1.2 * 0.4)) / 0.25 * np.cos(1.2 * 0.4) * 0.4
    assert at_the_mean != pytest.approx(quotient, rel=0.1)


# The linear model and collapse.


def optimum(eigenvalues: np.ndarray, s2: float) -> np.ndarray:
    """The squared lengths of the columns of W."""
    return np.maximum(eigenvalues - s2, 0)


@pytest.mark.equation("eq-vae-ppca", "eq-vae-one-axis")
def test_lengths_of_the_columns() -> None:
    """scikit-learn's probabilistic PCA gives the log-evidence at its own s²; and no other length does better."""
    pictures = data.digits("train").x_0.flatten(1).double().numpy()
    pca = PCA(4).fit(pictures)
    s2, N = pca.noise_variance_, len(pictures)
    lengths = optimum(pca.explained_variance_, s2)
    W = pca.components_.T * np.sqrt(lengths)
    assert np.cov(pictures.T) @ pca.components_[0] == pytest.approx(
        pca.explained_variance_[0] * pca.components_[0], abs=1e-9
    )
    assert pca.get_covariance() == pytest.approx(W @ W.T + s2 * np.eye(64), abs=1e-9)

    def score(lengths: np.ndarray, s2: float) -> float:
        W = pca.components_.T * np.sqrt(lengths)
        law = stats.multivariate_normal(pca.mean_, W @ W.T + s2 * np.eye(64))
        return law.logpdf(pictures).mean()

    assert score(lengths, s2) == pytest.approx(pca.score(pictures), rel=1e-9)
    variances = pca.explained_variance_ * (N - 1) / N  # of the data at hand
    for fixed in (0.5, 2.4):  # at 2.4 only two of the four axes are alive
        best = optimum(variances, fixed)
        assert (best > 0).sum() == (variances > fixed).sum()
        for change in (-0.2, 0.1, 0.5):
            for j in range(4):
                other = best.copy()
                other[j] = max(other[j] + change, 0)
                if other[j] != best[j]:
                    assert score(other, fixed) < score(best, fixed) - 1e-5
                    axis = [
                        -0.5 * (np.log(y + fixed) + variances[j] / (y + fixed))
                        for y in (other[j], best[j])
                    ]
                    gain = score(other, fixed) - score(best, fixed)
                    assert gain == pytest.approx(axis[0] - axis[1], abs=1e-9)
        assert score(variances, fixed) < score(best, fixed) - 1e-3  # s² forgotten


@pytest.mark.equation("eq-vae-collapse")
def test_kl_of_each_latent_number_at_the_optimum() -> None:
    """``VAE.elbo`` with the optimal weights: half the log of variance over s², and zero below s²."""
    pictures = data.digits("train").x_0.flatten(1).double()
    mean = pictures.mean(0)
    values, axes = torch.linalg.eigh(torch.cov(pictures.mT, correction=0))
    values, axes = values.flip(0)[:6], axes.flip(1)[:, :6]
    for s2 in (0.25, 1.0, 32.0):
        lengths = torch.from_numpy(optimum(values.numpy(), s2))
        vae = VAE(shape=(64,), latent_dim=6, depth=0).double()
        to_mean = (lengths.sqrt() / (lengths + s2))[:, None] * axes.mT
        with torch.no_grad():
            vae.encoder[0].weight.copy_(torch.cat([to_mean, 0 * to_mean]))
            log_variance = (s2 / (lengths + s2)).log()
            vae.encoder[0].bias.copy_(torch.cat([-to_mean @ mean, log_variance]))
            kl = vae.elbo(pictures, torch.zeros(1, len(pictures), 6).double()).kl
        formula = 0.5 * (values / s2).log().clamp(min=0)
        assert torch.allclose(kl.mean(0), formula, atol=1e-9)
        if s2 < 2:
            assert not torch.allclose(kl.mean(0), 2 * formula, atol=0.1)
            assert not torch.allclose(
                kl.mean(0), 0.5 * (1 + values / s2).log(), atol=0.1
            )
    # the axes that are dead at s² = 1, and alive at 0.25
    assert (values < 1).sum() >= 1
    assert (values > 0.25).all()
