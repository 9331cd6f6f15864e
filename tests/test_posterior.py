"""The equations of chapter 5, each by a route of its own, and the wrong versions that people have published.

The wrong versions: the index shifted by one (ᾱ_t for ᾱ_{t-1}, and the last entry for ᾱ_0), ᾱ without its square root,
and β_t/(1 - α_t) in place of β_t/√(1 - ᾱ_t) in the ε form.
"""

from __future__ import annotations

import numpy as np
import pytest
import sympy as sp
import torch

from ddpm_lite import GaussianDiffusion, cosine_schedule, linear_schedule, symbolic
from ddpm_lite.symbolic import alpha, alpha_bar_s, eps, x_0, x_s, x_t

ABAR_T = alpha * alpha_bar_s
BETA = 1 - alpha

MEAN = (
    sp.sqrt(alpha_bar_s) * BETA / (1 - ABAR_T) * x_0
    + sp.sqrt(alpha) * (1 - alpha_bar_s) / (1 - ABAR_T) * x_t
)
VARIANCE = (1 - alpha_bar_s) / (1 - ABAR_T) * BETA
MEAN_EPS = (x_t - BETA / sp.sqrt(1 - ABAR_T) * eps) / sp.sqrt(alpha)
NOISY = sp.sqrt(ABAR_T) * x_0 + sp.sqrt(1 - ABAR_T) * eps  # x_t

WRONG_MEANS = {
    "bar without root": alpha_bar_s * BETA / (1 - ABAR_T) * x_0
    + sp.sqrt(alpha) * (1 - alpha_bar_s) / (1 - ABAR_T) * x_t,
    "shifted by one": sp.sqrt(ABAR_T) * BETA / (1 - ABAR_T) * x_0
    + sp.sqrt(alpha) * x_t,
    "denominator of the step": sp.sqrt(alpha_bar_s) * x_0
    + sp.sqrt(alpha) * (1 - alpha_bar_s) / BETA * x_t,
}
WRONG_MEANS_EPS = {
    "beta / (1 - alpha)": (x_t - BETA / (1 - alpha) * eps) / sp.sqrt(alpha),
    "beta / sqrt(1 - beta)": (x_t - BETA / sp.sqrt(1 - BETA) * eps) / sp.sqrt(alpha),
    "beta / (1 - alpha_bar)": (x_t - BETA / (1 - ABAR_T) * eps) / sp.sqrt(alpha),
    "invert one forward step": (x_t - sp.sqrt(BETA) * eps) / sp.sqrt(alpha),
}
WRONG_VARIANCES = {
    "beta": BETA,
    "upside down": (1 - ABAR_T) / (1 - alpha_bar_s) * BETA,
    "with roots": sp.sqrt(VARIANCE),
}


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(left - right) == 0


def densities() -> tuple[sp.Expr, sp.Expr, sp.Expr]:
    """The logarithms of q(x_t | x_s), q(x_s | x_0) and q(x_t | x_0)."""
    return (
        symbolic.log_density(x_t, *symbolic.forward_step()),
        symbolic.log_density(x_s, *symbolic.forward_marginal()),
        symbolic.log_density(x_t, sp.sqrt(ABAR_T) * x_0, 1 - ABAR_T),
    )


# The forward process, as far as the chapter needs it.


@pytest.mark.equation("eq-recall-marginal")
def test_forward_marginal_by_induction() -> None:
    """√α x_s + √(1 - α) z, with x_s from the marginal at s, has the marginal's form at t."""
    z = sp.Symbol("z", real=True)
    after = sp.expand(
        sp.sqrt(alpha) * (sp.sqrt(alpha_bar_s) * x_0 + sp.sqrt(1 - alpha_bar_s) * eps)
        + sp.sqrt(BETA) * z
    )
    variance = (
        after.coeff(eps) ** 2 + after.coeff(z) ** 2
    )  # eps and z are independent with variance 1
    assert same(after.coeff(x_0), sp.sqrt(ABAR_T))
    assert same(variance, 1 - ABAR_T)
    assert not same(after.coeff(x_0), ABAR_T)  # ᾱ without its root
    assert not same(variance, sp.sqrt(1 - ABAR_T))


