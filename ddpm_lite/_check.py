"""Argument checks shared by the public functions: say which argument, what it was, what is accepted."""

from __future__ import annotations

from numbers import Integral, Real

import torch
from torch import Tensor


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is an int in [low, high]; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{name} must be an int, got {value!r} of type {type(value).__name__}"
        )
    if value < low or (high is not None and value > high):
        accepted = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return int(value)


def number(name: str, value: object, low: float, high: float = float("inf")) -> float:
    """Return ``value`` as a float if it is a number in [low, high]; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number, got {value!r} of type {type(value).__name__}"
        )
    if not low <= value <= high:
        accepted = (
            f"between {low} and {high}" if high < float("inf") else f"at least {low}"
        )
        raise ValueError(f"{name} must be {accepted}, got {value}")
    return float(value)


def floating(name: str, x: object) -> Tensor:
    """Return ``x`` if it is a floating-point tensor of shape (B, ...)."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(
            f"{name} must be floating point, got {x.dtype}; "
            "turn uint8 images into floats in [-1, 1] with ddpm_lite.data.from_uint8"
        )
    if x.ndim < 1:
        raise ValueError(f"{name} must have a batch dimension, got a scalar")
    return x


def like(name: str, x: object, other_name: str, other: Tensor) -> Tensor:
    """Return ``x`` if it is a floating-point tensor with the shape and the device of ``other``."""
    x = floating(name, x)
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(x.shape)}"
        )
    if x.device != other.device:
        raise ValueError(
            f"{name} is on {x.device}, but {other_name} is on {other.device}; move one of them"
        )
    return x


def times(name: str, t: object, x: Tensor, low: int, high: int | None = None) -> Tensor:
    """Return the time steps ``t`` as int64 of shape (B,), B the batch size of ``x``, each in [low, high].

    An int stands for the same step in the whole batch.
    """
    if isinstance(t, Integral) and not isinstance(t, bool):
        return torch.full(
            (x.shape[0],),
            integer(name, t, low, high),
            dtype=torch.int64,
            device=x.device,
        )
    if not isinstance(t, Tensor):
        raise TypeError(
            f"{name} must be an int or an integer tensor, got {t!r} of type {type(t).__name__}"
        )
    if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"{name} must be an integer tensor, got {t.dtype}")
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"{name} must have shape {tuple(x.shape[:1])}, one step for each item, got {tuple(t.shape)}"
        )
    if t.device != x.device:
        raise ValueError(
            f"{name} is on {t.device}, but the data is on {x.device}; move one of them"
        )
    accepted = f"at least {low}" if high is None else f"between {low} and {high}"
    fits = (t >= low).all() if high is None else ((t >= low) & (t <= high)).all()
    if t.device.type != "cpu":  # to look there would be to wait; the device will stop
        torch._assert_async(fits, f"{name} must be {accepted}")
    elif not fits:
        raise ValueError(
            f"{name} must be {accepted}, got {int(t.min())} to {int(t.max())}"
        )
    return t.to(torch.int64)
