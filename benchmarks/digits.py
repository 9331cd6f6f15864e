"""Quality after the same time: ddpm_lite beside stock recipes, on the digits of scikit-learn or on MNIST.

    python benchmarks/digits.py [--seconds 150] [--seeds 2]
    python benchmarks/digits.py --data mnist [--seconds 240] [--seeds 1]

Digits: both sides get a UNet of 0.7 million parameters, batches of 64, the linear schedule with T = 1000, one thread,
and the same seconds of training; the runs alternate. Seconds are CPU time, so that other work on the machine does not
count. Both are sampled with DDIM in 50 steps, and 1,437 samples are compared with the 360 held-out digits (Fréchet
distance in pixel space on the 0..16 scale; accuracy of a logistic regression that tells samples from data, 0.5 at
best). The stock side is UNet2DModel, DDPMScheduler, Adam with learning rate 1e-3, EMAModel with decay 0.995,
DDIMScheduler: a recipe for short runs. For comparison it is run once more with the settings of the unconditional
training example of diffusers, which are meant for long ones.

Then our own recipe with one thing at a time changed says what made the difference.

MNIST (from $DDPM_LITE_DATA): the sides are ddpm_lite, diffusers as above and, if it is installed,
denoising-diffusion-pytorch (``pip install denoising-diffusion-pytorch``; its Unet, GaussianDiffusion with its
defaults, Adam with learning rate 1e-3, an average with decay 0.995), with 1.1 million parameters each (the last one
1.4), without labels, and with the same precision, ours (``fastest_precision``). 500 samples of each, by DDIM in 50
steps, are compared with the 10,000 test images in the features of the bundled MNIST classifier. At last our own recipe
with labels: a classifier that is fitted to 500 labelled samples is tried on the test images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    mnist_quality,
    reference_quality,
    write_json,
)
from torch import Tensor

from ddpm_lite import GaussianDiffusion, UNet, data, evaluate, linear_schedule, sample
from ddpm_lite.train import PRECISIONS, RECIPES, fastest_precision, new_model, train

try:
    import denoising_diffusion_pytorch
    from ema_pytorch import EMA
except ImportError:
    denoising_diffusion_pytorch = None

BATCH, SAMPLING_STEPS = 64, 50
RESULTS = Path(__file__).parent / "results"


class Task(NamedTuple):
    """What differs between the two data sets."""

    name: str
    size: int
    samples: int
    channels: tuple[int, ...]  # of the networks at each resolution
    trial: int  # steps that are timed to find out how many fit, after a third as many
    precision: str
    quality: Callable[[Tensor], dict[str, float]]


def task(name: str) -> Task:
    """The digits, or MNIST."""
    if name == "digits":
        return Task(name, 8, 1437, (32, 64), 30, "float32", digits_quality)
    precision = fastest_precision("cpu")
    return Task(name, 28, 500, (32, 64, 64), 12, precision, mnist_quality)


def autocast(task: Task) -> torch.autocast:
    """The precision of the network's products."""
    return torch.autocast(
        "cpu", PRECISIONS[task.precision], enabled=task.precision != "float32"
    )


