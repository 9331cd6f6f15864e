"""Train the MNIST model that comes with the package, measure it, and put it into ddpm_lite/weights.

    python benchmarks/bundled_mnist.py [--run DIR]

The training is the plain command ``ddpm-lite train --data mnist --seed 0``; with --run it was done before, in DIR. This
script rounds the averaged weights to half precision, and it is these that are measured, by what ``ddpm-lite
evaluate`` measures. The samples are drawn in bfloat16 where that is native, as the network was trained.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from measure import environment, write_json
from torch import Tensor

import ddpm_lite
from ddpm_lite import data, evaluate
from ddpm_lite.cli import main
from ddpm_lite.model import Model
from ddpm_lite.train import PRECISIONS, fastest_precision

COMMAND = ["train", "--data", "mnist", "--seed", "0"]
SAMPLES, STEPS, SEED = 60_000, 20, 1
WEIGHTS = Path(ddpm_lite.__file__).parent / "weights"
PRECISION = fastest_precision("cpu")


class _Drawn(Model):
    """A model whose samples are drawn in the fastest precision."""

    def sample(self, *arguments: object, **options: object) -> Tensor:
        with torch.autocast("cpu", PRECISIONS[PRECISION], PRECISION != "float32"):
            return super().sample(*arguments, **options)


def reference(train: data.Images, test: data.Images) -> dict[str, float]:
    """The same measures for as many training images in place of samples."""
    x_0, y = train.x_0[:SAMPLES], train.y[:SAMPLES]
    x, real = (evaluate.features(z, "mnist-classifier") for z in (x_0, test.x_0))
    precision, recall = evaluate.precision_recall(real, x)
    classifier = evaluate.fit_classifier(x_0, y, SEED)
    found = {
        "frechet_distance": evaluate.frechet_distance(x, real),
        "two_sample_accuracy": evaluate.two_sample_accuracy(x, real),
        "precision": precision,
        "recall": recall,
        "classifier_accuracy": evaluate.classifier_accuracy(classifier, *test),
    }
    return {name: round(value, 4) for name, value in found.items()}


def run() -> None:
    """Train unless that was done, round, measure, write the weights and the card."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, help="where the training was done")
    folder = parser.parse_args().run
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary)
            main([*COMMAND, "--out", str(folder)])
        trained = ddpm_lite.load(folder)
    model = _Drawn(trained.unet, trained.diffusion, trained.shape, trained.card)
    model.unet.half().float()
    start = time.process_time()
    train, test = data.load("mnist"), data.load("mnist", "test")
    found = evaluate.measure(
        model, train, test, n=SAMPLES, sampler="dpm++", steps=STEPS, seed=SEED
    )
    model.card["command"] = "ddpm-lite " + " ".join(COMMAND)
    model.card["machine"] = environment()
    model.card["quality"] = {
        "measured_by": "python benchmarks/bundled_mnist.py",
        "precision_of_sampling": PRECISION,
        "cpu_seconds": round(time.process_time() - start),
        **found,
        "training_images_in_place_of_samples": reference(train, test),
    }
    model.unet.half()
    model.save(WEIGHTS / "mnist.safetensors")
    write_json(WEIGHTS / "mnist.json", model.card)
    print(found["measures"])


if __name__ == "__main__":
    run()
