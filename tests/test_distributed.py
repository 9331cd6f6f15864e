"""Several processes under torchrun: the same results as one process, and an end when one of them is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import matplotlib.image
import pytest
import torch

from ddpm_lite import GaussianDiffusion, Model, UNet, checkpoint, linear_schedule

TRAIN = ["-m", "ddpm_lite", "train", "--precision", "float32"]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]

started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running():
    yield
    while started:
        process = started.pop()
        if process.poll() is None:
            process.terminate()  # torchrun ends its workers
            process.wait(60)


def go(folder, *arguments, processes=()):
    process = subprocess.Popen(
        [sys.executable, *processes, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started.append(process)
    return process


def load(folder):
    path = sorted(folder.glob("step-*.safetensors"))[-1]
    return checkpoint.load(path)


def test_two_processes_take_the_steps_of_one(tmp_path):
    """The batch is shared out, so that sums are taken in another order: equal up to rounding, and no more."""
    command = [*TRAIN, "--steps", "40", "--stop-after", "6", "--out"]
    one = go(tmp_path, *command, "one")
    two = go(tmp_path, *command, "two", processes=TWO)
    for process in (one, two):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    (a, about_a), (b, about_b) = load(tmp_path / "one"), load(tmp_path / "two")
    assert about_a == about_b
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=0, atol=1e-5), name
    assert not torch.equal(a["model.conv_in.weight"], torch.zeros(()))


def test_images_and_measures_do_not_depend_on_the_number_of_processes(tmp_path):
    sample = ["-m", "ddpm_lite", "sample", "digits", "-n", "7", "--seed", "1"]
    sample += ["--sampler", "ancestral", "--steps", "5", "--out"]
    evaluate = ["-m", "ddpm_lite", "evaluate", "digits", "-n", "41", "--steps", "3"]
    jobs = [
        go(tmp_path, *sample, "one.png"),
        go(tmp_path, *sample, "two.png", processes=TWO),
        go(tmp_path, *evaluate, "--out", "one.json"),
        go(tmp_path, *evaluate, "--out", "two.json", processes=TWO),
    ]
    for job in jobs:
        output, _ = job.communicate(timeout=600)
        assert job.returncode == 0, output
        assert output.count("wrote ") == 1, "the first process alone writes"
    one, two = (matplotlib.image.imread(tmp_path / f"{n}.png") for n in ("one", "two"))
    assert one.std() > 0.1
    assert abs(one - two).max() < 1.5 / 255  # rounding may fall to the other side
    one, two = (
        json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two")
    )
    assert one.pop("command") != two.pop("command")
    assert one.pop("measures") == pytest.approx(two.pop("measures"), rel=1e-3, abs=1e-3)
    assert one == two


SHARED = """
import sys
from pathlib import Path
import torch
from ddpm_lite import _distributed, checkpoint, load

rank, device = _distributed.begin()
model, seen = load("model.safetensors"), []
_distributed.share_out(model.unet)
model.unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
y = torch.arange(5)
tensors = {"five": model.sample(5, y=y, sampler="ancestral", steps=4, seed=3)}
tensors["one"] = model.sample(1, steps=4, seed=3)
with _distributed.first_alone():
    before = sorted(str(path) for path in Path().glob("*.txt"))
    Path(f"{rank}.txt").touch()
about = {"seen": seen, "agreed": _distributed.agreed(7 + rank), "before": before}
checkpoint.save(f"{rank}.safetensors", tensors, about)
"""


def test_each_process_does_its_share_and_has_the_whole(tmp_path, randomised):
    unet = UNet(base_channels=8, blocks_per_level=1, groups=4, num_classes=5)
    diffusion = GaussianDiffusion(linear_schedule(50))
    model = Model(randomised(unet).eval(), diffusion, (1, 8, 8))
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "shared.py").write_text(SHARED)
    job = go(tmp_path, "shared.py", processes=TWO)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    five = model.sample(5, y=torch.arange(5), sampler="ancestral", steps=4, seed=3)
    unlabelled = model.sample(5, sampler="ancestral", steps=4, seed=3)
    assert (five - unlabelled).abs().max() > 0.01
    for rank in (0, 1):
        tensors, about = checkpoint.load(tmp_path / f"{rank}.safetensors")
        before = ["0.txt"] * rank
        assert about == {"seen": [3] * 4 + [1] * 4, "agreed": 7, "before": before}
        torch.testing.assert_close(tensors["five"], five, rtol=0, atol=1e-5)
        one = model.sample(1, steps=4, seed=3)
        torch.testing.assert_close(tensors["one"], one, rtol=0, atol=1e-5)


LOST = """
import os, signal, sys
from ddpm_lite import cli

train, attempt = cli.train, os.environ["TORCHELASTIC_RESTART_COUNT"]


def lost(*arguments, **options):
    for state in train(*arguments, **options):
        if state.step == 8 and os.environ["RANK"] == "1" and attempt == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        yield state


cli.train = lost
sys.exit(cli.main())
"""


def test_a_lost_process_restarts_the_job_from_the_checkpoint(tmp_path):
    (tmp_path / "lost.py").write_text(LOST)
    command = ["train", "--precision", "float32", "--steps", "12", "--save-every", "5"]
    command += ["--resume", "--out", "x"]
    job = go(tmp_path, "lost.py", *command, processes=[*TWO, "--max-restarts=1"])
    alone = go(tmp_path, "-m", "ddpm_lite", *command[:-1], "y")
    for process in (job, alone):
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    assert os.listdir(tmp_path / "x") == ["model.safetensors"]
    (a, about), (b, _) = (
        checkpoint.load(tmp_path / name / "model.safetensors") for name in "xy"
    )
    assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-4) for name in a)
    assert about["card"]["seconds_are_of_steps"] == [5, 12], "not from the beginning"


def test_a_lost_process_ends_the_job_and_leaves_the_checkpoint(tmp_path):
    (tmp_path / "lost.py").write_text(LOST)
    command = ["train", "--steps", "1000", "--save-every", "5", "--out", "x"]
    job = go(tmp_path, "lost.py", *command, processes=TWO)
    output, _ = job.communicate(timeout=300)
    assert job.returncode != 0
    assert "ddpm-lite: " in output or "SIGKILL" in output
    assert "step-00000005.safetensors" in os.listdir(tmp_path / "x")
