"""The equations of chapter 4, each by a route of its own, and the wrong versions that people write.

The wrong versions: ᾱ for √ᾱ, β for √β, noise that is not fresh, variances of steps that simply add, t/T for
(t - 1)/(T - 1) in the linear schedule, every 20th β for a coarser schedule, and the usual range of β at a smaller T.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import sympy as sp
import torch
from diffusers import DDPMScheduler
from scipy import stats

from ddpm_lite import (
    GaussianDiffusion,
    NoiseSchedule,
    cosine_schedule,
    data,
    gaussian,
    linear_schedule,
    symbolic,
)
from ddpm_lite.symbolic import alpha, alpha_bar_s, eps, x_0, x_s, x_t

SCHEDULE = cosine_schedule(T=30)
DIFFUSION = GaussianDiffusion(SCHEDULE)
ABAR = SCHEDULE.alpha_bar.numpy()
BETA = SCHEDULE.beta.numpy()
ALPHA = SCHEDULE.alpha.numpy()

scale, added, mean_before, variance_before = sp.symbols("a b m v", positive=True)


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(left - right) == 0


def chain_matrix(beta: np.ndarray, fresh: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """x_t = start[t] · x_0 + noise[t] @ (ε_1, ..., ε_T), from the steps alone; with one ε for all if not fresh."""
    T = len(beta) - 1
    start, noise = np.ones(T + 1), np.zeros((T + 1, T + 1))
    for t in range(1, T + 1):
        start[t] = np.sqrt(1 - beta[t]) * start[t - 1]
        noise[t] = np.sqrt(1 - beta[t]) * noise[t - 1]
        noise[t, t if fresh else 1] += np.sqrt(beta[t])
    return start, noise


def average_out(step: sp.Expr, before: sp.Expr) -> symbolic.Gaussian:
    """The law of x_t from the densities of the step and of x_s: sympy integrates x_s out and reads off the result."""
    after = sp.simplify(sp.integrate(sp.expand(step * before), (x_s, -sp.oo, sp.oo)))
    score = sp.Poly(
        sp.simplify(sp.diff(sp.expand_log(sp.log(after), force=True), x_t)), x_t
    )
    assert score.degree() == 1, "not normal"
    slope, offset = score.all_coeffs()
    return symbolic.Gaussian(sp.simplify(-offset / slope), sp.factor(-1 / slope))


@pytest.fixture(scope="module")
def averaged() -> symbolic.Gaussian:
    """N(x_t; a x_s, b) averaged over N(x_s; m, v)."""
    step = sp.exp(symbolic.log_density(x_t, scale * x_s, added))
    before = sp.exp(symbolic.log_density(x_s, mean_before, variance_before))
    return average_out(step, before)


# The chain.


@pytest.mark.equation("eq-forward-draw")
def test_the_package_walks_as_the_equation_says() -> None:
    """Each state of ``q_chain`` from the one before and the noise that the generator gives."""
    start = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    walk = [start, *DIFFUSION.q_chain(start, torch.Generator().manual_seed(0))]
    generator = torch.Generator().manual_seed(0)
    right, wrong = [], []
    for t in range(1, 31):
        noise = torch.randn(5, 1, dtype=torch.float64, generator=generator)
        shrunk = (1 - BETA[t]) ** 0.5 * walk[t - 1]
        right.append(torch.allclose(walk[t], shrunk + BETA[t] ** 0.5 * noise))
        wrong.append(torch.allclose(walk[t], shrunk + BETA[t] * noise))  # β for √β
    assert all(right)
    assert not any(wrong)


@pytest.mark.equation("eq-markov")
def test_the_whole_past_says_no_more_than_the_last_state() -> None:
    """Regress x_t on the whole past: the weight of x_{t-1} is √α_t, all others 0, and β_t is left over.

    The regression uses the joint covariance of the chain only; for jointly normal states it is the conditional law.
    With one ε for all steps, two states of the past give ε away, and x_t is certain.
    """

    def regression(fresh: bool, t: int) -> tuple[np.ndarray, float]:
        start, noise = chain_matrix(BETA[:9], fresh)
        covariance = np.outer(start, start) + noise @ noise.T  # Var(x_0) = 1
        past = covariance[:t, :t]
        weights = np.linalg.lstsq(past, covariance[:t, t], rcond=1e-12)[0]
        return weights, covariance[t, t] - weights @ covariance[:t, t]

    for t in range(1, 9):
        weights, left_over = regression(True, t)
        assert weights == pytest.approx(
            [0.0] * (t - 1) + [math.sqrt(ALPHA[t])], abs=1e-9
        )
        assert left_over == pytest.approx(BETA[t], abs=1e-9)
    for t in range(2, 9):
        weights, left_over = regression(False, t)
        assert np.abs(weights[:-1]).max() > 0.1
        assert left_over == pytest.approx(0, abs=1e-6)  # the future is known


@pytest.mark.equation("eq-forward-joint")
def test_joint_density_is_the_product_of_the_steps() -> None:
    """Against scipy's density of the whole vector (x_1, ..., x_8) with the chain's covariance."""
    start, noise = chain_matrix(BETA[:9])
    joint = stats.multivariate_normal(0.7 * start[1:], (noise @ noise.T)[1:, 1:])
    rng = np.random.default_rng(0)
    for _ in range(5):
        walk = np.concatenate([[0.7], rng.standard_normal(8)])
        mean = np.sqrt(ALPHA[1:9]) * walk[:-1]
        steps = stats.norm.logpdf(walk[1:], mean, np.sqrt(BETA[1:9])).sum()
        marginals = stats.norm.logpdf(
            walk[1:], np.sqrt(ABAR[1:9]) * 0.7, np.sqrt(1 - ABAR[1:9])
        ).sum()
        assert joint.logpdf(walk[1:]) == pytest.approx(steps, rel=1e-9)
        assert abs(joint.logpdf(walk[1:]) - marginals) > 0.1  # states taken one by one


# Many steps at once.


@pytest.mark.equation("eq-forward-two-steps")
def test_two_steps_by_hand() -> None:
    a_1, a_2 = sp.symbols("a_1 a_2", positive=True)
    e_1, e_2 = sp.symbols("e_1 e_2", real=True)
    one = sp.sqrt(a_1) * x_0 + sp.sqrt(1 - a_1) * e_1
    two = sp.expand(sp.sqrt(a_2) * one + sp.sqrt(1 - a_2) * e_2)
    assert same(two.coeff(x_0), sp.sqrt(a_1 * a_2))
    assert same(two.coeff(e_1), sp.sqrt(a_2 * (1 - a_1)))
    assert same(two.coeff(e_2), sp.sqrt(1 - a_2))
    variance = two.coeff(e_1) ** 2 + two.coeff(e_2) ** 2
    assert same(variance, 1 - a_1 * a_2)
    assert not same(variance, (1 - a_1) + (1 - a_2))  # the betas simply added
    assert not same((two.coeff(e_1) + two.coeff(e_2)) ** 2, 1 - a_1 * a_2)


@pytest.mark.equation("eq-forward-sum", "eq-forward-average")
def test_average_over_a_normal_state_is_normal(averaged: symbolic.Gaussian) -> None:
    """From the integral. The sum a ε_1 + b ε_2 is the case m = 0, v = 1."""
    assert same(averaged.mean, scale * mean_before)
    assert same(averaged.variance, scale**2 * variance_before + added)
    b = sp.Symbol("b_2", positive=True)
    of_sum = averaged.variance.subs({variance_before: 1, added: b**2})
    assert same(of_sum, scale**2 + b**2)
    assert not same(of_sum, (scale + b) ** 2)  # deviations added
    assert not same(of_sum, scale + b)


@pytest.mark.equation(
    "eq-forward-marginal", "eq-forward-insert", "eq-forward-induction"
)
def test_induction_step(averaged: symbolic.Gaussian) -> None:
    """The law at t from the laws of the step and of x_{t-1}: by the integral, and again by the noises."""
    in_chain = {
        scale: sp.sqrt(alpha),
        added: 1 - alpha,
        mean_before: sp.sqrt(alpha_bar_s) * x_0,
        variance_before: 1 - alpha_bar_s,
    }
    abar_t = alpha * alpha_bar_s
    mean, variance = (value.subs(in_chain) for value in averaged)
    assert same(mean, sp.sqrt(abar_t) * x_0)
    assert same(variance, 1 - abar_t)
    assert not same(mean, abar_t * x_0)  # ᾱ without its root
    assert not same(variance, (1 - abar_t) ** 2)
    assert not same(variance, (1 - alpha) + (1 - alpha_bar_s))  # variances simply added

    z = sp.Symbol("z", real=True)
    before = sp.sqrt(alpha_bar_s) * x_0 + sp.sqrt(1 - alpha_bar_s) * eps
    after = sp.expand(sp.sqrt(alpha) * before + sp.sqrt(1 - alpha) * z)
    assert same(after.coeff(x_0), sp.sqrt(abar_t))
    assert same(after.coeff(eps), sp.sqrt(alpha * (1 - alpha_bar_s)))
    assert same(after.coeff(z), sp.sqrt(1 - alpha))
    assert same(after.coeff(eps) ** 2 + after.coeff(z) ** 2, 1 - abar_t)


@pytest.mark.equation("eq-forward-marginal")
def test_one_shot_has_the_law_of_the_chain() -> None:
    """``q_sample``'s coefficients against those of the chain of steps, and against diffusers."""
    start, noise = chain_matrix(BETA)
    one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    for t in range(1, 31):
        signal = DIFFUSION.q_sample(one, t, zero).item()
        deviation = DIFFUSION.q_sample(zero, t, one).item()
        assert signal == pytest.approx(start[t], rel=1e-9)
        assert deviation**2 == pytest.approx((noise[t] ** 2).sum(), rel=1e-9)
        assert start[t] != pytest.approx(ABAR[t], rel=1e-3)  # ᾱ for √ᾱ

    x, e = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 2, 10, 500, 999, 1000])
    theirs = DDPMScheduler(num_train_timesteps=1000).add_noise(x, e, t - 1)
    ours = GaussianDiffusion(linear_schedule()).q_sample(x, t, e)
    assert torch.allclose(ours, theirs, atol=1e-4)
    abar = linear_schedule().alpha_bar[t].float()[:, None]
    assert not torch.allclose(abar * x + (1 - abar) * e, theirs, atol=1e-2)


