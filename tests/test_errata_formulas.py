"""The errata about formulas: each claim is shown to be false, and the package to do what is right.

Every test would fail if the package made the mistake. Where the data is N(0, c) the perfect network is linear, so a
step is known from what it does to x_t = 1 and from its variance, and the law of the samples follows without a draw.
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import stats

import ddpm_lite
from ddpm_lite import (
    ExactEps,
    GaussianDiffusion,
    NoiseSchedule,
    ancestral,
    ddim,
    gaussian,
    linear_schedule,
    sample,
    symbolic,
    variational_bound,
)
from ddpm_lite.symbolic import alpha, alpha_bar_s, x_0, x_t

TIMES = range(1, 1001)
ONE = torch.ones(1, 1, dtype=torch.float64)
ZERO = torch.zeros(1, 1, dtype=torch.float64)


def normal_data(schedule: NoiseSchedule, c: float) -> ExactEps:
    """The perfect network for data N(0, c)."""
    return ExactEps(schedule, torch.zeros(1, 1), torch.full((1, 1, 1), c))


def end(states: object) -> torch.Tensor:
    """The finished sample of a sampler."""
    *_, last = states
    return last.x_t


def state_after(diffusion: GaussianDiffusion, eps: object, sampler: Callable, x: float):
    """x_s after one step of a sampler from x_T = x to the middle of the chain, s = T/2, s."""
    times = [diffusion.T, diffusion.T // 2, 0]
    x_T = torch.full((1, 1), x, dtype=torch.float64)
    return next(
        state.x_t
        for state in sampler(eps, diffusion, x_T, times)
        if state.t == times[1]
    )


def samples_variance(slopes: np.ndarray, variances: np.ndarray) -> float:
    """Of samples that start from N(0, 1), if the steps t = 1..T multiply by a slope and add noise."""
    variance = 1.0
    for slope, added in zip(slopes[::-1], variances[::-1]):
        variance = slope**2 * variance + added
    return variance


def eps_weights(diffusion: GaussianDiffusion) -> np.ndarray:
    """What the package's reverse step subtracts for each unit of ε, times √α_t, for t = 1..T."""
    found = []
    for t in range(1, diffusion.T + 1):
        mean, _ = diffusion.q_posterior(
            diffusion.predict_x_0(ZERO, t, ONE), ZERO, t
        )  # x_t = 0, ε = 1
        found.append(-mean.item() * float(diffusion.schedule.alpha[t]) ** 0.5)
    return np.array(found)


def of(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """β_t, α_t and ᾱ_t for t = 1..T."""
    return tuple(
        values[1:].numpy()
        for values in (schedule.beta, schedule.alpha, schedule.alpha_bar)
    )


# The reverse step


@pytest.mark.erratum("err-blend")
def test_roots_belong_in_the_mixture(diffusion):
    noise_scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02)
    alpha_bar = diffusion.schedule.alpha_bar
    for t in (1, 259, 1000):
        at = torch.tensor([t - 1])  # diffusers counts from 0
        of_data = diffusion.q_sample(ONE, t, ZERO).item()
        of_noise = diffusion.q_sample(ZERO, t, ONE).item()
        assert of_data == pytest.approx(
            noise_scheduler.add_noise(ONE, ZERO, at).item(), rel=1e-4
        )
        assert of_noise == pytest.approx(
            noise_scheduler.add_noise(ZERO, ONE, at).item(), rel=1e-4
        )
        assert of_data**2 + of_noise**2 == pytest.approx(1, abs=1e-12)
    blend = alpha_bar**2 + (1 - alpha_bar) ** 2
    half = alpha_bar**2 + 1 - alpha_bar
    assert int(blend.argmin()) == int(half.argmin()) == 259
    assert float(blend.min()) == pytest.approx(1 / 2, abs=1e-5)
    assert float(half.min()) == pytest.approx(3 / 4, abs=1e-5)


