"""The equations of chapter 10. The samplers themselves are held against diffusers in test_sampler.py."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import sympy as sp
import torch
from scipy import stats
from scipy.integrate import quad, solve_ivp

from ddpm_lite import (
    ExactEps,
    GaussianDiffusion,
    ancestral,
    cosine_schedule,
    ddim,
    linear_schedule,
    symbolic,
)
from ddpm_lite.sampler import dpm_solver
from ddpm_lite.symbolic import alpha, alpha_bar_s, eps, x_0, x_t

SCHEDULE = linear_schedule(T=1000)
DIFFUSION = GaussianDiffusion(SCHEDULE)
ABAR = SCHEDULE.alpha_bar.numpy()
ABAR_T = alpha * alpha_bar_s
SIGMA = sp.Symbol("sigma", positive=True)
TILDE_BETA = (1 - alpha_bar_s) / (1 - ABAR_T) * (1 - alpha)
OLD_NOISE = (x_t - sp.sqrt(ABAR_T) * x_0) / sp.sqrt(1 - ABAR_T)
TIMES = [1000, 800, 500, 333, 100, 20, 3, 0]

WEIGHTS, MEANS, VARIANCES = (
    np.array([0.3, 0.7]),
    np.array([1.5, -0.5]),
    np.array([0.04, 0.25]),
)


def same(left: sp.Expr, right: sp.Expr) -> bool:
    return sp.simplify(left - right) == 0


def wavy_eps(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x) + 0.3 * (t.view(-1, 1) / 500).cos().to(x)


def start(shape: tuple[int, ...] = (5, 3), seed: int = 0) -> torch.Tensor:
    return torch.randn(
        shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def last(states) -> torch.Tensor:
    *_, state = states
    return state.x_t


def drawn(sampler, model, option: str | float) -> torch.Tensor:
    """Where a sampler of the package ends, with the noise of the formulas below."""
    noise = torch.Generator().manual_seed(7)
    return last(sampler(model, DIFFUSION, start(), TIMES, option, generator=noise))


def weights_of_the_step(t: int, s: int) -> tuple[float, float, float, float]:
    """w_0, w_t, the posterior's variance and the jump's, from the ᾱ alone."""
    now, before = ABAR[t], ABAR[s]
    jump = now / before
    w_0 = before**0.5 * (1 - jump) / (1 - now)
    w_t = jump**0.5 * (1 - before) / (1 - now)
    return w_0, w_t, (1 - before) / (1 - now) * (1 - jump), 1 - jump


# Algorithm 2 and its variance.


@pytest.mark.equation("eq-sample-step", "eq-sample-learned")
@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_a_walk_by_the_formula_is_the_walk_of_the_package(variance: str) -> None:
    def v_of(x: torch.Tensor) -> torch.Tensor:
        return torch.cos(4 * x)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (
            torch.cat([wavy_eps(x, t), v_of(x)], 1)
            if variance == "learned"
            else wavy_eps(x, t)
        )

    def by_formula(
        swap: bool = False, noise_at_the_end: bool = False, fraction: bool = True
    ) -> torch.Tensor:
        generator, x = torch.Generator().manual_seed(7), start()
        for t, s in pairwise(TIMES):
            noise = wavy_eps(x, torch.full((5,), t))
            guess = (x - (1 - ABAR[t]) ** 0.5 * noise) / ABAR[t] ** 0.5
            w_0, w_t, small, large = weights_of_the_step(t, s)
            f = (v_of(x) + 1) / 2 if fraction else v_of(x)
            sigma2 = {
                "posterior": small,
                "beta": large,
                "learned": large**f * small ** (1 - f),
            }[variance]
            if swap:
                sigma2 = {
                    "posterior": large,
                    "beta": small,
                    "learned": f * large + (1 - f) * small,
                }[variance]
            x = w_0 * guess + w_t * x
            if s > 0 or noise_at_the_end:
                x = x + sigma2**0.5 * torch.randn(
                    x.shape, dtype=x.dtype, generator=generator
                )
        return x

    ours = drawn(ancestral, network, variance)
    assert torch.allclose(ours, by_formula(), rtol=1e-8, atol=1e-8)
    assert not torch.allclose(ours, by_formula(swap=True), rtol=1e-3)
    if variance == "beta":  # the posterior's variance is 0 there
        assert not torch.allclose(ours, by_formula(noise_at_the_end=True), rtol=1e-6)
    if variance == "learned":  # v itself for the fraction
        assert not torch.allclose(ours, by_formula(fraction=False), rtol=1e-3)


@pytest.mark.equation("eq-sample-variance")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_variance_of_the_samples_in_closed_form(variance: str) -> None:
    """200,000 samples; a variance has the relative standard error √(2/n) = 0.3 %, and we allow five of them."""
    n, c, times = 200_000, 0.3, SCHEDULE.times(8)
    network = ExactEps(SCHEDULE, torch.zeros(1, 1), torch.full((1, 1, 1), c))
    generator = torch.Generator().manual_seed(1)
    samples = last(
        ancestral(
            network, DIFFUSION, start((n, 1)), times, variance, generator=generator
        )
    )

    def by_formula(root: float = 0.5, cross: bool = True) -> float:
        v = 1.0
        for t, s in pairwise(times):
            g = c * ABAR[t] ** root / (c * ABAR[t] + 1 - ABAR[t])
            w_0, w_t, small, large = weights_of_the_step(t, s)
            slope2 = (w_0 * g + w_t) ** 2 if cross else (w_0 * g) ** 2 + w_t**2
            v = slope2 * v + (
                0 if s == 0 else small if variance == "posterior" else large
            )
        return v

    measured = samples.var().item()
    tolerance = 5 * (2 / n) ** 0.5
    assert measured == pytest.approx(by_formula(), rel=tolerance)
    assert measured != pytest.approx(by_formula(root=1), rel=tolerance)
    assert measured != pytest.approx(by_formula(cross=False), rel=tolerance)


# Which times.


@pytest.mark.equation("eq-sample-times")
@pytest.mark.parametrize("steps", [1, 3, 7, 10, 50, 600, 1000])
def test_times(steps: int) -> None:
    trailing = [int(np.floor(1000 * i / steps + 0.5)) for i in range(steps, -1, -1)]
    leading = [1 + (i - 1) * (1000 // steps) for i in range(steps, 0, -1)] + [0]
    assert SCHEDULE.times(steps) == trailing
    assert SCHEDULE.times(steps, "leading") == leading
    assert trailing[0] == 1000
    assert (leading[0] == 1000) == (steps == 1000)


@pytest.mark.equation("eq-sample-leading")
@pytest.mark.parametrize(
    "schedule", [linear_schedule(), cosine_schedule()], ids=["linear", "cosine"]
)
def test_mean_that_a_late_start_misses(schedule) -> None:
    """DDIM in single steps from pure noise at τ; its walk is affine, so that the mean is the end of the walk from 0."""
    m, c = -0.7, 0.6
    network = ExactEps(schedule, torch.tensor([[m]]), torch.tensor([[[c]]]))
    for tau in (400, 600):
        a = schedule.alpha_bar[tau].item()
        zero = torch.zeros(1, 1, dtype=torch.float64)
        mean = last(
            ddim(network, GaussianDiffusion(schedule), zero, [*range(tau, 0, -1), 0])
        ).item()
        share = c * a / (c * a + 1 - a)
        assert mean == pytest.approx(m * (1 - share**0.5), abs=4e-3)
        assert mean != pytest.approx(m * (1 - share), abs=2e-2), (
            "that of a walk with noise"
        )
        assert mean != pytest.approx(m, abs=2e-2)


# The family of DDIM.


@pytest.mark.equation("eq-sample-insert", "eq-sample-conditions", "eq-sample-ddim")
def test_the_family_has_the_marginals_of_the_forward_process() -> None:
    """Coefficients by sympy, from the general linear rule; and the integral over x_t by scipy."""
    a, b, z = sp.symbols("a b z", real=True)
    noisy = sp.sqrt(ABAR_T) * x_0 + sp.sqrt(1 - ABAR_T) * eps
    rule = sp.expand(a * x_0 + b * noisy + SIGMA * z)
    mean, variance = rule.coeff(x_0), rule.coeff(eps) ** 2 + rule.coeff(z) ** 2
    assert same(mean, a + b * sp.sqrt(ABAR_T))
    assert same(variance, b**2 * (1 - ABAR_T) + SIGMA**2)
    solutions = sp.solve(
        [mean - sp.sqrt(alpha_bar_s), variance - (1 - alpha_bar_s)], [a, b], dict=True
    )
    ours = sp.expand(
        sp.sqrt(alpha_bar_s) * x_0 + sp.sqrt(1 - alpha_bar_s - SIGMA**2) * OLD_NOISE
    )
    point = {
        alpha: sp.Rational(2, 3),
        alpha_bar_s: sp.Rational(1, 2),
        SIGMA: sp.Rational(1, 3),
    }
    found = [
        max(
            abs((s[a] - ours.coeff(x_0)).subs(point).evalf(30)),
            abs((s[b] - ours.coeff(x_t)).subs(point).evalf(30)),
        )
        for s in solutions
    ]
    assert min(found) < 1e-25
    assert max(found) > 1e-3  # the negative root
    assert same(
        ours.coeff(x_0) + ours.coeff(x_t) * sp.sqrt(ABAR_T), sp.sqrt(alpha_bar_s)
    )
    assert same(ours.coeff(x_t) ** 2 * (1 - ABAR_T) + SIGMA**2, 1 - alpha_bar_s)

    now, before, clean, sigma = 0.3, 0.7, 0.8, 0.35

    def marginal(x: float, kept: float) -> float:
        def integrand(later: float) -> float:
            old = (later - now**0.5 * clean) / (1 - now) ** 0.5
            step = stats.norm.pdf(x, before**0.5 * clean + kept * old, sigma)
            return step * stats.norm.pdf(later, now**0.5 * clean, (1 - now) ** 0.5)

        return quad(integrand, -8, 8, epsabs=1e-12, limit=200)[0]

    for x in (-0.4, 0.5, 1.3):
        right = stats.norm.pdf(x, before**0.5 * clean, (1 - before) ** 0.5)
        assert marginal(x, (1 - before - sigma**2) ** 0.5) == pytest.approx(
            right, abs=1e-9
        )
        assert marginal(x, (1 - before) ** 0.5) != pytest.approx(right, abs=1e-3), (
            "all old noise, and new"
        )


@pytest.mark.equation("eq-sample-eta")
def test_eta_1_is_the_posterior() -> None:
    posterior = symbolic.posterior()
    assert same(posterior.variance, TILDE_BETA)
    kept = 1 - alpha_bar_s - TILDE_BETA
    assert same(kept, alpha * (1 - alpha_bar_s) ** 2 / (1 - ABAR_T))
    assert not same(kept, alpha * (1 - alpha_bar_s) ** 2 / (1 - ABAR_T) ** 2)
    root = sp.sqrt(alpha) * (1 - alpha_bar_s) / sp.sqrt(1 - ABAR_T)
    assert same(sp.sqrt(alpha_bar_s) * x_0 + root * OLD_NOISE, posterior.mean)
    smaller = 1 - alpha_bar_s - TILDE_BETA / 4  # η = 1/2
    assert not same(smaller, root**2)


@pytest.mark.equation("eq-sample-ddim-step")
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_by_the_formula(eta: float) -> None:
    def by_formula(share: bool = True) -> torch.Tensor:
        generator, x = torch.Generator().manual_seed(7), start()
        for t, s in pairwise(TIMES):
            noise = wavy_eps(x, torch.full((5,), t))
            guess = (x - (1 - ABAR[t]) ** 0.5 * noise) / ABAR[t] ** 0.5
            sigma = eta * weights_of_the_step(t, s)[2] ** 0.5
            x = (
                ABAR[s] ** 0.5 * guess
                + max(1 - ABAR[s] - share * sigma**2, 0) ** 0.5 * noise
            )
            if sigma > 0:
                x = x + sigma * torch.randn(x.shape, dtype=x.dtype, generator=generator)
        return x

    ours = drawn(ddim, wavy_eps, eta)
    assert torch.allclose(ours, by_formula(), rtol=1e-8, atol=1e-8)
    assert torch.allclose(ours, by_formula(share=False), rtol=1e-3) == (eta == 0), (
        "all old noise, and new"
    )


@pytest.mark.equation("eq-sample-family-kl")
def test_kl_of_two_members_is_a_weighted_error_of_x_0() -> None:
    """The KL of two normal laws by its integral, with x_0 and with a guess in its place."""
    guess, x = sp.symbols("guess x", real=True)

    def mean(clean: sp.Expr) -> sp.Expr:
        old = (x_t - sp.sqrt(ABAR_T) * clean) / sp.sqrt(1 - ABAR_T)
        return sp.sqrt(alpha_bar_s) * clean + sp.sqrt(1 - alpha_bar_s - SIGMA**2) * old

    m, k = sp.symbols("m k", real=True)
    density = sp.exp(-((x - m) ** 2) / (2 * SIGMA**2)) / sp.sqrt(2 * sp.pi * SIGMA**2)
    log_ratio = ((x - k) ** 2 - (x - m) ** 2) / (2 * SIGMA**2)
    shifted = sp.expand((density * log_ratio).subs(x, m + x))
    kl = sp.simplify(sp.integrate(shifted, (x, -sp.oo, sp.oo))).subs(
        {m: mean(x_0), k: mean(guess)}
    )
    kept = sp.sqrt((1 - alpha_bar_s - SIGMA**2) / (1 - ABAR_T))
    point = {
        alpha: sp.Rational(2, 3),
        alpha_bar_s: sp.Rational(1, 2),
        SIGMA: sp.Rational(1, 3),
    }
    point |= {
        x_0: sp.Rational(4, 5),
        guess: sp.Rational(-1, 4),
        x_t: sp.Rational(7, 10),
    }
    right = (
        (sp.sqrt(alpha_bar_s) - sp.sqrt(ABAR_T) * kept) ** 2
        / (2 * SIGMA**2)
        * (x_0 - guess) ** 2
    )
    wrong = (
        (sp.sqrt(alpha_bar_s) + sp.sqrt(ABAR_T) * kept) ** 2
        / (2 * SIGMA**2)
        * (x_0 - guess) ** 2
    )
    assert abs((kl - right).subs(point).evalf(30)) < 1e-25
    assert abs((kl - wrong).subs(point).evalf(30)) > 1e-3
    assert same(sp.diff(kl, x_t), 0)


# The flow.

K_T, K_S = sp.symbols("kappa_t kappa_s", positive=True)


def amplitudes(kappa: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """√ᾱ and √(1 - ᾱ) where the noise level is kappa."""
    return 1 / sp.sqrt(1 + kappa**2), kappa / sp.sqrt(1 + kappa**2)


@pytest.mark.equation("eq-sample-euler")
def test_ddim_without_noise_is_eulers_step() -> None:
    (fade_t, noise_t), (fade_s, noise_s) = amplitudes(K_T), amplitudes(K_S)
    guess = (x_t - noise_t * eps) / fade_t
    after = (fade_s * guess + noise_s * eps) / fade_s
    assert same(after, x_t / fade_t + (noise_s / fade_s - noise_t / fade_t) * eps)
    assert not same(after, x_t / fade_t + (noise_s - noise_t) * eps)
    assert same(noise_s / fade_s, K_S)


def mixture_cdf(x: np.ndarray, a: float) -> np.ndarray:
    return (
        stats.norm.cdf(x[:, None], a**0.5 * MEANS, (a * VARIANCES + 1 - a) ** 0.5)
        @ WEIGHTS
    )


def ode_in_kappa(x_T: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """x_1 by scipy from dy/dκ = factor · E[ε | y], the expectation by Bayes' rule over the components."""
    kappa_T, kappa_1 = (((1 - ABAR[t]) / ABAR[t]) ** 0.5 for t in (1000, 1))

    def slope(kappa: float, y: np.ndarray) -> np.ndarray:
        var = VARIANCES + kappa**2
        r = WEIGHTS * stats.norm.pdf(y[:, None], MEANS, var**0.5)
        x_0_mean = MEANS + VARIANCES / var * (y[:, None] - MEANS)
        return factor * (y - (r * x_0_mean).sum(1) / r.sum(1)) / kappa

    solved = solve_ivp(
        slope,
        (kappa_T, kappa_1),
        x_T / ABAR[1000] ** 0.5,
        "DOP853",
        rtol=1e-9,
        atol=1e-9,
    )
    return solved.y[:, -1] * ABAR[1] ** 0.5