@pytest.mark.equation("eq-forward-noise-mix")
def test_the_noise_is_the_mixture_of_all_noises() -> None:
    _, noise = chain_matrix(BETA)
    for t in range(1, 31):
        s = np.arange(1, t + 1)
        weights = np.sqrt(ABAR[t] / ABAR[s]) * np.sqrt(BETA[s])
        assert noise[t, 1 : t + 1] == pytest.approx(weights, rel=1e-9)
        assert (weights**2).sum() == pytest.approx(1 - ABAR[t], rel=1e-9)
        if t > 1:  # the noise of the last step alone is less
            assert weights[-1] ** 2 < (1 - ABAR[t]) * (1 - 1e-4)


# The variance.


@pytest.mark.equation("eq-forward-variance-step", "eq-forward-variance")
def test_variance_moves_to_one() -> None:
    """sympy asks for the fixed point 1, and solves the recursion."""
    a = sp.Symbol("a", positive=True)
    b_t, c = sp.symbols("beta c", positive=True)
    step = a**2 * c + b_t  # b² = β
    root = sp.solve(step.subs(c, 1) - 1, a)
    assert root == [sp.sqrt(1 - b_t)]
    assert not same(step.subs({a: 1 - b_t, c: 1}), 1)  # the root forgotten
    shrinks = 1 - (alpha * c + 1 - alpha)
    assert same(shrinks, alpha * (1 - c))
    missing = sp.Symbol("missing", real=True)  # 1 - Var(x_0)
    after_s = 1 - alpha_bar_s * missing
    assert same(alpha * after_s + 1 - alpha, 1 - alpha * alpha_bar_s * missing)

    start, noise = chain_matrix(BETA)
    for variance in (0.29, 1.0, 4.0):
        along = variance * start**2 + (noise**2).sum(1)
        assert along == pytest.approx(1 - ABAR * (1 - variance), rel=1e-9)
        assert np.allclose(along, variance) == (variance == 1.0)


