"""Training that is killed again and again ends with the bits of training that was left alone.

    python tests/killing.py 50        # kill -9 fifty times, every other time while a checkpoint is being written

Without a number it is the process that gets killed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ddpm_lite import checkpoint


def worker(folder: str, steps: int) -> None:
    """A small run that resumes from whatever is in the folder."""
    import torch

    from ddpm_lite import GaussianDiffusion, UNet, data, linear_schedule
    from ddpm_lite.train import train

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet(
        base_channels=16,
        channel_mults=(1, 2),
        blocks_per_level=1,
        dropout=0.1,
        num_classes=10,
    )
    digits = data.digits("test")
    states = train(
        unet,
        GaussianDiffusion(linear_schedule()),
        *digits,
        steps=steps,
        batch_size=16,
        folder=folder,
        save_every=5,
    )
    for _ in states:
        pass


def start(folder: Path, steps: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, "worker", str(folder), str(steps)]
    )


def result(folder: Path) -> dict:
    path = sorted(folder.glob("step-*.safetensors"))[-1]
    tensors, description = checkpoint.load(path)
    return {**tensors, "description": description}


def kill_often(kills: int, steps: int, seed: int = 0) -> tuple[int, int]:
    """Run once undisturbed and once with that many kills; AssertionError unless both end with the same bits.

    Returns:
        How many kills were sent while a checkpoint was being written, and how many found the process running.
    """
    chance = random.Random(seed)
    during_save = begun = 0
    with tempfile.TemporaryDirectory() as root:
        calm, wild = Path(root, "calm"), Path(root, "wild")
        assert start(calm, steps).wait() == 0
        for kill in range(kills):
            process = start(wild, steps)
            newest = max(wild.glob("step-*"), default=None)
            while (
                process.poll() is None
                and max(wild.glob("step-*"), default=None) == newest
            ):
                time.sleep(0.001)  # until it has got one checkpoint further
            if kill % 2:
                while not (saving := list(wild.glob(".step-*"))):
                    if process.poll() is not None:
                        break
                during_save += bool(saving)  # the next one was being written
            else:
                time.sleep(chance.uniform(0, 0.1))
            process.kill()
            begun += process.wait() == -9
        assert start(wild, steps).wait() == 0
        expected, found = result(calm), result(wild)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            same = value == found[name]
            assert same if isinstance(same, bool) else bool(same.all()), name
        assert not list(wild.glob(".step-*"))
    return during_save, begun


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        worker(sys.argv[2], int(sys.argv[3]))
    else:
        count = int(sys.argv[1])
        during_save, begun = kill_often(count, steps=10 * count + 20)
        print(
            f"{begun} kills, {during_save} of them during a save; the same bits in the end",
            os.linesep,
        )