@pytest.mark.equation("eq-posterior-jump")
def test_jump_by_chain_of_steps() -> None:
    """The steps from s to t, taken one by one, against the ratio of the ᾱ."""
    schedule = cosine_schedule(T=30)
    diffusion = GaussianDiffusion(schedule)
    for s in range(30):
        scale, variance = 1.0, 0.0
        for t in range(s + 1, 31):
            scale *= float(1 - schedule.beta[t]) ** 0.5
            variance = float(1 - schedule.beta[t]) * variance + float(schedule.beta[t])
            ratio = float(schedule.alpha_bar[t] / schedule.alpha_bar[s])
            jump = diffusion.transition_variance(
                torch.zeros(1, dtype=torch.float64), t, s
            ).item()
            assert scale == pytest.approx(ratio**0.5, rel=1e-12)
            assert variance == pytest.approx(jump, rel=1e-11)
            if t > s + 1:  # the variances of the steps do not simply add
                assert variance < float(schedule.beta[s + 1 : t + 1].sum()) * (1 - 1e-6)


# The derivation.


@pytest.mark.equation("eq-posterior-product", "eq-posterior-log")
def test_product_of_densities_is_the_posterior_up_to_a_constant() -> None:
    step, marginal, _ = densities()
    difference = step + marginal - symbolic.log_density(x_s, MEAN, VARIANCE)
    assert same(sp.diff(difference, x_s), 0)
    by_hand = -((x_t - sp.sqrt(alpha) * x_s) ** 2) / (2 * BETA)
    by_hand -= (x_s - sp.sqrt(alpha_bar_s) * x_0) ** 2 / (2 * (1 - alpha_bar_s))
    assert same(sp.diff(by_hand - symbolic.log_density(x_s, MEAN, VARIANCE), x_s), 0)
    for wrong in WRONG_MEANS.values():
        assert not same(
            sp.diff(step + marginal - symbolic.log_density(x_s, wrong, VARIANCE), x_s),
            0,
        )
    for wrong in WRONG_VARIANCES.values():
        assert not same(
            sp.diff(step + marginal - symbolic.log_density(x_s, MEAN, wrong), x_s), 0
        )


@pytest.mark.equation("eq-posterior-bayes")
def test_bayes_rule_leaves_nothing_over() -> None:
    """step + marginal - evidence - posterior is 0, constants included, at rational points and to 40 digits."""
    step, marginal, evidence = densities()
    left_over = step + marginal - evidence - symbolic.log_density(x_s, MEAN, VARIANCE)
    wrong = step + marginal - evidence - symbolic.log_density(x_s, MEAN, BETA)
    without_denominator = step + marginal - symbolic.log_density(x_s, MEAN, VARIANCE)
    for a, b, values in [
        ("2/3", "1/5", (1, -2, "1/2")),
        ("99/100", "1/2", ("-1/3", 0, 4)),
        ("1/7", "9/10", (0, 1, 1)),
    ]:
        point = dict(
            zip((alpha, alpha_bar_s, x_0, x_s, x_t), map(sp.Rational, (a, b, *values)))
        )
        assert abs(left_over.subs(point).evalf(40)) < 1e-35
        assert abs(wrong.subs(point).evalf(40)) > 1e-3
        assert abs(without_denominator.subs(point).evalf(40)) > 1e-3
    for symbol in (x_0, x_s, x_t):  # and for all values of the states
        assert same(sp.diff(left_over, symbol), 0)


