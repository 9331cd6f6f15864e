"""How close samples are to data: two measures that need no trained network. Chapter 11 of the book."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ddpm_lite import _check


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|m_x - m_y|² + tr(C_x + C_y - 2 (C_x C_y)^½), with m and C the means and covariances of the two sets.

    The squared 2-Wasserstein distance between the Gaussians that have these moments (Dowson & Landau 1982). On
    the features of the Inception network it is the FID (Heusel et al. 2017); here it is taken of what it is given.

    Args:
        x, y: two sets, shapes (N, ...) and (M, ...), in the units in which the distance is wanted.

    Returns:
        The distance; it shrinks with N and M, so compare only results with the same numbers of images.
    """
    a, b = _flat(x, y)
    mean = a.mean(0) - b.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (a, b))
    # tr (AB)^½ = tr (A^½ B A^½)^½, and the latter is symmetric.
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    return float(mean @ mean + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def two_sample_accuracy(x: Tensor, y: Tensor, seed: int = 0) -> float:
    """How well a logistic regression tells two sets apart: 0.5 not at all, 1 always (Lopez-Paz & Oquab 2017).

    The accuracy on held-out items, by five-fold cross-validation on equally many of each set.

    Args:
        x, y: two sets, shapes (N, ...) and (M, ...).
        seed: of the choice of items and folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    a, b = _flat(x, y)
    rng = np.random.default_rng(seed)
    n = min(len(a), len(b))
    both = np.concatenate([rng.permutation(a)[:n], rng.permutation(b)[:n]])
    label = np.repeat([0, 1], n)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, both, label, cv=folds).mean())


def _flat(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    for name, z in (("x", x), ("y", y)):
        if not bool(_check.floating(name, z).isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 10:
        raise ValueError(
            f"x and y must be sets of at least 10 items of one shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return tuple(z.reshape(len(z), -1).double().cpu().numpy() for z in (x, y))
