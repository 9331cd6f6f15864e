"""``sampler`` against diffusers step by step, and against the law that its samples must have.

With the exact ε of Gaussian data every step is affine plus Gaussian noise, so the law of the samples after any
number of steps is known. ``sample_law`` computes it in NumPy; the samples are held against it, and it against the
law of the data. The order of a deterministic sampler is measured against the flow that it follows: in closed form
for Gaussian data, by scipy for a mixture.
"""

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from scipy import stats
from scipy.integrate import solve_ivp

from ddpm_lite import (
    ExactEps,
    GaussianDiffusion,
    NoiseSchedule,
    UNet,
    ancestral,
    cosine_schedule,
    ddim,
    linear_schedule,
    sample,
)
from ddpm_lite.sampler import SAMPLERS, State, dpm_solver, trajectory

MEAN = np.array([0.5, -1.0])
COV = np.array(
    [[1.2, 0.16], [0.16, 0.04]]
)  # eigenvalues 1.22 and 0.018: noise left at the end shows
N = 20_000
FALSE_ALARM = 1e-6

SAMPLERS_TESTED = [
    pytest.param("ancestral", {"variance": "posterior"}, id="ancestral-posterior"),
    pytest.param("ancestral", {"variance": "beta"}, id="ancestral-beta"),
    pytest.param("ddim", {"eta": 0.0}, id="ddim-0"),
    pytest.param("ddim", {"eta": 0.5}, id="ddim-0.5"),
    pytest.param("ddim", {"eta": 1.0}, id="ddim-1"),
    pytest.param("dpm++", {}, id="dpm++"),
]
CHAINS = [
    pytest.param(linear_schedule(60), None, id="full"),
    pytest.param(linear_schedule(1000), 25, id="25 of 1000"),
    pytest.param(cosine_schedule(1000), 7, id="7 of 1000, cosine"),
]
SOME_TIMES = [1000, 930, 700, 699, 300, 50, 7, 1, 0]
SHORT = GaussianDiffusion(linear_schedule(100))


def wavy_eps(x_t, t):
    """Some function of x_t and t, to stand for a network; large enough for clipping to matter."""
    return torch.sin(3 * x_t) + (t.view(-1, *[1] * (x_t.ndim - 1)) / 500).cos().to(
        x_t.dtype
    )


def right_ratio(lam, u, t, s):
    """r of algorithm 2: the step in λ before this one over this one."""
    return (lam[t] - lam[u]) / (lam[s] - lam[t])


WRONG_RATIOS = {
    "no correction, that is DDIM": lambda lam, u, t, s: np.inf,
    "r inverted": lambda lam, u, t, s: 1 / right_ratio(lam, u, t, s),
    "r = 1, as if the steps were equal": lambda lam, u, t, s: 1,
    "r without the step at hand": lambda lam, u, t, s: lam[t] - lam[u],
    "sign": lambda lam, u, t, s: -right_ratio(lam, u, t, s),
    "times for λ": lambda lam, u, t, s: (u - t) / (t - s),
    "ᾱ for λ": lambda lam, u, t, s: right_ratio(1 / (1 + np.exp(-2 * lam)), u, t, s),
}


def dpm_by_the_paper(estimate, schedule, x_T, times, ratio=right_ratio):
    """Algorithm 2 of Lu et al. (2022) in its own form, for anything that has +, - and *; estimate(x_t, t) is x̂_0."""
    alpha = np.sqrt(np.cumprod([1, *(1 - schedule.beta[1:].numpy())]))
    sigma = np.sqrt(1 - alpha**2)
    with np.errstate(divide="ignore"):
        lam = np.log(alpha / sigma)
    x_t, before = x_T, None
    for t, s in pairwise(times):
        x_0 = D = estimate(x_t, t)
        yield State(t, x_t, x_0)
        h = lam[s] - lam[t]
        if before and s > 0:
            D = x_0 + (x_0 - before[1]) * float(1 / (2 * ratio(lam, before[0], t, s)))
        x_t = x_t * float(sigma[s] / sigma[t]) - D * float(alpha[s] * np.expm1(-h))
        before = t, x_0
    yield State(0, x_t, x_t)


# Single steps against diffusers