@pytest.mark.erratum("err-alpha-bar")
def test_alpha_bar_is_what_the_chain_keeps(diffusion):
    """The oracle adds up the noise of a walk, one step after the other; no product occurs in it."""
    beta, alpha_t, _ = of(diffusion.schedule)
    walked, variance = [], 0.0
    for step in beta:
        variance = (1 - step) * variance + step
        walked.append(variance)
    walked = np.array(walked)
    t = np.arange(1, 1001)
    right = diffusion.schedule.alpha_bar[t].numpy()
    np.testing.assert_allclose(1 - right, walked, rtol=1e-9)
    assert float(diffusion.schedule.alpha_bar[0]) == 1
    wrong = {
        "up to T": np.full(1000, alpha_t.prod()),
        "one factor repeated": alpha_t**t,
        "one late": np.append(np.cumprod(alpha_t)[1:], 0),
    }
    for name, values in wrong.items():
        assert not np.allclose(1 - values, walked, rtol=1e-3), name
    assert (1 - wrong["one late"][0]) / walked[0] == pytest.approx(2.2, abs=0.01)


@pytest.mark.erratum("err-noise-weight")
def test_weight_of_the_noise(diffusion):
    """The oracle is conditioning: for x_0 ~ N(0, 1) the mean of x_{t-1} given x_t is √α_t x_t."""
    beta, alpha_t, alpha_bar = of(diffusion.schedule)
    noise, used = np.sqrt(1 - alpha_bar), eps_weights(diffusion)
    weights = {
        "package": used,
        "beta / (1 - alpha)": beta / (1 - alpha_t),
        "beta / sqrt(1 - beta)": beta / np.sqrt(1 - beta),
    }
    for name, weight in weights.items():
        slopes = (1 - weight * noise) / np.sqrt(alpha_t)
        agrees = np.allclose(slopes, np.sqrt(alpha_t), rtol=1e-9)
        assert agrees == (name == "package"), name
        added = np.append(0, beta[1:])
        variance = samples_variance(slopes, added)
        expected = {"package": 1, "beta / (1 - alpha)": 0.0033}.get(name, 2.05)
        assert variance == pytest.approx(expected, rel=0.01), name
    np.testing.assert_allclose(weights["beta / (1 - alpha)"], 1, rtol=1e-9)
    assert (1 / used).min() == pytest.approx(50, rel=0.01)
    # And by sympy, for all values of the symbols:
    product = alpha * alpha_bar_s
    mean = symbolic.posterior_mean_from_eps()
    weight = sp.simplify(-sp.sqrt(alpha) * sp.diff(mean, symbolic.eps))
    assert sp.simplify(weight - (1 - alpha) / sp.sqrt(1 - product)) == 0
    assert sp.simplify(weight - 1) != 0
    assert sp.simplify(weight - (1 - alpha) / sp.sqrt(alpha)) != 0


@pytest.mark.erratum("err-inverted-step")
def test_last_noise_is_a_fraction_of_all_noise(diffusion):
    """The oracle: covariances of the noises of the chain, in a table that is filled step by step."""
    beta = of(diffusion.schedule)[0]
    mixture = np.zeros(1000)  # of the noises of the single steps, in x_t
    fraction = []
    for i, step in enumerate(beta):
        mixture *= np.sqrt(1 - step)
        mixture[i] = np.sqrt(step)
        fraction.append(mixture[i] / np.sqrt((mixture**2).sum()))
    fraction = np.array(fraction)  # E[last noise | all noise] / all noise
    right = np.sqrt(beta) * fraction
    np.testing.assert_allclose(eps_weights(diffusion), right, rtol=1e-8)
    too_much = np.sqrt(beta) / right
    assert too_much.max() == pytest.approx(10.07, abs=0.01)
    assert too_much.argmax() + 1 == 350


