"""The command line: exit codes, whole files, and that what was learned is kept."""

import os
import re
import signal
import subprocess
import sys

import matplotlib.image
import pytest
import torch
from torch import nn

import ddpm_lite
from ddpm_lite import cli, data, load
from ddpm_lite.cli import main


@pytest.fixture(autouse=True)
def _few_digits(monkeypatch):
    """A part of the digits, for speed, and no GPU, for the same result everywhere."""
    images = data.digits("test")
    monkeypatch.setitem(data.DATA_SETS, "digits", lambda split: images)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def run_folder(tmp_path, tiny_model):
    tiny_model.save(tmp_path / "run" / "model.safetensors")
    return tmp_path / "run"


def at_step(monkeypatch, step, act):
    """Call ``act`` when the given step is done, before the command line hears of it."""
    train = cli.train

    def watched(*arguments, **options):
        run = train(*arguments, **options)
        try:
            for state in run:
                if state.step == step:
                    act()
                yield state
        finally:
            run.close()

    monkeypatch.setattr(cli, "train", watched)


def fail(error):
    def act():
        raise error

    return act


def files(folder):
    return sorted(os.listdir(folder))


def same_weights(a, b):
    a, b = (load(folder).unet.state_dict() for folder in (a, b))
    return all(torch.equal(a[key], b[key]) for key in a)


def test_train_writes_a_model_that_loads_with_a_card(tmp_path, capsys):
    out = tmp_path / "runs" / "x"
    arguments = [
        "train",
        "--data",
        "digits",
        "--steps",
        "5",
        "--seed",
        "3",
        "--out",
        str(out),
    ]
    assert main(arguments) == 0
    assert os.listdir(out) == ["model.safetensors"]
    card = load(out).card
    assert (card["steps"], card["seed"], card["batch_size"]) == (5, 3, 64)
    assert card["command"] == "ddpm-lite " + " ".join(arguments)
    assert card["versions"]["ddpm_lite"] == ddpm_lite.__version__
    assert card["precision"] in ("float32", "bfloat16")
    assert 0.5 < card["losses"][0] < 2
    assert card["seconds_are_of_steps"] == [1, 5]
    assert "digits: 360 images" in capsys.readouterr().out


def test_train_compiles_the_network_when_asked_to(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        ddpm_lite.UNet,
        "compile",
        lambda unet: compiled.append(nn.Module.compile(unet, backend="eager")),
    )
    for name, options in (("a", []), ("b", ["--compile"])):
        assert len(compiled) == 0
        out = ["--out", str(tmp_path / name)]
        assert main(["train", "--steps", "2", *options, *out]) == 0
    assert len(compiled) == 1
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_train_with_the_same_seed_gives_the_same_weights(tmp_path):
    for name, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        assert (
            main(
                ["train", "--steps", "3", "--seed", seed, "--out", str(tmp_path / name)]
            )
            == 0
        )
    a, b, c = (load(tmp_path / name).unet.state_dict() for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_at_hand_and_resume_goes_on_as_if_nothing_had_been(
    tmp_path, monkeypatch, capsys, number
):
    plain, broken = tmp_path / "plain", tmp_path / "broken"
    assert main(["train", "--steps", "6", "--out", str(plain)]) == 0
    command = ["train", "--steps", "6", "--out", str(broken)]
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(number))
        with pytest.raises(SystemExit) as exit_:
            main(command)
    assert exit_.value.code == 128 + number
    assert "stopped after step 3 of 6; --resume goes on" in capsys.readouterr().err
    assert files(broken) == ["model.safetensors", "step-00000003.safetensors"]
    assert load(broken).card["steps"] == 3
    assert main([*command, "--resume"]) == 0
    assert files(broken) == ["model.safetensors"]
    assert same_weights(plain, broken)
    assert load(broken).card["losses"] == load(plain).card["losses"]
    assert load(broken).card["seconds_are_of_steps"] == [3, 6]