@pytest.mark.equation("eq-posterior-quadratic", "eq-posterior-precision")
def test_coefficients_of_the_quadratic() -> None:
    step, marginal, _ = densities()
    half_a, b, _ = sp.Poly(sp.expand(step + marginal), x_s).all_coeffs()
    assert same(-2 * half_a, alpha / BETA + 1 / (1 - alpha_bar_s))
    assert same(-2 * half_a, (1 - ABAR_T) / (BETA * (1 - alpha_bar_s)))
    assert same(
        b, sp.sqrt(alpha) / BETA * x_t + sp.sqrt(alpha_bar_s) / (1 - alpha_bar_s) * x_0
    )
    assert not same(
        -2 * half_a, 1 / BETA + 1 / (1 - alpha_bar_s)
    )  # the α of α/β forgotten
    assert not same(
        b, alpha / BETA * x_t + alpha_bar_s / (1 - alpha_bar_s) * x_0
    )  # the roots forgotten


@pytest.mark.equation("eq-posterior-witness")
def test_witnesses() -> None:
    """What x_t alone says of x_s; and the precision-weighted average of both statements is the mean."""
    of_state = symbolic.complete_the_square(densities()[0], x_s)
    assert same(of_state.mean, x_t / sp.sqrt(alpha))
    assert same(of_state.variance, BETA / alpha)
    assert not same(of_state.variance, BETA)
    of_start = symbolic.forward_marginal()
    precision = 1 / of_state.variance + 1 / of_start.variance
    average = (
        of_state.mean / of_state.variance + of_start.mean / of_start.variance
    ) / precision
    assert same(average, MEAN)
    assert same(1 / precision, VARIANCE)


@pytest.mark.equation("eq-complete-square")
def test_completing_the_square() -> None:
    a, b, x = sp.symbols("a b x", positive=True)
    assert same(a * (x - b / a) ** 2 - b**2 / a, a * x**2 - 2 * b * x)
    assert not same(a * (x - b / a) ** 2, a * x**2 - 2 * b * x)
    assert symbolic.complete_the_square(-(a * x**2 - 2 * b * x) / 2, x) == (
        b / a,
        1 / a,
    )
    with pytest.raises(ValueError, match="quadratic"):
        symbolic.complete_the_square(-(x**4), x)
    with pytest.raises(ValueError, match="quadratic"):
        symbolic.complete_the_square(sp.exp(x), x)


@pytest.mark.equation("eq-posterior-variance")
def test_variance() -> None:
    derived = symbolic.posterior().variance
    assert same(derived, VARIANCE)
    for wrong in WRONG_VARIANCES.values():
        assert not same(derived, wrong)


@pytest.mark.equation("eq-posterior-mean")
def test_mean() -> None:
    derived = symbolic.posterior().mean
    assert same(derived, MEAN)
    for wrong in WRONG_MEANS.values():
        assert not same(derived, wrong)


@pytest.mark.equation("eq-posterior-eps-weight", "eq-posterior-xt-weight")
def test_two_fractions_of_the_eps_form() -> None:
    mean = symbolic.posterior().mean.expand()
    weight = mean.coeff(x_0) / sp.sqrt(ABAR_T)
    assert same(weight, BETA / ((1 - ABAR_T) * sp.sqrt(alpha)))
    assert not same(weight, BETA / sp.sqrt((1 - ABAR_T) * alpha))
    assert same(weight + mean.coeff(x_t), 1 / sp.sqrt(alpha))
    assert not same(weight + mean.coeff(x_t), sp.sqrt(alpha))


@pytest.mark.equation("eq-posterior-mean-eps")
def test_eps_form() -> None:
    derived = symbolic.posterior_mean_from_eps()
    assert same(derived, MEAN_EPS)
    assert same(symbolic.posterior().mean.subs(x_t, NOISY), MEAN_EPS.subs(x_t, NOISY))
    for wrong in WRONG_MEANS_EPS.values():
        assert not same(derived, wrong)


# The package's numbers.


def by_package(diffusion: GaussianDiffusion, s: int, t: int) -> np.ndarray:
    """The weights of x_0 and x_t in the mean, and the variance."""
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    weight_0, variance = diffusion.q_posterior(one, zero, t, s)
    weight_t, _ = diffusion.q_posterior(zero, one, t, s)
    return np.array([weight_0.item(), weight_t.item(), variance.item()])


