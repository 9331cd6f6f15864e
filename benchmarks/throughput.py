"""How fast: training and sampling with ddpm_lite beside diffusers and denoising-diffusion-pytorch, and the limit.

    pip install denoising-diffusion-pytorch
    python benchmarks/throughput.py [--rounds 7] [--out FILE]

Each side takes the training step that its users run: ``ddpm_lite.train``; the unconditional training example of
diffusers (UNet2DModel, DDPMScheduler.add_noise, AdamW, cosine schedule, EMAModel); the ``Trainer`` of
denoising-diffusion-pytorch (Unet, GaussianDiffusion, Adam, EMA). Our network and that of diffusers have the same
architecture and the same weights, the third has the same widths on a CPU and, on a GPU, the width that comes nearest in
parameters. The batch is the same, and the data are random bytes in memory. diffusers' example and the Trainer train in
float32 unless told otherwise, ``ddpm-lite train`` in the fastest precision of the hardware: all run in both. (All
sample in float32 unless told otherwise.) In that precision our network takes part once more, compiled by torch.

All sides live in one process and take turns, round after round; a rate is the median of the rounds, with the lowest
and the highest beside it. GPU times come from device events. Sampling is DDIM, of one batch, with equal steps. Peak
memory (a CPU: resident memory over that after the imports; a GPU: what torch allocated) and import times come from
processes of their own. The limit beside each rate is the floating-point operations of the products in a step, counted
by torch, over the largest rate of a square matrix product that was measured here, in the same precision.

On a CPU the network has 1.6 million parameters, for 28×28 grey images in batches of 64; on a GPU it is that of Ho et
al. for CIFAR-10, 35.7 million parameters, 32×32, batches of 128.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import diffusers
import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from ema_pytorch import EMA
from measure import environment, write_json
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lite import interop
from ddpm_lite.train import (
    PRECISIONS,
    RECIPES,
    Recipe,
    fastest_precision,
    new_model,
    train,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
RECIPE = (
    RECIPES["cifar10"] if ON_GPU else Recipe((1, 28, 28), {}, 0, {"batch_size": 64})
)
BATCH = RECIPE.options["batch_size"]
THEIR_WIDTH = 144 if ON_GPU else 32
STEPS = 20 if ON_GPU else 2  # of training, in a round
SAMPLING_STEPS = 50 if ON_GPU else 10
SIDES = ("ddpm_lite", "diffusers", "denoising-diffusion-pytorch")
COMPILED = "ddpm_lite, compiled"
IMPORTS = {
    "torch": "import torch",
    "ddpm_lite": "import ddpm_lite, ddpm_lite.train",
    "diffusers": "from diffusers import DDIMPipeline, DDPMScheduler, UNet2DModel\n"
    "from diffusers.training_utils import EMAModel",
    "denoising-diffusion-pytorch": "import denoising_diffusion_pytorch",
}
RESULT = Path(__file__).parent / "results" / "throughput.json"


class Contender(NamedTuple):
    """One side in one precision."""

    network: nn.Module
    step: Callable[[], object]
    """Trains on one batch."""
    sample: Callable[[], object]
    """Draws one batch of images."""


def autocast(precision: str) -> torch.autocast:
    """What accelerate wraps the network in, for ``mixed_precision``."""
    on = precision != "float32"
    return torch.autocast(DEVICE.type, PRECISIONS[precision], enabled=on)


def loader(pixels: torch.Tensor):
    """Shuffled batches, for ever."""
    data = torch.utils.data.TensorDataset(pixels)
    batches = torch.utils.data.DataLoader(data, BATCH, shuffle=True, drop_last=True)
    while True:
        for (batch,) in batches:
            yield batch.to(DEVICE)


def ours(pixels: torch.Tensor, precision: str) -> Contender:
    """ddpm_lite."""
    model = new_model(RECIPE)
    model.unet.to(DEVICE)
    options = {**RECIPE.options, "precision": precision, "steps": 10**6}
    run = train(model.unet, model.diffusion, pixels.to(DEVICE), **options)

    def sample() -> torch.Tensor:
        model.unet.eval()
        with autocast(precision):
            images = model.sample(BATCH, steps=SAMPLING_STEPS, seed=0)
        model.unet.train()
        return images

    return Contender(model.unet, lambda: next(run), sample)


def their_example(pixels: torch.Tensor, precision: str) -> Contender:
    """diffusers, by its examples/unconditional_image_generation/train_unconditional.py."""
    unet = interop.unet_to_diffusers(new_model(RECIPE).unet, RECIPE.shape[1]).to(DEVICE)
    unet.train()
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    options = {"lr": 1e-4, "betas": (0.95, 0.999), "weight_decay": 1e-6, "eps": 1e-8}
    optimizer = torch.optim.AdamW(unet.parameters(), **options)
    decay = get_cosine_schedule_with_warmup(optimizer, 500, 10**6)
    options = {"decay": 0.9999, "use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75}
    ema = EMAModel(unet.parameters(), **options)
    ema.to(DEVICE)
    batches = loader(pixels.float() / 127.5 - 1)

    def step() -> float:
        batch = next(batches)
        noise = torch.randn_like(batch)
        t = torch.randint(0, 1000, (len(batch),), device=DEVICE)
        with autocast(precision):
            predicted = unet(scheduler.add_noise(batch, noise, t), t).sample
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
        ema.step(unet.parameters())
        return loss.item()

    pipeline = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)

    def sample() -> object:
        unet.eval()
        with autocast(precision):
            options = {"num_inference_steps": SAMPLING_STEPS, "output_type": "np"}
            images = pipeline(BATCH, **options).images
        unet.train()
        return images

    return Contender(unet, step, sample)


def their_trainer(pixels: torch.Tensor, precision: str) -> Contender:
    """denoising-diffusion-pytorch, by ``Trainer.train``; its images lie in [0, 1]."""
    mults = RECIPE.unet.get("channel_mults", (1, 2, 2))
    channels, size, _ = RECIPE.shape
    unet = Unet(THEIR_WIDTH, dim_mults=mults, channels=channels)
    diffusion = GaussianDiffusion(
        unet, image_size=size, sampling_timesteps=SAMPLING_STEPS
    ).to(DEVICE)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
    ema = EMA(diffusion, beta=0.995, update_every=10)
    batches = loader(pixels.float() / 255)

    def step() -> float:
        with autocast(precision):
            loss = diffusion(next(batches))
        total = loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        return total

    def sample() -> torch.Tensor:
        diffusion.eval()
        with torch.inference_mode(), autocast(precision):
            images = diffusion.sample(batch_size=BATCH)
        diffusion.train()
        return images

    return Contender(unet, step, sample)


def build(side: str, precision: str) -> Contender:
    """A side in a precision, on data that are the same for all."""
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (1024, *RECIPE.shape), dtype=torch.uint8)
    make = dict(zip(SIDES, (ours, their_example, their_trainer), strict=True))
    return make.get(side, ours)(pixels, precision)


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """The time of one call."""
    if not ON_GPU:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - start) / times
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / times


def peak(precision: str) -> float:
    """The largest rate of a square matrix product, in floating-point operations per second."""
    rates = []
    for n in (4096, 8192) if ON_GPU else (1024, 2048):
        a, b = (
            torch.randn(n, n, device=DEVICE, dtype=PRECISIONS[precision]) for _ in "ab"
        )
        a @ b
        rates += [2 * n**3 / seconds(lambda: a @ b) for _ in range(10)]  # noqa: B023
    return max(rates)


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the products in a call."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def memory(side: str, precision: str) -> int:
    """The largest memory in three steps of training, in bytes, over what there was before; in a process of its own."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    contender = build(side, precision)
    for _ in range(3):
        contender.step()
    if ON_GPU:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - before


