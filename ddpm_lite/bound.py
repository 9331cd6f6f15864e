"""The variational bound on -log p(x_0), term by term, in bits per dimension. Chapter 6 of the book."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ddpm_lite import _check, gaussian
from ddpm_lite.objective import EpsModel
from ddpm_lite.process import GaussianDiffusion


class Bound(NamedTuple):
    """The bound and its terms for each of B images, float64 on the CPU, in bits per dimension.

    total = L_T + Σ_k weights[k] L_t[:, k] + L_0.
    """

    total: Tensor
    """Shape (B,). Its mean over test images is the number that papers report."""
    L_T: Tensor
    """Shape (B,): KL(q(x_T | x_0) || N(0, I)), what x_T still says of x_0."""
    L_t: Tensor
    """Shape (B, K): KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at the times ``times``, the paper's L_{t-1}."""
    L_0: Tensor
    """Shape (B,): -log p(x_0 | x_1)."""
    times: Tensor
    """int64, shape (B, K): the time t in 2..T of each entry of ``L_t``."""
    weights: Tensor
    """Shape (K,): how many times each column stands for; 1 when all T - 1 were evaluated."""

    @property
    def standard_error(self) -> float:
        """That of ``total.mean()``, from the choice of images, of times and of noise together; needs B > 1."""
        return float(self.total.std() / len(self.total) ** 0.5)