def off_by_one(diffusion: GaussianDiffusion, s: int, t: int) -> np.ndarray:
    """The same from arrays that start at β_1, with the paper's t as the index; t = 1 wraps to the last entry."""
    alpha_bar, beta = (
        diffusion.schedule.alpha_bar[1:].numpy(),
        diffusion.schedule.beta[1:].numpy(),
    )
    now, before, step = alpha_bar[t - 1], alpha_bar[t - 2], beta[t - 1]
    return np.array(
        [
            before**0.5 * step / (1 - now),
            (1 - step) ** 0.5 * (1 - before) / (1 - now),
            (1 - before) / (1 - now) * step,
        ]
    )


def without_root(diffusion: GaussianDiffusion, s: int, t: int) -> np.ndarray:
    weight_0, weight_t, variance = by_package(diffusion, s, t)
    return np.array(
        [float(diffusion.schedule.alpha_bar[s]) ** 0.5 * weight_0, weight_t, variance]
    )


def all_noise_at_once(diffusion: GaussianDiffusion, s: int, t: int) -> np.ndarray:
    """The ε form with β_t/(1 - α_t), which is 1, as the weight of the noise."""
    alpha_bar, step_alpha = (
        float(diffusion.schedule.alpha_bar[t]),
        float(diffusion.schedule.alpha[t]),
    )
    per_x_t = 1 / (1 - alpha_bar) ** 0.5
    weight_0 = per_x_t * (alpha_bar / step_alpha) ** 0.5
    return np.array(
        [weight_0, (1 - per_x_t) / step_alpha**0.5, by_package(diffusion, s, t)[2]]
    )