@pytest.mark.erratum("err-inverted-step")
def test_inverted_step_loses_one_of_two_values():
    """2,000 samples of data 1 (0.7) or -1 (0.3). A share outside 0.7 ± 0.06 has probability below 1e-8."""
    schedule = linear_schedule(T=100)
    diffusion = GaussianDiffusion(schedule)
    values = torch.tensor([[1.0], [-1.0]])
    network = ExactEps(schedule, values, weights=torch.tensor([0.7, 0.3]))
    generator = torch.Generator().manual_seed(0)
    right = sample(network, diffusion, (2000, 1), generator=generator, variance="beta")
    assert (right > 0).double().mean().item() == pytest.approx(0.7, abs=0.06)
    x = torch.randn(2000, 1, generator=generator)
    for t in range(100, 0, -1):
        beta = float(schedule.beta[t])
        x = (x - beta**0.5 * network(x, t)) / (1 - beta) ** 0.5
        if t > 1:
            x = x + beta**0.5 * torch.randn(x.shape, generator=generator)
    assert (x > 0).double().mean().item() > 0.9
    assert ((x.abs() - 1).abs() < 1e-3).all()  # and each by itself looks right


@pytest.mark.erratum("err-no-noise")
def test_noise_of_the_step_is_needed(diffusion):
    """For N(0, 1): the package's step with its noise, the same without, and DDIM, which needs none."""
    network = normal_data(diffusion.schedule, 1.0)
    slopes, variances, of_ddim = [], [], []
    alpha_bar = diffusion.schedule.alpha_bar
    for t in TIMES:
        guess = diffusion.predict_x_0(ONE, t, network(ONE, t))
        slopes.append(diffusion.q_posterior(guess, ONE, t)[0].item())
        variances.append(diffusion.transition_variance(ONE, t).item() * (t > 1))
        noise = float(1 - alpha_bar[t - 1]) ** 0.5
        of_ddim.append(
            float(alpha_bar[t - 1]) ** 0.5 * guess.item()
            + noise * network(ONE, t).item()
        )
    slopes, variances = np.array(slopes), np.array(variances)
    assert samples_variance(slopes, variances) == pytest.approx(1, abs=1e-3)
    without = samples_variance(slopes, 0 * variances)
    assert without == pytest.approx(float(alpha_bar[-1]), rel=1e-9)
    assert without < 1e-4
    predicted = np.prod(of_ddim)
    x_0 = end(ddim(network, diffusion, ONE))
    assert x_0.item() == pytest.approx(predicted, rel=1e-9)
    assert predicted**2 == pytest.approx(1, abs=5e-3)
    # The sampler draws that noise: from one start, 4,000 different ends. A standard deviation of the ends outside
    # 1 ± 0.06 (more than 5 standard errors) has probability below 1e-6.
    starts = torch.ones(4000, 1)
    times = diffusion.schedule.times(20)
    generator = torch.Generator().manual_seed(0)
    ends = end(
        ancestral(network, diffusion, starts, times, "beta", generator=generator)
    )
    # The last step, from x_1' to the mean, adds none: it takes its length off the variance.
    last = 1 - float(alpha_bar[times[-2]])
    expected = math.sqrt(1 - last - float(alpha_bar[-1]))
    assert ends.std().item() == pytest.approx(expected, abs=0.06)


@pytest.mark.erratum("err-fresh-noise")
@pytest.mark.parametrize("c", [0.25, 1.0, 4.0])
def test_fresh_noise_halves_the_variance(diffusion, c):
    network, alpha_bar = (
        normal_data(diffusion.schedule, c),
        diffusion.schedule.alpha_bar,
    )
    slopes, variances, fresh, fresh_variances = [], [], [], []
    for t in TIMES:
        guess = diffusion.predict_x_0(ONE, t, network(ONE, t))
        mean, variance = diffusion.q_posterior(guess, ONE, t)
        slopes.append(mean.item())
        variances.append(variance.item())
        fresh.append(float(alpha_bar[t - 1]) ** 0.5 * guess.item())
        fresh_variances.append(float(1 - alpha_bar[t - 1]))
    right = samples_variance(np.array(slopes), np.array(variances))
    wrong = samples_variance(np.array(fresh), np.array(fresh_variances))
    assert right / c == pytest.approx(1, abs=0.02)
    assert wrong / c == pytest.approx(0.5, abs=0.02)
    # For a point the guess is certain, and the claim is harmless: x_{t-1} has the law that it should have.
    point = ExactEps(diffusion.schedule, torch.full((1, 1), 0.75))
    guess = diffusion.predict_x_0(ONE, 500, point(ONE, 500))
    assert guess.item() == pytest.approx(0.75, abs=1e-9)


