"""A small ε-network for points in the plane: enough to watch diffusion work in seconds. Chapter 7 of the book."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lite import _check
from ddpm_lite.models.unet import TimeEmbedding, zero_init


class MLP(nn.Module):
    """An ε-network for points: a few linear layers, each with a way around it, that are all told the time.

    Args:
        dim: numbers in a data point; 2 for points in the plane.
        width: size of the hidden state; even, at least 4.
        depth: number of hidden layers.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.
    """

    def __init__(self, dim: int = 2, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        _check.integer("dim", dim, 1)
        if _check.integer("width", width, 4) % 2:
            raise ValueError(f"width must be even, got {width}")
        _check.integer("depth", depth, 1)
        #: The arguments that rebuild this network, as JSON can hold them.
        self.config = {"dim": dim, "width": width, "depth": depth}
        self.time_embedding = TimeEmbedding(width, width)
        self.linear_in = nn.Linear(dim, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.linear_out = zero_init(nn.Linear(width, dim))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Predict ε.

        Args:
            x_t: noisy points, shape (B, dim).
            t: time steps, an integer tensor of shape (B,).

        Returns:
            The predicted noise, shape of ``x_t``.

        Raises:
            TypeError, ValueError: for a shape or dtype that does not fit.
        """
        if _check.floating("x_t", x_t).shape[1:] != (self.config["dim"],):
            raise ValueError(
                f"x_t must have shape (B, {self.config['dim']}), got {tuple(x_t.shape)}"
            )
        time = self.time_embedding(_check.times("t", t, x_t, 1))
        h = self.linear_in(x_t)
        for layer in self.hidden:
            h = h + layer(F.silu(h + time))
        return self.linear_out(F.silu(h))
