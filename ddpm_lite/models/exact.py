"""The optimal ε for data whose law is known: no training, and every sampler can be judged against the truth.

The network of DDPM is trained towards E[ε | x_t] (chapter 7). When the data is a mixture of Gaussians, so is
x_t, and that expectation has a closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddpm_lite import _check
from ddpm_lite.schedule import NoiseSchedule


class ExactEps:
    """E[ε | x_t] for data from the mixture Σ_k w_k N(μ_k, Σ_k); an ``eps_model(x_t, t)``.

    Given x_0 from component k, x_t is N(√ᾱ_t μ_k, C_k) with C_k = ᾱ_t Σ_k + (1 - ᾱ_t) I, and
    E[ε | x_t] = √(1 - ᾱ_t) Σ_k r_k(x_t) C_k⁻¹ (x_t - √ᾱ_t μ_k), with r_k(x_t) the probability of k given x_t.

    One component is Gaussian data. Without covariances the data is a finite set of points, drawn with
    probabilities ``weights``: what a network that has memorised its training set would compute.

    Args:
        schedule: the noise schedule.
        means: μ_k, shape (K, ...), the points themselves in the last case.
        covariances: Σ_k, shape (K, D, D), D the number of entries of a data point; symmetric, with
            non-negative eigenvalues. None for zero.
        weights: w_k, shape (K,), positive; normalised to sum to one. None for equal weights.

    Raises:
        ValueError: for shapes that disagree, weights that are not positive, or a matrix that is no covariance.
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        means: Tensor,
        covariances: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:
        self.schedule = schedule
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim < 2 or means.numel() == 0:
            raise ValueError(
                f"means must have shape (K, ...), got {tuple(means.shape)}"
            )
        self.shape = means.shape[1:]
        self.means = means.flatten(1)  # (K, D)
        K, D = self.means.shape
        weights = torch.ones(K) if weights is None else torch.as_tensor(weights)
        if weights.shape != (K,) or not bool((weights > 0).all()):
            raise ValueError(
                f"weights must be {K} positive numbers, one for each mean, got {weights.tolist()}"
            )
        self.log_weights = (weights.double() / weights.double().sum()).log()
        if covariances is None:
            self.eigenvalues = torch.zeros(K, 1, dtype=torch.float64)
            self.eigenvectors = None
            return
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        if covariances.shape != (K, D, D):
            raise ValueError(
                f"covariances must have shape {(K, D, D)}, got {tuple(covariances.shape)}"
            )
        if not torch.allclose(covariances, covariances.mT):
            raise ValueError("covariances must be symmetric")
        # (K, D), (K, D, D)
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(covariances)
        if bool((self.eigenvalues < -1e-9 * covariances.abs().max()).any()):
            raise ValueError(
                f"covariances must have no negative eigenvalue, got {float(self.eigenvalues.min()):g}"
            )
        self.eigenvalues = self.eigenvalues.clamp(min=0)

    def __call__(self, x_t: Tensor, t: Tensor | int) -> Tensor:
        """E[ε | x_t], in the shape and dtype of ``x_t`` (B, ...); computed in float64.

        Args:
            x_t: noisy data, shape (B, ...).
            t: time steps in 1..T, int64 of shape (B,), or an int.
        """
        if _check.floating("x_t", x_t).shape[1:] != self.shape:
            raise ValueError(
                f"x_t must have shape (B, {', '.join(map(str, self.shape))}), got {tuple(x_t.shape)}"
            )
        alpha_bar = self.schedule.alpha_bar_at(
            _check.times("t", t, x_t, 1, self.schedule.T)
        )[:, None, None]
        means = self.means.to(alpha_bar.device)
        eigenvalues = self.eigenvalues.to(alpha_bar.device)
        log_weights = self.log_weights.to(alpha_bar.device)

        x = x_t.flatten(1).to(alpha_bar.device, torch.float64)
        offset = x[:, None] - alpha_bar.sqrt() * means  # (B, K, D): x_t - √ᾱ_t μ_k
        # Eigenvalues of C_k, (B, K, D or 1).
        variance = alpha_bar * eigenvalues + (1 - alpha_bar)
        if self.eigenvectors is not None:
            eigenvectors = self.eigenvectors.to(alpha_bar.device)
            offset = torch.einsum("kde,bkd->bke", eigenvectors, offset)
        whitened = offset / variance
        log_density = -0.5 * (
            (offset * whitened).sum(-1) + variance.log().expand_as(offset).sum(-1)
        )
        responsibility = torch.softmax(log_weights + log_density, dim=1)  # (B, K)
        if self.eigenvectors is not None:
            whitened = torch.einsum("kde,bke->bkd", eigenvectors, whitened)
        eps = (1 - alpha_bar[:, 0]).sqrt() * torch.einsum(
            "bk,bkd->bd", responsibility, whitened
        )
        return eps.view(x_t.shape).to(x_t.dtype).to(x_t.device)