@pytest.mark.equation("eq-sample-ode", "eq-sample-quantile")
def test_ddim_follows_the_ode_which_maps_quantiles_to_quantiles() -> None:
    x_T = np.linspace(-2, 2, 9)
    end = ode_in_kappa(x_T)
    assert mixture_cdf(end, ABAR[1]) == pytest.approx(
        mixture_cdf(x_T, ABAR[1000]), abs=1e-6
    )
    half = ode_in_kappa(x_T, 0.9)  # another velocity: the flow of something else
    assert mixture_cdf(half, ABAR[1]) != pytest.approx(
        mixture_cdf(x_T, ABAR[1000]), abs=1e-2
    )
    network = ExactEps(
        SCHEDULE,
        torch.tensor(MEANS[:, None]),
        torch.tensor(VARIANCES[:, None, None]),
        torch.tensor(WEIGHTS),
    )
    errors = []
    for times in (
        [*range(1000, 0, -9), 0],
        [*range(1000, 0, -3), 0],
        [*range(1000, 0, -1), 0],
    ):
        states = ddim(network, DIFFUSION, torch.tensor(x_T[:, None]), times)
        (x_1,) = (state.x_t[:, 0].numpy() for state in states if state.t == 1)
        errors.append(np.abs(x_1 - end).max())
    assert errors[2] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(
        3, rel=0.3
    )  # first order: a third of the step, a third of the error
    assert errors[1] / errors[2] == pytest.approx(3, rel=0.3)