def diffusers_in_float64(scheduler_class, schedule, clip, **options):
    """A scheduler of diffusers on our β, in float64 where it keeps float32, so that only its step is compared."""
    options |= {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    scheduler = scheduler_class(
        schedule.T, trained_betas=schedule.beta[1:].tolist(), **options
    )
    scheduler.alphas_cumprod = torch.cumprod(1 - schedule.beta[1:], 0)
    return scheduler


def agrees(sampler, theirs, last=True) -> bool:
    """Whether each step of ``sampler`` is the one that ``theirs(eps, t, x_t, generator)`` makes from the same state.

    Both draw from generators with the same seed, and diffusers counts time from 0.
    """
    generator, same = (torch.Generator().manual_seed(5) for _ in range(2))
    x_T = torch.randn(
        2, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    states = list(sampler(x_T, generator))
    for now, after in pairwise(states if last else states[:-1]):
        eps = wavy_eps(now.x_t, torch.full((2,), now.t))
        result = theirs(eps, now.t - 1, now.x_t, same)
        if not torch.allclose(after.x_t, result.prev_sample, rtol=1e-9, atol=1e-8):
            return False
        if not torch.allclose(
            now.x_0, result.pred_original_sample, rtol=1e-9, atol=1e-8
        ):
            return False
    return True


@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize(
    ("variance", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")]
)
@pytest.mark.parametrize("times", [None, SOME_TIMES], ids=["full", "some"])
def test_each_ancestral_step_is_that_of_diffusers(
    diffusion, times, variance, theirs, clip
):
    diffusion = diffusion if times else SHORT
    scheduler = diffusers_in_float64(
        DDPMScheduler, diffusion.schedule, clip, variance_type=theirs
    )
    if times:
        scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])

    def ours(x_T, generator, variance=variance, clip=clip):
        return ancestral(wavy_eps, diffusion, x_T, times, variance, clip, generator)

    def step(eps, t, x_t, generator):
        return scheduler.step(eps, t, x_t, generator=generator)

    assert agrees(ours, step)
    other = {"posterior": "beta", "beta": "posterior"}[variance]
    assert not agrees(
        lambda x_T, generator: ours(x_T, generator, variance=other), step
    ), "the other variance"
    assert not agrees(lambda x_T, generator: ours(x_T, generator, clip=0.5), step), (
        "another clipping"
    )
    if times:
        scheduler.set_timesteps(timesteps=list(range(999, -1, -1)))
        assert not agrees(ours, step), "always one small step"


def wavy_eps_and_v(x_t, t):
    """ε and v for a learned variance, v also outside [-1, 1]; another v at each entry."""
    return torch.cat([wavy_eps(x_t, t), 1.2 * torch.cos(5 * x_t + 1)], dim=1)


def ancestral_by(interpolate, diffusion, x_T, times, generator):
    """The ancestral sampler with ``interpolate(v, β_t, β̃_t)`` for its variance."""
    x_t = x_T
    for t, s in pairwise(times or range(diffusion.T, -1, -1)):
        eps, v = wavy_eps_and_v(x_t, torch.full((2,), t)).chunk(2, 1)
        x_0 = diffusion.predict_x_0(x_t, t, eps)
        yield State(t, x_t, x_0)
        x_t, smaller = diffusion.q_posterior(x_0, x_t, t, s)
        variance = interpolate(v, diffusion.transition_variance(x_t, t, s), smaller)
        if s > 0:
            z = torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)
            x_t = x_t + variance.clamp(min=0).sqrt() * z
    yield State(0, x_t, x_t)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("times", [None, SOME_TIMES], ids=["full", "some"])
def test_each_ancestral_step_with_a_learned_variance_is_that_of_diffusers(
    diffusion, times, clip
):
    diffusion = diffusion if times else SHORT
    scheduler = diffusers_in_float64(
        DDPMScheduler, diffusion.schedule, clip, variance_type="learned_range"
    )
    if times:
        scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])

    def ours(x_T, generator):
        return ancestral(
            wavy_eps_and_v, diffusion, x_T, times, "learned", clip, generator
        )

    def step(_, t, x_t, generator):
        both = wavy_eps_and_v(x_t, torch.full((2,), t + 1))
        return scheduler.step(both, t, x_t, generator=generator)

    assert agrees(ours, step)
    if clip is None:
        for name, interpolate in {
            "the variances interpolated, not their logarithms": lambda v, b, p: (
                (v + 1) / 2 * b + (1 - v) / 2 * p
            ),
            "v for (v + 1) / 2": lambda v, b, p: (
                v * b.log() + (1 - v) * p.log()
            ).exp(),
            "β_t and β̃_t exchanged": lambda v, b, p: (
                b ** ((1 - v) / 2) * p ** ((v + 1) / 2)
            ),
            "the deviations for the variances": lambda v, b, p: (
                b ** (v + 1) * p ** (1 - v)
            ),
        }.items():
            assert not agrees(
                lambda x_T, generator, interpolate=interpolate: ancestral_by(
                    interpolate, diffusion, x_T, times, generator
                ),
                step,
            ), name


