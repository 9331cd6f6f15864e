"""What a network is trained on: the mean squared error of the predicted noise. Chapter 7 of the book."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_lite import _check, gaussian
from ddpm_lite.process import GaussianDiffusion

EpsModel = Callable[[Tensor, Tensor], Tensor]
"""``eps_model(x_t, t) -> eps``: x_t of shape (B, ...), t int64 of shape (B,), eps of the shape of x_t."""


def simple_loss(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    generator: torch.Generator | None = None,
    *,
    t: Tensor | None = None,
    eps: Tensor | None = None,
) -> Tensor:
    """L_simple: the mean of (ε - ε_θ(x_t, t))², with t uniform on 1..T (Ho et al. 2020, equation 14).

    Args:
        eps_model: the network.
        diffusion: the forward process.
        x_0: a batch of clean data, shape (B, ...), floating point.
        generator: the source of t and ε; None for torch's global one.
        t, eps: the times, shape (B,), and the noise, shape of ``x_0``, if they are not to be drawn here.

    Returns:
        The mean over the batch and over all entries, a scalar in the precision of the data.
    """
    _check.floating("x_0", x_0)
    if t is None:
        device = x_0.device if generator is None else generator.device
        t = torch.randint(
            1, diffusion.T + 1, x_0.shape[:1], device=device, generator=generator
        ).to(x_0.device)
    if eps is None:
        eps = gaussian.randn(x_0.shape, x_0, generator)
    predicted = eps_model(diffusion.q_sample(x_0, t, eps), t)
    _check.like("eps_model(x_t, t)", predicted, "x_t", eps)
    return F.mse_loss(predicted.to(eps.dtype), eps)