@pytest.mark.equation("eq-sample-heat", "eq-sample-continuity", "eq-sample-velocity")
def test_the_mean_noise_carries_the_blurred_density() -> None:
    y, w = sp.symbols("y w", real=True)

    def blurred(value: sp.Expr) -> sp.Expr:
        return sp.exp(-((y - value) ** 2) / (2 * K_T**2)) / (sp.sqrt(2 * sp.pi) * K_T)

    assert same(sp.diff(blurred(x_0), K_T), K_T * sp.diff(blurred(x_0), y, 2))
    assert not same(
        sp.diff(blurred(x_0), K_T), sp.diff(blurred(x_0), y, 2) / 2
    )  # the rate of a variance, not of κ
    p = w * blurred(-1) + (1 - w) * blurred(2)
    by_bayes = (
        (w * blurred(-1) * (y + 1) + (1 - w) * blurred(2) * (y - 2)) / K_T / p
    )  # E[ε | y]
    of_score = -K_T * sp.diff(sp.log(p), y)
    point = {y: sp.Rational(3, 7), w: sp.Rational(2, 5), K_T: sp.Rational(4, 5)}
    assert abs((by_bayes - of_score).subs(point).evalf(30)) < 1e-25
    assert abs((by_bayes + of_score).subs(point).evalf(30)) > 1e-3
    left = sp.diff(p, K_T)
    assert same(left, -sp.diff(sp.expand(p * by_bayes), y))
    assert abs((left + sp.diff(p * of_score, y)).subs(point).evalf(30)) < 1e-25
    assert abs((left + sp.diff(p * of_score / 2, y)).subs(point).evalf(30)) > 1e-3


