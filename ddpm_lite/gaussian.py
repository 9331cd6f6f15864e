"""Diagonal Gaussians: density, divergence, sampling.

Each function works entry by entry and broadcasts; sum over the entries for the law of a whole image.
Chapters 1, 2 and 6 of the book.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_density(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """log N(x; mean, variance) of each entry, in nats. ``variance`` must be positive."""
    return -0.5 * (math.log(2 * math.pi) + variance.log() + (x - mean) ** 2 / variance)


def kl(
    mean_q: Tensor, variance_q: Tensor, mean_p: Tensor, variance_p: Tensor
) -> Tensor:
    """KL(N(mean_q, variance_q) || N(mean_p, variance_p)) of each entry, in nats; variances positive."""
    ratio = variance_q / variance_p
    return 0.5 * (ratio - 1 - ratio.log() + (mean_q - mean_p) ** 2 / variance_p)


def sample(
    mean: Tensor, variance: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Draw from N(mean, variance), in the shape of ``mean``; ``variance`` may be 0 and is broadcast."""
    return mean + variance.sqrt() * randn(mean.shape, mean, generator)


def randn(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Standard normal noise with the dtype and device of ``like``.

    A CPU generator serves every device: the noise is then drawn on the CPU and moved, so that one seed
    means the same noise everywhere.
    """
    device = like.device if generator is None else generator.device
    return torch.randn(shape, dtype=like.dtype, device=device, generator=generator).to(
        like.device
    )
