"""``bound`` and the discretised Gaussian: against scipy, mpmath, and data for which every term is known."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ddpm_lite import (
    ExactEps,
    GaussianDiffusion,
    NoiseSchedule,
    cosine_schedule,
    gaussian,
    linear_schedule,
)
from ddpm_lite.bound import variational_bound
from ddpm_lite.data import digits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*values: float) -> list[torch.Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def zero(x_t, t):
    return torch.zeros_like(x_t)


# The discretised Gaussian.


def by_mpmath(x: float, mean: float, variance: float, levels: int) -> float:
    """The integral over the bin with 60 digits, measured from the side on which the mean is not."""
    with mpmath.workdps(60):
        x, mean = mpmath.mpf(x), mpmath.mpf(mean)
        if x < mean:  # mirrored, the problem is the same
            x, mean = -x, -mean
        half, root = mpmath.mpf(1) / (levels - 1), mpmath.sqrt(2 * mpmath.mpf(variance))
        lower = -mpmath.inf if x < -1 + half else (x - half - mean) / root
        upper = mpmath.inf if x > 1 - half else (x + half - mean) / root
        return float(mpmath.log((mpmath.erfc(lower) - mpmath.erfc(upper)) / 2))


@pytest.mark.equation("eq-vlb-decoder-discretised")
@given(
    st.integers(2, 256),
    st.floats(0, 1),
    st.floats(-1.5, 1.5),
    st.floats(1e-3, 2),
)
@settings(max_examples=60, deadline=None)
def test_discretised_density_is_the_integral_over_the_bin(
    levels, where, mean, deviation
):
    x = 2 * round(where * (levels - 1)) / (levels - 1) - 1
    variance = deviation**2
    ours = gaussian.discretised_log_density(*double(x, mean, variance), levels)
    expected = by_mpmath(x, mean, variance, levels)
    assert float(ours) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("deviation", [0.005, 0.1, 3.0])
def test_probabilities_of_all_grey_values_sum_to_one(levels, deviation):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    mean, variance = double(0.31, deviation**2)
    log_p = gaussian.discretised_log_density(x, mean, variance, levels)
    assert float(log_p.exp().sum()) == pytest.approx(1, rel=1e-12)
    assert float(log_p.max()) <= 0
    density = gaussian.log_density(x, mean, variance).exp().sum() * 2 / (levels - 1)
    if deviation == 3.0:  # density times width: the open ends are lost
        assert float(density) != pytest.approx(1, rel=0.1)


def test_far_tails_are_finite_and_have_a_gradient():
    for dtype in (torch.float32, torch.float64):
        x = torch.linspace(-1, 1, 17, dtype=dtype)
        mean = torch.full_like(x, 0.97).requires_grad_()
        log_p = gaussian.discretised_log_density(x, mean, torch.tensor(1e-4), 17)
        log_p.sum().backward()
        assert bool(log_p.isfinite().all())
        assert bool(mean.grad.isfinite().all())
        naive = stats.norm.cdf(-80) - stats.norm.cdf(-90)
        assert naive == 0  # the logarithm of which is what the function avoids


# The terms.


def rebuilt(seen, diffusion, x_0, variance, levels):
    """Every term in plain NumPy, from the x_t that the network saw and the constant ε of 0.3 that it answered."""
    alpha_bar = np.cumprod(1 - np.append(0, diffusion.schedule.beta[1:].numpy()))
    x_0 = x_0.numpy()
    nats = np.log(2)

    def kl(mean_q, var_q, mean_p, var_p):
        return np.mean(
            0.5 * (var_q / var_p - 1 - np.log(var_q / var_p))
            + (mean_q - mean_p) ** 2 / (2 * var_p),
            axis=1,
        )

    L_t = []
    for x_t, t in seen[:-1]:
        a, s = alpha_bar[t][:, None], alpha_bar[t - 1][:, None]
        guess = (x_t - (1 - a) ** 0.5 * 0.3) / a**0.5
        step = 1 - a / s
        tilde = (1 - s) / (1 - a) * step

        def mean(start, x_t=x_t, a=a, s=s, step=step):
            return (s**0.5 * step * start + (a / s) ** 0.5 * (1 - s) * x_t) / (1 - a)

        model_variance = tilde if variance == "posterior" else step
        L_t.append(kl(mean(x_0), tilde, mean(guess), model_variance) / nats)
    x_1, t = seen[-1]
    assert set(t.tolist()) == {1}
    a = alpha_bar[1]
    guess = (x_1 - (1 - a) ** 0.5 * 0.3) / a**0.5
    if levels is None:
        log_p = stats.norm.logpdf(x_0, guess, (1 - a) ** 0.5)
    else:
        half, scale = 1 / (levels - 1), (1 - a) ** 0.5
        upper = np.where(x_0 > 1 - half, np.inf, x_0 + half)
        lower = np.where(x_0 < -1 + half, -np.inf, x_0 - half)
        log_p = np.log(
            stats.norm.cdf(upper, guess, scale) - stats.norm.cdf(lower, guess, scale)
        )
    a = alpha_bar[-1]
    L_T = kl(a**0.5 * x_0, 1 - a, 0, 1) / nats
    return L_T, np.stack(L_t, 1), -log_p.mean(1) / nats


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("levels", [None, 5])
def test_every_term_agrees_with_plain_numpy(variance, levels):
    schedule = linear_schedule(T=30)
    diffusion, seen = GaussianDiffusion(schedule), []

    def eps_model(x_t, t):
        seen.append((x_t.numpy(), t.numpy()))
        return torch.full_like(x_t, 0.3)

    x_0 = torch.tensor([[-1, 0.5, 0], [1, -0.5, 0.5]], dtype=torch.float64)
    terms = variational_bound(
        eps_model, diffusion, x_0, levels=levels, variance=variance, generator=seeded()
    )
    L_T, L_t, L_0 = rebuilt(seen, diffusion, x_0, variance, levels)
    np.testing.assert_allclose(terms.L_T, L_T, rtol=1e-9)
    np.testing.assert_allclose(terms.L_t, L_t, rtol=1e-9)
    np.testing.assert_allclose(terms.L_0, L_0, rtol=1e-7)
    np.testing.assert_allclose(terms.total, L_T + L_t.sum(1) + L_0, rtol=1e-9)
    assert terms.times.tolist() == [list(range(2, 31))] * 2
    other = rebuilt(
        seen,
        diffusion,
        x_0,
        {"posterior": "beta"}.get(variance, "posterior"),
        levels,
    )
    assert np.abs(other[1] - L_t).max() > 0.01


@pytest.mark.equation("eq-vlb-gaussian-terms")
@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("c", [0.25, 1.0, 2.0])
def test_normal_data_has_the_terms_that_the_formulas_say(variance, c):
    """20,000 images of one entry; each of 31 terms within 6 standard errors (false alarm 4e-7 in all 6 cases)."""
    schedule = linear_schedule(T=30)
    abar, beta = schedule.alpha_bar.numpy(), schedule.beta.numpy()
    v = c * (1 - abar) / (c * abar + 1 - abar)
    tilde = (1 - abar[1:-1]) / (1 - abar[2:]) * beta[2:]
    sigma2 = tilde if variance == "posterior" else beta[2:]
    w = abar[1:-1] ** 0.5 * beta[2:] / (1 - abar[2:])
    r = tilde / sigma2
    L_T = 0.5 * (c * abar[-1] - abar[-1] - np.log(1 - abar[-1]))
    L_t = 0.5 * (r - 1 - np.log(r)) + w**2 * v[2:] / (2 * sigma2)
    L_0 = 0.5 * np.log(2 * np.pi * beta[1]) + v[1] / (2 * beta[1])
    expected = np.array([L_T, *L_t, L_0]) / np.log(2)

    x_0 = c**0.5 * torch.randn(20_000, 1, dtype=torch.float64, generator=seeded())
    exact = ExactEps(schedule, torch.zeros(1, 1), c * torch.ones(1, 1, 1))
    terms = variational_bound(
        exact,
        GaussianDiffusion(schedule),
        x_0,
        levels=None,
        variance=variance,
        batch_size=20_000,
        generator=seeded(1),
    )
    found = torch.cat([terms.L_T[:, None], terms.L_t, terms.L_0[:, None]], 1).numpy()
    error = found.std(0) / 20_000**0.5
    assert np.all(np.abs(found.mean(0) - expected) < 6 * error + 1e-12)
    not_squared = 0.5 * (r - 1 - np.log(r)) + w * v[2:] / (2 * sigma2)
    wrong = np.array([L_T, *not_squared, L_0]) / np.log(2)
    assert not np.all(np.abs(found.mean(0) - wrong) < 6 * error)

    entropy = 0.5 * np.log2(2 * np.pi * np.e * c)
    if (c, variance) == (1.0, "beta"):  # the model is perfect and the bound tight
        assert expected.sum() == pytest.approx(entropy, rel=1e-12)
    else:
        assert expected.sum() > entropy + 1e-3
    assert expected[1:].sum() < expected.sum()


@pytest.mark.equation("eq-vlb-constant-guess")
def test_a_constant_guess_telescopes(diffusion):
    """No noise in it at all: the guess is the same for every x_t."""
    certain = ExactEps(diffusion.schedule, torch.full((1, 1), 0.5))
    x_0 = torch.tensor([[-0.25], [0.9]], dtype=torch.float64)
    terms = variational_bound(certain, diffusion, x_0, levels=None, generator=seeded())
    snr = diffusion.schedule.snr
    squared = (x_0[:, 0] - 0.5) ** 2
    nats = 0.5 * (snr[1] - snr[1000]) * squared
    torch.testing.assert_close(terms.L_t.sum(1) * np.log(2), nats, rtol=1e-9, atol=0)
    wrong = (snr[1] - snr[1000]) * squared  # without the half
    assert not torch.allclose(terms.L_t.sum(1) * np.log(2), wrong, rtol=1e-3)


def test_bits_are_the_mean_over_entries_and_do_not_depend_on_the_shape():
    diffusion = GaussianDiffusion(linear_schedule(30))
    x_0 = torch.tensor([-0.5, 0.0, 0.25, 1.0], dtype=torch.float64)
    certain = ExactEps(diffusion.schedule, torch.zeros(1, 4))
    flat = variational_bound(certain, diffusion, x_0.view(1, 4), levels=None)
    image = variational_bound(
        ExactEps(diffusion.schedule, torch.zeros(1, 1, 2, 2)),
        diffusion,
        x_0.view(1, 1, 2, 2),
        levels=None,
    )
    torch.testing.assert_close(flat.total, image.total)
    single = [
        variational_bound(
            ExactEps(diffusion.schedule, torch.zeros(1, 1)),
            diffusion,
            x.view(1, 1),
            levels=None,
        ).total
        for x in x_0
    ]
    torch.testing.assert_close(flat.total, torch.cat(single).mean().view(1))


# The whole of it, by another route: plain NumPy, and each expectation an integral. Nothing here comes from the package.

BETA = np.linspace(0.02, 0.9, 12)
NATS = np.log(2)  # in one bit
IMAGES = np.array([[-1, -0.75, 0, 0.25, 1, 1], [0.5, 0, 0, -1, -1, 1], [1] * 6]) * 1.0


def guess(x_t, t, lib=np):
    """ε of a "network" that looks at each pixel alone."""
    return 1.2 * lib.tanh(0.9 * x_t + 0.15 * t - 0.6)


def by_integration(
    x_0, variance="posterior", clip=np.inf, levels=9, unit=NATS, bin_=1, delay=0
):
    """L_T, L_t for t = 2..T and L_0 of each image in bits per dimension; the last three arguments can be wrong."""
    eps = np.linspace(-9, 9, 6001)
    density = np.exp(-(eps**2) / 2)
    density /= density.sum()
    x = x_0[..., None]
    alpha_bar = 1.0
    terms = []
    for t in range(1, len(BETA) + 1):
        beta, before = BETA[t - 1], alpha_bar
        alpha_bar = before * (1 - beta)
        x_t = np.sqrt(alpha_bar) * x + np.sqrt(1 - alpha_bar) * eps
        found = x_t - np.sqrt(1 - alpha_bar) * guess(x_t, t - delay)
        found = np.clip(found / np.sqrt(alpha_bar), -clip, clip)
        if t == 1:
            half, scale = bin_ / (levels - 1), np.sqrt(BETA[0])
            upper = np.where(x > 0.999, np.inf, (x + half - found) / scale)
            lower = np.where(x < -0.999, -np.inf, (x - half - found) / scale)
            beyond = upper + lower > 0  # there, subtract what is left above
            above = stats.norm.sf(lower) - stats.norm.sf(upper)
            below = stats.norm.cdf(upper) - stats.norm.cdf(lower)
            nats = -np.log(np.where(beyond, above, below))
        else:
            true_variance = beta * (1 - before) / (1 - alpha_bar)
            model_variance = {"posterior": true_variance, "beta": beta}[variance]
            apart = np.sqrt(before) * beta / (1 - alpha_bar) * (x - found)
            nats = np.log(model_variance / true_variance) / 2 - 0.5
            nats += (true_variance + apart**2) / (2 * model_variance)
        terms.append((nats @ density).mean(1) / unit)
    L_T = alpha_bar * x_0**2 + (1 - alpha_bar) - 1 - np.log(1 - alpha_bar)
    return L_T.mean(1) / 2 / unit, np.stack(terms[1:], 1), terms[0]


def estimated(copies, **options):
    """The package's estimate for copies of each image, with the means and standard errors, shape (3, ...)."""
    diffusion = GaussianDiffusion(NoiseSchedule(BETA))
    x_0 = torch.from_numpy(IMAGES).repeat(copies, 1)
    bound = variational_bound(
        lambda x_t, t: guess(x_t, t[:, None], torch),
        diffusion,
        x_0,
        levels=9,
        batch_size=len(x_0),
        generator=seeded(),
        **options,
    )

    def mean_and_error(x):
        x = x.view(copies, 3, *x.shape[1:]).numpy()
        return x.mean(0), x.std(0) / copies**0.5

    return bound, mean_and_error


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_every_term_is_the_integral_that_plain_numpy_finds(variance, clip):
    """3 images, 6,000 draws: 39 means within 6 standard errors, of which a normal law would pass all but 8e-8."""
    bound, mean_and_error = estimated(6000, variance=variance, clip=clip)

    def agrees(**wrong):
        bounds = {} if clip is None else {"clip": clip}
        L_T, L_t, L_0 = by_integration(IMAGES, variance, **bounds, **wrong)
        close = np.allclose(bound.L_T.view(-1, 3)[0], L_T, rtol=1e-9)
        for found, expected in (
            (bound.L_t, L_t),
            (bound.L_0, L_0),
            (bound.total, L_T + L_t.sum(1) + L_0),
        ):
            mean, error = mean_and_error(found)
            close &= bool((np.abs(mean - expected) < 6 * error + 1e-9).all())
        return close

    assert agrees()
    assert not agrees(unit=1.0), "nats"
    assert not agrees(bin_=2), "edges at the neighbours' grey values"
    assert not agrees(delay=1), "times counted from 0"
    other = {"posterior": "beta", "beta": "posterior"}[variance]
    L_t = by_integration(IMAGES, other)[1]
    assert np.abs(mean_and_error(bound.L_t)[0] - L_t).max() > 0.01


