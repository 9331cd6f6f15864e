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


def discretised_log_density(
    x: Tensor, mean: Tensor, variance: Tensor, levels: int = 256
) -> Tensor:
    """log of the probability that N(mean, variance), rounded to the nearest of ``levels`` grey values, is x.

    The grey values divide [-1, 1] evenly. The probability is the integral of the density over the bin around x, of
    width 2 / (levels - 1); the first and the last bin reach to infinity, so that all sum to one (Ho et al. 2020,
    equation 13, with the exact normal distribution function). Stable in the far tails, and differentiable.

    Args:
        x: grey values in [-1, 1] (unchecked), any shape.
        mean, variance: of the normal law, broadcast; ``variance`` positive.
        levels: number of grey values, 2 or more.

    Returns:
        The logarithm for each entry, in nats; never above 0.
    """
    half = 1 / (levels - 1)
    deviation = variance.sqrt()
    lower, upper = (x - half - mean) / deviation, (x + half - mean) / deviation
    # Φ(upper) - Φ(lower) = Φ(-lower) - Φ(-upper): take the side on which both are small and keep their digits.
    mirrored = lower + upper > 0
    a, b = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_a, log_b = torch.special.log_ndtr(a), torch.special.log_ndtr(b)
    inside = log_b + (-torch.expm1(log_a - log_b)).log()
    darkest, brightest = x < -1 + half, x > 1 - half
    outermost = torch.special.log_ndtr(torch.where(darkest, upper, -lower))
    return torch.where(darkest | brightest, outermost, inside)


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
