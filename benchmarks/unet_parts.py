"""What each part of the UNet is worth on the digits: take it away, train, measure. For chapter 8 of the book.

    python benchmarks/unet_parts.py [--steps 300] [--seeds 3]

A small UNet (three levels: 8×8, 4×4, 2×2) and the same network without one of its parts are trained with the same
recipe, seeds and number of steps, on one thread. Each is then judged by L_simple on the 360 held-out digits, with
8 draws of t and ε for each, the same draws for all networks. The networks with group and with batch normalisation
are judged once more as a sampler uses them, in batches that have one t each, with and without a call of ``eval()``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from measure import environment, write_json
from torch import Tensor, nn

from ddpm_lite import GaussianDiffusion, UNet, data, linear_schedule
from ddpm_lite.models.unet import Stage, TimeEmbedding
from ddpm_lite.train import train

CONFIG = {
    "base_channels": 16,
    "channel_mults": (1, 2, 2),
    "blocks_per_level": 1,
    "groups": 4,
}
BATCH, DRAWS, SAMPLER_TIMES = 64, 8, (20, 100, 300, 600, 1000)
RESULT = Path(__file__).parent / "results" / "unet_parts.json"


class NoTime(nn.Module):
    """The same answer for every t."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, t):
        return torch.zeros(len(t), self.channels)


class RawTime(TimeEmbedding):
    """The number t itself where the sinusoids were."""

    def forward(self, t):
        number = t.float()[:, None].expand(-1, self.channels)
        return self.linear_2(F.silu(self.linear_1(number)))


class CutSkip(Stage):
    """A stage on the way up that gets zeros from the way down."""

    def __init__(self, stage, skip_channels):
        super().__init__(stage.block, stage.attention)
        self.skip_channels = skip_channels

    def forward(self, x, time):
        x = x.clone()
        x[:, -self.skip_channels :] = 0
        return super().forward(x, time)


class Nothing(nn.Module):
    """In the place of the way around a block."""

    def forward(self, x):
        return 0.0


def take_away(part, unet):
    """Take one part out of a UNet, in place, and leave the rest as it is."""
    stages = [layer for layer in unet.modules() if isinstance(layer, Stage)]
    if part == "time":
        unet.time_embedding = NoTime(unet.time_embedding.linear_2.out_features)
    elif part == "sinusoids":
        unet.time_embedding.__class__ = RawTime
    elif part == "skips":
        channels = [unet.conv_in.out_channels]
        for layer in unet.down:
            last = layer.block.conv_2 if isinstance(layer, Stage) else layer.conv
            channels.append(last.out_channels)
        for i, layer in enumerate(unet.up):
            if isinstance(layer, Stage):
                unet.up[i] = CutSkip(layer, channels.pop())
    elif part == "attention":
        for stage in stages:
            stage.attention = None
    elif part in ("normalisation", "group norm"):  # the latter: put BatchNorm there
        for layer in list(unet.modules()):
            for name, norm in list(layer.named_children()):
                if isinstance(norm, nn.GroupNorm):
                    batch = nn.BatchNorm2d(norm.num_channels)
                    other = batch if part == "group norm" else nn.Identity()
                    setattr(layer, name, other)
    elif part == "way around":
        for stage in stages:
            stage.block.shortcut = Nothing()
            stage.block.conv_2.reset_parameters()  # from zero it would never learn
    elif part == "lower levels":  # the same convolutions, all at full resolution
        for layers in (unet.down, unet.up):
            for i, layer in enumerate(layers):
                if not isinstance(layer, Stage):
                    layer.conv.stride, layer.conv.padding = (1, 1), (1, 1)
                    layers[i] = layer.conv


PARTS = [
    "nothing",
    "time",
    "sinusoids",
    "skips",
    "attention",
    "normalisation",
    "group norm",
    "way around",
    "lower levels",
]


def held_out_draws(diffusion: GaussianDiffusion) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and ε of every held-out digit, ``DRAWS`` times, t spread evenly over 1..T."""
    x_0 = data.digits("test").x_0.repeat(DRAWS, 1, 1, 1)
    generator = torch.Generator().manual_seed(2026)
    order = torch.randperm(len(x_0), generator=generator)
    t = 1 + order * diffusion.T // len(x_0)
    eps = torch.randn(x_0.shape, generator=generator)
    return diffusion.q_sample(x_0, t, eps), t, eps


@torch.no_grad()
def held_out_errors(unet: UNet, diffusion: GaussianDiffusion) -> Tensor:
    """The squared error of each draw, averaged over the pixels."""
    x_t, t, eps = held_out_draws(diffusion)
    unet.eval()
    return (unet(x_t, t) - eps).square().mean(dim=(1, 2, 3))


@torch.no_grad()
def one_time_each(unet: UNet, diffusion: GaussianDiffusion, mode: str) -> float:
    """The mean squared error over batches of all held-out digits that have one t each; ``mode``: eval or train."""
    x_0 = data.digits("test").x_0
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(2027))
    getattr(unet, mode)()
    losses = [
        F.mse_loss(unet(diffusion.q_sample(x_0, t, eps), t), eps).item()
        for t in SAMPLER_TIMES
    ]
    return round(statistics.mean(losses), 4)


def fit(part: str, steps: int, seed: int) -> tuple[UNet, float]:
    """Train the network without ``part``; the network and the CPU seconds."""
    torch.manual_seed(seed)
    unet = UNet(**CONFIG)
    take_away(part, unet)
    diffusion = GaussianDiffusion(linear_schedule())
    x_0 = data.digits("train").x_0
    start = time.process_time()
    for _ in train(unet, diffusion, x_0, steps=steps, batch_size=BATCH, seed=seed):
        pass
    return unet, time.process_time() - start


def main() -> None:
    """Train all networks, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    diffusion = GaussianDiffusion(linear_schedule())
    whole, parts, sampling = {}, {}, {}
    for part in PARTS:
        losses, differences, errors, seconds = [], [], [], []
        for seed in range(options.seeds):
            unet, duration = fit(part, options.steps, seed)
            each = held_out_errors(unet, diffusion)
            whole.setdefault(seed, each)  # the first part is "nothing"
            difference = each - whole[seed]
            losses.append(round(float(each.mean()), 4))
            differences.append(round(float(difference.mean()), 4))
            errors.append(round(float(difference.std() / len(each) ** 0.5), 4))
            seconds.append(duration)
            if part in ("nothing", "group norm"):
                for mode in ("eval", "train"):
                    loss = one_time_each(unet, diffusion, mode)
                    sampling.setdefault(part, {}).setdefault(mode, []).append(loss)
        parts[part] = {
            "loss": losses,
            "mean": round(statistics.mean(losses), 4),
            "more_than_whole": differences,
            "standard_error_of_that": errors,
            "parameters": sum(p.numel() for p in unet.parameters()),
            "seconds": round(statistics.mean(seconds), 1),
        }
        print(part, parts[part], flush=True)
    write_json(
        options.out,
        {
            "command": f"python benchmarks/unet_parts.py --steps {options.steps} --seeds {options.seeds}",
            "unet": CONFIG,
            "without": parts,
            "one_time_in_each_batch": sampling,
            "environment": {**environment(), "threads": torch.get_num_threads()},
        },
    )


if __name__ == "__main__":
    main()