@pytest.mark.parametrize("samples", [1, 4])
def test_a_few_times_estimate_the_integral(samples):
    """3 images, 20,000 draws: the means of the total within 6 standard errors (false alarm 6e-9)."""
    L_T, L_t, L_0 = by_integration(IMAGES)
    bound, mean_and_error = estimated(20_000, samples=samples)
    mean, error = mean_and_error(bound.total)
    assert (np.abs(mean - (L_T + L_t.sum(1) + L_0)) < 6 * error).all()
    assert (error < 0.02 * mean).all()
    from_1 = (mean - L_T - L_0) * 12 / 11  # as if one of T times had been drawn
    assert not (np.abs(from_1 - L_t.sum(1)) < 6 * error).all()
    # Each drawn term is that of its own time.
    for k in range(samples):
        for i, expected in enumerate(L_t):
            times, terms = (
                x.view(-1, 3, samples)[:, i, k] for x in (bound.times, bound.L_t)
            )
            for t in times.unique().tolist():
                seen = terms[times == t]
                error = float(seen.std() / len(seen) ** 0.5)
                assert float(seen.mean()) == pytest.approx(
                    expected[t - 2], abs=6 * error + 1e-9
                )


def test_the_standard_error_is_the_spread_of_repeated_estimates():
    """800 estimates of 40 images each: the spread is known to 2.5%, the claim to less; within 15% (6 sigma)."""
    repeats, images = 800, 40
    diffusion = GaussianDiffusion(NoiseSchedule(BETA))
    chosen = torch.randint(3, (repeats * images,), generator=seeded(5))
    bound = variational_bound(
        lambda x_t, t: guess(x_t, t[:, None], torch),
        diffusion,
        torch.from_numpy(IMAGES)[chosen],
        samples=5,
        variance="beta",
        levels=9,
        batch_size=images,
        generator=seeded(6),
    )
    groups = bound.total.view(repeats, images)
    claims = [bound._replace(total=total).standard_error for total in groups]
    spread = float(groups.mean(1).std())
    assert np.mean(claims) == pytest.approx(spread, rel=0.15)