@pytest.mark.erratum("err-fresh-noise")
def test_ancestral_does_not_start_afresh(diffusion):
    """One step from T to T/2 keeps a part of x_T, as the posterior does; fresh noise keeps only x̂_0."""
    network = ExactEps(diffusion.schedule, torch.zeros(1, 1))  # its x̂_0 is always 0
    states = []
    for x in (0.0, 1.0):
        torch.manual_seed(0)
        states.append(state_after(diffusion, network, ancestral, x).item())
    alpha_bar = diffusion.schedule.alpha_bar
    jump = alpha_bar[1000] / alpha_bar[500]
    kept = jump.sqrt() * (1 - alpha_bar[500]) / (1 - alpha_bar[1000])
    assert states[1] - states[0] == pytest.approx(float(kept), rel=1e-9)
    assert states[1] - states[0] > 0.02


@pytest.mark.erratum("err-index-wraps")
def test_first_index_does_not_wrap(diffusion):
    beta, alpha_t, alpha_bar = of(diffusion.schedule)
    before = alpha_bar[0 - 1]  # of a list that begins with ᾱ_1
    wrapped = math.sqrt(alpha_t[0]) * (1 - before) / (1 - alpha_bar[0])
    assert wrapped == pytest.approx(1 / beta[0], rel=1e-3)
    mean, variance = diffusion.q_posterior(ZERO, ONE, 1)
    assert mean.item() == variance.item() == 0
    mean, _ = diffusion.q_posterior(ONE, ZERO, 1)
    assert mean.item() == pytest.approx(1, abs=1e-12)
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    eps = diffusion.predict_eps(ONE, 1, 0.5 * ONE).float()  # the x_0 in it is 0.5
    assert scheduler.step(eps, 0, ONE.float()).prev_sample.item() == pytest.approx(
        0.5, abs=1e-4
    )


@pytest.mark.erratum("err-last-noise-added")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("steps", [1000, 10])
def test_last_step_adds_no_noise(diffusion, variance, steps):
    """For data that is one point every sample is that point; with the noise β_1 added it is not."""
    point = ExactEps(diffusion.schedule, torch.full((1, 1), 0.5))
    times = diffusion.schedule.times(steps)
    x_T = torch.randn(50, 1, dtype=torch.float64)
    samples = end(ancestral(point, diffusion, x_T, times, variance))
    assert (samples - 0.5).abs().max() < 1e-9
    left = float(diffusion.schedule.subschedule(times).beta[1]) ** 0.5
    grey_values = 127.5 * left
    assert grey_values == pytest.approx({1000: 1.3, 10: 40.9}[steps], abs=0.05)


