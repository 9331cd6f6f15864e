"""The equations of chapter 7, each by a route of its own, and the wrong versions that people have published.

The wrong versions: the weight without its square, with ᾱ for 1 - ᾱ or without the variance; the score without the
root or with the sign of the noise; "invert one forward step"; a loss between x_T and fresh noise.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import integrate, stats

from ddpm_lite import (
    ExactEps,
    GaussianDiffusion,
    NoiseSchedule,
    ancestral,
    cosine_schedule,
    gaussian,
    linear_schedule,
    simple_loss,
    symbolic,
)
from ddpm_lite.models import MLP
from ddpm_lite.symbolic import alpha, alpha_bar_s, eps, x_0, x_t

ABAR_T = alpha * alpha_bar_s
BETA = 1 - alpha
V = sp.Symbol("v", real=True)
GUESS = sp.Symbol("guess", real=True)
SIGMA = sp.Symbol("sigma", positive=True)

X_0_FROM_EPS = (x_t - sp.sqrt(1 - ABAR_T) * eps) / sp.sqrt(ABAR_T)
X_0_FROM_V = sp.sqrt(ABAR_T) * x_t - sp.sqrt(1 - ABAR_T) * V
WEIGHT_0 = sp.sqrt(alpha_bar_s) * BETA / (1 - ABAR_T)
WEIGHT_EPS = BETA / (sp.sqrt(alpha) * sp.sqrt(1 - ABAR_T))
WEIGHT_V = sp.sqrt(alpha_bar_s) * BETA / sp.sqrt(1 - ABAR_T)


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(left - right) == 0


# From the KL divergence to the squared distance of means.


@pytest.mark.equation("eq-kl-same-variance")
def test_kl_of_equal_variances_is_the_squared_distance_of_means() -> None:
    """sympy does the integral of q log(q/p); the outside formula is that of torch.distributions."""
    x, m, mu = sp.symbols("x m mu", real=True)
    log_ratio = symbolic.log_density(x, m, SIGMA**2) - symbolic.log_density(
        x, mu, SIGMA**2
    )
    density = sp.exp(-((x - m) ** 2) / (2 * SIGMA**2)) / (sp.sqrt(2 * sp.pi) * SIGMA)
    integrand = sp.expand(sp.simplify(log_ratio).subs(x, m + x)) * density.subs(
        x, m + x
    )
    kl = sp.integrate(sp.simplify(integrand), (x, -sp.oo, sp.oo))
    assert same(kl, (m - mu) ** 2 / (2 * SIGMA**2))
    assert not same(kl, (m - mu) ** 2 / SIGMA**2)
    assert not same(kl, (m - mu) ** 2 / (2 * SIGMA))
    normal = torch.distributions.Normal
    theirs = torch.distributions.kl_divergence(normal(0.3, 0.7), normal(-0.4, 0.7))
    assert float(theirs) == pytest.approx(0.7**2 / (2 * 0.7**2), rel=1e-6)


@pytest.mark.equation("eq-mean-matching")
def test_with_another_variance_the_kl_changes_by_a_constant() -> None:
    """The part that does not depend on the model's mean is the constant of the equation."""
    v, w = torch.tensor(0.3), torch.tensor(0.5)
    means = torch.linspace(-2, 2, 9)
    rest = gaussian.kl(torch.tensor(0.4), v, means, w) - (0.4 - means) ** 2 / (2 * w)
    assert float(rest.max() - rest.min()) < 1e-6
    assert float(rest.abs().min()) > 0.01
    wrong = gaussian.kl(torch.tensor(0.4), v, means, w) - (0.4 - means) ** 2 / (2 * v)
    assert float(wrong.max() - wrong.min()) > 0.1


# Three ways to write the mean.


