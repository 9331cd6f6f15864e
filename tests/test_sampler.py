"""``sampler`` against diffusers step by step, and against the law that its samples must have.

With the exact ε of Gaussian data every step is affine plus Gaussian noise, so the law of the samples after any
number of steps is known. ``sample_law`` computes it in NumPy; the samples are held against it, and it against the
law of the data.
"""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from scipy import stats

from ddpm_lite import (
    ExactEps,
    GaussianDiffusion,
    UNet,
    ancestral,
    cosine_schedule,
    ddim,
    linear_schedule,
    sample,
)
from ddpm_lite.sampler import SAMPLERS, State, trajectory

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
]
CHAINS = [
    pytest.param(linear_schedule(60), None, id="full"),
    pytest.param(linear_schedule(1000), 25, id="25 of 1000"),
    pytest.param(cosine_schedule(1000), 7, id="7 of 1000, cosine"),
]


def wavy_eps(x_t, t):
    """Some function of x_t and t, to stand for a network; large enough for clipping to matter."""
    return torch.sin(3 * x_t) + (t.view(-1, *[1] * (x_t.ndim - 1)) / 500).cos().to(
        x_t.dtype
    )


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
@pytest.mark.parametrize(
    "times", [None, [1000, 930, 700, 699, 300, 50, 7, 1, 0]], ids=["full", "some"]
)
def test_each_ancestral_step_is_that_of_diffusers(
    diffusion, times, variance, theirs, clip
):
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


@pytest.mark.parametrize("clip", [None, 1.0, 0.3])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1000, 50, 8])
def test_each_ddim_step_is_that_of_diffusers(diffusion, steps, eta, clip):
    scheduler = diffusers_in_float64(
        DDIMScheduler, diffusion.schedule, clip, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(steps)
    times = diffusion.schedule.times(steps)
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
        gain = (
            np.sqrt(a_t) * COV @ np.linalg.inv(a_t * COV + var_t * np.eye(2))
        )  # x̂_0 = MEAN + gain (x_t - √ᾱ_t MEAN)
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
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02
    assert errors[-1] < errors[0] / 10


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
        eps_model, diffusion, (N, 2), sampler, steps, generator, **options
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
    """20,000 samples; false-alarm probability 1e-6 each, see ``mixture_is_rejected``."""
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


def test_ddim_with_eta_0_draws_no_noise(diffusion):
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    last(ddim(wavy_eps, diffusion, torch.zeros(2, 3), generator=generator))
    assert torch.equal(generator.get_state(), before)


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
            {"times": [999, 0]},
            ValueError,
            r"times must fall strictly from T = 1000 to 0, got \[999, 0\]",
        ),
        (
            {"times": [1000, 10]},
            ValueError,
            r"times must fall strictly .* got \[1000, 10\]",
        ),
        ({"times": [1000, 10, 10, 0]}, ValueError, "times must fall strictly"),
        ({"times": [1000, 10, 20, 0]}, ValueError, "times must fall strictly"),
        ({"times": [0, 10, 1000]}, ValueError, "times must fall strictly"),
        ({"times": [1001, 0]}, ValueError, "times must fall strictly"),
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
            "sampler must be one of ancestral, ddim, got 'euler'",
        ),
        ({"steps": 0}, ValueError, "steps must be between 1 and 1000, got 0"),
        ({"steps": 1001}, ValueError, "steps must be between 1 and 1000, got 1001"),
        (
            {"variance": "learned"},
            ValueError,
            """variance must be "posterior" or "beta", got 'learned'""",
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