@pytest.mark.parametrize(("v", "fixed"), [(1.0, "beta"), (-1.0, "posterior")])
def test_the_ends_of_the_learned_variance_are_the_fixed_ones(diffusion, v, fixed):
    x_T = torch.randn(
        2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )

    def run(eps_model, variance):
        generator = torch.Generator().manual_seed(1)
        return ancestral(
            eps_model, diffusion, x_T, SOME_TIMES, variance, generator=generator
        )

    def both(x_t, t):
        return torch.cat([wavy_eps(x_t, t), torch.full_like(x_t, v)], dim=1)

    learned, other = run(both, "learned"), run(wavy_eps, fixed)
    for a, b in zip(learned, other, strict=True):
        assert torch.allclose(a.x_t, b.x_t, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("steps", "spacing"),
    [
        (200, "trailing"),
        (50, "trailing"),
        (8, "trailing"),
        (30, "leading"),
        (8, "leading"),
    ],
)
def test_each_ddim_step_is_that_of_diffusers(diffusion, steps, spacing, eta, clip):
    scheduler = diffusers_in_float64(
        DDIMScheduler, diffusion.schedule, clip, timestep_spacing=spacing
    )
    scheduler.set_timesteps(steps)
    times = diffusion.schedule.times(steps, spacing)
    assert [t - 1 for t in times[:-1]] == scheduler.timesteps.tolist()

    def ours(x_T, generator, eta=eta):
        return ddim(wavy_eps, diffusion, x_T, times, eta, clip, generator)

    def step(eps, t, x_t, generator, use_clipped=True):
        return scheduler.step(eps, t, x_t, eta, use_clipped, generator)

    assert agrees(ours, step)
    assert not agrees(lambda x_T, generator: ours(x_T, generator, eta=0.8), step), (
        "another η"
    )
    if clip is not None:
        assert not agrees(ours, lambda *a: step(*a, use_clipped=False)), (
            "x̂_0 clipped, ε̂ not moved along"
        )


class DPMSolverInFloat64(DPMSolverMultistepScheduler):
    """Its ``step`` casts x_t to float32; each update is given x_t as it was."""

    def convert_model_output(self, model_output, sample):
        self.x_t = sample
        return super().convert_model_output(model_output, sample=sample)

    def dpm_solver_first_order_update(self, x_0, sample, noise):
        return super().dpm_solver_first_order_update(x_0, sample=self.x_t)

    def multistep_dpm_solver_second_order_update(self, x_0, sample, noise):
        return super().multistep_dpm_solver_second_order_update(x_0, sample=self.x_t)


def dpm_solver_of_diffusers(schedule, times, clip):
    """The step of its scheduler for ``agrees``; it remembers the step before, so that each run needs a new one."""
    scheduler = DPMSolverInFloat64(
        schedule.T,
        trained_betas=schedule.beta[1:].tolist(),
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        thresholding=clip is not None,
        sample_max_value=1.0,  # then its threshold is [-1, 1], whatever the data
    )
    scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])
    alpha_bar = torch.cumprod(1 - schedule.beta, 0)[list(times)]
    scheduler.sigmas = ((1 - alpha_bar) / alpha_bar).sqrt()

    def step(eps, t, x_t, _):
        after = scheduler.step(eps, t, x_t).prev_sample
        return SimpleNamespace(
            prev_sample=after, pred_original_sample=scheduler.model_outputs[-1]
        )

    return step


@pytest.mark.filterwarnings("ignore:__array__ impl:DeprecationWarning:diffusers")
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize(
    "times",
    [
        SOME_TIMES,
        linear_schedule().times(100),
        linear_schedule().times(20, "leading"),
        [1000, 0],
        [1000, 400, 0],
    ],
    ids=["some", "100", "20 leading", "1", "2"],
)
def test_each_dpm_solver_step_is_that_of_diffusers(diffusion, times, clip):
    schedule = diffusion.schedule

    def ours(x_T, _, clip=clip):
        return dpm_solver(wavy_eps, diffusion, x_T, times, clip)

    def estimate(x_t, t):
        x_0 = diffusion.predict_x_0(x_t, t, wavy_eps(x_t, torch.full((2,), t)))
        return x_0 if clip is None else x_0.clamp(-clip, clip)

    def by_the_paper(ratio):
        return lambda x_T, _: dpm_by_the_paper(estimate, schedule, x_T, times, ratio)

    assert agrees(ours, dpm_solver_of_diffusers(schedule, times, clip))
    assert not agrees(
        lambda x_T, _: ours(x_T, _, clip=0.5),
        dpm_solver_of_diffusers(schedule, times, clip),
    ), "another clipping"
    theirs = dpm_solver_of_diffusers(schedule, times, clip)
    assert agrees(by_the_paper(right_ratio), theirs)
    if len(times) > 3:
        for name, ratio in WRONG_RATIOS.items():
            theirs = dpm_solver_of_diffusers(schedule, times, clip)
            assert not agrees(by_the_paper(ratio), theirs), name


