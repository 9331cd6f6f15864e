"""Samplers: from noise to data, one reverse step at a time. Chapter 10 of the book.

Each sampler is a generator of ``State`` at the times it visits, as a rule T first, and 0 last, so that a loop can
stop at any of them, draw it, or measure it. ``trajectory`` starts one from fresh noise; ``sample`` runs it to the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lite import _check, gaussian
from ddpm_lite.objective import EpsModel
from ddpm_lite.process import GaussianDiffusion


class State(NamedTuple):
    """Where a sampler is: the time, the noisy data, and the data that the model sees in it."""

    t: int
    x_t: Tensor
    """Shape (B, ...); at t = 0 the finished sample."""
    x_0: Tensor
    """The estimate of the clean data made from x_t, same shape; at t = 0 x_t itself."""


@torch.no_grad()
def ancestral(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    x_T: Tensor,
    times: Sequence[int] | None = None,
    variance: str = "posterior",
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """Algorithm 2 of Ho et al. (2020): draw x_s from q(x_s | x_t, x̂_0), x̂_0 the current estimate.

    Args:
        eps_model: the network, or anything with its signature.
        diffusion: the forward process.
        x_T: where to start, shape (B, ...): noise, or in general the state at the first of ``times``.
        times: the times to visit, falling to 0; None for all, from T. They may start below T, because some published
            models are sampled so (``NoiseSchedule.times``, "leading"): noise then passes for a state that still has
            some data in it. They count from 1: T - 1, ..., 1, 0 of other libraries are T, ..., 2, 1 here.
        variance: of each step, "posterior" for β̃_t or "beta" for β_t (in general 1 - ᾱ_t/ᾱ_s), the two choices of
            section 3.2 of the paper; "learned" for β_t^f β̃_t^(1 - f), f = (v + 1) / 2: between the two in the
            logarithm (Nichol & Dhariwal 2021, equation 15). The model then returns ε and v together, shape
            (B, 2 C, ...) for data of shape (B, C, ...). The other samplers, and the other variances, need ε alone:
            ``lambda x_t, t: network(x_t, t).chunk(2, 1)[0]``. The last step adds no noise in any of them.
        clip: keep x̂_0 within [-clip, clip]: 1 for images in [-1, 1], None (no clipping) for other data.
        generator: the source of the noise; None for torch's global one.

    Yields:
        ``State`` at each time.

    Raises:
        TypeError, ValueError: for an unknown ``variance``, times that do not fall to 0, a bad x_T, a model that
            returns another shape.
    """
    if variance not in ("posterior", "beta", "learned"):
        raise ValueError(
            f'variance must be "posterior", "beta" or "learned", got {variance!r}'
        )
    x_t = x_T
    for t, s in _pairs(diffusion, x_T, times, clip):
        x_0, _, v = _estimate(eps_model, diffusion, x_t, t, clip, variance == "learned")
        yield State(t, x_t, x_0)
        mean, step_variance = diffusion.q_posterior(x_0, x_t, t, s)
        if variance != "posterior":
            f = 1 if v is None else (v + 1) / 2
            beta = diffusion.transition_variance(x_t, t, s)
            step_variance = beta**f * step_variance ** (1 - f)
        x_t = mean if s == 0 else gaussian.sample(mean, step_variance, generator)
    yield State(0, x_t, x_t)


@torch.no_grad()
def ddim(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    x_T: Tensor,
    times: Sequence[int] | None = None,
    eta: float = 0.0,
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """DDIM (Song et al. 2021, equations 12 and 16): x_s = √ᾱ_s x̂_0 + √(1 - ᾱ_s - σ²) ε̂ + σ z.

    σ is η times the posterior's standard deviation. η = 0 adds no noise: the sample is a function of x_T. η = 1 has
    the law of ``ancestral``.

    Args:
        eps_model, diffusion, x_T, times, clip, generator: as in ``ancestral``; where clipping moves x̂_0, ε̂ moves along.
        eta: η, in [0, 1].

    Yields:
        ``State`` at each time.

    Raises:
        TypeError, ValueError: for η outside [0, 1], times that do not fall to 0, a bad x_T.
    """
    eta = _check.number("eta", eta, 0, 1)
    alpha_bar = diffusion.schedule.alpha_bar.tolist()
    x_t = x_T
    for t, s in _pairs(diffusion, x_T, times, clip):
        x_0, eps, _ = _estimate(eps_model, diffusion, x_t, t, clip)
        yield State(t, x_t, x_0)
        posterior_variance = (
            (1 - alpha_bar[s]) / (1 - alpha_bar[t]) * (1 - alpha_bar[t] / alpha_bar[s])
        )
        sigma = eta * posterior_variance**0.5
        x_t = _recombine(x_0, eps, alpha_bar[s], sigma)
        if sigma > 0:
            x_t = x_t + sigma * gaussian.randn(x_t.shape, x_t, generator)
    yield State(0, x_t, x_t)


@torch.no_grad()
def dpm_solver(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    x_T: Tensor,
    times: Sequence[int] | None = None,
    clip: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[State]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): second order, one network evaluation a step.

    DDIM with η = 0 takes x̂_0 for constant during the step, which is first order. Here a straight line in
    λ = log √(ᾱ/(1 - ᾱ)) goes through the last two estimates, x̂_0 at t and x̂'_0 at the time before, u, and the step is
    DDIM's with the value of the line half-way to s: D = x̂_0 + (x̂_0 - x̂'_0) / (2 r), r = (λ_t - λ_u) / (λ_s - λ_t). In
    the paper's form that is x_s = √((1 - ᾱ_s)/(1 - ᾱ_t)) x_t - √ᾱ_s (exp(λ_t - λ_s) - 1) D. The first step has no time
    before, and the last goes to λ = ∞, where only x̂_0 is left: both are DDIM's.

    Args:
        eps_model, diffusion, x_T, times, clip: as in ``ancestral``; x̂_0 is clipped, D is not.
        generator: not used, since no noise is added; here so that all samplers are called alike.

    Yields:
        ``State`` at each time.

    Raises:
        TypeError, ValueError: for times that do not fall to 0, a bad x_T.
    """
    alpha_bar = diffusion.schedule.alpha_bar.tolist()
    log_snr = diffusion.schedule.snr.log().tolist()  # 2 λ; the factor drops out of r
    x_t, before = x_T, None
    for t, s in _pairs(diffusion, x_T, times, clip):
        x_0, eps, _ = _estimate(eps_model, diffusion, x_t, t, clip)
        yield State(t, x_t, x_0)
        D = x_0
        if before and s > 0:
            u, x_0_before = before
            r = (log_snr[t] - log_snr[u]) / (log_snr[s] - log_snr[t])
            D = x_0 + (x_0 - x_0_before) / (2 * r)
            eps = diffusion.predict_eps(x_t, t, D)
        x_t, before = _recombine(D, eps, alpha_bar[s]), (t, x_0)
    yield State(0, x_t, x_t)