@pytest.mark.equation("eq-forward-no-shrink")
def test_without_the_root_the_variance_grows() -> None:
    """On walks: 40,000 of them; four standard errors, a false alarm once in 16,000 for each comparison."""
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    x = torch.randn(n, dtype=torch.float64, generator=generator)
    for t in range(1, 31):
        noise = torch.randn(n, dtype=torch.float64, generator=generator)
        x = x + BETA[t] ** 0.5 * noise
        if t in (5, 30):
            formula = 1 + BETA[1 : t + 1].sum()
            error = 4 * formula * (2 / n) ** 0.5
            assert abs(x.var().item() - formula) < error
            assert abs(x.var().item() - 1) > error  # it is not preserved


@pytest.mark.equation("eq-forward-covariance")
def test_covariance_of_the_digits() -> None:
    """40,000 noisy digits at t = 10 of 30; each entry within six standard errors (false alarm: 4e-6 for all 2,080)."""
    x = data.digits("train").x_0.flatten(1).double()
    n, t = 40_000, 10
    generator = torch.Generator().manual_seed(0)
    x = x[torch.randint(len(x), (n,), generator=generator)]
    noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    noisy = DIFFUSION.q_sample(x, t, noise)
    measured, clean, unit = noisy.T.cov(), x.T.cov(), torch.eye(64).double()
    formula = ABAR[t] * clean + (1 - ABAR[t]) * unit
    diagonal = formula.diagonal()
    error = 6 * ((diagonal[:, None] * diagonal + formula**2) / n).sqrt()
    assert bool(((measured - formula).abs() < error).all())
    assert not bool(((measured - clean).abs() < error).all())  # preserved? no
    without_root = ABAR[t] ** 2 * clean + (1 - ABAR[t]) ** 2 * unit
    assert not bool(((measured - without_root).abs() < error).all())


