"""How the benchmarks judge generated digits, so that every number in the project means the same."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import numpy
import torch
from torch import Tensor

from ddpm_lite import data, evaluate
from ddpm_lite.checkpoint import atomic

LEVELS = 17  # grey values of the digits, 0..16


def as_grey_values(x_0: Tensor) -> Tensor:
    """Images in [-1, 1] as the whole grey values 0..16 of the original digits, in float32."""
    return data.to_uint8(x_0, levels=LEVELS).float()


def digits_quality(samples: Tensor) -> dict[str, float]:
    """Distance and two-sample accuracy between samples in [-1, 1] and the 360 held-out digits, on the 0..16 scale."""
    real = as_grey_values(data.digits("test").x_0)
    generated = as_grey_values(samples)
    return {
        "frechet_distance": round(evaluate.frechet_distance(generated, real), 1),
        "two_sample_accuracy": round(evaluate.two_sample_accuracy(generated, real), 3),
    }


def reference_quality() -> dict[str, float]:
    """The same measures for the training digits: what a perfect model of the training set would reach."""
    return digits_quality(data.digits("train").x_0)


def mnist_quality(samples: Tensor) -> dict[str, float]:
    """The same two measures between samples in [-1, 1] and the 10,000 test images of MNIST, on the bundled features."""
    real, generated = (
        evaluate.features(x, "mnist-classifier")
        for x in (data.load("mnist", "test").x_0, samples)
    )
    return {
        "frechet_distance": round(evaluate.frechet_distance(generated, real), 2),
        "two_sample_accuracy": round(evaluate.two_sample_accuracy(generated, real), 3),
    }


def memorised(samples: Tensor) -> float:
    """The share of samples whose nearest training digit is nearer than that digit's own nearest neighbour in training.

    1 if all are copies, 0.42 for the held-out digits. A low share does not exclude some copies; see ``nearest_ratio``.
    """
    return round(float((_nearness(samples) < 1).float().mean()), 3)


def nearest_ratio(samples: Tensor) -> float:
    """The smallest ratio of those two distances: 0 if there is a copy, 0.57 for the held-out digits."""
    return round(float(_nearness(samples).min()), 2)


def _nearness(samples: Tensor) -> Tensor:
    real = as_grey_values(data.digits("train").x_0)
    return evaluate.nearest_neighbours(as_grey_values(samples), real)[0]


def environment() -> dict[str, object]:
    """The machine, the versions and the commit, for a result file."""
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        processor = names[0] if names else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "commit": git.stdout.strip() or None,
    }


def write_json(path: Path, result: object) -> None:
    """Write a result file, all or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
