"""Train the MNIST classifier whose features measure 28×28 greys, and put it into ddpm_lite/weights with a card.

    python benchmarks/classifier_features.py

It is ``fit_classifier`` on the 60,000 training images of MNIST (Y. LeCun, C. Cortes), nothing else; the test images
only measure it. The weights are kept in half precision, and it is they that are measured.
"""

from __future__ import annotations

import time
from pathlib import Path

from measure import environment, write_json

import ddpm_lite
from ddpm_lite import checkpoint, data
from ddpm_lite.evaluate import Classifier, classifier_accuracy, fit_classifier

SEED = 0
WEIGHTS = Path(ddpm_lite.__file__).parent / "weights"


def run() -> None:
    """Train, round, measure, write the weights and the card."""
    train, test = data.load("mnist"), data.load("mnist", "test")
    start = time.process_time()
    trained = fit_classifier(train.x_0, train.y, SEED)
    seconds = time.process_time() - start
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in trained.state_dict().items()
    }
    network = Classifier().eval()
    network.load_state_dict(half)
    card = {
        "command": "python benchmarks/classifier_features.py",
        "data": f"mnist, training split, {len(train.x_0)} images",
        "parameters": sum(p.numel() for p in network.parameters()),
        "seed": SEED,
        "cpu_seconds": round(seconds, 1),
        "accuracy": {
            "mnist_test_split": round(classifier_accuracy(network, *test), 4),
            "mnist_training_split": round(classifier_accuracy(network, *train), 4),
        },
        "versions": {"ddpm_lite": ddpm_lite.__version__},
        "machine": environment(),
    }
    description = {"kind": "ddpm_lite.Classifier", "card": card}
    checkpoint.save(WEIGHTS / "mnist_classifier.safetensors", half, description)
    write_json(WEIGHTS / "mnist_classifier.json", card)
    print(card["accuracy"])


if __name__ == "__main__":
    run()