@pytest.mark.equation("eq-forward-rescaled", "eq-forward-snr")
def test_rescaled_state_has_noise_of_one_over_snr() -> None:
    one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
    for t in range(1, 31):
        signal = DIFFUSION.q_sample(one, t, zero).item()
        deviation = DIFFUSION.q_sample(zero, t, one).item()
        snr = float(SCHEDULE.snr[t])
        assert (deviation / signal) ** 2 == pytest.approx(1 / snr, rel=1e-9)
        assert (signal / deviation) ** 2 == pytest.approx(snr, rel=1e-9)
        assert snr != pytest.approx(math.sqrt(ABAR[t] / (1 - ABAR[t])), rel=1e-3)


# Schedules.


@pytest.mark.equation("eq-schedule-linear")
def test_linear_schedule() -> None:
    theirs = DDPMScheduler(num_train_timesteps=1000).betas.double().numpy()
    t = np.arange(1, 1001)
    formula = 1e-4 + (0.02 - 1e-4) * (t - 1) / 999
    with_t_over_T = 1e-4 + (0.02 - 1e-4) * t / 1000
    assert formula == pytest.approx(theirs, rel=1e-4)
    assert linear_schedule().beta[1:].numpy() == pytest.approx(formula, rel=1e-12)
    assert with_t_over_T != pytest.approx(theirs, rel=1e-3)
    assert formula[0] == 1e-4
    assert with_t_over_T[0] > 1.1e-4  # β_1 is not the start


@pytest.mark.equation("eq-schedule-cosine")
def test_cosine_schedule() -> None:
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="squaredcos_cap_v2"
    )
    theirs = scheduler.alphas_cumprod.double().numpy()[:-1]
    t = np.arange(1000) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    assert (f / f[0])[1:] == pytest.approx(theirs, rel=1e-3)
    assert cosine_schedule().alpha_bar[:-1].numpy() == pytest.approx(f / f[0], rel=1e-9)
    assert np.sqrt(f / f[0])[1:] != pytest.approx(theirs, rel=1e-3)  # no square
    assert float(cosine_schedule().alpha_bar[-1]) == pytest.approx(2.4e-9, rel=0.02)


@pytest.mark.equation("eq-schedule-sum")
def test_the_sum_of_the_betas_bounds_what_is_left() -> None:
    """log(1 - β) + β is 0 at β = 0 and falls from there on; equality is only near, and only for small β."""
    b_t = sp.Symbol("beta", positive=True)
    gap = sp.log(1 - b_t) + b_t
    assert gap.subs(b_t, 0) == 0
    assert same(sp.diff(gap, b_t), -b_t / (1 - b_t))  # negative for 0 < β < 1
    for schedule in (linear_schedule(), cosine_schedule(), SCHEDULE):
        total = float(schedule.beta.sum())
        logs = torch.log1p(-schedule.beta).sum()
        assert float(schedule.alpha_bar[-1]) == pytest.approx(math.exp(logs), rel=1e-9)
        assert float(schedule.alpha_bar[-1]) < math.exp(-total)
    usual = linear_schedule()
    assert float(usual.beta.sum()) == pytest.approx(10.05)
    assert float(usual.alpha_bar[-1]) == pytest.approx(math.exp(-10.05), rel=0.1)
    assert float(SCHEDULE.alpha_bar[-1]) != pytest.approx(  # not with large β
        math.exp(-float(SCHEDULE.beta.sum())), rel=0.5
    )