@pytest.mark.erratum("err-variance-choice")
def test_beta_is_right_only_for_variance_one(diffusion):
    """By sympy for all c; and against the joint normal law of (x_{t-1}, x_t), conditioned numerically."""
    c = sp.Symbol("c", positive=True)
    product = alpha * alpha_bar_s
    cov_ts = sp.sqrt(alpha) * (c * alpha_bar_s + 1 - alpha_bar_s)  # Cov(x_t, x_s)
    reverse = (c * alpha_bar_s + 1 - alpha_bar_s) - cov_ts**2 / (
        c * product + 1 - product
    )
    difference = sp.numer(sp.together(reverse - (1 - alpha)))
    assert sp.solve(difference, c) == [1]
    of_point = sp.simplify(reverse.subs(c, 0) - symbolic.posterior().variance)
    assert of_point == 0  # the half of the claim that is true

    of_package = {}
    for value in (0.25, 1.0, 4.0):
        ratios = []
        for t in range(2, 1001):
            alpha_bar = float(diffusion.schedule.alpha_bar[t])
            ignorance = value * (1 - alpha_bar) / (value * alpha_bar + 1 - alpha_bar)
            weight_0 = diffusion.q_posterior(ONE, ZERO, t)[0].item()
            tilde = diffusion.q_posterior(ONE, ZERO, t)[1].item()
            beta = diffusion.transition_variance(ONE, t).item()
            ratios.append((tilde + weight_0**2 * ignorance) / beta)
        of_package[value] = np.array(ratios)
    np.testing.assert_allclose(of_package[1.0], 1, rtol=1e-9)
    assert of_package[0.25].max() < 1 < of_package[4.0].min()
    assert of_package[0.25].min() == pytest.approx(0.9955, abs=1e-4)
    exact = sp.lambdify((c, alpha, alpha_bar_s), reverse / (1 - alpha))
    at = diffusion.schedule.alpha[300].item(), diffusion.schedule.alpha_bar[299].item()
    assert of_package[4.0][298] == pytest.approx(exact(4.0, *at), rel=1e-9)


@pytest.mark.erratum("err-log-zero")
def test_no_logarithm_of_zero(diffusion):
    variances = torch.cat(
        [diffusion.q_posterior(ONE, ONE, t)[1].flatten() for t in TIMES]
    )
    logs, log_beta = variances.log(), diffusion.schedule.beta[1:].log()
    assert logs[0] == -math.inf
    assert (logs[0] / 2).exp() == 0  # so far harmless
    assert (1 * log_beta[0] + 0 * logs[0]).isnan()  # interpolated with v = 1
    assert log_beta.sqrt().isnan().all()
    pixel = torch.full((1, 1), 1 / 255, dtype=torch.float64)
    off = pixel + 0.01

    def bits(variance: float) -> float:
        value = torch.tensor(variance, dtype=torch.float64)
        log_p = gaussian.discretised_log_density(pixel, off, value)
        return -log_p.item() / math.log(2)

    deviation = 0.01  # √β_1
    edges = (np.array([-1, 1]) / 255 - 0.01) / deviation
    by_scipy = -np.log2(np.diff(stats.norm.cdf(edges))).item()
    assert bits(1e-4) == pytest.approx(by_scipy, rel=1e-9)
    assert bits(1e-4) < 3 < 1e15 < bits(1e-20)
    # The package: finite bound and samples for both variances, although β̃_1 = 0.
    schedule = linear_schedule(T=50)
    short, network = GaussianDiffusion(schedule), normal_data(schedule, 0.1)
    x = torch.full((4, 1), 1 / 255)
    for variance in ("posterior", "beta"):
        assert variational_bound(network, short, x, variance=variance).total.max() < 50
        x_T = torch.randn(4, 1, generator=torch.Generator().manual_seed(0))
        assert end(ancestral(network, short, x_T, variance=variance)).isfinite().all()


