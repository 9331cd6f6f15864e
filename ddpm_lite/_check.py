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
        raise ValueError(f"{name} must be {_range(low, high)}, got {value}")
    return int(value)


def number(name: str, value: object, low: float, high: float | None = None) -> float:
    """Return ``value`` as a float if it is a number in [low, high]; TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number, got {value!r} of type {type(value).__name__}"
        )
    if not low <= value or (high is not None and value > high):
        raise ValueError(f"{name} must be {_range(low, high)}, got {value}")
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

    An int stands for the same step in the whole batch. The range of a tensor is looked at as ``every`` does it.
    """
    if isinstance(t, Integral) and not isinstance(t, bool):
        step = integer(name, t, low, high)
        return torch.full(x.shape[:1], step, dtype=torch.int64, device=x.device)
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
    fits = t >= low if high is None else (t >= low) & (t <= high)
    every(fits, f"{name} must be {_range(low, high)}", t)
    return t.to(torch.int64)


def every(fits: Tensor, message: str, value: Tensor) -> None:
    """Raise ValueError with the message and the range of ``value``, unless all of ``fits`` is true.

    On CUDA to look would be to wait: there the device stops, with the message, when it comes to it. On the device
    "meta" there is nothing to look at.
    """
    if fits.device.type in ("cuda", "meta"):
        torch._assert_async(fits.all(), message)
    elif not fits.all():
        raise ValueError(f"{message}, got {int(value.min())} to {int(value.max())}")


def _range(low: float, high: float | None) -> str:
    return f"at least {low}" if high is None else f"between {low} and {high}"