def test_usual_range_at_300_steps_keeps_22_per_cent() -> None:
    """The number in the text, the warning, and the cure."""
    with pytest.warns(UserWarning, match=r"alpha_bar\[T\] = 0.048: x_T keeps 22 %"):
        schedule = linear_schedule(T=300, beta_1=1e-4, beta_T=0.02)
    by_hand = math.prod(1 - (1e-4 + 0.0199 * i / 299) for i in range(300))
    assert by_hand == pytest.approx(0.0481, abs=5e-5)
    assert float(schedule.alpha_bar[-1]) == pytest.approx(by_hand, rel=1e-9)
    assert float(linear_schedule(T=300).alpha_bar[-1]) < 5e-5


def test_t_over_1000_is_used_up_at_step_162() -> None:
    """ᾱ_161 > 1e-6 > ᾱ_162: entry 163 of a list that begins with β_0 = 0."""
    schedule = NoiseSchedule([t / 1000 for t in range(1, 1000)])
    exact = sp.Integer(1)
    for t in range(1, 163):
        exact *= sp.Rational(1000 - t, 1000)
        if t == 161:
            assert exact > sp.Rational(1, 10**6)
    assert exact < sp.Rational(1, 10**6)
    assert float(schedule.alpha_bar[162]) == pytest.approx(float(exact), rel=1e-9)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule([t / 1000 for t in range(1, 1001)])


# The end of the walk.


@pytest.mark.equation("eq-forward-kl-standard")
def test_kl_from_the_standard_normal_law() -> None:
    """sympy integrates log q - log p under q."""
    x, m = sp.symbols("x m", real=True)
    v = sp.Symbol("v", positive=True)
    log_q, log_p = symbolic.log_density(x, m, v), symbolic.log_density(x, 0, 1)

    def mean_under_q(f: sp.Expr) -> sp.Expr:
        standard = sp.Symbol("z", real=True)
        weight = sp.exp(-(standard**2) / 2) / sp.sqrt(2 * sp.pi)
        inside = sp.expand(f.subs(x, m + sp.sqrt(v) * standard) * weight)
        return sp.simplify(sp.integrate(inside, (standard, -sp.oo, sp.oo)))

    of_q, of_p = mean_under_q(log_q), mean_under_q(log_p)
    assert same(of_q, -sp.log(2 * sp.pi * v) / 2 - sp.Rational(1, 2))
    assert same(of_p, -sp.log(2 * sp.pi) / 2 - (v + m**2) / 2)
    divergence = sp.expand_log(of_q - of_p, force=True)
    assert same(divergence, (v + m**2 - 1 - sp.log(v)) / 2)
    assert not same(divergence, (v + m**2 - 1 - sp.log(v) / 2) / 2)  # log σ for log σ²
    assert not same(divergence, (1 / v + m**2 / v - 1 + sp.log(v)) / 2)  # KL(p || q)


@pytest.mark.equation("eq-forward-prior-kl", "eq-forward-prior-kl-small")
def test_what_the_last_state_costs() -> None:
    abar, x = sp.Symbol("abar", positive=True), x_0
    m, v = sp.sqrt(abar) * x, 1 - abar
    exact = (v + m**2 - 1 - sp.log(v)) / 2
    assert same(exact, (abar * (x**2 - 1) - sp.log(1 - abar)) / 2)
    series = sp.series(exact, abar, 0, 3).removeO()
    assert same(series.coeff(abar, 1), x**2 / 2)
    assert same(series.coeff(abar, 2), sp.Rational(1, 4))
    wrong = (v + (abar * x) ** 2 - 1 - sp.log(v)) / 2  # ᾱ x_0 for √ᾱ x_0
    assert not same(wrong, exact)

    schedule = linear_schedule()
    last = schedule.alpha_bar[-1]
    x_0s = torch.tensor([-1.0, 0.3, 2.0]).double()
    zero, one = torch.zeros(3).double(), torch.ones(3).double()
    package = gaussian.kl(last.sqrt() * x_0s, (1 - last) * one, zero, one)
    torch_says = torch.distributions.kl_divergence(
        torch.distributions.Normal(last.sqrt() * x_0s, (1 - last).sqrt() * one),
        torch.distributions.Normal(zero, one),
    )
    formula = (last * (x_0s**2 - 1) - torch.log1p(-last)) / 2
    assert torch.allclose(package, formula, rtol=1e-6)
    assert torch.allclose(package, torch_says, rtol=1e-6)