# Some of the times.


@pytest.mark.parametrize("T", [2, 3, 10, 50])
def test_intervals_divide_the_times_without_gap_or_overlap(T):
    diffusion = GaussianDiffusion(cosine_schedule(T))
    x_0 = torch.zeros(2000, 1)
    for samples in range(1, min(T, 12)):
        terms = variational_bound(
            zero,
            diffusion,
            x_0,
            samples=samples,
            levels=None,
            batch_size=2000,
            generator=seeded(),
        )
        assert terms.times.shape == terms.L_t.shape == (2000, samples)
        assert float(terms.weights.sum()) == T - 1
        low, high = terms.times.min(0).values, terms.times.max(0).values
        assert bool((high - low + 1 == terms.weights).all())  # each time is drawn
        assert (int(low[0]), int(high[-1])) == (2, T)
        assert bool((low[1:] == high[:-1] + 1).all())


def test_some_of_the_times_estimate_the_bound_without_bias():
    """One entry, 40,000 copies, 5 of 99 times: within 5 standard errors (false alarm 6e-7)."""
    diffusion = GaussianDiffusion(linear_schedule(T=100))
    x_0 = torch.full((40_000, 1), 0.4, dtype=torch.float64)
    certain = ExactEps(diffusion.schedule, torch.full((1, 1), -0.3))
    options = {"levels": None, "batch_size": 40_000, "decoder_variance": 1e6}
    whole = float(variational_bound(certain, diffusion, x_0[:1], **options).total)
    some = variational_bound(
        certain, diffusion, x_0, samples=5, generator=seeded(), **options
    )
    assert some.standard_error < 0.02 * whole
    assert float(some.total.mean()) == pytest.approx(whole, abs=5 * some.standard_error)
    unweighted = float((some.L_T + some.L_t.sum(1) + some.L_0).mean())
    assert unweighted != pytest.approx(whole, rel=0.1)