@pytest.mark.equation("eq-sample-gauss-flow")
def test_flow_of_normal_data() -> None:
    """sympy solves the ODE with the velocity that the score of N(m, c + κ²) gives."""
    y, m = sp.symbols("y m", real=True)
    c = sp.Symbol("c", positive=True)
    path = sp.Function("path")
    velocity = -K_T * sp.diff(symbolic.log_density(y, m, c + K_T**2), y)
    equation = sp.Eq(path(K_T).diff(K_T), velocity.subs(y, path(K_T)))
    solution = sp.dsolve(equation, path(K_T)).rhs
    assert same(sp.diff((solution - m) / sp.sqrt(c + K_T**2), K_T), 0)
    assert not same(sp.diff((solution - m) / (c + K_T**2), K_T), 0)


# The solver.


@pytest.mark.equation("eq-sample-quotient", "eq-sample-exact")
def test_exact_solution() -> None:
    """The quotient rule along the ODE; then the integral along a true path, by scipy, against the end of that path."""
    y = sp.Function("y")(K_T)
    guess = sp.Symbol("guess", real=True)
    derived = sp.diff(y / K_T, K_T).subs(sp.diff(y, K_T), (y - guess) / K_T)
    assert same(derived, -guess / K_T**2)
    assert not same(derived, -guess / K_T)

    m, c, distance = (
        0.4,
        0.3,
        1.2,
    )  # normal data, and the distance from its mean in deviations, which stays

    def state(lam: float) -> tuple[float, float]:
        """x/√(1 - ᾱ), and E[x_0 | x], on the path."""
        a = 1 / (1 + np.exp(-2 * lam))
        var = c * a + 1 - a
        x = a**0.5 * m + distance * var**0.5
        return x / (1 - a) ** 0.5, m + c * a**0.5 / var * (x - a**0.5 * m)

    (first, _), (second, _) = state(-1.5), state(1.0)
    assert second == pytest.approx(
        first + quad(lambda v: np.exp(v) * state(v)[1], -1.5, 1.0)[0], abs=1e-9
    )
    assert second != pytest.approx(
        first + quad(lambda v: state(v)[1], -1.5, 1.0)[0], abs=1e-2
    )


