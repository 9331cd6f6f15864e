"""Quality after the same time: ddpm_lite beside a stock diffusers recipe, on the digits of scikit-learn.

    python benchmarks/digits.py [--seconds 150] [--seeds 2]

Both sides get a UNet of 0.7 million parameters, batches of 64, the linear schedule with T = 1000, one thread, and
the same seconds of training; the runs alternate. Seconds are CPU time, so that other work on the machine does not
count. Both are sampled with DDIM in 50 steps, and 1,437 samples are compared with the 360 held-out digits (Fréchet
distance in pixel space on the 0..16 scale; accuracy of a logistic regression that tells samples from data, 0.5 at
best). The stock side is UNet2DModel, DDPMScheduler, Adam with learning rate 1e-3, EMAModel with decay 0.995,
DDIMScheduler: a recipe for short runs. For comparison it is run once more with the settings of the unconditional
training example of diffusers, which are meant for long ones.

Then our own recipe with one thing at a time changed says what made the difference.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers.optimization import (
    get_constant_schedule,
    get_cosine_schedule_with_warmup,
)
from diffusers.training_utils import EMAModel
from measure import (
    digits_quality,
    environment,
    memorised,
    reference_quality,
    write_json,
)
from torch import Tensor

from ddpm_lite import GaussianDiffusion, UNet, data, linear_schedule, sample
from ddpm_lite.train import RECIPES, new_model, train

BATCH, SAMPLES, SAMPLING_STEPS = 64, 1437, 50
RESULT = Path(__file__).parent / "results" / "digits.json"


def steps_that_fit(step: Callable[[], object], seconds: float) -> int:
    """How many calls of ``step`` fit into ``seconds``, from the median of 30 after a warm-up of 10."""
    durations = []
    for _ in range(40):
        start = time.process_time()
        step()
        durations.append(time.process_time() - start)
    return max(1, int(seconds / statistics.median(durations[10:])))


def stock(
    x_0: Tensor, seconds: float, seed: int, example: bool = False
) -> dict[str, object]:
    """diffusers, with settings for short runs, or those of its training example."""

    def build() -> tuple[diffusers.UNet2DModel, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        if example:
            optimizer = torch.optim.AdamW(
                unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6
            )
        else:
            optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3)
        return unet, optimizer

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x_0), BATCH, shuffle=True, drop_last=True
    )

    def batches():
        while True:
            yield from loader

    def step(unet, optimizer, batch: Tensor) -> float:
        noise = torch.randn_like(batch)
        t = torch.randint(0, 1000, (len(batch),))
        loss = F.mse_loss(unet(scheduler.add_noise(batch, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    trial = build()
    trial_ema = EMAModel(trial[0].parameters())
    source = batches()
    steps = steps_that_fit(
        lambda: (step(*trial, next(source)[0]), trial_ema.step(trial[0].parameters())),
        seconds,
    )

    unet, optimizer = build()
    if example:
        decay = get_cosine_schedule_with_warmup(optimizer, 500, steps)
        ema = EMAModel(
            unet.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
        )
    else:
        decay = get_constant_schedule(optimizer)
        ema = EMAModel(unet.parameters(), decay=0.995)
    start = time.process_time()
    for _, (batch,) in zip(range(steps), source):
        step(unet, optimizer, batch)
        decay.step()
        ema.step(unet.parameters())
    elapsed = time.process_time() - start

    ema.copy_to(unet.parameters())
    pipeline = diffusers.DDIMPipeline(
        unet.eval(), diffusers.DDIMScheduler.from_config(scheduler.config)
    )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        SAMPLES,
        torch.Generator().manual_seed(seed + 1),
        num_inference_steps=SAMPLING_STEPS,
        output_type="np",
    ).images
    samples = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    line = report(samples, unet, steps, elapsed)
    # The same network with our sampler; theirs counts time from 0.
    by_our_sampler = sample(
        lambda x_t, t: unet(x_t, t - 1).sample,
        GaussianDiffusion(linear_schedule()),
        (SAMPLES, 1, 8, 8),
        "ddim",
        SAMPLING_STEPS,
        torch.Generator().manual_seed(seed + 1),
        clip=1.0,
    )
    line["with_our_sampler"] = digits_quality(by_our_sampler.clamp(-1, 1))
    print("    with our sampler", line["with_our_sampler"], flush=True)
    return line


def ours(
    x_0: Tensor, seconds: float, seed: int, **changes: object
) -> dict[str, object]:
    """ddpm_lite: the recipe of ``ddpm-lite train --data digits``, but for the given changes."""
    options = {**RECIPES["digits"].options, "batch_size": BATCH}
    flat = changes.pop("flat", False)
    network = {**RECIPES["digits"].unet, **changes.pop("unet", {})}
    options |= changes

    def build():
        torch.manual_seed(seed)
        model = new_model(RECIPES["digits"], seed)
        model.unet = UNet(1, **network)
        return model

    trial, model = build(), build()
    trial_run = train(
        trial.unet, trial.diffusion, x_0, steps=1000, seed=seed, **options
    )
    steps = steps_that_fit(lambda: next(trial_run), seconds)
    run = train(
        model.unet,
        model.diffusion,
        x_0,
        steps=steps * (1000 if flat else 1),
        seed=seed,
        **options,
    )
    start = time.process_time()
    for state in run:
        if state.step == steps:
            break
    elapsed = time.process_time() - start
    model.unet = state.ema
    return report(
        model.sample(SAMPLES, steps=SAMPLING_STEPS, seed=seed + 1),
        model.unet,
        steps,
        elapsed,
    )


def report(
    samples: Tensor, unet: torch.nn.Module, steps: int, seconds: float
) -> dict[str, object]:
    """One line of the result."""
    line = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in unet.parameters()),
        **digits_quality(samples),
        "nearer_to_a_training_digit_than_its_own_neighbour": memorised(samples),
    }
    print("   ", line, flush=True)
    return line


def main() -> None:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--seconds", type=float, default=150, help="CPU seconds of each training"
    )
    parser.add_argument("--seeds", type=int, default=2, help="runs of each side")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    torch.set_num_threads(1)
    x_0 = data.digits("train").x_0
    runs: dict[str, list[dict[str, object]]] = {"ddpm_lite": [], "diffusers": []}
    for seed in range(options.seeds):
        for name, run in (("ddpm_lite", ours), ("diffusers", stock)):
            print(f"{name}, seed {seed}", flush=True)
            runs[name].append(run(x_0, options.seconds, seed))
    print("diffusers, settings of its training example", flush=True)
    example = stock(x_0, options.seconds, 0, example=True)
    variants = {
        "no decay of the learning rate": {"flat": True},
        "no EMA": {"ema_decay": 0.0},
        "32 groups in each GroupNorm, as by default in diffusers, in place of 8": {
            "unet": {"groups": 32}
        },
    }
    ablation = {}
    for name, changes in variants.items():
        print(f"ddpm_lite, {name}", flush=True)
        ablation[name] = ours(x_0, options.seconds, 0, **changes)

    def mean(name: str, key: str) -> float:
        return round(statistics.mean(run[key] for run in runs[name]), 3)

    keys = ("frechet_distance", "two_sample_accuracy", "steps")
    result = {
        "command": f"python benchmarks/digits.py --seconds {options.seconds:g} --seeds {options.seeds}",
        "floor": reference_quality(),
        "mean": {name: {key: mean(name, key) for key in keys} for name in runs},
        "runs": runs,
        "diffusers_with_the_settings_of_its_training_example": example,
        "ddpm_lite_with_one_change": ablation,
        "environment": {
            **environment(),
            "diffusers": diffusers.__version__,
            "threads": torch.get_num_threads(),
        },
    }
    write_json(options.out, result)
    print({"floor": result["floor"], **result["mean"]})


if __name__ == "__main__":
    main()