def chain_covariance(beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How each state depends on x_0, and the covariance of all states given x_0, from the single steps."""
    T = len(beta) - 1
    signal, noise = np.ones(T + 1), np.zeros((T + 1, T + 1))
    for t in range(1, T + 1):
        signal[t] = np.sqrt(1 - beta[t]) * signal[t - 1]
        noise[t] = np.sqrt(1 - beta[t]) * noise[t - 1]
        noise[t, t] = np.sqrt(beta[t])
    return signal, noise @ noise.T


@pytest.mark.equation("eq-posterior-any-s")
@pytest.mark.parametrize(
    "schedule", [linear_schedule(T=40), cosine_schedule(T=25)], ids=["linear", "cosine"]
)
def test_package_agrees_with_conditioning_for_every_pair(schedule) -> None:
    diffusion = GaussianDiffusion(schedule)
    signal, covariance = chain_covariance(schedule.beta.numpy())
    worst = dict.fromkeys(
        [by_package, off_by_one, without_root, all_noise_at_once], 0.0
    )
    for t in range(1, schedule.T + 1):
        for s in range(t):
            slope = covariance[s, t] / covariance[t, t]
            expected = [
                signal[s] - slope * signal[t],
                slope,
                covariance[s, s] - slope * covariance[s, t],
            ]
            for formula in worst if s == t - 1 else [by_package]:
                worst[formula] = max(
                    worst[formula], np.abs(formula(diffusion, s, t) - expected).max()
                )
    assert worst.pop(by_package) < 1e-12
    assert min(worst.values()) > 0.01


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_subschedule_has_the_posterior_of_the_jumps(steps: int) -> None:
    full = linear_schedule(T=1000)
    times = full.times(steps)[::-1]
    coarse = GaussianDiffusion(full.subschedule(times))
    for i in range(1, steps + 1):
        jump = by_package(GaussianDiffusion(full), times[i - 1], times[i])
        assert by_package(coarse, i - 1, i) == pytest.approx(jump, rel=1e-9, abs=1e-12)
        if steps > 1:  # not the posterior of one small step
            assert by_package(
                GaussianDiffusion(full), times[i] - 1, times[i]
            ) != pytest.approx(jump, rel=1e-3)


@pytest.mark.equation("eq-x0-from-eps")
def test_x_0_from_eps() -> None:
    diffusion = GaussianDiffusion(linear_schedule(T=1000))
    generator = torch.Generator().manual_seed(0)
    clean, noise = (
        torch.randn(1000, 3, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    t = torch.arange(1, 1001)
    alpha_bar = diffusion.schedule.alpha_bar[1:, None]
    noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise
    torch.testing.assert_close(
        diffusion.predict_x_0(noisy, t, noise), clean, rtol=1e-9, atol=1e-9
    )
    wrong = (
        noisy - (1 - alpha_bar) * noise
    ) / alpha_bar.sqrt()  # the root of 1 - ᾱ forgotten
    assert (wrong - clean).abs().max() > 0.1


@pytest.mark.equation("eq-posterior-any-s-eps")
def test_eps_form_for_every_pair() -> None:
    schedule = cosine_schedule(T=20)
    diffusion, alpha_bar = GaussianDiffusion(schedule), schedule.alpha_bar
    clean, noise = (
        torch.tensor([0.7], dtype=torch.float64),
        torch.tensor([-1.3], dtype=torch.float64),
    )
    for t in range(1, 21):
        for s in range(t):
            noisy = diffusion.q_sample(clean, t, noise)
            mean, _ = diffusion.q_posterior(clean, noisy, t, s)
            jump = alpha_bar[t] / alpha_bar[s]
            right = (
                noisy - (1 - jump) / (1 - alpha_bar[t]).sqrt() * noise
            ) / jump.sqrt()
            torch.testing.assert_close(mean, right, rtol=1e-9, atol=1e-9)
            if s > 0:  # β_t of a single step in place of that of the jump
                wrong = (
                    noisy - schedule.beta[t] / (1 - alpha_bar[t]).sqrt() * noise
                ) / jump.sqrt()
                assert s == t - 1 or (wrong - mean).abs().item() > 1e-3


@pytest.mark.equation("eq-posterior-consistency")
def test_consistency_finds_the_published_mistakes() -> None:
    """Averaging the posterior over x_t must give q(x_{t-1} | x_0)."""
    diffusion = GaussianDiffusion(linear_schedule(T=50))
    alpha_bar = diffusion.schedule.alpha_bar.numpy()

    def violation(formula) -> float:
        worst = 0.0
        for t in range(1, 51):
            weight_0, weight_t, variance = formula(diffusion, t - 1, t)
            of_mean = (
                weight_0 + weight_t * alpha_bar[t] ** 0.5 - alpha_bar[t - 1] ** 0.5
            )
            of_variance = (
                weight_t**2 * (1 - alpha_bar[t]) + variance - (1 - alpha_bar[t - 1])
            )
            worst = max(worst, abs(of_mean), abs(of_variance))
        return worst

    assert violation(by_package) < 1e-12
    assert violation(off_by_one) > 0.5
    assert violation(without_root) > 0.01
    assert violation(all_noise_at_once) > 0.5


# Limits and the variance of the reverse step.


@pytest.mark.equation("eq-conditioning")
def test_conditioning_formula() -> None:
    """The joint density of two normal variables divided by that of the second, as a density of the first."""
    u, v, m_u, m_v, c = sp.symbols("u v m_u m_v c", real=True)
    s_u, s_v = sp.symbols("S_uu S_vv", positive=True)
    difference = sp.Matrix([u - m_u, v - m_v])
    joint = -(difference.T * sp.Matrix([[s_u, c], [c, s_v]]).inv() * difference)[0] / 2
    mean, variance = symbolic.complete_the_square(joint, u)
    assert same(mean, m_u + c / s_v * (v - m_v))
    assert same(variance, s_u - c**2 / s_v)
    assert not same(mean, m_u + c / s_u * (v - m_v))  # divided by the wrong variance
    assert not same(variance, s_u - c / s_v)


@pytest.mark.equation("eq-posterior-t1")
def test_first_step_is_certain() -> None:
    for schedule in (linear_schedule(), cosine_schedule(), linear_schedule(T=40)):
        diffusion = GaussianDiffusion(schedule)
        weight_0, weight_t, variance = by_package(diffusion, 0, 1)
        assert (weight_0, weight_t, variance) == (1.0, 0.0, 0.0)
        assert (
            off_by_one(diffusion, 0, 1)[2] > 0.9
        )  # noise of standard deviation 1, on the finished sample


TWO_VALUES = np.array([-1.0, 1.0])
GRID = np.linspace(-9, 9, 18001)


def normal(x: np.ndarray, mean: np.ndarray | float, variance: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def noisy_density(x: np.ndarray, alpha_bar: float) -> np.ndarray:
    """q(x_t) for data -1 or 1 with equal probability."""
    return (
        sum(
            normal(x, np.sqrt(alpha_bar) * value, 1 - alpha_bar) for value in TWO_VALUES
        )
        / 2
    )


def reverse_density(schedule, s: int, t: int, near: float) -> np.ndarray:
    """q(x_s | x_t = near) on the grid, by Bayes' rule without x_0."""
    jump = float(schedule.alpha_bar[t] / schedule.alpha_bar[s])
    step = normal(near, np.sqrt(jump) * GRID, 1 - jump)
    return (
        step
        * noisy_density(GRID, float(schedule.alpha_bar[s]))
        / noisy_density(near, float(schedule.alpha_bar[t]))
    )


@pytest.mark.equation("eq-reverse-unconditional")
def test_bayes_without_x_0_on_two_valued_data() -> None:
    """It integrates to 1, and it is the mixture over x_0 of the posteriors, weighted by q(x_0 | x_t)."""
    schedule = cosine_schedule(T=20)
    for s, t, near in [(3, 4, 0.2), (5, 12, -0.4), (9, 10, 1.1)]:
        unconditional = reverse_density(schedule, s, t, near)
        alpha_bar = float(schedule.alpha_bar[t])
        weights = normal(near, np.sqrt(alpha_bar) * TWO_VALUES, 1 - alpha_bar)
        weights /= weights.sum()
        weight_0, weight_t, variance = by_package(GaussianDiffusion(schedule), s, t)
        mixture = sum(
            w * normal(GRID, weight_0 * v + weight_t * near, variance)
            for w, v in zip(weights, TWO_VALUES)
        )
        assert np.trapezoid(unconditional, GRID) == pytest.approx(1, abs=1e-9)
        assert np.abs(unconditional - mixture).max() < 1e-9
        only_one = normal(
            GRID, weight_0 + weight_t * near, variance
        )  # x_0 = 1 taken for granted
        assert np.abs(unconditional - only_one).max() > 0.01


@pytest.mark.equation("eq-reverse-mean", "eq-reverse-variance")
def test_law_of_total_variance() -> None:
    """Mean and variance of q(x_s | x_t), integrated on a grid, against the posterior with E[x_0 | x_t] put in."""
    schedule = cosine_schedule(T=20)
    for s, t, near in [(3, 4, 0.2), (5, 12, -0.4), (9, 10, 1.1)]:
        density = reverse_density(schedule, s, t, near)
        mean = np.trapezoid(GRID * density, GRID)
        variance = np.trapezoid((GRID - mean) ** 2 * density, GRID)
        alpha_bar = float(schedule.alpha_bar[t])
        guess = np.tanh(np.sqrt(alpha_bar) * near / (1 - alpha_bar))  # E[x_0 | x_t]
        ignorance = 1 - guess**2
        weight_0, weight_t, posterior_variance = by_package(
            GaussianDiffusion(schedule), s, t
        )
        assert mean == pytest.approx(weight_0 * guess + weight_t * near, abs=1e-9)
        assert mean != pytest.approx(
            weight_0 * np.sign(near) + weight_t * near, rel=0.01
        )
        assert variance == pytest.approx(
            posterior_variance + weight_0**2 * ignorance, abs=1e-9
        )
        assert variance != pytest.approx(
            posterior_variance + weight_0 * ignorance, rel=0.01
        )  # weight not squared


@pytest.mark.equation("eq-linear-guess")
def test_error_of_the_best_linear_guess() -> None:
    """min over k, l of E[(x_0 - k - l x_t)²], from the moments of data with any mean and variance c."""
    c, mean, k, slope = sp.symbols("c m k l", real=True)
    noisy_mean = sp.sqrt(ABAR_T) * mean
    noisy_variance = ABAR_T * c + 1 - ABAR_T
    covariance = sp.sqrt(ABAR_T) * c
    error = c - 2 * slope * covariance + slope**2 * noisy_variance
    error += (mean - k - slope * noisy_mean) ** 2
    best = sp.solve([sp.diff(error, k), sp.diff(error, slope)], [k, slope], dict=True)[
        0
    ]
    smallest = error.subs(best)
    assert same(smallest, c * (1 - ABAR_T) / (c * ABAR_T + 1 - ABAR_T))
    assert same(smallest, 1 / (1 / c + ABAR_T / (1 - ABAR_T)))
    assert same(smallest.subs(c, 1), 1 - ABAR_T)
    assert not same(smallest, c * (1 - ABAR_T))


@pytest.mark.equation("eq-x0-variance-normal", "eq-reverse-variance-normal")
def test_reverse_variance_of_standard_normal_data() -> None:
    """Both from the product of densities: p(x_0) q(x_t | x_0), and p(x_s) q(x_t | x_s) with p(x_s) = N(0, 1)."""
    noisy = symbolic.log_density(x_t, sp.sqrt(ABAR_T) * x_0, 1 - ABAR_T)
    of_x_0 = symbolic.complete_the_square(
        noisy + symbolic.log_density(x_0, sp.S(0), sp.S(1)), x_0
    ).variance
    assert same(of_x_0, 1 - ABAR_T)
    step = symbolic.log_density(x_t, *symbolic.forward_step())
    reverse = symbolic.complete_the_square(
        step + symbolic.log_density(x_s, sp.S(0), sp.S(1)), x_s
    ).variance
    assert same(reverse, BETA)
    weight_0 = symbolic.posterior().mean.expand().coeff(x_0)
    assert same(symbolic.posterior().variance + weight_0**2 * of_x_0, BETA)
    assert not same(symbolic.posterior().variance, BETA)


@pytest.mark.equation("eq-reverse-variance-bounds")
def test_reverse_variance_lies_between_the_bounds() -> None:
    schedule = cosine_schedule(T=20)
    diffusion = GaussianDiffusion(schedule)

    def average(t: int, scale: float) -> float:
        """E[Var(x_{t-1} | x_t)] / β_t for data -scale or scale, by integrating over x_t."""
        alpha_bar = float(schedule.alpha_bar[t])
        sigma2, a = 1 - alpha_bar, scale * np.sqrt(alpha_bar)
        density = (normal(GRID, a, sigma2) + normal(GRID, -a, sigma2)) / 2
        ignorance = scale**2 * np.trapezoid(
            density * (1 - np.tanh(a * GRID / sigma2) ** 2), GRID
        )
        weight_0, _, variance = by_package(diffusion, t - 1, t)
        return (variance + weight_0**2 * ignorance) / float(schedule.beta[t])

    lower = [
        by_package(diffusion, t - 1, t)[2] / float(schedule.beta[t])
        for t in range(1, 21)
    ]
    for scale in (0.3, 0.7, 1.0):
        inside = [average(t, scale) for t in range(1, 21)]
        assert all(low - 1e-9 <= value <= 1 + 1e-9 for low, value in zip(lower, inside))
    assert (
        max(average(t, 3.0) for t in range(1, 21)) > 1.1
    )  # not without the condition Var(x_0) ≤ 1
