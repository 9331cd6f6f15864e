"""The figures that the README quotes are those of the committed measurements."""

from __future__ import annotations

import json
import re

import pytest

from book import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def measured(path: str) -> dict:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def rows(*words: str) -> list[list[float]]:
    """The numbers in the rows of the one table whose head has these words."""
    tables = [table for table in README.split("\n\n") if table.lstrip().startswith("|")]
    (table,) = (t for t in tables if all(w in t.splitlines()[0] for w in words))
    return [
        [float(cell) for cell in line.split("|")[2:-1]]
        for line in table.strip().splitlines()[2:]
    ]


def test_quality_of_digits() -> None:
    found = measured("benchmarks/results/digits.json")
    ours, theirs = (found["mean"][side] for side in ("ddpm_lite", "diffusers"))
    again = [run["with_our_sampler"] for run in found["runs"]["diffusers"]]
    names = ("frechet_distance", "two_sample_accuracy")
    mixed = {name: sum(run[name] for run in again) / len(again) for name in names}
    for row, side in zip(
        rows("Fréchet"), (ours, theirs, mixed, found["floor"]), strict=True
    ):
        assert row == [round(side[names[0]]), round(side[names[1]], 2)]


def test_quality_of_mnist_after_minutes() -> None:
    found = measured("benchmarks/results/mnist.json")
    theirs = found["runs"]["diffusers"][0]
    measures = [
        found["mean"]["ddpm_lite"],
        found["mean"]["denoising-diffusion-pytorch"],
        theirs,
        theirs["with_our_sampler"],
    ]
    quoted = re.search(
        r"`ddpm_lite` (\d+), `denoising-diffusion-pytorch` (\d+), the `diffusers` recipe\s+(\d+) \((\d+) with our "
        r"sampler\); training images have (\d+\.\d)",
        README,
    ).groups()
    *distances, floor = map(float, quoted)
    assert distances == [round(it["frechet_distance"]) for it in measures]
    assert floor == round(found["floor"]["frechet_distance"], 1)


def test_speed() -> None:
    found = measured("benchmarks/results/throughput.json")["ratios"]
    training, sampling = found["training"], found["sampling"]
    memory = found["peak memory in training"]
    measures = [
        training["by default"],
        training["both float32"],
        training["both bfloat16"],
        sampling["both float32"],
        memory["by default"],
        memory["both float32"],
        memory["both bfloat16"],
    ]
    for row, measure in zip(rows("over `diffusers`"), measures, strict=True):
        assert row == [round(ratio, 2) for ratio in measure.values()]


def test_use_of_the_hardware() -> None:
    contenders = measured("benchmarks/results/throughput.json")["contenders"]
    use = {(c["side"], c["precision"]): c["flop_utilisation"] for c in contenders}
    quoted = re.search(
        r"\(([\d.]+) of its rate,\s+`diffusers`\s+([\d.]+)\)", README
    ).groups()
    assert [float(figure) for figure in quoted] == pytest.approx(
        [use[side, "float32"] for side in ("ddpm_lite", "diffusers")], abs=0.006
    )
    assert round(1 / use["ddpm_lite", "bfloat16"]) == 9  # "a ninth"


def test_mnist_model() -> None:
    quality = measured("ddpm_lite/weights/mnist.json")["quality"]
    reference = quality["training_images_in_place_of_samples"]
    quoted = re.search(
        r"trained on ([\d,]+) of its\s+samples \(DPM-Solver\+\+,\s+(\d+) steps\) names ([\d.]+)% of the real test "
        r"images\s+rightly; one\s+trained on as many real images\s+([\d.]+)%",
        README.replace("\n", " "),
    ).groups()
    assert [float(figure.replace(",", "")) for figure in quoted] == [
        quality["n"],
        quality["steps"],
        round(100 * quality["measures"]["classifier_accuracy"], 2),
        round(100 * reference["classifier_accuracy"], 2),
    ]


def test_bits_per_dimension() -> None:
    found = measured("benchmarks/results/mnist_bound.json")
    bits, error = re.search(r"needs ([\d.]+) ± ([\d.]+) bits", README).groups()
    assert float(bits) == found["bits_per_dimension"]
    assert float(error) == round(found["standard_error"], 3)
