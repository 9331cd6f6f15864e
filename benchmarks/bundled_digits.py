"""Train the digits model that comes with the package, measure it, and put it into ddpm_lite/weights.

    python benchmarks/bundled_digits.py

The training is the plain command ``ddpm-lite train``; this script adds the measured quality to the model's card.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from measure import (
    digits_quality,
    environment,
    memorised,
    nearest_ratio,
    reference_quality,
    write_json,
)

import ddpm_lite
from ddpm_lite import data
from ddpm_lite.cli import main

STEPS, SEED, SAMPLES = 4000, 0, 1437
WEIGHTS = Path(ddpm_lite.__file__).parent / "weights"


def run() -> None:
    """Train, measure, write the weights and the card."""
    with tempfile.TemporaryDirectory() as folder:
        main(
            [
                "train",
                "--data",
                "digits",
                "--steps",
                str(STEPS),
                "--seed",
                str(SEED),
                "--out",
                folder,
            ]
        )
        model = ddpm_lite.load(folder)
    model.card["command"] = (
        f"ddpm-lite train --data digits --steps {STEPS} --seed {SEED}"
    )
    model.card["machine"] = environment()
    samples, held_out = model.sample(SAMPLES, seed=1), data.digits("test").x_0
    model.card["quality"] = {
        "measured_by": "python benchmarks/bundled_digits.py",
        "how": f"{SAMPLES} samples (DDIM, 50 steps, seed 1) against the 360 held-out digits, grey values 0..16",
        **digits_quality(samples),
        "training_digits_in_place_of_samples": reference_quality(),
        "nearer_to_a_training_digit_than_its_own_neighbour": memorised(samples),
        "smallest_ratio_of_these_distances": nearest_ratio(samples),
        "held_out_digits_in_place_of_samples": {
            "nearer_to_a_training_digit_than_its_own_neighbour": memorised(held_out),
            "smallest_ratio_of_these_distances": nearest_ratio(held_out),
        },
    }
    model.save(WEIGHTS / "digits.safetensors")
    write_json(WEIGHTS / "digits.json", model.card)


if __name__ == "__main__":
    run()
