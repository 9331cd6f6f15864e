"""``schedule`` against diffusers' schedules and the definitions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lite import NoiseSchedule, cosine_schedule, linear_schedule

BETAS = st.lists(st.floats(1e-4, 0.9), min_size=1, max_size=30)


def agrees_with_diffusers(alpha_bar: np.ndarray, name: str, T: int = 1000) -> bool:
    """Whether ᾱ_1, ..., ᾱ_T are those of diffusers, which counts time from 0 and keeps float32."""
    theirs = (
        DDPMScheduler(num_train_timesteps=T, beta_schedule=name)
        .alphas_cumprod.double()
        .numpy()
    )
    return alpha_bar.shape == theirs.shape and np.allclose(
        alpha_bar, theirs, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    ("schedule", "name"),
    [(linear_schedule(), "linear"), (cosine_schedule(), "squaredcos_cap_v2")],
    ids=str,
)
def test_alpha_bar_is_that_of_diffusers(schedule, name):
    alpha_bar = schedule.alpha_bar.numpy()
    assert agrees_with_diffusers(alpha_bar[1:], name)
    assert not agrees_with_diffusers(alpha_bar[:-1], name), "the index shifted by one"
    assert not agrees_with_diffusers(np.sqrt(alpha_bar[1:]), name), "√ᾱ for ᾱ"


@pytest.mark.parametrize("T", [10, 100, 4000])
def test_cosine_schedule_of_any_length_is_that_of_diffusers(T):
    assert agrees_with_diffusers(
        cosine_schedule(T).alpha_bar[1:].numpy(), "squaredcos_cap_v2", T
    )


def test_cosine_schedule_follows_its_formula_but_for_the_last_steps():
    t = np.arange(1001) / 1000
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    ours = cosine_schedule().alpha_bar.numpy()
    assert np.allclose(ours[:-1], (f / f[0])[:-1], rtol=1e-9)
    assert not np.allclose(ours[:-1], f[:-1], rtol=1e-9), "not divided by f(0)"


def test_cosine_schedule_clips_the_last_beta_because_it_would_be_one():
    assert float(cosine_schedule().beta.max()) == 0.999
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        cosine_schedule(beta_max=1.0)


def test_entry_zero_is_the_clean_data():
    schedule = linear_schedule()
    assert schedule.T == 1000
    for array in (schedule.beta, schedule.alpha, schedule.alpha_bar, schedule.snr):
        assert array.shape == (1001,)
        assert array.dtype == torch.float64
    assert (schedule.beta[0], schedule.alpha[0], schedule.alpha_bar[0]) == (0, 1, 1)
    assert schedule.snr[0] == math.inf
    assert float(schedule.beta[1]) == pytest.approx(1e-4, rel=1e-12)
    assert float(schedule.beta[1000]) == pytest.approx(0.02, rel=1e-12)


@given(BETAS)
@settings(max_examples=50, deadline=None)
@pytest.mark.filterwarnings("ignore:alpha_bar")
def test_alpha_bar_is_the_product_of_the_alphas(betas):
    schedule = NoiseSchedule(betas)
    for t in range(schedule.T + 1):
        product = math.prod(1 - beta for beta in betas[:t])
        assert float(schedule.alpha_bar[t]) == pytest.approx(product, rel=1e-12)
        if t:
            assert float(schedule.snr[t]) == pytest.approx(
                product / (1 - product), rel=1e-9
            )


@given(BETAS, st.data())
@settings(max_examples=50, deadline=None)
@pytest.mark.filterwarnings("ignore:alpha_bar")
def test_subschedule_keeps_alpha_bar_at_the_kept_times(betas, data):
    schedule = NoiseSchedule(betas)
    kept = sorted(data.draw(st.sets(st.integers(1, schedule.T), min_size=1)))
    for times in (kept, kept[::-1], [0, *kept], [*kept[::-1], 0]):
        coarse = schedule.subschedule(times)
        assert len(kept) == coarse.T
        assert torch.allclose(
            coarse.alpha_bar, schedule.alpha_bar[[0, *kept]], rtol=1e-9, atol=0
        )


def test_subschedule_that_keeps_beta_does_not_keep_alpha_bar():
    """The mistake: to pick every 20th β. It leaves the data almost clean at the end, and the warning says so."""
    schedule = linear_schedule()
    kept = schedule.times(50)[-2::-1]
    with pytest.warns(UserWarning, match=r"alpha_bar\[T\] = 0\.6"):
        wrong = NoiseSchedule(schedule.beta[kept])
    assert not torch.allclose(
        wrong.alpha_bar, schedule.alpha_bar[[0, *kept]], rtol=1e-9, atol=0
    )
    assert torch.allclose(
        schedule.subschedule(kept).alpha_bar,
        schedule.alpha_bar[[0, *kept]],
        rtol=1e-9,
        atol=0,
    )


def test_subschedule_of_all_times_is_the_schedule():
    schedule = linear_schedule(100)
    assert torch.allclose(
        schedule.subschedule(schedule.times()).beta, schedule.beta, rtol=1e-9, atol=0
    )


@given(st.integers(21, 1200), st.data())
@settings(max_examples=50, deadline=None)
def test_times_fall_from_T_to_0_evenly(T, data):
    schedule = linear_schedule(T)
    steps = data.draw(st.integers(1, T))
    times = schedule.times(steps)
    gaps = {t - s for t, s in pairwise(times)}
    assert (times[0], times[-1], len(times)) == (T, 0, steps + 1)
    assert gaps <= {T // steps, -(-T // steps)}
    assert min(gaps) > 0


TABLE_2 = {  # of Lin et al., T = 1000 and 10 steps; theirs leave out 0
    "leading": [901, 801, 701, 601, 501, 401, 301, 201, 101, 1],
    "trailing": [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100],
}


@pytest.mark.parametrize("spacing", TABLE_2)
def test_times_are_those_of_the_table(spacing):
    assert linear_schedule().times(10, spacing) == [*TABLE_2[spacing], 0]


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("T", [50, 333, 1000])
def test_times_are_the_timesteps_of_diffusers_plus_one(scheduler_class, T):
    """But where T i / steps lies in the middle of two integers, or where it accumulates an error in floating point."""
    schedule = linear_schedule(T)

    def theirs(steps, spacing):
        scheduler = scheduler_class(T, timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        return (scheduler.timesteps + 1).tolist()

    for steps in range(1, T + 1, 1 if T < 1000 else 7):
        ours = schedule.times(steps, "leading")
        assert ours == [*theirs(steps, "leading"), 0]
        assert ours[0] <= T
        assert ours != theirs(steps, "leading"), "0 left out"

        ours, others = schedule.times(steps), theirs(steps, "trailing")
        assert others[steps:] in ([], [0])  # the error: a step too many, at its time -1
        for i, (a, b) in enumerate(zip(ours, others)):
            halfway = 2 * T * (steps - i) % (2 * steps) == steps
            assert a == b or (halfway and abs(a - b) == 1)


@given(st.integers(21, 1200), st.data())
@settings(max_examples=50, deadline=None)
def test_leading_times_fall_evenly_to_1_and_then_0(T, data):
    steps = data.draw(st.integers(1, T))
    times = linear_schedule(T).times(steps, "leading")
    assert (times[-2:], len(times)) == ([1, 0], steps + 1)
    assert {t - s for t, s in pairwise(times[:-1])} <= {T // steps}
    assert times[0] <= T
    assert (times[0] == T) == (steps == T)


def test_what_leading_times_leave_out_is_as_the_docstring_says():
    schedule = linear_schedule()
    for steps, first, amplitude in [(10, 901, 0.016), (600, 600, 0.16)]:
        assert schedule.times(steps, "leading")[0] == first
        assert float(schedule.alpha_bar[first]) ** 0.5 == pytest.approx(
            amplitude, rel=0.03
        )


def test_times_by_default_are_all():
    assert linear_schedule(30).times(spacing="leading") == list(range(30, -1, -1))
    assert linear_schedule(30).times() == list(range(30, -1, -1))


@pytest.mark.parametrize("T", [21, 50, 250, 4000])
def test_linear_schedule_adds_the_same_noise_for_every_T(T):
    """∑β is what matters: log ᾱ_T ≈ -∑β. Without the factor 1000/T, T = 250 would keep 28 % of the amplitude."""
    assert float(linear_schedule(T).beta.sum()) == pytest.approx(10.05, rel=1e-9)
    assert float(linear_schedule(T).alpha_bar[-1]) < 1e-4


def test_schedule_that_leaves_a_trace_of_the_data_warns():
    with pytest.warns(UserWarning, match=r"x_T keeps 28 % of the data's amplitude"):
        linear_schedule(250, beta_1=1e-4, beta_T=0.02)


def test_repr_shows_the_range():
    assert (
        repr(linear_schedule())
        == "NoiseSchedule(T=1000, beta=0.0001..0.02, alpha_bar[T]=4.04e-05)"
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: NoiseSchedule([]),
            ValueError,
            "beta must be a list of at least one value",
        ),
        (
            lambda: NoiseSchedule([[0.1]]),
            ValueError,
            r"beta must be a list .* got shape \(1, 1\)",
        ),
        (
            lambda: NoiseSchedule([0.1, 0.0]),
            ValueError,
            "beta must lie strictly between 0 and 1, got values from 0 to",
        ),
        (lambda: NoiseSchedule([0.1, 1.0]), ValueError, "strictly between 0 and 1"),
        (
            lambda: NoiseSchedule([0.1, math.nan]),
            ValueError,
            "strictly between 0 and 1",
        ),
        (lambda: linear_schedule(0), ValueError, "T must be at least 1, got 0"),
        (
            lambda: linear_schedule(1000.0),
            TypeError,
            "T must be an int, got 1000.0 of type float",
        ),
        (
            lambda: linear_schedule(True),
            TypeError,
            "T must be an int, got True of type bool",
        ),
        (lambda: linear_schedule(20), ValueError, "T must be at least 21 .* got 20"),
        (
            lambda: linear_schedule(beta_T=1.5),
            ValueError,
            "beta_T must be between 0 and 1, got 1.5",
        ),
        (
            lambda: linear_schedule(beta_1="a"),
            TypeError,
            "beta_1 must be a number, got 'a'",
        ),
        (lambda: cosine_schedule(-3), ValueError, "T must be at least 1, got -3"),
        (
            lambda: cosine_schedule(offset=-1),
            ValueError,
            "offset must be at least 0, got -1",
        ),
        (
            lambda: cosine_schedule(offset=math.nan),
            ValueError,
            "offset must be at least 0, got nan",
        ),
        (
            lambda: cosine_schedule(beta_max=2),
            ValueError,
            "beta_max must be between 0 and 1, got 2",
        ),
        (
            lambda: linear_schedule().times(0),
            ValueError,
            "steps must be between 1 and 1000, got 0",
        ),
        (
            lambda: linear_schedule().times(1001),
            ValueError,
            "steps must be between 1 and 1000, got 1001",
        ),
        (
            lambda: linear_schedule().times(10.0),
            TypeError,
            "steps must be an int, got 10.0",
        ),
        (
            lambda: linear_schedule().times(10, "linspace"),
            ValueError,
            """spacing must be "trailing" or "leading", got 'linspace'""",
        ),
        (
            lambda: linear_schedule().subschedule([]),
            ValueError,
            r"times must keep at least one time .* got \[\]",
        ),
        (
            lambda: linear_schedule().subschedule([0]),
            ValueError,
            "times must keep at least one time",
        ),
        (
            lambda: linear_schedule().subschedule([5, 5, 9]),
            ValueError,
            r"times must be strictly .* got \[5, 5, 9\]",
        ),
        (
            lambda: linear_schedule().subschedule([5, 9, 7]),
            ValueError,
            "times must be strictly increasing or strictly",
        ),
        (
            lambda: linear_schedule().subschedule([1, 1001]),
            ValueError,
            "times must be between 1 and 1000, got 1001",
        ),
        (
            lambda: linear_schedule().subschedule([-1, 5]),
            ValueError,
            "times must be between 1 and 1000, got -1",
        ),
        (
            lambda: linear_schedule().subschedule([1.5, 5]),
            TypeError,
            "times must be an int, got 1.5",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()