@pytest.mark.parametrize("times", [[1000, 0], [1000, 400, 0]])
def test_the_first_and_the_last_step_of_dpm_solver_are_those_of_ddim(diffusion, times):
    x_T = torch.randn(
        3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    a = last(dpm_solver(wavy_eps, diffusion, x_T, times)).x_t
    b = last(ddim(wavy_eps, diffusion, x_T, times)).x_t
    assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_diffusers_adds_noise_when_the_last_step_is_a_long_one_and_we_do_not(diffusion):
    """Known difference: with ``fixed_large`` it leaves out the noise at its time 0 only, whatever the next time is."""
    scheduler = diffusers_in_float64(
        DDPMScheduler, diffusion.schedule, None, variance_type="fixed_large"
    )
    times = [1000, 500, 100, 0]
    scheduler.set_timesteps(timesteps=[t - 1 for t in times[:-1]])

    def ours(x_T, generator):
        return ancestral(wavy_eps, diffusion, x_T, times, "beta", None, generator)

    def step(eps, t, x_t, generator):
        return scheduler.step(eps, t, x_t, generator=generator)

    assert agrees(ours, step, last=False)
    assert not agrees(ours, step)


# The law of the samples


def sample_law(schedule, times, sampler, variance="posterior", eta=0.0):
    """Mean and covariance of the samples for data N(MEAN, COV) and its exact ε, in NumPy.

    A step is x_s = a x̂_0 + b x_t + σ z. Its numbers come from regressing x_s on x_t in the joint covariance of
    the two given x_0 for the ancestral sampler, and from equation 12 of the DDIM paper.
    x̂_0 = E[x_0 | x_t] is itself affine in x_t, by conditioning the joint law of data and x_t.
    """
    alpha_bar = np.concatenate([[1], np.cumprod(1 - schedule.beta[1:].numpy())])

    def gain_of(a_t):  # x̂_0 = MEAN + gain (x_t - √ᾱ_t MEAN)
        return np.sqrt(a_t) * COV @ np.linalg.inv(a_t * COV + (1 - a_t) * np.eye(2))

    if sampler == "dpm++":  # x_t is slope x_T + shift: one matrix (slope, shift)

        def estimate(x_t, t):
            centre = np.hstack([np.zeros((2, 2)), MEAN[:, None]])
            a_t = alpha_bar[t]
            return centre + gain_of(a_t) @ (x_t - np.sqrt(a_t) * centre)

        x_T = np.hstack([np.eye(2), np.zeros((2, 1))])
        x_0 = last(dpm_by_the_paper(estimate, schedule, x_T, times)).x_t
        return x_0[:, 2], x_0[:, :2] @ x_0[:, :2].T
    mean, cov = np.zeros(2), np.eye(2)
    for t, s in pairwise(times or range(schedule.T, -1, -1)):
        a_t, a_s = alpha_bar[t], alpha_bar[s]
        cov_st, var_s, var_t = np.sqrt(a_t / a_s) * (1 - a_s), 1 - a_s, 1 - a_t
        posterior_variance = var_s - cov_st**2 / var_t
        if sampler == "ancestral":
            b = cov_st / var_t
            sigma2 = (
                posterior_variance if variance == "posterior" else 1 - a_t / a_s
            ) * (s > 0)
        else:
            sigma2 = eta**2 * posterior_variance
            b = np.sqrt((var_s - sigma2) / var_t)
        a = np.sqrt(a_s) - b * np.sqrt(a_t)
        gain = gain_of(a_t)
        slope = a * gain + b * np.eye(2)
        mean = a * (MEAN - np.sqrt(a_t) * gain @ MEAN) + slope @ mean
        cov = slope @ cov @ slope.T + sigma2 * np.eye(2)
    return mean, cov


def draw(schedule, times, sampler, **options):
    """The states of a sampler that knows the Gaussian data, from N draws of x_T."""
    generator = torch.Generator().manual_seed(11)
    eps_model = ExactEps(schedule, torch.tensor(MEAN)[None], torch.tensor(COV)[None])
    x_T = torch.randn(N, 2, generator=generator, dtype=torch.float64)
    diffusion = options.pop("diffusion", GaussianDiffusion(schedule))
    return SAMPLERS[sampler](
        eps_model, diffusion, x_T, times, generator=generator, **options
    )


def last(states):
    *_, state = states
    return state


@pytest.mark.parametrize(("schedule", "steps"), CHAINS)
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS_TESTED)
def test_samples_of_gaussian_data_have_the_law_of_their_steps(
    p_value, schedule, steps, sampler, options
):
    """20,000 samples; false-alarm probability 1e-6 each."""
    times = schedule.times(steps)
    samples = last(draw(schedule, times, sampler, **options)).x_t.numpy()
    assert (
        p_value(samples, *sample_law(schedule, times, sampler, **options)) > FALSE_ALARM
    )


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS_TESTED)
def test_the_law_of_the_samples_approaches_that_of_the_data(sampler, options):
    schedule = linear_schedule()

    def error(steps):
        mean, cov = sample_law(schedule, schedule.times(steps), sampler, **options)
        return max(np.abs(mean - MEAN).max(), np.abs(cov - COV).max())

    errors = [error(steps) for steps in (5, 20, 100, 1000)]
    assert all(b < a + 1e-4 for a, b in pairwise(errors))  # N(0, I) is not quite x_T
    assert errors[-1] < 0.02
    assert errors[-1] < errors[0] / 10


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS_TESTED)
def test_leading_spacing_starts_from_noise_that_is_no_state_and_loses_the_mean(
    p_value, sampler, options
):
    """600 of 1000 steps begin at t = 600. 20,000 samples; false-alarm probability 1e-6 each."""
    schedule = linear_schedule()

    def error(spacing):
        times = schedule.times(600, spacing)
        mean, _ = sample_law(schedule, times, sampler, **options)
        return np.abs(mean - MEAN).max()

    assert error("trailing") < 0.003
    assert error("leading") > 0.01
    times = schedule.times(12, "leading")
    samples = last(draw(schedule, times, sampler, **options)).x_t.numpy()
    law = sample_law(schedule, times, sampler, **options)
    assert p_value(samples, *law) > FALSE_ALARM, "but it runs as its steps say"