def test_an_unfinished_run_is_not_overwritten_and_a_changed_one_not_continued(
    tmp_path, capsys
):
    command = ["train", "--steps", "4", "--out", str(tmp_path)]
    assert main([*command, "--stop-after", "2"]) == 0
    assert main(command) == 1
    assert "holds a run that is not finished" in capsys.readouterr().err
    assert main([*command, "--seed", "1", "--resume"]) == 1
    assert "has seed = 0, got 1" in capsys.readouterr().err
    assert files(tmp_path) == ["model.safetensors", "step-00000002.safetensors"]


def test_a_second_interruption_is_not_waited_with(tmp_path, monkeypatch, capsys):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    at_step(monkeypatch, 3, twice)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:  # a job in the background begins with SIGINT ignored
        assert main(["train", "--steps", "50", "--out", str(tmp_path)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "ddpm-lite: interrupted" in capsys.readouterr().err


def test_an_interruption_before_the_first_step_keeps_the_model_that_was_there(
    tmp_path, tiny_model, monkeypatch, capsys
):
    tiny_model.save(tmp_path / "model.safetensors")
    at_step(monkeypatch, 1, fail(KeyboardInterrupt))
    assert main(["train", "--steps", "50", "--out", str(tmp_path)]) == 130
    assert load(tmp_path).card == tiny_model.card
    assert "ddpm-lite: interrupted" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_keeps_the_last_good_model_and_fails(
    tmp_path, monkeypatch, capsys
):
    at_step(monkeypatch, 4, fail(FloatingPointError("the loss is nan at step 4")))
    assert main(["train", "--steps", "50", "--out", str(tmp_path)]) == 1
    assert "the loss is nan at step 4" in capsys.readouterr().err
    assert load(tmp_path).card["steps"] == 3


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_sample_writes_whole_pictures(run_folder, capsys, sampler):
    out = run_folder / "pictures"
    arguments = [
        "sample",
        str(run_folder),
        "-n",
        "9",
        "--sampler",
        sampler,
        "--steps",
        "12",
        "--seed",
        "0",
    ]
    assert (
        main(
            [*arguments, "--out", str(out / "a.png"), "--emergence", str(out / "b.png")]
        )
        == 0
    )
    assert sorted(os.listdir(out)) == ["a.png", "b.png"]
    for name in ("a.png", "b.png"):
        assert matplotlib.image.imread(out / name).std() > 0.01
    assert f"wrote 9 images to {out / 'a.png'}" in capsys.readouterr().out


def test_sample_with_a_seed_draws_the_same_picture(run_folder):
    pictures = []
    for seed in ("1", "1", "2"):
        assert (
            main(
                [
                    "sample",
                    str(run_folder),
                    "-n",
                    "4",
                    "--steps",
                    "2",
                    "--seed",
                    seed,
                    "--out",
                    "x.png",
                ]
            )
            == 0
        )
        pictures.append(matplotlib.image.imread("x.png"))
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.mark.parametrize("steps", [1, 9, 10, 50])
def test_emergence_serves_any_number_of_steps(run_folder, steps):
    assert (
        main(
            [
                "sample",
                str(run_folder),
                "-n",
                "1",
                "--steps",
                str(steps),
                "--emergence",
                "e.png",
            ]
        )
        == 0
    )
    assert sorted(os.listdir()) == ["e.png", "samples.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["sample", "didgits"],
            "ddpm-lite: no model 'didgits': neither a bundled model",
        ),
        (["sample", "RUN", "-n", "0"], "ddpm-lite: n must be at least 1, got 0"),
        (
            ["sample", "RUN", "--steps", "0"],
            "ddpm-lite: steps must be between 1 and 50, got 0",
        ),
        (
            ["sample", "RUN", "--steps", "51"],
            "ddpm-lite: steps must be between 1 and 50, got 51",
        ),
        (
            ["sample", "RUN", "--seed", "-1"],
            "ddpm-lite: seed must be at least 0, got -1",
        ),
        (["sample", "RUN", "--steps", "2", "--out", "x.xyz"], "xyz"),
        (
            ["sample", "RUN", "--steps", "2", "--out", "RUN/model.safetensors/x.png"],
            "model.safetensors",
        ),
        (["train", "--steps", "0"], "ddpm-lite: steps must be at least 1, got 0"),
        (["train", "--seed", "-1"], "ddpm-lite: seed must be at least 0, got -1"),
        (
            ["train", "--data", "cifar"],
            "data must be one of digits, mnist, .* or .* a folder",
        ),
        (["train", "--data", "RUN"], "a folder of images needs --size"),
        (["train", "--data", "RUN", "--size", "8"], "no images .* in "),
        (
            ["train", "--steps", "2", "--out", "RUN/model.safetensors/x"],
            "model.safetensors",
        ),
    ],
)
def test_what_cannot_be_done_fails_with_one_line_and_leaves_no_file(
    run_folder, capsys, arguments, message
):
    assert (
        main([argument.replace("RUN", str(run_folder)) for argument in arguments]) == 1
    )
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ddpm-lite: ")
    assert re.search(message, error)
    assert [name for _, _, names in os.walk(".") for name in names] == []
    assert os.listdir(run_folder) == ["model.safetensors"]