@torch.no_grad()
def variational_bound(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    samples: int | None = None,
    levels: int | None = 256,
    variance: str = "posterior",
    decoder_variance: float | None = None,
    clip: float | None = None,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
) -> Bound:
    """An upper bound on -log2 p(x_0) per dimension, p the law of the chain that ``ancestral`` runs.

    Its last step, from x_1, is not the estimate of x_0 alone but a draw around it (``decoder_variance``).
    L_T + Σ_{t=2..T} L_{t-1} + L_0 (Ho et al. 2020, equation 5), each KL in closed form, each expectation over x_t
    estimated without bias from one draw. It takes K + 1 evaluations of the network for each image.

    Args:
        eps_model: the network, or anything with its signature.
        diffusion: the forward process.
        x_0: clean data, shape (B, ...), float32 or float64.
        samples: K, how many times t to evaluate for each image, from 1 to T - 1: one drawn from each of K intervals
            that divide 2..T, shorter towards 2, where the terms are large. None for all T - 1.
        levels: number of grey values of the data, 256 for 8-bit images. L_0 is then the log-probability of the
            discretised Gaussian (equation 13). None for continuous data: L_0 is a density, and bits can be negative.
        variance: of the steps t > 1, "posterior" for β̃_t or "beta" for β_t, as in ``ancestral``. On smooth data
            "posterior" costs at least 0.42 bits per dimension more, unless the first step is long (chapter 6).
        decoder_variance: of p(x_0 | x_1); None for β_1, since β̃_1 is 0. (The reference implementations use β̃_2.)
        clip: keep the estimate of x_0 within [-clip, clip], as in ``ancestral``: 1 for images.
        batch_size: how many images to give to the network at a time.
        generator: the source of t and ε; None for torch's global one.

    Raises:
        TypeError, ValueError: for arguments outside these ranges, x_0 in half precision, and x_0 that does not lie
            on the grey values that ``levels`` says.
    """
    if variance not in ("posterior", "beta"):
        raise ValueError(f'variance must be "posterior" or "beta", got {variance!r}')
    x_0 = _check_data(x_0, levels)
    if samples is None or diffusion.T == 1:
        samples = diffusion.T - 1
    _check.integer("samples", samples, min(1, diffusion.T - 1), diffusion.T - 1)
    _check.integer("batch_size", batch_size, 1)
    if clip is not None:
        _check.number("clip", clip, 0)
    if decoder_variance is None:
        decoder_variance = float(diffusion.schedule.beta[1])
    elif _check.number("decoder_variance", decoder_variance, 0) == 0:
        raise ValueError("decoder_variance must be positive, got 0")
    edges = _edges(diffusion.T, samples)
    sizes = (edges[1:] - edges[:-1]).tolist()

    def terms(x_0: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """L_T, L_t, L_0 and the times, for one batch."""
        one = torch.ones(1, dtype=x_0.dtype, device=x_0.device)
        mean_T = diffusion.q_sample(x_0, diffusion.T, torch.zeros_like(x_0))
        variance_T = diffusion.transition_variance(x_0, diffusion.T, 0)
        L_T = _bits(gaussian.kl(mean_T, variance_T, 0 * one, one))

        columns, times = [], []
        for first, size in zip(edges.tolist(), sizes):
            t = first + _integers(size, x_0, generator)
            x_t, predicted = _predict(eps_model, diffusion, x_0, t, clip, generator)
            mean, posterior_variance = diffusion.q_posterior(x_0, x_t, t)
            model_mean, model_variance = diffusion.q_posterior(predicted, x_t, t)
            if variance == "beta":
                model_variance = diffusion.transition_variance(x_t, t)
            kl = gaussian.kl(mean, posterior_variance, model_mean, model_variance)
            columns.append(_bits(kl))
            times.append(t.cpu())

        # At t = 1 the model's mean is its estimate of x_0 itself.
        _, mean = _predict(eps_model, diffusion, x_0, 1, clip, generator)
        if levels is None:
            log_p = gaussian.log_density(x_0, mean, decoder_variance * one)
        else:
            log_p = gaussian.discretised_log_density(
                x_0, mean, decoder_variance * one, levels
            )
        none = L_T.new_empty(len(x_0), 0)
        return (
            L_T,
            torch.stack(columns, 1) if columns else none,
            _bits(-log_p),
            torch.stack(times, 1) if times else none.long(),
        )

    L_T, L_t, L_0, times = map(torch.cat, zip(*map(terms, x_0.split(batch_size))))
    weights = torch.tensor(sizes, dtype=torch.float64)
    return Bound(L_T + L_t @ weights + L_0, L_T, L_t, L_0, times, weights)


def _predict(
    eps_model: EpsModel,
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    t: Tensor | int,
    clip: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """A draw of x_t, and the estimate of x_0 that the model makes from it."""
    t = _check.times("t", t, x_0, 1, diffusion.T)
    x_t = diffusion.q_sample(x_0, t, gaussian.randn(x_0.shape, x_0, generator))
    predicted = diffusion.predict_x_0(x_t, t, eps_model(x_t, t))
    return x_t, predicted if clip is None else predicted.clamp(-clip, clip)


def _edges(T: int, samples: int) -> Tensor:
    """Where the intervals that divide 2..T begin, and T + 1: spaced quadratically, none empty."""
    k = torch.arange(samples + 1)
    quadratic = ((T - 1) * (k / max(samples, 1)) ** 2).round().long()
    return 2 + torch.maximum(quadratic, k)


def _integers(size: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of 0..size-1 for each item of ``x``; nothing is drawn when there is no choice."""
    if size == 1:
        return torch.zeros(len(x), dtype=torch.int64, device=x.device)
    device = x.device if generator is None else generator.device
    drawn = torch.randint(size, (len(x),), generator=generator, device=device)
    return drawn.to(x.device)


def _bits(nats: Tensor) -> Tensor:
    """The mean over all entries of each item, in bits; shape (B,)."""
    return nats.flatten(1).mean(1).cpu().double() / math.log(2)


def _check_data(x_0: Tensor, levels: int | None) -> Tensor:
    """``x_0`` if its precision suffices and its values are the grey values that ``levels`` promises."""
    if _check.floating("x_0", x_0).dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x_0 must be float32 or float64, got {x_0.dtype}")
    if x_0.ndim < 2 or x_0.numel() == 0:
        raise ValueError(f"x_0 must have shape (B, ...), got {tuple(x_0.shape)}")
    if not bool(x_0.isfinite().all()):
        raise ValueError("x_0 must be finite, got NaN or infinity")
    if levels is not None:
        _check.integer("levels", levels, 2)
        grey = (x_0 + 1) * ((levels - 1) / 2)
        wrong = ((grey - grey.round()).abs() > 1e-3) | (x_0.abs() > 1 + 1e-6)
        if bool(wrong.any()):
            raise ValueError(
                f"x_0 must lie on the {levels} grey values that divide [-1, 1], but has {float(x_0[wrong][0]):g}; "
                "give levels as the data has them, or None for continuous data"
            )
    return x_0
