"""Noise schedules: how much of the data is left after t steps.

A schedule is the list β_1, ..., β_T of the variances that the forward process adds. All else follows:
α_t = 1 - β_t, ᾱ_t = α_1 ··· α_t, and the signal-to-noise ratio ᾱ_t / (1 - ᾱ_t). Chapter 4 of the book.

Every array has T + 1 entries and is indexed by t itself. Entry 0 is the clean data: β_0 = 0, ᾱ_0 = 1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ddpm_lite import _check

# Above this, x_T still shows more than 3 % of the data's amplitude.
_LARGEST_FINAL_ALPHA_BAR = 1e-3


class NoiseSchedule:
    """The variances β_1, ..., β_T and what follows from them (Ho et al. 2020, section 2).

    Args:
        beta: the T values β_1, ..., β_T, each in (0, 1).

    Attributes:
        T: number of steps.
        beta: β_t, float64, shape (T + 1,), with β_0 = 0.
        alpha: α_t = 1 - β_t, float64, shape (T + 1,), with α_0 = 1.
        alpha_bar: ᾱ_t = α_1 ··· α_t, float64, shape (T + 1,), with ᾱ_0 = 1.

    Raises:
        ValueError: if ``beta`` is empty, not one-dimensional, or has a value outside (0, 1).

    Warns:
        UserWarning: if ᾱ_T > 0.001. Sampling starts from N(0, I); x_T must be close to it.
    """

    def __init__(self, beta: Tensor | Sequence[float]) -> None:
        beta = torch.as_tensor(beta, dtype=torch.float64, device="cpu")
        if beta.ndim != 1 or beta.numel() == 0:
            raise ValueError(
                f"beta must be a list of at least one value, got shape {tuple(beta.shape)}"
            )
        if not bool(((beta > 0) & (beta < 1)).all()):
            raise ValueError(
                "every beta must lie strictly between 0 and 1, "
                f"got values from {float(beta.min()):g} to {float(beta.max()):g}"
            )
        self.T = beta.numel()
        self.beta = torch.cat([torch.zeros(1, dtype=torch.float64), beta])
        self.alpha = 1 - self.beta
        self.alpha_bar = torch.cumprod(self.alpha, dim=0)
        self._alpha_bar_on = {self.alpha_bar.device: self.alpha_bar}
        if (last := float(self.alpha_bar[-1])) > _LARGEST_FINAL_ALPHA_BAR:
            warnings.warn(
                f"alpha_bar[T] = {last:.2g}: x_T keeps {100 * math.sqrt(last):.0f} % of the data's amplitude and "
                f"cannot pass as N(0, I), from which sampling starts; use more steps or larger betas "
                f"(alpha_bar[T] at most {_LARGEST_FINAL_ALPHA_BAR:g})",
                stacklevel=2,
            )

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio ᾱ_t / (1 - ᾱ_t), float64, shape (T + 1,); infinite at t = 0."""
        return self.alpha_bar / (1 - self.alpha_bar)

    def alpha_bar_at(self, t: Tensor) -> Tensor:
        """ᾱ_t in float64 for int64 time steps ``t`` of shape (B,), on their device (unchecked)."""
        if t.device.type == "mps":  # no float64 there; the caller casts and moves
            t = t.cpu()
        if t.device not in self._alpha_bar_on:
            self._alpha_bar_on[t.device] = self.alpha_bar.to(t.device)
        return self._alpha_bar_on[t.device][t]

    def times(self, steps: int | None = None, spacing: str = "trailing") -> list[int]:
        """The times that a sampler visits in ``steps`` evenly spaced steps (Lin et al. 2024, table 2).

        Args:
            steps: number of steps, from 1 to T; None for all T.
            spacing: "trailing" for T · i / steps, rounded, i = steps, ..., 0: the first time is T. "leading" for
                1 + i · (T // steps), i = steps - 1, ..., 0, and 0, as many published models are sampled. Unless
                steps = T, this starts below T, a mistake: the sampler takes pure noise for x_t, which at that time
                still has the amplitude √ᾱ_t of the data. With the linear schedule of 1000 steps that is 2 % for 10
                steps, and 16 % for 600, since 1000 // 600 = 1 and they begin at t = 600.

        Returns:
            ``steps`` + 1 falling integers; the last is 0. They count from 1; diffusers' ``timesteps`` are one less.
        """
        steps = self.T if steps is None else _check.integer("steps", steps, 1, self.T)
        if spacing == "leading":
            return [1 + i * (self.T // steps) for i in range(steps - 1, -1, -1)] + [0]
        if spacing != "trailing":
            raise ValueError(
                f'spacing must be "trailing" or "leading", got {spacing!r}'
            )
        return [(i * self.T + steps // 2) // steps for i in range(steps, -1, -1)]

    def subschedule(self, times: Sequence[int]) -> NoiseSchedule:
        """The coarser schedule that jumps between the given times and keeps ᾱ at each of them.

        With kept times τ_1 < ... < τ_S the new variances are 1 - ᾱ(τ_i) / ᾱ(τ_{i-1}), τ_0 = 0
        (Nichol & Dhariwal 2021, section 4).

        Args:
            times: kept times in 1..T, strictly increasing or (as ``times()`` returns them) strictly
                decreasing; 0 is always kept and may be left out.
        """
        kept = sorted(set(times) - {0})
        if len(kept) + (0 in times) != len(times) or list(times) not in (
            sorted(times),
            sorted(times)[::-1],
        ):
            raise ValueError(
                f"times must be strictly increasing or strictly decreasing, got {list(times)}"
            )
        if not kept:
            raise ValueError(
                f"times must keep at least one time after 0, got {list(times)}"
            )
        for t in kept:
            _check.integer("times", t, 1, self.T)
        alpha_bar = self.alpha_bar[[0, *kept]]
        return NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])

    def __repr__(self) -> str:
        return (
            f"NoiseSchedule(T={self.T}, beta={self.beta[1]:.3g}..{self.beta[-1]:.3g}, "
            f"alpha_bar[T]={self.alpha_bar[-1]:.3g})"
        )


def linear_schedule(
    T: int = 1000, beta_1: float | None = None, beta_T: float | None = None
) -> NoiseSchedule:
    """β_t rises evenly from β_1 to β_T (Ho et al. 2020, section 4).

    Args:
        T: number of steps.
        beta_1, beta_T: first and last variance. By default the range 0.0001..0.02 of the paper, which
            belongs to T = 1000, times 1000 / T: then the whole process adds the same noise for every T.

    Raises:
        ValueError: if a β reaches 1 (with the default range, for T ≤ 20; use ``cosine_schedule`` there).
    """
    T = _check.integer("T", T, 1)
    scale = 1000 / T
    first = 1e-4 * scale if beta_1 is None else _check.number("beta_1", beta_1, 0, 1)
    last = 0.02 * scale if beta_T is None else _check.number("beta_T", beta_T, 0, 1)
    if last >= 1 and beta_T is None:
        raise ValueError(
            f"T must be at least 21 for the default range of betas, got {T}; give beta_T, or use cosine_schedule"
        )
    return NoiseSchedule(torch.linspace(first, last, T, dtype=torch.float64))


def cosine_schedule(
    T: int = 1000, offset: float = 0.008, beta_max: float = 0.999
) -> NoiseSchedule:
    """ᾱ_t falls like a squared cosine (Nichol & Dhariwal 2021, equation 17).

    ᾱ_t = f(t) / f(0), f(t) = cos²(π/2 · (t/T + offset) / (1 + offset)), and β_t = min(1 - ᾱ_t/ᾱ_{t-1}, beta_max).

    Args:
        T: number of steps.
        offset: the paper's s; keeps the first β from being vanishingly small.
        beta_max: the largest β, because the last would be 1.
    """
    T = _check.integer("T", T, 1)
    offset = _check.number("offset", offset, 0)
    beta_max = _check.number("beta_max", beta_max, 0, 1)
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos(math.pi / 2 * (t / T + offset) / (1 + offset)) ** 2
    return NoiseSchedule((1 - f[1:] / f[:-1]).clamp(max=beta_max))