def test_a_damaged_model_fails_with_its_name(run_folder, capsys):
    path = run_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["sample", str(run_folder)]) == 1
    assert f"{path} is damaged" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_fails_before_training(run_folder, monkeypatch):
    def train(*arguments, **options):
        raise AssertionError("training began")

    monkeypatch.setattr(cli, "train", train)
    assert main(["train", "--out", str(run_folder / "model.safetensors" / "x")]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["train", "--steps", "many"],
        ["sample"],
        ["sample", "x", "--sampler", "y"],
    ],
)
def test_a_wrong_call_exits_with_2_and_shows_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: ddpm-lite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            [],
            [
                "train",
                "sample",
                "--version",
                "ddpm-lite sample digits --out digits.png",
            ],
        ),
        (
            ["train"],
            [
                "--data",
                "--steps",
                "--seed",
                "--out",
                "--resume",
                "--save-every",
                "--stop-after",
                "--precision",
                "--compile",
                "mnist",
                "Example:",
            ],
        ),
        (
            ["sample"],
            [
                "-n",
                "--sampler",
                "--steps",
                "--seed",
                "--out",
                "--emergence",
                "ancestral",
                "Example:",
            ],
        ),
    ],
)
def test_help_names_every_option_and_gives_an_example(capsys, command, words):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in text
    assert "None" not in text, "a default that says nothing"


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"ddpm-lite {ddpm_lite.__version__}\n"


def test_python_m_ddpm_lite_is_the_command_line(run_folder):
    command = [
        sys.executable,
        "-m",
        "ddpm_lite",
        "sample",
        str(run_folder),
        "-n",
        "2",
        "--steps",
        "2",
    ]
    done = subprocess.run(
        [*command, "--out", "x.png"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, os.listdir()) == (0, ["x.png"]), done.stderr
    done = subprocess.run(
        [*command, "--steps", "0"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "steps must be between 1 and 50, got 0" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_out_each_data_set_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = data.Images(torch.zeros(128, 1, 28, 28), torch.zeros(128).long())
    monkeypatch.setitem(data.DATA_SETS, "mnist", lambda split: images)
    assert main(["train", "--data", "mnist", "--steps", "1"]) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mnist"]


def test_a_folder_of_images_is_a_data_set(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i in range(5):
        path = tmp_path / "shapes" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        matplotlib.image.imsave(path, torch.rand(20, 30, 3).numpy())
    command = ["train", "--data", "shapes", "--size", "12", "--steps", "1"]
    assert main(command) == 0
    model = load("runs/shapes")
    assert model.shape == (3, 12, 12)
    assert model.card["batch_size"] == 5
    assert "shapes: 5 images" in capsys.readouterr().out
    (tmp_path / "shapes" / "bad.png").write_bytes(b"no image")
    assert main([*command, "--out", "x"]) == 1
    assert "cannot read the image shapes/bad.png" in capsys.readouterr().err
    with pytest.warns(UserWarning, match=r"left out shapes/bad\.png"):
        assert main([*command, "--out", "x", "--skip-unreadable"]) == 0