@pytest.mark.parametrize("alpha_bar", [0.048, 0.5, 0.9])
@pytest.mark.equation("eq-forward-prior-split")
def test_split_of_the_last_term(alpha_bar: float) -> None:
    """For data -1 or 1: entropies of the mixture by quadrature, against the closed form of the whole."""
    x = np.linspace(-12, 12, 40_001)
    sigma = math.sqrt(1 - alpha_bar)
    humps = [stats.norm.pdf(x, s * math.sqrt(alpha_bar), sigma) for s in (-1, 1)]
    q, p = sum(humps) / 2, stats.norm.pdf(x)
    log_q = np.log(np.maximum(q, 1e-300))
    entropy = -np.trapezoid(q * log_q, x)
    information = entropy - stats.norm.entropy(scale=sigma)
    divergence = np.trapezoid(q * (log_q - np.log(p)), x)
    whole = (alpha_bar * (1 - 1) - math.log(1 - alpha_bar)) / 2
    assert whole == pytest.approx(information + divergence, rel=1e-6)
    assert information > 1e-3
    assert whole > divergence * 1.1  # the term charges for more than the wrong law


# Jumps.


@pytest.mark.equation("eq-forward-jump")
def test_jump_for_every_pair() -> None:
    """All pairs s < t: conditioning the joint normal law of the chain on x_s, against the ratio of the ᾱ."""
    start, noise = chain_matrix(BETA)
    covariance = 0.3 * np.outer(start, start) + noise @ noise.T  # Var(x_0) = 0.3
    one = torch.ones(1, dtype=torch.float64)
    for t in range(1, 31):
        for s in range(t):
            slope = covariance[s, t] / covariance[s, s]
            left_over = covariance[t, t] - slope * covariance[s, t]
            assert slope == pytest.approx(math.sqrt(ABAR[t] / ABAR[s]), rel=1e-9)
            package = DIFFUSION.transition_variance(one, t, s).item()
            assert left_over == pytest.approx(package, rel=1e-7)
            if t > s + 1:
                added_up = BETA[s + 1 : t + 1].sum()
                assert left_over < added_up * (1 - 1e-6)
            if s > 0:
                assert slope != pytest.approx(ABAR[t] / ABAR[s], rel=1e-6)  # no root


@pytest.mark.equation("eq-forward-jump-compose")
def test_two_jumps_are_one(averaged: symbolic.Gaussian) -> None:
    abar_r, abar_t = sp.symbols("abar_r abar_t", positive=True)
    first, second = alpha_bar_s / abar_r, abar_t / alpha_bar_s
    jump = {
        scale: sp.sqrt(second),
        added: 1 - second,
        mean_before: sp.sqrt(first) * x_0,
        variance_before: 1 - first,
    }
    assert same(averaged.mean.subs(jump), sp.sqrt(abar_t / abar_r) * x_0)
    assert same(averaged.variance.subs(jump), 1 - abar_t / abar_r)
    assert not same((1 - first) + (1 - second), 1 - abar_t / abar_r)


@pytest.mark.equation("eq-forward-subschedule")
def test_coarse_schedule_keeps_alpha_bar() -> None:
    """Against the product by hand; every 20th β keeps 61 % of the signal's power at the end."""
    schedule = linear_schedule()
    kept = list(range(20, 1001, 20))
    coarse = schedule.subschedule(kept)
    beta = 1 - schedule.alpha_bar[kept] / schedule.alpha_bar[[0, *kept[:-1]]]
    assert torch.allclose(coarse.beta[1:], beta, rtol=1e-9)
    by_product = np.cumprod(1 - coarse.beta.numpy())
    assert by_product[1:] == pytest.approx(schedule.alpha_bar[kept].numpy(), rel=1e-9)
    picked = np.cumprod(1 - schedule.beta[kept].numpy())
    assert picked[-1] > 0.5
    assert picked != pytest.approx(schedule.alpha_bar[kept].numpy(), rel=0.1)
