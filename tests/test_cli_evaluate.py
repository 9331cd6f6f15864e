"""``ddpm-lite evaluate``: the result file is whole, says how it was made, and holds what the functions give."""

import json
import os
import re
from pathlib import Path

import PIL.Image
import pytest
import torch

import ddpm_lite
from ddpm_lite import Model, UNet, data, evaluate, load, variational_bound
from ddpm_lite.cli import main


@pytest.fixture(autouse=True)
def _few_digits_in_a_folder_of_their_own(tmp_path, monkeypatch):
    """A part of the digits, for speed, and no GPU, for the same result everywhere."""
    train, test = data.digits("train"), data.digits("test")
    splits = {
        "train": data.Images(train.x_0[:200], train.y[:200]),
        "test": data.Images(test.x_0[:60], test.y[:60]),
    }
    monkeypatch.setitem(data.DATA_SETS, "digits", splits.get)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run_folder(tmp_path, tiny_model):
    tiny_model.save(tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


def grey(x_0):
    return data.to_uint8(x_0, 17).float()


def test_the_result_is_that_of_the_functions_and_says_how_it_was_made(
    run_folder, capsys
):
    command = ["evaluate", "run", "-n", "40", "--steps", "4", "--seed", "3"]
    assert main(command) == 0
    assert sorted(os.listdir(run_folder)) == ["evaluation.json", "model.safetensors"]
    result = json.loads((run_folder / "evaluation.json").read_text())
    measures = result.pop("measures")
    assert result == {
        "command": "ddpm-lite " + " ".join(command),
        "model": "run",
        "data": "digits",
        "reference_split": "test",
        "n": 40,
        "sampler": "ddim",
        "steps": 4,
        "seed": 3,
        "extractor": "pixels",
        "levels": 17,
        "bound": {"samples": 20, "variance": "beta", "clip": 1.0, "images": 60},
        "versions": {"ddpm_lite": ddpm_lite.__version__, "torch": torch.__version__},
    }
    model = load(run_folder)
    train, test = data.load("digits", "train"), data.load("digits", "test")
    x, real = grey(model.sample(40, steps=4, seed=3)), grey(test.x_0)
    ratio, _ = evaluate.nearest_neighbours(x, grey(train.x_0))
    precision, recall = evaluate.precision_recall(real.flatten(1), x.flatten(1))
    expected = {
        "frechet_distance": evaluate.frechet_distance(x, real),
        "two_sample_accuracy": evaluate.two_sample_accuracy(x, real),
        "precision": precision,
        "recall": recall,
        "nearest_ratio_below_1": float((ratio < 1).double().mean()),
        "nearest_ratio_smallest": float(ratio.min()),
    }
    bits = measures.pop("bits_per_dimension")
    error = measures.pop("standard_error_of_bits_per_dimension")
    assert measures == pytest.approx(expected, abs=6e-5)
    whole = variational_bound(
        model.unet,
        model.diffusion,
        test.x_0,
        levels=17,
        variance="beta",
        clip=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    # Two estimates of one number; 6 standard deviations of both are passed once in 1e9 times.
    assert abs(bits - float(whole.total.mean())) < 6 * (error + whole.standard_error)
    assert 0 < error < bits / 2
    printed = capsys.readouterr().out
    assert re.search(rf"frechet_distance +{measures['frechet_distance']:.3f}", printed)
    assert "wrote run/evaluation.json" in printed


def test_a_seed_fixes_all_and_out_names_the_file(run_folder):
    results = []
    for seed, out in (("0", "a"), ("0", "b"), ("1", "c")):
        command = ["evaluate", "run/model.safetensors", "-n", "20", "--steps", "2"]
        assert main([*command, "--seed", seed, "--out", f"x/{out}.json"]) == 0
        results.append(
            json.loads((run_folder.parent / "x" / f"{out}.json").read_text())
        )
    assert sorted(os.listdir("x")) == ["a.json", "b.json", "c.json"]
    assert os.listdir(run_folder) == ["model.safetensors"]
    assert main([*command, "--steps", "1"]) == 0
    assert sorted(os.listdir(run_folder)) == ["evaluation.json", "model.safetensors"]
    a, b, c = (result["measures"] for result in results)
    assert a == b
    assert a["frechet_distance"] != c["frechet_distance"]
    assert a["bits_per_dimension"] != c["bits_per_dimension"]


def test_a_model_with_classes_is_drawn_by_label_and_judged_by_a_classifier(
    labelled_model, monkeypatch
):
    """The samples are replaced by training images of the labels that were asked for: those teach to read."""
    labelled_model.save("run/model.safetensors")
    train, asked = data.digits("train"), []

    def sample(self, n, y, **options):
        asked.append(y)
        return torch.stack(
            [train.x_0[train.y == label][i % 90] for i, label in enumerate(y)]
        )

    monkeypatch.setattr(Model, "sample", sample)
    assert main(["evaluate", "run", "-n", "300"]) == 0
    assert asked[0].shape == (300,)
    expected = torch.bincount(data.load("digits").y, minlength=10) * 1.5
    assert (torch.bincount(asked[0], minlength=10) - expected).abs().max() < 12
    measures = json.loads(Path("run/evaluation.json").read_text())["measures"]
    assert measures["classifier_accuracy"] > 0.8, "a constant answer would give 0.1"
    assert measures["nearest_ratio_smallest"] == 0, "these are copies"


def test_without_n_there_are_as_many_samples_as_training_images(run_folder):
    assert main(["evaluate", "run", "--steps", "1"]) == 0
    assert json.loads((run_folder / "evaluation.json").read_text())["n"] == 200


def test_28_greys_are_compared_by_the_features_of_the_bundled_classifier(
    tiny_model, randomised, monkeypatch
):
    unet = UNet(base_channels=8, channel_mults=(1, 1), blocks_per_level=1, groups=4)
    Model(randomised(unet), tiny_model.diffusion, (1, 28, 28)).save("m.safetensors")
    x_0 = data.from_uint8((torch.rand(20, 1, 28, 28) * 255).byte())
    images = data.Images(x_0, torch.arange(20) % 10)
    monkeypatch.setitem(data.DATA_SETS, "mnist", lambda split: images)
    command = [
        "evaluate",
        "m.safetensors",
        "--data",
        "mnist",
        "-n",
        "12",
        "--steps",
        "1",
    ]
    assert main(command) == 0
    result = json.loads(Path("evaluation.json").read_text())
    assert (result["extractor"], result["levels"]) == ("mnist-classifier", 256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "cifar"], "data must be one of digits"),
        (["--extractor", "vgg"], "extractor must be .* got 'vgg'"),
        (["--extractor", "mnist-classifier"], r"extractor must be .*1×28×28"),
        (["--steps", "0"], "steps must be between 1 and 50, got 0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["-n", "0"], "n must be at least 1, got 0"),
        (["-n", "5"], r"at least 10 items"),
        (["--out", "run/model.safetensors/x.json"], "cannot write"),
    ],
)
def test_what_cannot_be_done_fails_with_one_line_and_leaves_no_file(
    run_folder, capsys, arguments, message
):
    assert main(["evaluate", "run", *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ddpm-lite: ")
    assert re.search(message, error)
    assert os.listdir(run_folder) == ["model.safetensors"]


def test_data_of_another_shape_is_refused_before_the_work(
    run_folder, capsys, monkeypatch
):
    images = data.Images(torch.zeros(20, 1, 28, 28), torch.zeros(20).long())
    monkeypatch.setitem(data.DATA_SETS, "mnist", lambda split: images)
    monkeypatch.setattr(Model, "sample", None)
    assert main(["evaluate", "run", "--data", "mnist"]) == 1
    error = capsys.readouterr().err
    assert "mnist must have the shape of run, (1, 1, 8, 8), got (1, 1, 28, 28)" in error


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    text = capsys.readouterr().out
    for word in (
        "--data",
        "-n",
        "--sampler",
        "--steps",
        "--extractor",
        "--out",
        "Example:",
    ):
        assert word in text


def test_a_folder_with_the_name_of_a_data_set_is_not_taken_for_it(run_folder):
    Path("digits").mkdir()
    assert main(["evaluate", "run", "-n", "20", "--steps", "1"]) == 0
    result = json.loads((run_folder / "evaluation.json").read_text())
    assert (result["reference_split"], result["levels"]) == ("test", 17)


def test_a_folder_of_images_is_its_own_reference(tmp_path):
    for i, image in enumerate(data.to_uint8(data.load("digits").x_0[:30])):
        path = tmp_path / "pictures" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(image[0].numpy()).save(path)
    unet = UNet(1, base_channels=4, channel_mults=(1,), groups=2, attention_levels=())
    diffusion = ddpm_lite.GaussianDiffusion(ddpm_lite.linear_schedule(50))
    Model(unet, diffusion, (1, 8, 8)).save(tmp_path / "run" / "model.safetensors")
    command = ["evaluate", "run", "--data", "pictures", "-n", "30", "--steps", "2"]
    assert main(command) == 0
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (result["reference_split"], result["levels"]) == ("train", 256)
    assert result["bound"]["images"] == 30