@pytest.mark.erratum("err-clipping")
@pytest.mark.parametrize("error", [0.9, 1.1])
def test_clipping_moves_the_noise_along(diffusion, error):
    """Data ±1, a network that is a tenth off: every x_t should have variance 1; 4,000 samples."""
    exact = ExactEps(diffusion.schedule, torch.tensor([[-1.0], [1.0]]))

    def network(x, t):
        return error * exact(x, t)

    times = [1000, 980, 960, 600, 0]
    generator = torch.Generator().manual_seed(0)
    x_T = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    states = list(ddim(network, diffusion, x_T, times, clip=1.0))
    alpha_bar = diffusion.schedule.alpha_bar
    moved = 0
    for now, then in pairwise(states):
        assert now.x_0.abs().max() <= 1
        # Mixed at its own level, the pair (x̂_0, ε̂) of the package must give x_t back.
        eps = (then.x_t - alpha_bar[then.t].sqrt() * now.x_0) / (
            1 - alpha_bar[then.t]
        ).clamp(min=1e-30).sqrt()
        if then.t > 0:
            again = diffusion.q_sample(now.x_0, now.t, eps)
            assert torch.allclose(again, now.x_t, atol=1e-9)
            raw = network(now.x_t, torch.full((4000,), now.t))
            moved += int(((raw - eps).abs() > 1e-3).sum())
            by_halves = diffusion.q_sample(now.x_0, now.t, raw)
            if now.t < 1000:
                assert (by_halves - now.x_t).abs().max() > 1e-2
    assert moved > 1000  # clipping did happen

    def variance_at_480(move_along: bool) -> float:
        scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=True)
        scheduler.set_timesteps(50)
        x = x_T.float()
        for t in scheduler.timesteps:
            if int(t) < 480:
                break
            eps = network(x, torch.full((4000,), int(t) + 1))
            x = scheduler.step(
                eps, t, x, use_clipped_model_output=move_along
            ).prev_sample
        return x.var().item()

    right, by_halves = (
        abs(math.log(variance_at_480(along))) for along in (True, False)
    )
    assert right < 0.5 < 1 < by_halves


@pytest.mark.erratum("err-clipping")
def test_measured_cost_of_clipping_by_halves():
    """What the text quotes is what the committed benchmark found."""
    results = Path(__file__).parents[1] / "benchmarks" / "results" / "clipping.json"
    measured = json.loads(results.read_text(encoding="utf-8"))
    left = measured["noise left as it was"]["frechet_distance"]
    along = measured["noise moved along"]["frechet_distance"]
    assert (round(left), round(along)) == (68, 54)


@pytest.mark.erratum("err-same-start")
def test_every_batch_has_its_own_start():
    schedule = linear_schedule(T=50)
    diffusion, network = GaussianDiffusion(schedule), normal_data(schedule, 1.0)
    generator = torch.Generator().manual_seed(0)
    batches = [
        sample(network, diffusion, (8, 1), "ddim", generator=generator)
        for _ in range(4)
    ]
    assert len(torch.cat(batches).unique()) == 32  # of the package
    x_T = torch.randn(8, 1, generator=generator)
    reused = [end(ddim(network, diffusion, x_T)) for _ in range(4)]
    assert len(torch.cat(reused).unique()) == 8
    again = [end(ancestral(network, diffusion, x_T)) for _ in range(4)]
    assert len(torch.cat(again).unique()) == 32
    # Two ancestral samples with the same x_T have the correlation ᾱ_T: the mean slope from x_T to x_0, squared.
    slope = 1.0
    for t in range(1, 51):
        guess = diffusion.predict_x_0(ONE, t, network(ONE, t))
        slope *= diffusion.q_posterior(guess, ONE, t)[0].item()
    assert slope**2 == pytest.approx(float(schedule.alpha_bar[-1]), rel=1e-9)


# The bound


@pytest.mark.erratum("err-no-x0")
def test_reverse_law_without_x_0_depends_on_the_data(diffusion):
    """The oracle: Bayes' rule over the values of the data, with scipy's normal density."""
    t, s, seen = 300, 200, 0.4
    alpha_bar = diffusion.schedule.alpha_bar
    noisy = torch.full((1, 1), seen, dtype=torch.float64)
    means = []
    for values in ([-1.0, 1.0], [-1.0, 0.0, 0.2, 1.0]):
        law = stats.norm(
            np.sqrt(float(alpha_bar[t])) * np.array(values),
            np.sqrt(1 - float(alpha_bar[t])),
        ).pdf(seen)
        of_each = [
            diffusion.q_posterior(
                torch.full((1, 1), value, dtype=torch.float64), noisy, t, s
            )[0].item()
            for value in values
        ]
        by_bayes = np.average(of_each, weights=law)
        network = ExactEps(diffusion.schedule, torch.tensor(values)[:, None])
        guess = diffusion.predict_x_0(noisy, t, network(noisy, t))
        mean = diffusion.q_posterior(guess, noisy, t, s)[0].item()
        assert mean == pytest.approx(by_bayes, rel=1e-6)
        means.append(mean)
    assert abs(means[0] - means[1]) > 0.05
    # Given x_0 no law of the data enters: there is no argument for it.
    arguments = set(inspect.signature(diffusion.q_posterior).parameters)
    assert arguments == {"x_0", "x_t", "t", "s"}
    assert symbolic.posterior().mean.free_symbols == {alpha, alpha_bar_s, x_0, x_t}


