"""The derivations of the book as sympy does them: from the densities to the result, never from the result.

Each function returns expressions in the symbols below. Chapters 1 to 7 call them in front of the reader, and the
tests compare what they return with the package's own numbers. Imports no torch.
"""

from __future__ import annotations

from typing import NamedTuple

import sympy as sp
from sympy import Expr, Symbol

#: Clean data, noisy data, the earlier state (s < t) and the noise, each a real number: one entry of the image.
x_0, x_s, x_t, eps = sp.symbols("x_0 x_s x_t varepsilon", real=True)
#: ᾱ_s, and α = ᾱ_t / ᾱ_s, which is α_t when s = t - 1; both between 0 and 1, so that ᾱ_t = α ᾱ_s.
alpha_bar_s, alpha = sp.symbols("alphabar_s alpha", positive=True)


class Gaussian(NamedTuple):
    """The mean and the variance of a normal law."""

    mean: Expr
    variance: Expr


def log_density(x: Expr, mean: Expr, variance: Expr) -> Expr:
    """log N(x; mean, variance)."""
    return -sp.log(2 * sp.pi * variance) / 2 - (x - mean) ** 2 / (2 * variance)


def complete_the_square(log_density: Expr, x: Symbol) -> Gaussian:
    """The mean and variance of the density proportional to exp(log_density), which must be quadratic in ``x``.

    Written as -a x²/2 + b x + c, it is -a (x - b/a)²/2 plus a constant: mean b/a and variance 1/a.

    Raises:
        ValueError: if ``log_density`` is not a quadratic polynomial in ``x``.
    """
    polynomial = (
        sp.Poly(sp.expand(log_density), x)
        if sp.expand(log_density).is_polynomial(x)
        else None
    )
    if polynomial is None or polynomial.degree() != 2:
        raise ValueError(f"log_density must be quadratic in {x}, got {log_density}")
    half_a, b, _ = polynomial.all_coeffs()
    a = -2 * half_a
    if a.is_nonpositive:
        raise ValueError(
            f"log_density must fall away from its peak in {x}, got {log_density}"
        )
    return Gaussian(sp.simplify(b / a), sp.simplify(1 / a))


def forward_step() -> Gaussian:
    """q(x_t | x_s): mean √α x_s, variance 1 - α (chapter 4)."""
    return Gaussian(sp.sqrt(alpha) * x_s, 1 - alpha)


def forward_marginal() -> Gaussian:
    """q(x_s | x_0): mean √ᾱ_s x_0, variance 1 - ᾱ_s (chapter 4)."""
    return Gaussian(sp.sqrt(alpha_bar_s) * x_0, 1 - alpha_bar_s)


def posterior() -> Gaussian:
    """q(x_s | x_t, x_0), from q(x_t | x_s) q(x_s | x_0) by completing the square in x_s (chapter 5)."""
    joint = log_density(x_t, *forward_step()) + log_density(x_s, *forward_marginal())
    return complete_the_square(joint, x_s)


def posterior_mean_from_eps() -> Expr:
    """The posterior's mean in terms of x_t and ε, by putting x_0 = (x_t - √(1 - ᾱ_t) ε) / √ᾱ_t (chapter 5)."""
    product = alpha * alpha_bar_s
    predicted_x_0 = (x_t - sp.sqrt(1 - product) * eps) / sp.sqrt(product)
    return sp.simplify(posterior().mean.subs(x_0, predicted_x_0))