@pytest.mark.equation("eq-sample-first-order")
def test_first_order_is_ddim() -> None:
    (fade_t, noise_t), (fade_s, noise_s) = amplitudes(K_T), amplitudes(K_S)
    guess = sp.Symbol("guess", real=True)
    of_ddim = fade_s * guess + noise_s * eps
    state = fade_t * guess + noise_t * eps
    minus_h = sp.log(K_S) - sp.log(K_T)  # λ_t - λ_s, as λ = -log κ
    assert same(
        noise_s / noise_t * state + fade_s * (1 - sp.exp(minus_h)) * guess, of_ddim
    )
    assert not same(
        noise_s / noise_t * state + fade_s * (sp.exp(-minus_h) - 1) * guess, of_ddim
    )
    assert not same(
        fade_s / fade_t * state + fade_s * (1 - sp.exp(minus_h)) * guess, of_ddim
    )


@pytest.mark.equation("eq-sample-line-integral")
def test_integral_of_the_line() -> None:
    h, now, l_t = sp.symbols("h lambda lambda_t", positive=True)
    integral = sp.integrate(sp.exp(now) * (now - l_t), (now, l_t, l_t + h))
    assert same(integral, sp.exp(l_t + h) * (h - 1 + sp.exp(-h)))
    factor = sp.simplify(integral / sp.exp(l_t + h))
    gap = sp.series(factor - (1 - sp.exp(-h)) * h / 2, h, 0, 4).removeO()
    assert same(gap, h**3 / 12)
    for wrong in ((1 - sp.exp(-h)) * h, (sp.exp(h) - 1) * h / 2):
        gap = sp.series(factor - wrong, h, 0, 4).removeO()
        assert not same(gap.coeff(h, 2), 0) or not same(
            gap.coeff(h, 3), sp.Rational(1, 12)
        )


