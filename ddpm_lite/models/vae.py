"""The variational autoencoder: two networks, trained together on one bound. Chapter 2 of the book.

Predicts no ε; it is the model that diffusion grew out of.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm_lite import _check, gaussian


class ELBO(NamedTuple):
    """The evidence lower bound of each of B data points, and its two terms, in nats: higher is better."""

    total: Tensor
    """``reconstruction - kl.sum(1)``, shape (B,)."""
    reconstruction: Tensor
    """Monte Carlo estimate of E_q[log p(x | z)], shape (B,)."""
    kl: Tensor
    """KL(q(z_j | x) || N(0, 1)) of each latent number, shape (B, latent_dim); exact."""


class VAE(nn.Module):
    """p(z) = N(0, I) and p(x | z) = N(D(z), s² I), with the guess q(z | x) = N(μ(x), diag σ²(x)).

    ``encoder`` computes μ and log σ² from x, ``decoder`` computes D(z); s² is one learned number (Kingma & Welling
    2014; the learned s²: Rybkin, Daniilidis & Levine 2021). Train with ``-vae.elbo(x).total.mean()`` as the loss.

    Args:
        shape: of a data point, such as (1, 8, 8).
        latent_dim: numbers in z.
        width: size of the hidden layers.
        depth: hidden layers in each network; with 0 both are affine maps (but for the exponential in σ²).

    Raises:
        TypeError, ValueError: for arguments outside these ranges.
    """

    def __init__(
        self,
        shape: Sequence[int] = (1, 8, 8),
        latent_dim: int = 2,
        width: int = 256,
        depth: int = 2,
    ) -> None:
        super().__init__()
        shape = tuple(_check.integer("shape", size, 1) for size in shape)
        if not shape:
            raise ValueError("shape must have at least one entry, got ()")
        _check.integer("latent_dim", latent_dim, 1)
        _check.integer("width", width, 1)
        _check.integer("depth", depth, 0)
        #: The arguments that rebuild this network, as JSON can hold them.
        self.config = {
            "shape": list(shape),
            "latent_dim": latent_dim,
            "width": width,
            "depth": depth,
        }
        hidden = [width] * depth
        self.encoder = _layers([math.prod(shape), *hidden, 2 * latent_dim])
        self.decoder = _layers([latent_dim, *hidden, math.prod(shape)])
        self.log_variance = nn.Parameter(torch.zeros(()))  # log s²

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean μ(x) and variance σ²(x) of q(z | x).

        Args:
            x: data, shape (B, *shape), floating point, scaled to about [-1, 1]: in float32 the variance becomes 0, and
                the gradient NaN, where log σ² falls below -103.

        Returns:
            Two tensors of shape (B, latent_dim); the variance is positive.

        Raises:
            TypeError, ValueError: for a shape or dtype that does not fit.
        """
        shape = tuple(self.config["shape"])
        if _check.floating("x", x).shape[1:] != shape:
            raise ValueError(f"x must have shape {('B', *shape)}, got {tuple(x.shape)}")
        mean, log_variance = self.encoder(x.flatten(1)).chunk(2, dim=1)
        return mean, log_variance.exp()

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean D(z) and variance s² of p(x | z).

        Args:
            z: causes, shape (..., latent_dim), floating point.

        Returns:
            The mean, shape (..., *shape), and the variance, a scalar.

        Raises:
            TypeError, ValueError: for a shape or dtype that does not fit.
        """
        if _check.floating("z", z).shape[-1] != self.config["latent_dim"]:
            raise ValueError(
                f"z must have shape (..., {self.config['latent_dim']}), got {tuple(z.shape)}"
            )
        mean = self.decoder(z).unflatten(-1, self.config["shape"])
        return mean, self.log_variance.exp()

    def elbo(
        self,
        x: Tensor,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> ELBO:
        """The bound on log p(x) for each data point; differentiable in both networks and s².

        Args:
            x: data, shape (B, *shape).
            eps: standard normal noise, shape (S, B, latent_dim), for S draws of z; None for one fresh draw.
            generator: for the fresh draw.

        Raises:
            TypeError, ValueError: for a shape or dtype that does not fit.
        """
        mean, variance = self.encode(x)
        if eps is None:
            eps = gaussian.randn((1, *mean.shape), mean, generator)
        elif _check.floating("eps", eps).shape[1:] != mean.shape or not len(eps):
            raise ValueError(
                f"eps must have shape {('S', *mean.shape)}, S at least 1, got {tuple(eps.shape)}"
            )
        z = mean + variance.sqrt() * eps  # (S, B, latent_dim), differentiable in both
        log_likelihood = gaussian.log_density(x, *self.decode(z))  # (S, B, *shape)
        reconstruction = log_likelihood.flatten(2).sum(2).mean(0)
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        kl = gaussian.kl(mean, variance, zero, one)
        return ELBO(reconstruction - kl.sum(1), reconstruction, kl)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """The means D(z) of ``n`` draws of z from the prior, shape (n, *shape): pictures without the pixel noise."""
        _check.integer("n", n, 1)
        shape = (n, self.config["latent_dim"])
        return self.decode(gaussian.randn(shape, self.log_variance, generator))[0]


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes, with SiLU between them."""
    layers: list[nn.Module] = []
    for size_in, size_out in itertools.pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
