"""Several processes under torchrun: the same steps as one process, and an end when one of them is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ddpm_lite import checkpoint

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


def children(pid: int) -> list[int]:
    path = f"/proc/{pid}/task/{pid}/children"
    with open(path) as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_lost_process_restarts_the_job_from_the_checkpoint(tmp_path):
    command = [*TRAIN, "--steps", "30", "--save-every", "5", "--resume", "--out", "x"]
    job = go(tmp_path, *command, processes=[*TWO, "--max-restarts=1"])
    while job.poll() is None and not list((tmp_path / "x").glob("step-*")):
        time.sleep(0.02)
    first, second = children(job.pid)[:2]
    os.kill(second, signal.SIGKILL)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    assert os.listdir(tmp_path / "x") == ["model.safetensors"]
    assert first != second

    alone = go(tmp_path, *command[:-1], "y")
    alone.communicate(timeout=300)
    (a, _), (b, _) = (
        checkpoint.load(tmp_path / name / "model.safetensors") for name in "xy"
    )
    assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-4) for name in a)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_lost_process_ends_the_job_with_a_message(tmp_path):
    command = [*TRAIN, "--steps", "1000", "--save-every", "5", "--out", "x"]
    job = go(tmp_path, *command, processes=TWO)
    while job.poll() is None and not list((tmp_path / "x").glob("step-*")):
        time.sleep(0.02)
    os.kill(children(job.pid)[1], signal.SIGKILL)
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "ddpm-lite: " in output or "SIGKILL" in output