@pytest.mark.parametrize(("schedule", "steps"), CHAINS)
@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_noise_at_the_last_step_is_rejected(p_value, schedule, steps, variance):
    times = schedule.times(steps)
    samples = last(draw(schedule, times, "ancestral", variance=variance)).x_t
    left = GaussianDiffusion(schedule).transition_variance(samples, times[-2], 0)
    wrong = samples + left.sqrt() * torch.randn(
        N, 2, generator=torch.Generator().manual_seed(3)
    )
    assert (
        p_value(wrong.numpy(), *sample_law(schedule, times, "ancestral", variance))
        < FALSE_ALARM
    )


class IndexShifted(GaussianDiffusion):
    """The posterior of step t taken from position t - 1."""

    def q_posterior(self, x_0, x_t, t, s=None):
        return super().q_posterior(x_0, x_t, max(t - 1, 1), max(s - 1, 0))


class AlwaysOneStep(GaussianDiffusion):
    """The posterior of one small step, wherever the sub-schedule goes."""

    def q_posterior(self, x_0, x_t, t, s=None):
        return super().q_posterior(x_0, x_t, t, t - 1)


class NoSquareRoot(GaussianDiffusion):
    """ᾱ for √ᾱ in the estimate of x_0."""

    def predict_x_0(self, x_t, t, eps):
        return (
            super().predict_x_0(x_t, t, eps)
            / self.schedule.alpha_bar[t].sqrt()[:, None]
        )


class DeviationForVariance(GaussianDiffusion):
    """The posterior's standard deviation taken for its variance."""

    def q_posterior(self, x_0, x_t, t, s=None):
        mean, variance = super().q_posterior(x_0, x_t, t, s)
        return mean, variance.sqrt()


@pytest.mark.parametrize(
    ("wrong", "schedule", "steps"),
    [
        (IndexShifted, linear_schedule(60), None),
        (AlwaysOneStep, linear_schedule(), 25),
        (NoSquareRoot, linear_schedule(60), None),
        (NoSquareRoot, linear_schedule(), 25),
        (DeviationForVariance, linear_schedule(60), None),
        (DeviationForVariance, linear_schedule(), 25),
    ],
)
def test_wrong_steps_are_rejected(p_value, wrong, schedule, steps):
    times = schedule.times(steps)
    samples = last(
        draw(schedule, times, "ancestral", diffusion=wrong(schedule))
    ).x_t.numpy()
    assert p_value(samples, *sample_law(schedule, times, "ancestral")) < FALSE_ALARM


# A mixture, whose samples must find every mode

MEANS = np.array([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
COVS = np.array([0.05 * np.eye(2), [[0.2, 0.1], [0.1, 0.1]], 0.1 * np.eye(2)])
WEIGHTS = np.array([0.5, 0.3, 0.2])
BIAS = 0.05  # of the discrete steps, in each moment; 100,000 samples of the right samplers are off by at most 0.035


def mixture_is_rejected(x: np.ndarray) -> bool:
    """Whether the mean, the second moments or the share of each mode are not those of the mixture, up to BIAS.

    Each is the mean of n independent numbers; the normal law gives the threshold, with 8 of them and a
    false-alarm probability of 1e-6 in all.
    """
    moments = [x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 1] ** 2, x[:, 0] * x[:, 1]]
    mean = WEIGHTS @ MEANS
    second = np.einsum(
        "k,kij->ij", WEIGHTS, COVS + np.einsum("ki,kj->kij", MEANS, MEANS)
    )
    expected = [mean[0], mean[1], second[0, 0], second[1, 1], second[0, 1], *WEIGHTS]
    nearest = ((x[:, None] - MEANS) ** 2).sum(-1).argmin(1)
    moments += [(nearest == k).astype(float) for k in range(3)]
    z = stats.norm.isf(FALSE_ALARM / 2 / len(moments))
    return any(
        abs(m.mean() - e) > z * m.std() / len(m) ** 0.5 + BIAS
        for m, e in zip(moments, expected)
    )


def mixture_samples(schedule, steps, sampler, weights=WEIGHTS, **options) -> np.ndarray:
    eps_model = ExactEps(
        schedule, torch.tensor(MEANS), torch.tensor(COVS), torch.tensor(weights)
    )
    generator = torch.Generator().manual_seed(2)
    diffusion = options.pop("diffusion", GaussianDiffusion(schedule))
    return sample(
        eps_model, diffusion, (5_000, 2), sampler, steps, generator, **options
    ).numpy()


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [(linear_schedule(150), None), (linear_schedule(), 100)],
    ids=["full", "100 of 1000"],
)
@pytest.mark.parametrize(("sampler", "options"), SAMPLERS_TESTED)
def test_samples_of_a_mixture_have_its_moments_and_modes(
    schedule, steps, sampler, options
):
    """5,000 samples; false-alarm probability 1e-6 each, see ``mixture_is_rejected``."""
    assert not mixture_is_rejected(mixture_samples(schedule, steps, sampler, **options))