def average_bound(c: float, T: int, n: int = 4000):
    """The package's bound in bits for n draws from N(0, c), and the perfect network with σ² = β."""
    schedule = linear_schedule(T=T)
    generator = torch.Generator().manual_seed(0)
    data = c**0.5 * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    return variational_bound(
        normal_data(schedule, c),
        GaussianDiffusion(schedule),
        data,
        levels=None,
        variance="beta",
        generator=generator,
    )


@pytest.mark.erratum("err-first-step")
def test_the_first_step_is_counted_once():
    """For N(0, 1) the right bound is the entropy. Five standard errors: a false alarm in 1 of 1.7 million runs."""
    T = 50
    bound = average_bound(1.0, T)
    entropy = 0.5 * math.log2(2 * math.pi * math.e)
    tolerance = 5 * bound.standard_error
    assert bound.L_t.shape[1] == T - 1
    assert int(bound.times.min()) == 2
    assert bound.total.mean().item() == pytest.approx(entropy, abs=tolerance)
    assert tolerance < 0.2
    beta_1 = float(linear_schedule(T=T).beta[1])
    for floor, nats in [(0.0, math.inf), (1e-20, None), (1e-12, None)]:
        q, p = (torch.tensor(v, dtype=torch.float64) for v in (floor, beta_1))
        extra = gaussian.kl(ZERO, q, ZERO, p).item()
        if nats is None:
            nats = -0.5 - 0.5 * math.log(floor / beta_1)  # the ratio itself is nothing
        assert extra == pytest.approx(nats, abs=1e-6)
        assert bound.total.mean().item() + extra / math.log(2) > entropy + tolerance
    # -log p(x_0) for -log p(x_0 | x_1): L_0 becomes the entropy, too much by half of log2(1 / β_1).
    too_much = entropy - bound.L_0.mean().item()
    assert too_much == pytest.approx(0.5 * math.log2(1 / beta_1), abs=0.2)
    assert too_much > 4