SAMPLERS = {"ancestral": ancestral, "ddim": ddim, "dpm++": dpm_solver}


def trajectory(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    shape: Sequence[int],
    sampler: str = "ancestral",
    steps: int | None = None,
    generator: torch.Generator | None = None,
    spacing: str = "trailing",
    **options: object,
) -> Iterator[State]:
    """Fresh noise, then every state of the reverse process; the arguments are those of ``sample``."""
    if sampler not in SAMPLERS:
        raise ValueError(
            f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}"
        )
    parameters = (
        eps_model.parameters() if isinstance(eps_model, torch.nn.Module) else iter(())
    )
    like = next(parameters, torch.empty(0))
    x_T = gaussian.randn(tuple(shape), torch.empty(0, device=like.device), generator)
    times = diffusion.schedule.times(steps, spacing)
    return SAMPLERS[sampler](
        eps_model, diffusion, x_T, times, generator=generator, **options
    )


def sample(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    shape: Sequence[int],
    sampler: str = "ancestral",
    steps: int | None = None,
    generator: torch.Generator | None = None,
    **options: object,
) -> Tensor:
    """Draw samples: fresh noise, then the whole reverse process.

    Args:
        eps_model: the network, or anything with its signature; a network samples on its own device.
        diffusion: the forward process.
        shape: shape of the samples, (B, ...).
        sampler: "ancestral", "ddim" or "dpm++" (``dpm_solver``).
        steps: number of evenly spaced steps, from 1 to T; None for all T.
        generator: the source of all noise; None for torch's global one.
        **options: ``spacing`` of the steps, "trailing" or "leading" (``NoiseSchedule.times``), and further arguments
            of the sampler (``variance``, ``eta``, ``clip``).

    Returns:
        float32 samples of the given shape.

    Raises:
        TypeError, ValueError: for an unknown sampler, and as the sampler does.
    """
    states = trajectory(
        eps_model, diffusion, shape, sampler, steps, generator, **options
    )
    return (
        deque(states, maxlen=1).pop().x_t
    )  # the last one, T steps without keeping T states


def _pairs(
    diffusion: GaussianDiffusion,
    x_T: Tensor,
    times: Sequence[int] | None,
    clip: float | None,
) -> list[tuple[int, int]]:
    """The steps (t, s) of a sampler, checked."""
    _check.floating("x_T", x_T)
    if clip is not None:
        _check.number("clip", clip, 0)
    times = (
        diffusion.schedule.times()
        if times is None
        else [_check.integer("times", t, 0) for t in times]
    )
    if (
        not 0 < max(times, default=0) <= diffusion.T
        or times[-1] != 0
        or any(s >= t for t, s in pairwise(times))
    ):
        raise ValueError(
            f"times must fall strictly from at most T = {diffusion.T} to 0, got {times}"
        )
    return list(pairwise(times))


def _estimate(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    x_t: Tensor,
    t: int,
    clip: float | None,
    learned: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The model's x̂_0, clipped on request, the ε̂ that goes with it, and its v if it has ``learned`` the variance."""
    steps = torch.full(x_t.shape[:1], t, dtype=torch.int64, device=x_t.device)
    eps, v = eps_model(x_t, steps), None
    if learned:
        both, twice = "eps and v", "x_t twice along dimension 1"
        _check.like(both, eps, twice, torch.cat([x_t, x_t], dim=1))
        eps, v = eps.chunk(2, dim=1)
    x_0 = diffusion.predict_x_0(x_t, steps, eps)
    if clip is not None:
        x_0 = x_0.clamp(-clip, clip)
        eps = diffusion.predict_eps(x_t, steps, x_0)
    return x_0, eps, v


def _recombine(x_0: Tensor, eps: Tensor, alpha_bar: float, sigma: float = 0) -> Tensor:
    """√ᾱ x̂_0 + √(1 - ᾱ - σ²) ε̂: the state at ᾱ, but for noise of deviation σ; at ᾱ = 1 it is x̂_0."""
    return alpha_bar**0.5 * x_0 + max(1 - alpha_bar - sigma**2, 0) ** 0.5 * eps