@pytest.mark.equation("eq-sample-2m", "eq-sample-line")
def test_second_order_step_by_the_formula() -> None:
    lam = np.append(np.inf, np.log(ABAR[1:] / (1 - ABAR[1:])) / 2)

    def by_formula(kind: str = "right") -> torch.Tensor:
        x, before = start(), None
        for t, s in pairwise(TIMES):
            noise = wavy_eps(x, torch.full((5,), t))
            guess = D = (x - (1 - ABAR[t]) ** 0.5 * noise) / ABAR[t] ** 0.5
            h = lam[s] - lam[t]
            if before and s > 0:
                d = (guess - before[1]) / (
                    lam[t] - lam[before[0]]
                )  # the slope of the line
                D = guess + d * h / 2  # its value half-way
                r = {
                    "right": (lam[t] - lam[before[0]]) / h,
                    "r = 1": 1,
                    "times": (before[0] - t) / (t - s),
                }[kind]
                if kind == "right":
                    assert torch.allclose(D, guess + (guess - before[1]) / (2 * r))
                D = guess + (guess - before[1]) / (2 * r)
            x = ((1 - ABAR[s]) / (1 - ABAR[t])) ** 0.5 * x + ABAR[s] ** 0.5 * (
                1 - np.exp(-h)
            ) * D
            before = t, guess
        return x

    ours = last(dpm_solver(wavy_eps, DIFFUSION, start(), TIMES))
    assert torch.allclose(ours, by_formula(), rtol=1e-8, atol=1e-8)
    assert not torch.allclose(ours, by_formula("r = 1"), rtol=1e-3)
    assert not torch.allclose(ours, by_formula("times"), rtol=1e-3)