def test_same_generator_same_bound_and_batches_cover_all_images(diffusion, tiny_model):
    x_0 = digits("test").x_0[:7]
    options = {"samples": 3, "levels": 17, "clip": 1.0}
    before = torch.get_rng_state()
    one, two = (
        variational_bound(
            tiny_model.unet, tiny_model.diffusion, x_0, generator=seeded(2), **options
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    assert torch.equal(torch.get_rng_state(), before)
    split = variational_bound(
        tiny_model.unet,
        tiny_model.diffusion,
        x_0,
        batch_size=3,
        generator=seeded(2),
        **options,
    )
    assert split.total.shape == (7,)
    torch.testing.assert_close(split.L_T, one.L_T)


def test_clipping_and_decoder_variance_reach_the_terms(diffusion):
    def wild(x_t, t):
        return torch.full_like(x_t, -50.0)

    x_0 = torch.zeros(1, 1, dtype=torch.float64)
    options = {"levels": None, "samples": 5}
    plain = variational_bound(wild, diffusion, x_0, generator=seeded(), **options)
    clipped = variational_bound(
        wild, diffusion, x_0, clip=1.0, generator=seeded(), **options
    )
    assert bool((clipped.L_t <= plain.L_t).all())
    assert float(clipped.L_t[0, -1]) < float(plain.L_t[0, -1])
    certain = ExactEps(diffusion.schedule, torch.zeros(1, 1))
    wide = variational_bound(certain, diffusion, x_0, decoder_variance=0.5, levels=None)
    expected = 0.5 * np.log2(2 * np.pi * 0.5)
    assert float(wide.L_0) == pytest.approx(expected, rel=1e-12)


def test_one_step_has_no_terms_in_between():
    with pytest.warns(UserWarning, match="alpha_bar"):
        diffusion = GaussianDiffusion(linear_schedule(1, 0.5, 0.5))
    terms = variational_bound(zero, diffusion, torch.zeros(2, 3), levels=None)
    assert terms.L_t.shape == (2, 0)
    torch.testing.assert_close(terms.total, terms.L_T + terms.L_0)


# What is refused.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"variance": "learned"},
            ValueError,
            r'variance must be "posterior" or "beta"',
        ),
        ({"samples": 0}, ValueError, r"samples must be between 1 and 999, got 0"),
        ({"samples": 1000}, ValueError, r"samples must be between 1 and 999"),
        ({"samples": 2.0}, TypeError, r"samples must be an int"),
        ({"levels": 1}, ValueError, r"levels must be at least 2"),
        ({"levels": 256}, ValueError, r"lie on the 256 grey values .* but has 0\.125"),
        ({"batch_size": 0}, ValueError, r"batch_size must be at least 1"),
        ({"clip": -1.0}, ValueError, r"clip must be at least 0"),
        ({"decoder_variance": 0.0}, ValueError, r"decoder_variance must be positive"),
    ],
)
def test_bad_arguments_are_refused(diffusion, options, error, message):
    x_0 = torch.full((2, 1, 2, 2), 0.125)
    with pytest.raises(error, match=message):
        variational_bound(zero, diffusion, x_0, **{"levels": 17, **options})


@pytest.mark.parametrize(
    ("x_0", "error", "message"),
    [
        (
            torch.zeros(2, 3, dtype=torch.uint8),
            TypeError,
            r"x_0 must be floating point",
        ),
        (torch.zeros(2, 3, dtype=torch.float16), TypeError, r"x_0 must be float32 or"),
        (torch.zeros(3), ValueError, r"x_0 must have shape \(B, \.\.\.\)"),
        (torch.full((2, 3), float("nan")), ValueError, r"x_0 must be finite"),
        (torch.full((2, 3), 3.0), ValueError, r"lie on the 17 grey values"),
    ],
)
def test_bad_data_is_refused(diffusion, x_0, error, message):
    with pytest.raises(error, match=message):
        variational_bound(zero, diffusion, x_0, levels=17)


def test_a_network_of_another_shape_is_refused(diffusion):
    with pytest.raises(ValueError, match=r"eps must have the shape of x_t"):
        variational_bound(
            lambda x_t, t: x_t[:, :1], diffusion, torch.zeros(2, 3), levels=17
        )
