"""Algorithm 1 of DDPM, with what makes it work in practice: warm-up, clipping, an average of the weights.

Chapter 9 of the book.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddpm_lite import _check
from ddpm_lite.data import check_images
from ddpm_lite.model import Model
from ddpm_lite.models.unet import UNet
from ddpm_lite.objective import simple_loss
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.schedule import linear_schedule


class Recipe(NamedTuple):
    """What suits a data set: a network, a number of steps, and the options of ``train``."""

    shape: tuple[int, int, int]
    unet: dict[str, object]
    steps: int
    options: dict[str, object]


RECIPES = {
    "digits": Recipe(
        (1, 8, 8),
        {"base_channels": 32, "channel_mults": (1, 2), "blocks_per_level": 1},
        steps=1100,
        options={"batch_size": 64},
    ),
    "mnist": Recipe(
        (1, 28, 28),
        {
            "base_channels": 32,
            "channel_mults": (1, 2, 2),
            "blocks_per_level": 2,
            "attention_levels": (2,),
        },
        steps=20_000,
        options={"batch_size": 128, "learning_rate": 1e-3},
    ),
}


def new_model(data: str, seed: int = 0) -> Model:
    """An untrained model for a data set, "digits" or "mnist", with initial weights fixed by ``seed``."""
    if data not in RECIPES:
        raise ValueError(f"data must be one of {', '.join(RECIPES)}, got {data!r}")
    recipe = RECIPES[data]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_check.integer("seed", seed, 0))
        unet = UNet(recipe.shape[0], **recipe.unet)
    return Model(unet, GaussianDiffusion(linear_schedule()), recipe.shape)


class TrainState(NamedTuple):
    """Where training is after a step."""

    step: int
    """Steps done, from 1."""
    loss: float
    """L_simple of this step's batch."""
    ema: nn.Module
    """The averaged network, for sampling; the same object at every step."""


def train(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    y: Tensor | None = None,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    ema_decay: float = 0.999,
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> Iterator[TrainState]:
    """Train a network to predict ε (Ho et al. 2020, algorithm 1); one ``TrainState`` a step.

    Adam with a learning rate that rises over ``warmup`` steps and then falls to 0 along a half cosine. The averaged
    weights are ``ema += (1 - d) (weights - ema)`` with d = min(ema_decay, (step + 1) / (step + 10)), so that the
    random start is forgotten soon.

    Args:
        model: an ``eps_model(x_t, t)``, or ``model(x_t, t, y)`` when ``y`` is given; trained in place.
        diffusion: the forward process.
        x_0: the data, float, shape (N, ...), on the model's device; images (N, C, H, W) in [-1, 1].
        y: class labels, int64, shape (N,), or None.
        steps: number of steps.
        batch_size: items a step; at most N.
        learning_rate: its largest value.
        warmup: steps over which it rises.
        ema_decay: d of the average above, in [0, 1).
        max_grad_norm: gradients of a larger norm are scaled down to it.
        seed: of the order of the data, t and ε. With the model's initial weights it fixes the run (but dropout,
            if the network has it, draws from torch's global generator).

    Raises:
        TypeError, ValueError: for arguments that do not fit.
        FloatingPointError: if the loss or its gradient is not finite, with the step; ``ema`` of the last state is
            still good.
    """
    if _check.floating("x_0", x_0).ndim == 4:
        check_images(x_0)
    _check.integer("steps", steps, 1)
    _check.integer("batch_size", batch_size, 1, len(x_0))
    _check.integer("warmup", warmup, 0)
    if _check.number("ema_decay", ema_decay, 0, 1) == 1:
        raise ValueError(f"ema_decay must be below 1, got {ema_decay}")
    _check.number("learning_rate", learning_rate, 0)
    _check.number("max_grad_norm", max_grad_norm, 0)
    _check.integer("seed", seed, 0)
    if y is not None and (y.shape != x_0.shape[:1] or y.is_floating_point()):
        raise ValueError(
            f"y must be {len(x_0)} integer labels, got {y.dtype} of shape {tuple(y.shape)}"
        )

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return rise * 0.5 * (1 + math.cos(math.pi * step / steps))

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    model.train()
    for step, batch in enumerate(
        _batches(len(x_0), batch_size, steps, generator), start=1
    ):
        batch = batch.to(x_0.device)
        eps_model = model if y is None else partial(model, y=y[batch])
        loss = simple_loss(eps_model, diffusion, x_0[batch], generator)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(
                f"the loss is {value} at step {step}; try a smaller learning rate"
            )
        optimizer.zero_grad()
        loss.backward()
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient is {norm} at step {step}; try a smaller learning rate"
            )
        optimizer.step()
        decay.step()
        d = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(ema.parameters()), list(model.parameters()), 1 - d
            )
        yield TrainState(step, value, ema)


def _batches(
    n: int, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """Indices of each batch: every item once an epoch, in a new order each; the odd rest of an epoch is left out."""
    order, start = torch.randperm(n, generator=generator), 0
    for _ in range(steps):
        if start + batch_size > n:
            order, start = torch.randperm(n, generator=generator), 0
        yield order[start : start + batch_size]
        start += batch_size