def in_its_own_process(*arguments: str) -> str:
    """What a Python process prints."""
    command = [sys.executable, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout.split()[-1] if run.stdout else ""


def rounded(x: float) -> float:
    """Three significant digits."""
    return float(f"{x:.3g}")


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    middle = statistics.median(values)
    parts = {"median": middle, "lowest": min(values), "highest": max(values)}
    return {name: rounded(value) for name, value in parts.items()}


def ratios(
    figures: dict[tuple[str, str], float], ours_by_default: str
) -> dict[str, object]:
    """Our figure over each of theirs: in equal precision, and in what each runs in unless told otherwise."""
    pairs = {f"both {p}": (p, p) for _, p in figures}
    pairs["by default"] = (ours_by_default, "float32")
    return {
        name: {
            side: rounded(figures[SIDES[0], mine] / figures[side, theirs])
            for side in SIDES[1:]
        }
        for name, (mine, theirs) in pairs.items()
    }


def main() -> None:
    """Measure everything, print it, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory(*options.memory))
        return

    fastest = fastest_precision(DEVICE)
    precisions = list(dict.fromkeys(("float32", fastest)))
    everyone = [(side, precision) for precision in precisions for side in SIDES]
    # First, for on Linux a new process starts with the peak of the one that starts it.
    in_use = {
        key: int(in_its_own_process(__file__, "--memory", *key)) for key in everyone
    }
    compiled = (COMPILED, fastest)
    contenders = {key: build(*key) for key in [*everyone, compiled]}
    peaks: dict[str, list[float]] = {precision: [] for precision in precisions}
    training: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    sampling: dict[tuple[str, str], list[float]] = {key: [] for key in contenders}
    imports: dict[str, list[float]] = {name: [] for name in IMPORTS}
    flops = {key: operations(contenders[key].step) for key in everyone}
    contenders[compiled].network.compile()
    for contender in contenders.values():  # the compiled one is the last
        warming = seconds(contender.step) + seconds(contender.sample)
    for i in range(options.rounds):
        for precision in precisions:
            peaks[precision].append(peak(precision))
        for key, contender in contenders.items():
            training[key].append(BATCH / seconds(contender.step, STEPS))
            sampling[key].append(BATCH / seconds(contender.sample))
        for name, code in IMPORTS.items():
            begin = time.perf_counter()
            in_its_own_process("-c", code)
            imports[name].append(time.perf_counter() - begin)
        print(f"round {i + 1} of {options.rounds}", flush=True)

    limit = {p: max(values) for p, values in peaks.items()}
    trained, sampled = (
        {key: statistics.median(values) for key, values in rates.items()}
        for rates in (training, sampling)
    )
    result = {
        "command": f"python benchmarks/throughput.py --rounds {options.rounds}",
        "ratios": {
            "training": ratios(trained, fastest),
            "sampling": ratios(sampled, "float32"),
            "peak memory in training": ratios(in_use, fastest),
        },
        "settings": {
            "device": torch.cuda.get_device_name() if ON_GPU else "cpu",
            "threads": torch.get_num_threads(),
            "images": list(RECIPE.shape),
            "batch": BATCH,
            "sampling_steps": SAMPLING_STEPS,
            "rounds": options.rounds,
            "steps_in_a_round": STEPS,
            "default_precision": {SIDES[0]: fastest, "the others": "float32"},
        },
        "peak_gflop_per_second": {p: rounded(v / 1e9) for p, v in limit.items()},
        "contenders": [
            {
                "side": side,
                "precision": precision,
                "parameters": sum(
                    p.numel() for p in contenders[side, precision].network.parameters()
                ),
                "training_images_per_second": spread(training[side, precision]),
                "gflop_of_a_training_step": rounded(flops[side, precision] / 1e9),
                "limit_images_per_second": rounded(
                    BATCH * limit[precision] / flops[side, precision]
                ),
                "flop_utilisation": rounded(
                    trained[side, precision]
                    * flops[side, precision]
                    / BATCH
                    / limit[precision]
                ),
                "sampled_images_per_second": spread(sampling[side, precision]),
                "peak_training_mib": round(in_use[side, precision] / 2**20),
            }
            for side, precision in everyone
        ],
        "compiled": {
            "precision": fastest,
            "seconds_of_compilation": rounded(warming),
            "training_images_per_second": spread(training[compiled]),
            "sampled_images_per_second": spread(sampling[compiled]),
        },
        "import_seconds": {name: spread(values) for name, values in imports.items()},
        "environment": environment()
        | {
            "diffusers": diffusers.__version__,
            "denoising-diffusion-pytorch": version("denoising-diffusion-pytorch"),
        },
    }
    print(json.dumps(result, indent=2))
    write_json(options.out, result)


if __name__ == "__main__":
    main()