@pytest.mark.erratum("err-without-prior-term")
def test_without_the_prior_term_noise_can_be_compressed():
    """Uniform 8-bit noise needs 8 bits per pixel, whatever the model."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the schedule does not end in noise, as intended
        one_step = GaussianDiffusion(NoiseSchedule([1e-6]))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 1, 8, 8), generator=generator) / 127.5 - 1
    terms = variational_bound(
        lambda x, t: torch.zeros_like(x), one_step, images, generator=generator
    )
    assert terms.L_0.mean() + terms.L_t.sum() < 0.1
    assert terms.total.mean() > 8
    # E[L_T] for x_0 uniform on the 256 values, in closed form:
    power = (np.arange(256) / 127.5 - 1) @ (np.arange(256) / 127.5 - 1) / 256
    kept = 1 - 1e-6
    expected = 0.5 * (kept * power - kept - math.log(1e-6)) / math.log(2)
    assert terms.L_T.mean().item() == pytest.approx(expected, abs=0.05)
    # With the usual schedule it is negligible, so that the claim costs nothing there.
    usual = variational_bound(
        lambda x, t: torch.zeros_like(x),
        GaussianDiffusion(linear_schedule()),
        images,
        samples=1,
        generator=generator,
    )
    assert usual.L_T.mean() < 5e-5


@pytest.mark.erratum("err-rearrangement")
def test_the_rearrangement_changes_no_number_and_consistency_terms_do():
    schedule = linear_schedule(T=50)
    diffusion = GaussianDiffusion(schedule)
    start = torch.full((200, 1), 0.8, dtype=torch.float64)
    path = [start, *diffusion.q_chain(start, torch.Generator().manual_seed(0))]
    path = [x[:, 0].numpy() for x in path]
    beta, alpha_t, alpha_bar = of(schedule)
    there = sum(
        stats.norm.logpdf(
            path[t], alpha_t[t - 1] ** 0.5 * path[t - 1], beta[t - 1] ** 0.5
        )
        for t in range(1, 51)
    )

    def backwards(shift: int) -> np.ndarray:
        """log q told backwards, with the package's posterior; a shift of the index makes it wrong."""
        last = alpha_bar[-1]
        total = stats.norm.logpdf(path[50], (last**0.5) * 0.8, (1 - last) ** 0.5)
        for t in range(2, 51):
            x = torch.from_numpy(path[t])[:, None]
            mean, variance = diffusion.q_posterior(start, x, min(t + shift, 50))
            deviation = variance.sqrt().numpy().ravel()
            total = total + stats.norm.logpdf(
                path[t - 1], mean[:, 0].numpy(), deviation
            )
        return total

    np.testing.assert_allclose(backwards(0), there, atol=1e-8)  # on every single path
    assert np.abs(backwards(1) - there).min() > 1e-2

    # The consistency terms, for N(0, 1) and the perfect model with σ² = β, from the package's KL.
    sums = {}
    for T in (50, 200):
        schedule = linear_schedule(T=T)
        beta, alpha_t, _ = (torch.from_numpy(values) for values in of(schedule))
        x_before = torch.randn(
            20_000, T - 1, generator=torch.Generator().manual_seed(0)
        ).double()
        noise = torch.randn(
            2, 20_000, T - 1, generator=torch.Generator().manual_seed(1)
        ).double()
        x_now = alpha_t[:-1].sqrt() * x_before + beta[:-1].sqrt() * noise[0]
        x_after = alpha_t[1:].sqrt() * x_now + beta[1:].sqrt() * noise[1]
        q_mean, p_mean = alpha_t[:-1].sqrt() * x_before, alpha_t[1:].sqrt() * x_after
        terms = gaussian.kl(q_mean, beta[:-1], p_mean, beta[1:]).mean(0)
        sums[T] = terms.sum().item()
        assert sums[T] == pytest.approx(T, rel=0.25)  # about one nat a step
    bound = average_bound(1.0, 50, n=1000)
    assert bound.total.mean().item() * math.log(2) < 2  # the entropy is 1.4 nats
    assert sums[200] > 3 * sums[50]


@pytest.mark.erratum("err-skipped-steps")
def test_a_jump_with_the_noise_of_one_step_leaves_noise_over() -> None:
    """Samples for N(0, c) with the exact network: by the package's sampler, and with beta_t for beta_{t|s}."""
    schedule = ddpm_lite.linear_schedule(T=1000)
    diffusion = ddpm_lite.GaussianDiffusion(schedule)
    c, times = 0.25, schedule.times(50)
    network = ddpm_lite.ExactEps(
        schedule, torch.zeros(1, 1), torch.full((1, 1, 1), c).double()
    )
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(20_000, 1, generator=generator).double()
    *_, end = ddpm_lite.ancestral(
        network, diffusion, start, times, variance="beta", generator=generator
    )
    # The deviation of a variance from 20,000 draws is 1 %.
    assert end.x_t.var().item() == pytest.approx(c, rel=0.15)

    x = start
    for t in times[:-1]:
        beta, alpha_bar = float(schedule.beta[t]), float(schedule.alpha_bar[t])
        eps = network(x, torch.full((len(x),), t))
        x = (x - beta / (1 - alpha_bar) ** 0.5 * eps) / (1 - beta) ** 0.5
        if t != times[-2]:
            x = x + beta**0.5 * torch.randn(x.shape, generator=generator).double()
    assert x.var().item() > 3 * c