@pytest.mark.equation("eq-v-rotation")
def test_v_is_a_rotation() -> None:
    diffusion = GaussianDiffusion(linear_schedule(T=1000))
    generator = torch.Generator().manual_seed(0)
    clean, noise = (
        torch.randn(1000, 2, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    t = torch.arange(1, 1001)
    noisy, v = diffusion.q_sample(clean, t, noise), diffusion.velocity(clean, t, noise)
    angle = diffusion.schedule.alpha_bar[t].sqrt().arccos()
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    torch.testing.assert_close(c * clean + s * noise, noisy)
    torch.testing.assert_close(-s * clean + c * noise, v)
    torch.testing.assert_close(diffusion.predict_x_0_from_v(noisy, t, v), clean)
    torch.testing.assert_close(diffusion.predict_eps_from_v(noisy, t, v), noise)
    assert (c * noisy + s * v - clean).abs().max() > 0.1  # rotated the wrong way


@pytest.mark.equation("eq-mean-three-ways")
def test_mean_in_three_ways() -> None:
    mean = symbolic.posterior().mean
    weight_t = sp.sqrt(alpha) * (1 - alpha_bar_s) / (1 - ABAR_T)
    assert same(mean, WEIGHT_0 * x_0 + weight_t * x_t)
    assert same(mean.subs(x_0, X_0_FROM_EPS), x_t / sp.sqrt(alpha) - WEIGHT_EPS * eps)
    assert same(mean.subs(x_0, X_0_FROM_V), sp.sqrt(alpha) * x_t - WEIGHT_V * V)
    assert not same(
        mean.subs(x_0, X_0_FROM_EPS), x_t / sp.sqrt(alpha) - BETA / (1 - alpha) * eps
    )
    assert not same(mean.subs(x_0, X_0_FROM_V), x_t / sp.sqrt(alpha) - WEIGHT_V * V)


@pytest.mark.equation("eq-mean-error")
def test_error_of_the_mean_in_three_ways() -> None:
    mean = symbolic.posterior().mean
    for symbol, inserted, weight in [
        (x_0, x_0, WEIGHT_0),
        (eps, X_0_FROM_EPS, -WEIGHT_EPS),
        (V, X_0_FROM_V, -WEIGHT_V),
    ]:
        target = mean.subs(x_0, inserted)
        error = target - target.subs(symbol, GUESS)
        assert same(error, weight * (symbol - GUESS))
        assert not same(error, sp.sqrt(alpha) * weight * (symbol - GUESS))


@pytest.mark.equation("eq-error-exchange")
def test_errors_exchange_at_the_signal_to_noise_ratio() -> None:
    diffusion = GaussianDiffusion(cosine_schedule(T=50))
    t = torch.arange(1, 51)
    generator = torch.Generator().manual_seed(0)
    clean, noise, guess = (
        torch.randn(50, 1, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    noisy = diffusion.q_sample(clean, t, noise)
    alpha_bar = diffusion.schedule.alpha_bar[t][:, None]
    of_eps = (noise - guess) ** 2
    of_x_0 = (clean - diffusion.predict_x_0(noisy, t, guess)) ** 2
    v_guess = diffusion.velocity(diffusion.predict_x_0(noisy, t, guess), t, guess)
    of_v = (diffusion.velocity(clean, t, noise) - v_guess) ** 2
    snr = diffusion.schedule.snr[t][:, None]
    torch.testing.assert_close(of_eps, snr * of_x_0, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(of_eps, alpha_bar * of_v, rtol=1e-7, atol=1e-9)
    assert (of_x_0 / (snr * of_eps) - 1).abs().max() > 0.1  # upside down
    assert (of_eps / (alpha_bar.sqrt() * of_v) - 1).abs().max() > 0.1


# The weight.

WEIGHT = BETA**2 / (2 * SIGMA**2 * alpha * (1 - ABAR_T))
POSTERIOR_VARIANCE = (1 - alpha_bar_s) / (1 - ABAR_T) * BETA
WRONG_WEIGHTS = {
    "beta not squared": BETA / (2 * SIGMA**2 * alpha * (1 - ABAR_T)),
    "without alpha": BETA**2 / (2 * SIGMA**2 * (1 - ABAR_T)),
    "1 - alpha for 1 - alpha_bar": BETA**2 / (2 * SIGMA**2 * alpha * BETA),
    "root of 1 - alpha_bar": BETA**2 / (2 * SIGMA**2 * alpha * sp.sqrt(1 - ABAR_T)),
    "without the half": BETA**2 / (SIGMA**2 * alpha * (1 - ABAR_T)),
}


@pytest.mark.equation("eq-eps-weight")
def test_weight_of_the_eps_error() -> None:
    target = symbolic.posterior().mean.subs(x_0, X_0_FROM_EPS)
    term = (target - target.subs(eps, GUESS)) ** 2 / (2 * SIGMA**2)
    assert same(term, WEIGHT * (eps - GUESS) ** 2)
    for wrong in WRONG_WEIGHTS.values():
        assert not same(term, wrong * (eps - GUESS) ** 2)


@pytest.mark.equation("eq-eps-weight")
def test_weight_against_the_kl_of_the_package() -> None:
    """The KL of two posteriors, one with the true x_0, one with the x_0 that a wrong ε implies."""
    schedule = linear_schedule(T=1000)
    diffusion = GaussianDiffusion(schedule)
    t = torch.arange(2, 1001)
    generator = torch.Generator().manual_seed(0)
    clean, noise, guess = (
        torch.randn(999, dtype=torch.float64, generator=generator) for _ in range(3)
    )
    noisy = diffusion.q_sample(clean, t, noise)
    mean, variance = diffusion.q_posterior(clean, noisy, t)
    model_mean, _ = diffusion.q_posterior(
        diffusion.predict_x_0(noisy, t, guess), noisy, t
    )
    kl = gaussian.kl(mean, variance, model_mean, variance)
    beta, alpha_bar = schedule.beta[t], schedule.alpha_bar[t]
    weight = beta**2 / (2 * variance * schedule.alpha[t] * (1 - alpha_bar))
    torch.testing.assert_close(kl, weight * (noise - guess) ** 2, rtol=1e-6, atol=1e-9)
    wrong = beta / (2 * variance * schedule.alpha[t] * (1 - alpha_bar))
    assert (kl / (wrong * (noise - guess) ** 2)).max() < 0.5


@pytest.mark.equation("eq-eps-weight-snr")
def test_weight_with_the_posterior_variance() -> None:
    weight = WEIGHT.subs(SIGMA, sp.sqrt(POSTERIOR_VARIANCE))
    snr_s, snr_t = alpha_bar_s / (1 - alpha_bar_s), ABAR_T / (1 - ABAR_T)
    assert same(weight, BETA / (2 * alpha * (1 - alpha_bar_s)))
    assert same(weight, (snr_s / snr_t - 1) / 2)
    assert same(weight * snr_t, (snr_s - snr_t) / 2)  # the form for x_0
    assert not same(weight, (snr_s - snr_t) / 2)
    assert not same(weight, BETA / (2 * alpha * (1 - ABAR_T)))


# L_simple.


@pytest.mark.equation("eq-simple-loss")
def test_simple_loss_of_a_linear_model_is_the_expectation() -> None:
    """Data a single point c, ε_θ = a x_t: exact. 400,000 draws, 6 standard errors (false alarm 2e-9)."""
    schedule = NoiseSchedule([0.1, 0.3, 0.5, 0.9, 0.999])
    alpha_bar = schedule.alpha_bar.numpy()
    c, a = 1.5, 0.4

    def expected(signal: np.ndarray, noise: np.ndarray) -> float:
        """The mean over t of E(ε - a (signal c + noise ε))²."""
        return float(((1 - a * noise) ** 2 + (a * signal * c) ** 2).mean())

    now = alpha_bar[1:]
    right = expected(now**0.5, (1 - now) ** 0.5)
    loss = float(
        simple_loss(
            lambda x_t, t: a * x_t,
            GaussianDiffusion(schedule),
            torch.full((400_000, 1), c, dtype=torch.float64),
            torch.Generator().manual_seed(0),
        )
    )
    error = 6 * 3 / 400_000**0.5  # the squared error has a standard deviation below 3
    assert loss == pytest.approx(right, abs=error)
    before = alpha_bar[:-1]  # t from 0 to T - 1
    for wrong in (
        expected(before**0.5, (1 - before) ** 0.5),
        expected(now, (1 - now) ** 0.5),
        expected(now**0.5, 1 - now),
        expected(now**0.5, (1 - now) ** 0.5) * 5,  # a sum over t
    ):
        assert loss != pytest.approx(wrong, abs=error)


# The minimiser.

SCHEDULE = linear_schedule(T=50)
WEIGHTS, MEANS = np.array([0.3, 0.7]), np.array([-1.2, 0.8])
VARIANCES = np.array([0.04, 0.3])


def exact_mixture() -> ExactEps:
    return ExactEps(
        SCHEDULE,
        torch.tensor(MEANS)[:, None],
        torch.tensor(VARIANCES)[:, None, None],
        torch.tensor(WEIGHTS),
    )


def data_density(x: float) -> float:
    return float(WEIGHTS @ stats.norm.pdf(x, MEANS, np.sqrt(VARIANCES)))


def by_integration(function, x: float, t: int) -> float:
    """E[function(x_0) | x_t = x], by scipy's quadrature over x_0."""
    alpha_bar = float(SCHEDULE.alpha_bar[t])

    def joint(clean: float) -> float:
        return data_density(clean) * stats.norm.pdf(
            x, alpha_bar**0.5 * clean, (1 - alpha_bar) ** 0.5
        )

    centre = x / alpha_bar**0.5
    points = sorted({-1.2, 0.8, min(max(centre, -7.9), 7.9)})
    options = {"points": points, "epsabs": 1e-13, "limit": 400}
    upper, _ = integrate.quad(lambda z: function(z) * joint(z), -8, 8, **options)
    lower, _ = integrate.quad(joint, -8, 8, **options)
    return upper / lower


@pytest.mark.equation("eq-optimal-eps")
@pytest.mark.parametrize("t", [2, 10, 25, 50])
def test_optimal_eps_by_integration_over_the_data(t: int) -> None:
    alpha_bar = float(SCHEDULE.alpha_bar[t])
    exact = exact_mixture()
    for x in (-1.5, -0.2, 0.0, 0.9, 2.0):
        right = by_integration(
            lambda clean: (x - alpha_bar**0.5 * clean) / (1 - alpha_bar) ** 0.5,  # noqa: B023
            x,
            t,
        )
        model = exact(torch.tensor([[x]], dtype=torch.float64), t).item()
        assert model == pytest.approx(right, abs=1e-7)
    if t == 50:
        return  # no two answers differ there
    nearest = MEANS[np.abs(alpha_bar**0.5 * MEANS - 0.0).argmin()]  # not the average
    wrong = (0.0 - alpha_bar**0.5 * nearest) / (1 - alpha_bar) ** 0.5
    at_zero = exact(torch.zeros(1, 1, dtype=torch.float64), t).item()
    assert at_zero != pytest.approx(wrong, abs=0.01)


def quadrature(t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes x_t and ε with weights, for the two-valued data ±1 with probabilities 0.3 and 0.7."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    alpha_bar = float(SCHEDULE.alpha_bar[t])
    x = np.concatenate(
        [alpha_bar**0.5 * z + (1 - alpha_bar) ** 0.5 * nodes for z in (-1, 1)]
    )
    return x, np.tile(nodes, 2), np.concatenate([0.3 * weights, 0.7 * weights])


@pytest.mark.equation("eq-loss-split", "eq-optimal-eps")
@pytest.mark.parametrize("t", [5, 10, 20])
def test_loss_splits_into_a_floor_and_an_excess(t: int) -> None:
    """Gauss-Hermite quadrature over (x_0, ε), for the exact model and several others."""
    x, noise, weight = quadrature(t)
    exact = ExactEps(
        SCHEDULE, torch.tensor([[-1.0], [1.0]]), None, torch.tensor([0.3, 0.7])
    )
    best = exact(torch.tensor(x)[:, None], t)[:, 0].numpy()
    floor = weight @ (noise - best) ** 2
    scale = float(1 - SCHEDULE.alpha_bar[t]) ** 0.5
    for model in (np.zeros_like(x), scale * x, np.tanh(x), best + 0.3 * np.sin(3 * x)):
        loss, excess = weight @ (noise - model) ** 2, weight @ (best - model) ** 2
        assert loss == pytest.approx(floor + excess, abs=1e-6)
        assert loss > floor + 1e-4
        assert abs(weight @ ((noise - best) * (best - model))) < 1e-6
    # With another centre, what is right for normal data, the cross term does not vanish.
    wrong = scale * x
    model = np.tanh(3 * x)
    assert abs(weight @ ((noise - wrong) * (wrong - model))) > 1e-3
    # The floor is what is left of the noise's variance, not 0.
    assert floor == pytest.approx(1 - weight @ best**2, abs=1e-6)
    assert floor > 0.01


# The score.


def log_density_of_x_t(t: int) -> torch.distributions.Distribution:
    """The law of x_t as torch.distributions builds it."""
    alpha_bar = SCHEDULE.alpha_bar[t]
    variance = alpha_bar * torch.tensor(VARIANCES) + 1 - alpha_bar
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor(WEIGHTS)),
        torch.distributions.Normal(
            alpha_bar.sqrt() * torch.tensor(MEANS), variance.sqrt()
        ),
    )


@pytest.mark.equation("eq-score-conditional")
def test_score_of_the_noise() -> None:
    marginal = symbolic.log_density(x_t, sp.sqrt(ABAR_T) * x_0, 1 - ABAR_T)
    noise = (x_t - sp.sqrt(ABAR_T) * x_0) / sp.sqrt(1 - ABAR_T)
    score = sp.diff(marginal, x_t)
    assert same(score, -noise / sp.sqrt(1 - ABAR_T))
    assert not same(score, noise / sp.sqrt(1 - ABAR_T))
    assert not same(score, -noise / (1 - ABAR_T))
    assert not same(score, -noise)


@pytest.mark.equation("eq-score-average", "eq-tweedie")
@pytest.mark.parametrize("t", [2, 10, 25, 50])
def test_score_is_the_optimal_eps(t: int) -> None:
    """Autograd through torch.distributions, against quadrature over x_0 and against ExactEps."""
    alpha_bar = float(SCHEDULE.alpha_bar[t])
    x = torch.tensor([-1.5, -0.2, 0.0, 0.9, 2.0], dtype=torch.float64)
    x.requires_grad_()
    (score,) = torch.autograd.grad(log_density_of_x_t(t).log_prob(x).sum(), x)
    optimal = exact_mixture()(x.detach()[:, None], t)[:, 0]
    torch.testing.assert_close(score, -optimal / (1 - alpha_bar) ** 0.5)
    for i, value in enumerate(x.tolist()):
        average = by_integration(
            lambda clean: -(value - alpha_bar**0.5 * clean) / (1 - alpha_bar),  # noqa: B023
            value,
            t,
        )
        assert average == pytest.approx(float(score[i]), abs=1e-6)
    if t < 50:
        for wrong in (optimal, -optimal, -optimal / (1 - alpha_bar)):
            assert (score - wrong).abs().max() > 0.01


@pytest.mark.equation("eq-tweedie-x0")
@pytest.mark.parametrize("t", [2, 10, 25])
def test_tweedie_for_the_clean_data(t: int) -> None:
    alpha_bar = float(SCHEDULE.alpha_bar[t])
    for value in (-1.5, 0.0, 0.9):
        x = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        (score,) = torch.autograd.grad(log_density_of_x_t(t).log_prob(x).sum(), x)
        right = by_integration(lambda clean: clean, value, t)
        formula = (value + (1 - alpha_bar) * float(score)) / alpha_bar**0.5
        assert formula == pytest.approx(right, abs=1e-6)
        without_variance = (value + float(score)) / alpha_bar**0.5
        assert without_variance != pytest.approx(right, abs=1e-3)


# What goes wrong.


@pytest.mark.equation("eq-last-noise")
def test_share_of_the_last_noise() -> None:
    """The law of the last noise z, given the whole noise ε, by completing the square."""
    z = sp.Symbol("z", real=True)
    earlier = (sp.sqrt(1 - ABAR_T) * eps - sp.sqrt(BETA) * z) / sp.sqrt(
        alpha * (1 - alpha_bar_s)
    )
    law = symbolic.complete_the_square(-(z**2) / 2 - earlier**2 / 2, z)
    assert same(law.mean, sp.sqrt(BETA) / sp.sqrt(1 - ABAR_T) * eps)
    assert not same(law.mean, eps)  # "invert one forward step"
    assert not same(law.mean, BETA / (1 - ABAR_T) * eps)
    inverted = (x_t - sp.sqrt(BETA) * law.mean) / sp.sqrt(alpha)
    assert same(inverted, symbolic.posterior_mean_from_eps())


@pytest.mark.equation("eq-invert-step-ratio")
def test_inverting_one_step_removes_too_much() -> None:
    schedule = linear_schedule(T=1000)
    diffusion = GaussianDiffusion(schedule)
    t = torch.arange(1, 1001)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (
        torch.randn(1000, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    noisy = diffusion.q_sample(clean, t, noise)
    mean, _ = diffusion.q_posterior(clean, noisy, t)
    alpha_t, beta = schedule.alpha[t], schedule.beta[t]
    inverted = (noisy - beta.sqrt() * noise) / alpha_t.sqrt()
    removed = noisy / alpha_t.sqrt() - inverted
    right = noisy / alpha_t.sqrt() - mean
    ratio = ((1 - schedule.alpha_bar[t]) / beta).sqrt()
    torch.testing.assert_close(removed / right, ratio, rtol=1e-6, atol=1e-9)
    assert float(ratio[0]) == pytest.approx(1)
    assert 10 < float(ratio.max()) < 10.1
    assert (removed / right - ratio**2).abs().max() > 1


def test_the_samples_of_the_inverted_step_are_far_too_narrow() -> None:
    """For N(0, 1) data both samplers are linear, so the variance of the samples is known exactly."""
    schedule = linear_schedule(T=1000)
    variances = {"right": 1.0, "inverted": 1.0}
    for t in range(1000, 0, -1):
        beta, a_t = float(schedule.beta[t]), float(schedule.alpha[t])
        noise = (1 - float(schedule.alpha_bar[t])) ** 0.5
        for name, weight in (("right", beta / noise), ("inverted", beta**0.5)):
            slope = (1 - weight * noise) / a_t**0.5
            variances[name] = slope**2 * variances[name] + (beta if t > 1 else 0)
    assert variances["right"] == pytest.approx(1, abs=1e-3)
    assert variances["inverted"] < 0.2


def test_a_loss_between_x_T_and_noise_does_not_reach_the_network() -> None:
    diffusion = GaussianDiffusion(linear_schedule(T=50))
    network, clean = MLP(width=8), torch.randn(16, 2)
    *_, x_T = diffusion.q_chain(clean)
    loss = ((x_T - torch.randn(16, 2)) ** 2).mean()
    assert not loss.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()
    simple_loss(network, diffusion, clean).backward()
    assert sum(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_the_eps_form_and_the_sampler_take_the_same_step() -> None:
    """Line 4 of algorithm 2 as the paper has it, against ``ancestral``, for every t."""
    schedule = linear_schedule(T=50)
    diffusion = GaussianDiffusion(schedule)
    exact = ExactEps(schedule, torch.tensor([[-1.0], [1.0]]))
    x_T = torch.randn(
        5, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    by_package = ancestral(
        exact, diffusion, x_T, generator=torch.Generator().manual_seed(1)
    )
    generator, x = torch.Generator().manual_seed(1), x_T
    for state in by_package:
        torch.testing.assert_close(state.x_t, x, rtol=1e-7, atol=1e-9)
        if (t := state.t) == 0:
            break
        predicted = exact(x, torch.full((5,), t))
        weight = schedule.beta[t] / (1 - schedule.alpha_bar[t]).sqrt()
        mean = (x - weight * predicted) / schedule.alpha[t].sqrt()
        share = (1 - schedule.alpha_bar[t - 1]) / (1 - schedule.alpha_bar[t])
        x = mean
        if t > 1:
            z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
            x = mean + (share * schedule.beta[t]).sqrt() * z