def steps_that_fit(step: Callable[[], object], seconds: float, trial: int) -> int:
    """How many calls of ``step`` fit into ``seconds``, from the median of ``trial`` after a warm-up."""
    durations = []
    for _ in range(trial + trial // 3):
        start = time.process_time()
        step()
        durations.append(time.process_time() - start)
    return max(1, int(seconds / statistics.median(durations[trial // 3 :])))


def batches(x_0: Tensor):
    """Shuffled batches, for ever."""
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x_0), BATCH, shuffle=True, drop_last=True
    )
    while True:
        for (batch,) in loader:
            yield batch


def stock(
    task: Task, x_0: Tensor, seconds: float, seed: int, example: bool = False
) -> dict[str, object]:
    """diffusers, with settings for short runs, or those of its training example."""

    def build() -> tuple[diffusers.UNet2DModel, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        plain = len(task.channels) - 1  # levels without attention
        unet = diffusers.UNet2DModel(
            sample_size=task.size,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=task.channels,
            down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
        )
        if example:
            optimizer = torch.optim.AdamW(
                unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6
            )
        else:
            optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3)
        return unet, optimizer

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)

    def step(unet, optimizer, batch: Tensor) -> float:
        noise = torch.randn_like(batch)
        t = torch.randint(0, 1000, (len(batch),))
        with autocast(task):
            predicted = unet(scheduler.add_noise(batch, noise, t), t).sample
        loss = F.mse_loss(predicted.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    trial = build()
    trial_ema = EMAModel(trial[0].parameters())
    source = batches(x_0)
    steps = steps_that_fit(
        lambda: (step(*trial, next(source)), trial_ema.step(trial[0].parameters())),
        seconds,
        task.trial,
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
    for _, batch in zip(range(steps), source):
        step(unet, optimizer, batch)
        decay.step()
        ema.step(unet.parameters())
    elapsed = time.process_time() - start

    ema.copy_to(unet.parameters())
    pipeline = diffusers.DDIMPipeline(
        unet.eval(), diffusers.DDIMScheduler.from_config(scheduler.config)
    )
    pipeline.set_progress_bar_config(disable=True)
    with autocast(task):
        images = pipeline(
            task.samples,
            torch.Generator().manual_seed(seed + 1),
            num_inference_steps=SAMPLING_STEPS,
            output_type="np",
        ).images
    samples = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    line = report(task, samples, unet, steps, elapsed)
    # The same network with our sampler; theirs counts time from 0.
    with autocast(task):
        by_our_sampler = sample(
            lambda x_t, t: unet(x_t, t - 1).sample.float(),
            GaussianDiffusion(linear_schedule()),
            (task.samples, 1, task.size, task.size),
            "ddim",
            SAMPLING_STEPS,
            torch.Generator().manual_seed(seed + 1),
            clip=1.0,
        )
    line["with_our_sampler"] = task.quality(by_our_sampler.clamp(-1, 1))
    print("    with our sampler", line["with_our_sampler"], flush=True)
    return line


def lucidrains(task: Task, x_0: Tensor, seconds: float, seed: int) -> dict[str, object]:
    """denoising-diffusion-pytorch; its images lie in [0, 1]."""
    pixels = (x_0 + 1) / 2

    def build():
        torch.manual_seed(seed)
        unet = denoising_diffusion_pytorch.Unet(
            dim=task.channels[0],
            dim_mults=[c // task.channels[0] for c in task.channels],
            channels=1,
        )
        diffusion = denoising_diffusion_pytorch.GaussianDiffusion(
            unet, image_size=task.size, sampling_timesteps=SAMPLING_STEPS
        )
        optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-3)
        return diffusion, optimizer, EMA(diffusion, beta=0.995, update_every=10)

    def step(diffusion, optimizer, ema, batch: Tensor) -> None:
        with autocast(task):
            loss = diffusion(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update()

    trial, parts, source = build(), build(), batches(pixels)
    steps = steps_that_fit(lambda: step(*trial, next(source)), seconds, task.trial)
    start = time.process_time()
    for _, batch in zip(range(steps), source):
        step(*parts, batch)
    elapsed = time.process_time() - start
    torch.manual_seed(seed + 1)
    with torch.no_grad(), autocast(task):
        samples = parts[2].ema_model.sample(batch_size=task.samples).float() * 2 - 1
    return report(task, samples.clamp(-1, 1), parts[0].model, steps, elapsed)


def ours(
    task: Task,
    x_0: Tensor,
    seconds: float,
    seed: int,
    y: Tensor | None = None,
    **changes: object,
) -> dict[str, object]:
    """ddpm_lite: the recipe of ``ddpm-lite train``, without labels unless ``y`` is given, but for the given changes."""
    recipe = RECIPES[task.name]
    options = {**recipe.options, "batch_size": BATCH, "precision": task.precision}
    flat = changes.pop("flat", False)
    network = {**recipe.unet, **changes.pop("unet", {})}
    if y is None:
        network["num_classes"] = None
    options |= changes

    def build():
        torch.manual_seed(seed)
        model = new_model(recipe, seed)
        model.unet = UNet(1, **network)
        return model

    trial, model = build(), build()
    trial_run = train(
        trial.unet, trial.diffusion, x_0, y, steps=1000, seed=seed, **options
    )
    steps = steps_that_fit(lambda: next(trial_run), seconds, task.trial)
    run = train(
        model.unet,
        model.diffusion,
        x_0,
        y,
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
    labels = None if y is None else torch.arange(task.samples) % 10
    with autocast(task):
        samples = model.sample(
            task.samples, y=labels, steps=SAMPLING_STEPS, seed=seed + 1
        )
    line = report(task, samples, model.unet, steps, elapsed)
    if y is not None:
        classifier = evaluate.fit_classifier(samples, labels)
        test = data.load(task.name, "test")
        accuracy = evaluate.classifier_accuracy(classifier, *test)
        line["classifier_accuracy"] = round(accuracy, 4)
        print("    classifier accuracy", line["classifier_accuracy"], flush=True)
    return line


def report(
    task: Task, samples: Tensor, unet: torch.nn.Module, steps: int, seconds: float
) -> dict[str, object]:
    """One line of the result."""
    line = {
        "steps": steps,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in unet.parameters()),
        **task.quality(samples),
    }
    if task.name == "digits":
        line["nearer_to_a_training_digit_than_its_own_neighbour"] = memorised(samples)
    print("   ", line, flush=True)
    return line


def main() -> None:
    """Run everything and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=["digits", "mnist"], default="digits")
    parser.add_argument(
        "--seconds", type=float, help="CPU seconds of each training (150; MNIST 240)"
    )
    parser.add_argument("--seeds", type=int, help="runs of each side (2; MNIST 1)")
    parser.add_argument("--out", type=Path, help="default: results/DATA.json")
    options = parser.parse_args()
    mnist = options.data == "mnist"
    options.seconds = options.seconds or (240 if mnist else 150)
    options.seeds = options.seeds or (1 if mnist else 2)

    torch.set_num_threads(1)
    chosen = task(options.data)
    x_0, y = data.load(options.data)
    sides: dict[str, Callable] = {"ddpm_lite": ours, "diffusers": stock}
    if mnist and denoising_diffusion_pytorch:
        sides["denoising-diffusion-pytorch"] = lucidrains
    elif mnist:
        print(
            "leaving out denoising-diffusion-pytorch, which is not installed: "
            "pip install denoising-diffusion-pytorch"
        )
    runs: dict[str, list[dict[str, object]]] = {name: [] for name in sides}
    for seed in range(options.seeds):
        for name, run in sides.items():
            print(f"{name}, seed {seed}", flush=True)
            runs[name].append(run(chosen, x_0, options.seconds, seed))

    def mean(name: str, key: str) -> float:
        return round(statistics.mean(run[key] for run in runs[name]), 3)

    keys = ("frechet_distance", "two_sample_accuracy", "steps")
    result = {
        "command": f"python benchmarks/digits.py --data {options.data} --seconds {options.seconds:g} "
        f"--seeds {options.seeds}",
        "floor": mnist_quality(x_0[: chosen.samples]) if mnist else reference_quality(),
        "mean": {name: {key: mean(name, key) for key in keys} for name in runs},
        "runs": runs,
    }
    if mnist:
        print("ddpm_lite, with labels", flush=True)
        labelled = ours(chosen, x_0, options.seconds, 0, y)
        result |= {"precision": chosen.precision, "ddpm_lite_with_labels": labelled}
    else:
        result |= variations(chosen, x_0, options.seconds)
    result["environment"] = {
        **environment(),
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
    }
    write_json(options.out or RESULTS / f"{options.data}.json", result)
    print({"floor": result["floor"], **result["mean"]})


def variations(task: Task, x_0: Tensor, seconds: float) -> dict[str, object]:
    """diffusers with other settings, and our recipe with one thing at a time changed."""
    print("diffusers, settings of its training example", flush=True)
    example = stock(task, x_0, seconds, 0, example=True)
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
        ablation[name] = ours(task, x_0, seconds, 0, **changes)
    return {
        "diffusers_with_the_settings_of_its_training_example": example,
        "ddpm_lite_with_one_change": ablation,
    }


if __name__ == "__main__":
    main()
