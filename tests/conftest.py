"""What several test files share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from book import ROOT
from ddpm_lite import GaussianDiffusion, Model, UNet, linear_schedule

matplotlib.use("Agg")
torch.set_num_threads(1)  # the tensors are small: more threads wait for each other


@pytest.fixture(scope="session")
def diffusion() -> GaussianDiffusion:
    """The process of Ho et al.: 1000 steps, β from 0.0001 to 0.02."""
    return GaussianDiffusion(linear_schedule())


@pytest.fixture(scope="session")
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Gives every parameter a random value, because layers that start at zero hide mistakes."""

    def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
                parameter.add_(
                    scale * torch.randn(parameter.shape, generator=generator)
                )
        return module

    return randomise


@pytest.fixture
def tiny_model(randomised) -> Model:
    """A model that is quick to run, of 8×8 images, with random weights."""
    return randomised_model(randomised)


@pytest.fixture
def labelled_model(randomised) -> Model:
    """The same, with ten classes."""
    return randomised_model(randomised, num_classes=10)


def randomised_model(randomised, num_classes: int | None = None) -> Model:
    unet = UNet(
        base_channels=8,
        channel_mults=(1, 2),
        blocks_per_level=1,
        groups=4,
        num_classes=num_classes,
    )
    diffusion = GaussianDiffusion(linear_schedule(50))
    return Model(randomised(unet).eval(), diffusion, (1, 8, 8), {"data": "none"})


@pytest.fixture(scope="session")
def p_value() -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """An exact test of the hypothesis that the rows of x are independent draws from N(mean, cov).

    The whitened sample mean has a χ² law; so has the sum of squares along each axis and along each diagonal of two
    axes, and these determine the covariance. All tests are two-sided where that makes sense, and Bonferroni joins
    them, so that a threshold of 1e-6 has a false-alarm probability of at most 1e-6.
    """

    def test(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> float:
        x, mean, cov = (
            np.asarray(x, np.float64),
            np.asarray(mean, np.float64),
            np.asarray(cov, np.float64),
        )
        n, d = x.shape
        z = np.linalg.solve(np.linalg.cholesky(cov), (x - mean).T).T
        p = [stats.chi2.sf(n * (z.mean(0) ** 2).sum(), d)]
        axes = [z[:, i] for i in range(d)]
        axes += [(z[:, i] + z[:, j]) / 2**0.5 for i in range(d) for j in range(i)]
        for axis in axes:
            square = (axis**2).sum()
            p.append(2 * min(stats.chi2.sf(square, n), stats.chi2.cdf(square, n)))
        return min(1.0, len(p) * min(p))

    return test


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the copies (`colab`) and the site (`html`), as `make` builds them, warnings being errors."""
    folder = tmp_path_factory.mktemp("book")
    jupyter_book = [Path(sys.executable).with_name("jupyter-book"), "build", "book"]
    options = ["--config", "_config.yml", "--path-output", folder, "-W", "--keep-going"]
    for builder in (["--builder", "custom", "--custom-builder", "colab"], []):
        run = subprocess.run(
            [*jupyter_book, *options, *builder],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout + run.stderr
    return folder / "_build"