def test_wrong_mixtures_are_rejected():
    weights = np.array([0.4, 0.35, 0.25])
    assert mixture_is_rejected(
        mixture_samples(linear_schedule(), 100, "ddim", weights)
    ), "other weights"
    wrong = NoSquareRoot(linear_schedule(150))
    assert mixture_is_rejected(
        mixture_samples(linear_schedule(150), None, "ancestral", diffusion=wrong)
    )
    right = mixture_samples(linear_schedule(), 100, "ddim")
    assert mixture_is_rejected(right[right[:, 0] > 0]), "modes left out"
    assert mixture_is_rejected(right / 1.1), "a scale"


# The order of convergence, measured at t = 1, where a step to λ = ∞ is still to come

LAM_T, LAM_1, FLOW_T = -5.0, 4.0, 1921  # λ falls evenly from t = 1 to T
FLOW_MEANS, FLOW_VARIANCES = np.array([0.5, -1.0, 2.0]), np.array([0.09, 0.25, 0.16])


def even_schedule() -> NoiseSchedule:
    lam = np.linspace(LAM_1, LAM_T, FLOW_T)
    alpha_bar = np.concatenate([[1], 1 / (1 + np.exp(-2 * lam))])
    return NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])


def grid(steps: int, even: bool) -> list[int]:
    """From T to 1, then 0: steps in λ all equal, or one three times the other in turns, so that r is 3 or 1/3."""
    gap = (FLOW_T - 1) // steps
    gaps = [gap, gap] if even else [gap // 2, gap + gap // 2]
    return [FLOW_T - int(sum((gaps * steps)[:i])) for i in range(steps + 1)] + [0]


def flow_gaussian(schedule: NoiseSchedule, x_T: np.ndarray) -> np.ndarray:
    """x_1 on the probability flow of N(0.5, 0.09): the distance from the mean, in deviations of x_t, stays."""
    a_T, a_1 = (float(schedule.alpha_bar[t]) for t in (FLOW_T, 1))
    mean, variance = FLOW_MEANS[0], FLOW_VARIANCES[0]
    var_T, var_1 = (variance * a + 1 - a for a in (a_T, a_1))
    return a_1**0.5 * mean + (x_T - a_T**0.5 * mean) * (var_1 / var_T) ** 0.5


def flow_mixture(schedule: NoiseSchedule, x_T: np.ndarray) -> np.ndarray:
    """x_1 on the flow of a mixture of three, dx/dλ = √ᾱ E[x_0 | x] - ᾱ x, by scipy."""
    m, v = FLOW_MEANS, FLOW_VARIANCES

    def velocity(lam, x):
        a = 1 / (1 + np.exp(-2 * lam))
        offset, var = x[:, None] - a**0.5 * m, a * v + 1 - a
        r = WEIGHTS * stats.norm.pdf(offset, scale=var**0.5)
        x_0 = m + a**0.5 * v / var * offset
        return a**0.5 * (r * x_0).sum(1) / r.sum(1) - a * x

    return solve_ivp(velocity, (LAM_T, LAM_1), x_T, "DOP853", rtol=1e-11, atol=1e-12).y[
        :, -1
    ]


def orders(sampler, flow, components: int, even: bool) -> list[float]:
    """log2 of how much the error falls each time the steps are doubled; sampler(eps_model, diffusion, x_T, times)."""
    schedule = even_schedule()
    eps_model = ExactEps(
        schedule,
        torch.tensor(FLOW_MEANS[:components, None]),
        torch.tensor(FLOW_VARIANCES[:components, None, None]),
        torch.tensor(WEIGHTS[:components]),
    )
    x_T = np.linspace(-2.5, 2.5, 11)
    right = flow(schedule, x_T)
    errors = []
    for steps in (80, 160, 320):
        states = sampler(
            eps_model,
            GaussianDiffusion(schedule),
            torch.tensor(x_T)[:, None],
            grid(steps, even),
        )
        (x_1,) = (state.x_t for state in states if state.t == 1)
        errors.append(np.abs(x_1[:, 0].numpy() - right).max())
    return [np.log2(a / b) for a, b in pairwise(errors)]


def with_ratio(ratio):
    """DPM-Solver++ of the paper with another r, for ``orders``."""

    def sampler(eps_model, diffusion, x_T, times):
        def estimate(x_t, t):
            return diffusion.predict_x_0(x_t, t, eps_model(x_t, t))

        return dpm_by_the_paper(estimate, diffusion.schedule, x_T, times, ratio)

    return sampler


@pytest.mark.parametrize("even", [True, False], ids=["even", "uneven"])
@pytest.mark.parametrize(
    ("flow", "components"),
    [(flow_gaussian, 1), (flow_mixture, 3)],
    ids=["gaussian", "mixture"],
)
def test_dpm_solver_is_of_second_order_and_ddim_of_first(flow, components, even):
    assert np.allclose(orders(dpm_solver, flow, components, even), 2, atol=0.1)
    assert np.allclose(orders(ddim, flow, components, even), 1, atol=0.1)


@pytest.mark.parametrize("even", [True, False], ids=["even", "uneven"])
def test_a_wrong_ratio_costs_the_order(even):
    """But inverted: its errors h h' (r - 1/r) / 2 = (h'² - h²) / 2 cancel from step to step."""

    def order_is(p, name):
        sampler = with_ratio(WRONG_RATIOS[name])
        return np.allclose(orders(sampler, flow_gaussian, 1, even), p, atol=0.2)

    assert order_is(1, "no correction, that is DDIM")
    assert order_is(1, "sign")
    assert order_is(0, "r without the step at hand")
    assert order_is(2 if even else 1, "r = 1, as if the steps were equal")
    assert order_is(2, "r inverted"), "only seen step by step"


def test_in_20_steps_dpm_solver_is_nearer_to_the_flow_than_ddim_in_100():
    """The schedule and the times that people use: Gaussian data as above, error of the final deviations."""
    schedule = linear_schedule()

    def error(sampler, steps):
        _, cov = sample_law(schedule, schedule.times(steps), sampler)
        return np.abs(np.linalg.eigvalsh(cov) - np.linalg.eigvalsh(COV)).max()

    assert error("dpm++", 20) < error("ddim", 100)


# Properties


def test_ddim_with_eta_1_is_the_ancestral_sampler_with_the_posterior_variance(
    diffusion,
):
    x_T = torch.randn(
        3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    times = diffusion.schedule.times(40)
    one = ddim(
        wavy_eps,
        diffusion,
        x_T,
        times,
        eta=1.0,
        generator=torch.Generator().manual_seed(1),
    )
    other = ancestral(
        wavy_eps, diffusion, x_T, times, generator=torch.Generator().manual_seed(1)
    )
    for a, b in zip(one, other, strict=True):
        assert a.t == b.t
        assert torch.allclose(a.x_t, b.x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_states_run_from_noise_to_the_sample(diffusion, sampler):
    x_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    states = list(SAMPLERS[sampler](wavy_eps, diffusion, x_T, [1000, 400, 3, 0]))
    assert [state.t for state in states] == [1000, 400, 3, 0]
    assert states[0].x_t is x_T
    assert torch.equal(states[-1].x_t, states[-1].x_0)
    assert torch.allclose(states[-1].x_t, states[-2].x_0, atol=1e-5), (
        "the last step returns the estimate of x_0"
    )
    assert all(
        isinstance(state, State) and state.x_0.shape == (2, 3) for state in states
    )


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS_TESTED)
def test_clipping_keeps_every_estimate_within_bounds(diffusion, sampler, options):
    x_T = 3 * torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    states = list(
        SAMPLERS[sampler](
            wavy_eps, diffusion, x_T, [1000, 900, 400, 3, 0], clip=0.7, **options
        )
    )
    assert max(float(state.x_0.abs().max()) for state in states) <= 0.7 + 1e-6
    free = list(
        SAMPLERS[sampler](wavy_eps, diffusion, x_T, [1000, 900, 400, 3, 0], **options)
    )
    assert float(free[0].x_0.abs().max()) > 0.7


def test_the_model_is_asked_once_at_each_time_but_0(diffusion):
    asked = Counter()

    def eps_model(x_t, t):
        assert t.dtype == torch.int64
        assert t.shape == (4,)
        asked.update(set(t.tolist()))
        return torch.zeros_like(x_t)

    sample(eps_model, diffusion, (4, 2), "ddim", steps=10)
    assert asked == Counter(dict.fromkeys(diffusion.schedule.times(10)[:-1], 1))


@pytest.mark.parametrize(("sampler", "options"), SAMPLERS_TESTED)
def test_same_seed_same_samples_another_seed_others(diffusion, sampler, options):
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample(wavy_eps, diffusion, (2, 3), sampler, 8, generator, **options)

    before = torch.get_rng_state()
    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"


def test_every_item_of_a_batch_starts_from_its_own_noise(diffusion):
    x_T = next(
        trajectory(
            wavy_eps, diffusion, (8, 3), generator=torch.Generator().manual_seed(0)
        )
    ).x_t
    assert len(set(map(tuple, x_T.tolist()))) == 8


@pytest.mark.parametrize("sampler", [ddim, dpm_solver])
def test_ddim_with_eta_0_and_dpm_solver_draw_no_noise(diffusion, sampler):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    last(sampler(wavy_eps, diffusion, torch.zeros(2, 3), generator=generator))
    assert torch.equal(generator.get_state(), before)


def test_spacing_is_that_of_the_schedule(diffusion):
    for spacing in ("trailing", "leading"):
        states = trajectory(wavy_eps, diffusion, (2, 3), "ddim", 7, spacing=spacing)
        expected = diffusion.schedule.times(7, spacing)
        assert [state.t for state in states] == expected
    generators = (torch.Generator().manual_seed(3) for _ in range(2))
    a, b = (
        sample(wavy_eps, diffusion, (2, 3), "dpm++", 7, generator, spacing=spacing)
        for generator, spacing in zip(generators, ("trailing", "leading"))
    )
    assert not torch.allclose(a, b)


def test_no_gradient_is_kept(diffusion):
    unet = UNet(
        base_channels=8,
        channel_mults=(1,),
        blocks_per_level=1,
        attention_levels=(),
        groups=4,
    )
    images = sample(unet, diffusion, (1, 1, 4, 4), "ddim", steps=2)
    assert not images.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_samplers_keep_the_dtype(diffusion, sampler, dtype):
    x_T = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    final = last(
        SAMPLERS[sampler](
            wavy_eps, diffusion, x_T, diffusion.schedule.times(10), clip=1.0
        )
    )
    assert final.x_t.dtype == dtype
    assert bool(final.x_t.isfinite().all())


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"times": [1001, 0]},
            ValueError,
            r"times must fall strictly from at most T = 1000 to 0, got \[1001, 0\]",
        ),
        (
            {"times": [1000, 10]},
            ValueError,
            r"times must fall strictly .* got \[1000, 10\]",
        ),
        ({"times": [1000, 10, 10, 0]}, ValueError, "times must fall strictly"),
        ({"times": [1000, 10, 20, 0]}, ValueError, "times must fall strictly"),
        ({"times": [0, 10, 1000]}, ValueError, "times must fall strictly"),
        ({"times": [0]}, ValueError, r"times must fall strictly .* got \[0\]"),
        ({"times": []}, ValueError, r"times must fall strictly .* got \[\]"),
        ({"times": [1000, 10.0, 0]}, TypeError, "times must be an int, got 10.0"),
        ({"times": [1000, -1, 0]}, ValueError, "times must be at least 0, got -1"),
        (
            {"x_T": torch.zeros(2, 3, dtype=torch.uint8)},
            TypeError,
            r"x_T must be floating point, got torch\.uint8",
        ),
        ({"x_T": torch.tensor(1.0)}, ValueError, "x_T must have a batch dimension"),
        (
            {"eps_model": lambda x_t, t: x_t[:, :1]},
            ValueError,
            r"eps must have the shape of x_t, \(2, 3\), got \(2, 1\)",
        ),
        (
            {"eps_model": wavy_eps_and_v},
            ValueError,
            r"eps must have the shape of x_t, \(2, 3\), got \(2, 6\)",
        ),
        ({"clip": -1.0}, ValueError, "clip must be at least 0, got -1"),
        ({"clip": "1"}, TypeError, "clip must be a number, got '1'"),
    ],
)
def test_bad_input_is_refused_by_name(diffusion, sampler, changes, error, message):
    arguments = {
        "eps_model": wavy_eps,
        "diffusion": diffusion,
        "x_T": torch.zeros(2, 3),
    } | changes
    with pytest.raises(error, match=message):
        list(SAMPLERS[sampler](**arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"sampler": "euler"},
            ValueError,
            r"sampler must be one of ancestral, ddim, dpm\+\+, got 'euler'",
        ),
        (
            {"spacing": "linspace"},
            ValueError,
            """spacing must be "trailing" or "leading", got 'linspace'""",
        ),
        ({"steps": 0}, ValueError, "steps must be between 1 and 1000, got 0"),
        ({"steps": 1001}, ValueError, "steps must be between 1 and 1000, got 1001"),
        (
            {"variance": "large"},
            ValueError,
            """variance must be "posterior", "beta" or "learned", got 'large'""",
        ),
        (
            {"variance": "learned"},
            ValueError,
            r"eps and v must have the shape of x_t twice along dimension 1, \(2, 6\), got \(2, 3\)",
        ),
        (
            {"sampler": "ddim", "eta": 1.5},
            ValueError,
            r"eta must be between 0 and 1, got 1\.5",
        ),
        (
            {"sampler": "ddim", "eta": -0.1},
            ValueError,
            "eta must be between 0 and 1, got -0.1",
        ),
        ({"sampler": "ddim", "eta": None}, TypeError, "eta must be a number, got None"),
    ],
)
def test_bad_options_of_sample_are_refused_by_name(
    diffusion, arguments, error, message
):
    with pytest.raises(error, match=message):
        sample(wavy_eps, diffusion, (2, 3), **arguments)
