"""The forward process q, its posterior, and the three ways to say the same thing: x_0, ε and v.

Chapters 4 and 5 of the book. A step goes between any two times s < t, so that one formula serves the full
chain (s = t - 1) and every coarser one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ddpm_lite import _check, gaussian
from ddpm_lite.schedule import NoiseSchedule


class GaussianDiffusion:
    """The Gaussian forward process of Ho et al. (2020) on a noise schedule.

    Data has shape (B, ...) and any floating-point dtype. Time steps are int64 tensors of shape (B,), or an
    int for the whole batch. Coefficients are computed in float64 and cast to the data's dtype last.

    All methods raise TypeError for data that is not floating point or time steps that are not integers, and
    ValueError for shapes or devices that disagree and for time steps out of range. (A tensor of times on CUDA is not
    waited for: if it is out of range, the device stops with the message.)
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        if not isinstance(schedule, NoiseSchedule):
            raise TypeError(
                f"schedule must be a NoiseSchedule, got {type(schedule).__name__}"
            )
        self.schedule = schedule

    @property
    def T(self) -> int:
        """Number of steps."""
        return self.schedule.T

    def q_sample(self, x_0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """x_t = √ᾱ_t x_0 + √(1 - ᾱ_t) ε: a draw from q(x_t | x_0) in one shot (Ho et al., equation 4).

        Args:
            x_0: clean data, shape (B, ...).
            t: time steps in 1..T.
            eps: standard normal noise, shape of ``x_0``.
        """
        signal, noise = self._amplitudes(_check.floating("x_0", x_0), t)
        return signal * x_0 + noise * _check.like("eps", eps, "x_0", x_0)

    def q_chain(
        self, x_0: Tensor, generator: torch.Generator | None = None
    ) -> Iterator[Tensor]:
        """x_1, x_2, ..., x_T, each one step from the last: x_t = √(1 - β_t) x_{t-1} + √β_t ε (equation 2).

        For pictures and comparisons; ``q_sample`` reaches any x_t at once.
        """
        x = _check.floating("x_0", x_0)
        for beta in self.schedule.beta[1:].tolist():
            x = (1 - beta) ** 0.5 * x + beta**0.5 * gaussian.randn(
                x.shape, x, generator
            )
            yield x

    def q_posterior(
        self, x_0: Tensor, x_t: Tensor, t: Tensor | int, s: Tensor | int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of q(x_s | x_t, x_0), s < t (Ho et al., equations 6, 7).

        With α = ᾱ_t / ᾱ_s, the mean is √ᾱ_s (1 - α)/(1 - ᾱ_t) x_0 + √α (1 - ᾱ_s)/(1 - ᾱ_t) x_t,
        and the variance (1 - α)(1 - ᾱ_s)/(1 - ᾱ_t); at s = 0 they are x_0 and 0. Chapter 5.

        Args:
            x_0, x_t: clean and noisy data, shape (B, ...).
            t: time steps in 1..T.
            s: time steps in 0..t-1; None for t - 1.

        Returns:
            The mean, shape (B, ...), and the variance, shape (B, 1, ..., 1).
        """
        _check.like("x_t", x_t, "x_0", _check.floating("x_0", x_0))
        t, s = self._pair(x_0, t, s)
        alpha_bar_t = self.schedule.alpha_bar_at(t)
        alpha_bar_s = self.schedule.alpha_bar_at(s)
        alpha = alpha_bar_t / alpha_bar_s
        weight_0 = alpha_bar_s.sqrt() * (1 - alpha) / (1 - alpha_bar_t)
        weight_t = alpha.sqrt() * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        variance = (1 - alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
        return _as(weight_0, x_0) * x_0 + _as(weight_t, x_0) * x_t, _as(variance, x_0)

    def transition_variance(
        self, x_t: Tensor, t: Tensor | int, s: Tensor | int | None = None
    ) -> Tensor:
        """Variance of q(x_t | x_s), 1 - ᾱ_t / ᾱ_s, which is β_t when s = t - 1; shape (B, 1, ..., 1)."""
        t, s = self._pair(_check.floating("x_t", x_t), t, s)
        return _as(
            1 - self.schedule.alpha_bar_at(t) / self.schedule.alpha_bar_at(s), x_t
        )

    def predict_x_0(self, x_t: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """The x_0 that ``eps`` implies: (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t (Ho et al., equation 9 rearranged)."""
        signal, noise = self._amplitudes(_check.floating("x_t", x_t), t)
        return (x_t - noise * _check.like("eps", eps, "x_t", x_t)) / signal

    def predict_eps(self, x_t: Tensor, t: Tensor | int, x_0: Tensor) -> Tensor:
        """The ε that ``x_0`` implies: (x_t - √ᾱ_t x_0) / √(1 - ᾱ_t)."""
        signal, noise = self._amplitudes(_check.floating("x_t", x_t), t)
        return (x_t - signal * _check.like("x_0", x_0, "x_t", x_t)) / noise

    def velocity(self, x_0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """v = √ᾱ_t ε - √(1 - ᾱ_t) x_0 (Salimans & Ho 2022, section 4)."""
        signal, noise = self._amplitudes(_check.floating("x_0", x_0), t)
        return signal * _check.like("eps", eps, "x_0", x_0) - noise * x_0

    def predict_x_0_from_v(self, x_t: Tensor, t: Tensor | int, v: Tensor) -> Tensor:
        """The x_0 that ``v`` implies: √ᾱ_t x_t - √(1 - ᾱ_t) v."""
        signal, noise = self._amplitudes(_check.floating("x_t", x_t), t)
        return signal * x_t - noise * _check.like("v", v, "x_t", x_t)

    def predict_eps_from_v(self, x_t: Tensor, t: Tensor | int, v: Tensor) -> Tensor:
        """The ε that ``v`` implies: √(1 - ᾱ_t) x_t + √ᾱ_t v."""
        signal, noise = self._amplitudes(_check.floating("x_t", x_t), t)
        return noise * x_t + signal * _check.like("v", v, "x_t", x_t)

    def _amplitudes(self, x: Tensor, t: Tensor | int) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1 - ᾱ_t), shaped to multiply ``x``."""
        alpha_bar = self.schedule.alpha_bar_at(_check.times("t", t, x, 1, self.T))
        return _as(alpha_bar.sqrt(), x), _as((1 - alpha_bar).sqrt(), x)

    def _pair(
        self, x: Tensor, t: Tensor | int, s: Tensor | int | None
    ) -> tuple[Tensor, Tensor]:
        """The checked time steps s < t."""
        later = _check.times("t", t, x, 1, self.T)
        if s is None:
            return later, later - 1
        s = _check.times("s", s, x, 0, self.T if isinstance(t, Tensor) else t - 1)
        _check.every(s < later, "s must be smaller than t", s)
        return later, s


def _as(coefficient: Tensor, x: Tensor) -> Tensor:
    """A float64 coefficient of shape (B,) in the dtype and on the device of ``x``, shape (B, 1, ..., 1)."""
    return coefficient.to(x.dtype).to(x.device).view(-1, *[1] * (x.ndim - 1))