# Between two codes.


@pytest.mark.equation("eq-sample-lerp")
def test_variance_on_the_line() -> None:
    """From the moments of the standard normal law, by sympy's integrals."""
    a, b, u = sp.symbols("a b u", real=True)

    def expectation(expression: sp.Expr) -> sp.Expr:
        for symbol in (a, b):
            density = sp.exp(-(symbol**2) / 2) / sp.sqrt(2 * sp.pi)
            expression = sp.integrate(
                sp.expand(sp.expand(expression) * density), (symbol, -sp.oo, sp.oo)
            )
        return sp.simplify(expression)

    variance = expectation(((1 - u) * a + u * b) ** 2)
    assert same(variance, (1 - u) ** 2 + u**2)
    assert variance.subs(u, sp.Rational(1, 2)) == sp.Rational(1, 2)
    assert not same(variance, 1)


@pytest.mark.equation("eq-sample-slerp")
def test_the_sphere_keeps_the_length_and_divides_the_angle() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(64)
    b = rng.standard_normal(64)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    omega = np.arccos(a @ b / (a @ a))
    for u in (0.0, 0.2, 0.5, 0.9, 1.0):
        point = (np.sin((1 - u) * omega) * a + np.sin(u * omega) * b) / np.sin(omega)
        assert np.linalg.norm(point) == pytest.approx(np.linalg.norm(a), rel=1e-12)
        assert np.arccos(min(point @ a / (a @ a), 1)) == pytest.approx(
            u * omega, abs=1e-7
        )
    middle = (a + b) / 2
    assert np.linalg.norm(middle) < 0.85 * np.linalg.norm(a)
    halves = (np.sin(0.5) * a + np.sin(0.5) * b) / np.sin(
        1
    )  # an angle of 1 taken for granted
    assert np.linalg.norm(halves) != pytest.approx(np.linalg.norm(a), rel=0.02)
