"""A network trained for the variational bound: bits per dimension on the test images of MNIST.

    python benchmarks/mnist_bound.py [--start mnist] [--minutes 38] [--images 10000]

L_simple is made for samples. The bound asks for more: most of its bits are about grey values, told apart at noise
levels that L_simple hardly looks at. Five things change, and the network stays a UNet that predicts ε:

- The schedule. log SNR falls in 4,000 equal steps. Then the weight of every term of the bound but the first and the
  last is the same, and so many steps cost less than 1% more than infinitely many. The first step ends at a noise of
  0.15 grey steps: at such noise rounding finds the grey value, so that L_0 is nearly nothing (a bin ends 3.3 standard
  deviations from its middle), and more noise would cost bits for every black pixel, of which there are 81%.
- σ_t² is the posterior variance. The other choice, β_t, is right where a pixel is unknown on the scale of the noise,
  and it costs the more for every one that is not: here the black ones.
- The first convolution also gets sines and cosines of the grey value, with periods of 1 to 128 grey steps (after
  Kingma et al. 2021, appendix C), because a difference of half a step drowns in bfloat16 otherwise. Their weights
  begin at 0.
- The estimate of x_0 is rounded, softly. Where the noise is below a grey step, what is known of a pixel is a normal law
  on the grid of grey values rather than on the line; its mean over the grid is one formula, and need not be learned.
- t is drawn in proportion to the root of the mean square of its term of the bound (Nichol & Dhariwal 2021,
  section 3.3), one from each of as many strata as the batch has images.

The weights begin as those of a model that was trained with L_simple, which knows t by its noise level: the time
embedding is asked at the time when its own schedule had that noise, and further before 1 for less. The averaged
weights (EMA) are kept in --weights, from which --start goes on; --minutes 0 only measures.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measure import environment, write_json
from torch import Tensor, nn

from ddpm_lite import (
    GaussianDiffusion,
    NoiseSchedule,
    UNet,
    checkpoint,
    data,
    gaussian,
    load,
    variational_bound,
)
from ddpm_lite.train import PRECISIONS, fastest_precision

T, FIRST_NOISE, LAST_LOG_SNR = 4000, 0.15, -9.0
BATCH, WARMUP, EMA_DECAY, MAX_GRAD_NORM = 64, 100, 0.998, 1.0
LEARNING_RATE = 1e-3
PRECISION = fastest_precision("cpu")
GREY_STEP = 2 / 255
RESULT = Path(__file__).parent / "results" / "mnist_bound.json"
WEIGHTS = Path("out/mnist_bound.safetensors")


def even_schedule() -> NoiseSchedule:
    """log SNR falls evenly from a noise of ``FIRST_NOISE`` grey steps to ``LAST_LOG_SNR``."""
    variance = (FIRST_NOISE * GREY_STEP) ** 2
    first = math.log((1 - variance) / variance)
    log_snr = torch.linspace(first, LAST_LOG_SNR, T, dtype=torch.float64)
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), log_snr.sigmoid()])
    return NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])


class GreyPhases(nn.Module):
    """A first convolution that is also given sines and cosines of the grey values."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        periods = 2.0 ** torch.arange(8)
        self.register_buffer("frequency", (2 * math.pi / periods).view(-1, 1, 1))
        self.conv = nn.Conv2d(1 + 2 * len(periods), conv.out_channels, 3, padding=1)
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, :1] = conv.weight
            self.conv.bias.copy_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        phase = (x + 1) / GREY_STEP * self.frequency
        return self.conv(torch.cat([x, phase.sin(), phase.cos()], dim=1))


class ByNoiseLevel(nn.Module):
    """A time embedding learned on one schedule, for the times of another: it is asked for the same noise level."""

    def __init__(self, embedding: nn.Module, old: Tensor, new: Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        log_snr, wanted = (x[1:].log().flip(0).numpy() for x in (old, new))
        t = np.arange(len(log_snr), 0, -1)
        position = np.interp(wanted, log_snr, t)
        position -= 10 * (wanted - log_snr[-1]).clip(0)  # less noise than at its t = 1
        position = torch.from_numpy(position).float().flip(0)
        self.register_buffer("position", torch.cat([torch.zeros(1), position]))

    def forward(self, t: Tensor) -> Tensor:
        return self.embedding(self.position[t])


class Rounded(nn.Module):
    """An ε-model whose estimate of x_0 is moved towards the grid of grey values, as much as the noise allows.

    Where the network has no better knowledge, x_0 given x_t is normal around its estimate, as wide as the noise of
    x_t / √ᾱ_t. On the grid the mean of that law is Σ k w_k / Σ w_k, w_k = exp(-(k - estimate)² / (2 s²)), all in grey
    steps. For s > 0.75 that is the estimate itself, to 1e-4 grey steps, and nothing is done.
    """

    def __init__(self, unet: UNet, diffusion: GaussianDiffusion) -> None:
        super().__init__()
        self.unet, self.diffusion = unet, diffusion
        noise = diffusion.schedule.snr[1:].rsqrt() / GREY_STEP
        self.register_buffer("noise", torch.cat([torch.zeros(1), noise.float()]))
        self.register_buffer("offsets", torch.arange(-4.0, 5.0))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        with torch.autocast("cpu", PRECISIONS[PRECISION], PRECISION != "float32"):
            eps = self.unet(x_t, t).float()
        small = self.noise[t] < 0.75
        if not bool(small.any()):
            return eps
        x_t, t = x_t[small], t[small]
        grey = (self.diffusion.predict_x_0(x_t, t, eps[small]) + 1) / GREY_STEP
        nearest = grey.detach().round()
        s = self.noise[t].view(-1, 1, 1, 1, 1)
        distance = (nearest - grey)[..., None] + self.offsets
        weight = (-0.5 * (distance / s) ** 2).softmax(-1)
        rounded = (nearest + (weight * self.offsets).sum(-1)) * GREY_STEP - 1
        rounded = self.diffusion.predict_eps(x_t, t, rounded)
        return eps.masked_scatter(small.view(-1, 1, 1, 1).expand_as(eps), rounded)


def adapted(unet: UNet, old: NoiseSchedule, new: GaussianDiffusion) -> Rounded:
    """The network of one schedule made ready for the diffusion of another."""
    unet.conv_in = GreyPhases(unet.conv_in)
    unet.time_embedding = ByNoiseLevel(unet.time_embedding, old.snr, new.schedule.snr)
    return Rounded(unet, new)


def terms(
    eps_model: Rounded, diffusion: GaussianDiffusion, x_0: Tensor, t: Tensor
) -> Tensor:
    """The terms of the bound at times t, in bits per dimension, shape (B,)."""
    eps = torch.randn_like(x_0)
    x_t = diffusion.q_sample(x_0, t, eps)
    predicted = eps_model(x_t, t)
    squared = (predicted - eps).square().flatten(1).mean(1)
    snr = diffusion.schedule.snr
    # β_t² / (2 β̃_t α_t (1 - ᾱ_t)), which is this; chapter 6.
    weight = 0.5 * (snr[t - 1] / snr[t] - 1).float()
    first = (t == 1).nonzero()[:, 0]
    L = weight.nan_to_num(posinf=0.0) * squared
    if len(first):
        mean = diffusion.predict_x_0(x_t[first], t[first], predicted[first])
        variance = diffusion.schedule.beta[1].float()
        log_p = gaussian.discretised_log_density(x_0[first], mean, variance)
        L = L.index_copy(0, first, -log_p.flatten(1).mean(1))
    return L / math.log(2)


class Times:
    """Draws t with a probability in proportion to the root of the mean square of L_t, learned along the way.

    The means are kept for cells: t = 1 alone, and 2..T in 64 equal parts.
    """

    def __init__(self) -> None:
        self.edges = torch.cat(
            [torch.ones(1).long(), torch.linspace(2, T + 1, 65).long()]
        )
        self.sizes = (self.edges[1:] - self.edges[:-1]).double()
        self.mean_square = torch.full((len(self.sizes),), 1.0, dtype=torch.float64)
        self.mean_square[1:] = T**-2.0

    def draw(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """n times, the probability of each, and its cell."""
        share = self.sizes * self.mean_square.sqrt()
        share = 0.95 * share / share.sum() + 0.05 * self.sizes / T
        ends = share.cumsum(0)
        u = (torch.arange(n) + torch.rand(n, dtype=torch.float64)) / n * ends[-1]
        cell = torch.searchsorted(ends, u, right=True).clamp(max=len(share) - 1)
        within = (u - ends[cell] + share[cell]) / share[cell]
        t = self.edges[cell] + (within.clamp(0, 1 - 1e-9) * self.sizes[cell]).long()
        return t, share[cell] / self.sizes[cell], cell

    def learn(self, cell: Tensor, L: Tensor) -> None:
        """Move the mean squares a tenth of the way to what has just been seen."""
        count = torch.bincount(cell, minlength=len(self.sizes))
        total = torch.zeros_like(self.mean_square).index_add(0, cell, L.double() ** 2)
        seen = count > 0
        self.mean_square[seen] += 0.1 * (total / count - self.mean_square)[seen]


def train(
    model: Rounded, diffusion: GaussianDiffusion, x_0: Tensor, minutes: float
) -> Iterator[tuple[int, float, float, Rounded]]:
    """Minimise the bound for so many minutes; yields the step, its estimate of the bound, the norm, the average."""
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    times, order, step = Times(), torch.empty(0).long(), 0
    start = time.monotonic()
    model.train()
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        step += 1
        if len(order) < BATCH:
            order = torch.randperm(len(x_0))
        batch, order = x_0[order[:BATCH]], order[BATCH:]
        t, probability, cell = times.draw(BATCH)
        t = t[shuffle := torch.randperm(BATCH)]
        L = terms(model, diffusion, batch, t)
        times.learn(cell[shuffle], L.detach())
        loss = (L / probability[shuffle].float()).mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        if not bool(loss.isfinite() & norm.isfinite()):
            raise FloatingPointError(f"the bound is {float(loss):g} at step {step}")
        for group in optimizer.param_groups:
            decay = 0.5 * (1 + math.cos(math.pi * share))
            group["lr"] = LEARNING_RATE * min(1, step / WARMUP) * decay
        optimizer.step()
        optimizer.zero_grad()
        d = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - d)
        yield step, float(loss.detach()), float(norm), ema


def started(
    start: str, diffusion: GaussianDiffusion
) -> tuple[Rounded, dict[str, object]]:
    """The network to begin with, adapted, and what was done to it before: from a model, or from what was kept."""
    path = Path(start)
    if path.is_file():
        tensors, description = checkpoint.load(path)
        if description.get("kind") == "mnist_bound":
            unet = UNet(**description["unet"])
            model = adapted(unet, diffusion.schedule, diffusion)
            model.load_state_dict(tensors)
            return model, description
    model = load(start)
    if model.shape != (1, 28, 28):
        raise SystemExit(f"{start} draws images of shape {model.shape}, not 1×28×28")
    config = dict(model.unet.config)  # of the network before it is adapted
    ready = adapted(model.unet, model.diffusion.schedule, diffusion)
    return ready, {"kind": "mnist_bound", "unet": config, "start": start, "steps": 0}


def measured(
    eps_model, diffusion: GaussianDiffusion, x_0: Tensor, evaluations: int, **options
) -> dict[str, object]:
    """Bits per dimension of some images, with the standard error, and how they add up."""
    bound = variational_bound(
        eps_model,
        diffusion,
        x_0,
        evaluations,
        clip=1.0,
        batch_size=250,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    return {
        "bits_per_dimension": round(float(bound.total.mean()), 4),
        "standard_error": round(bound.standard_error, 4),
        "L_0": round(float(bound.L_0.mean()), 4),
        "L_T": round(float(bound.L_T.mean()), 6),
        "images": len(x_0),
        "times_for_each_image": evaluations,
        **options,
    }


def main() -> None:
    """Train, keep the weights, measure, write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--start", default="mnist", help="a model, or what was kept")
    parser.add_argument("--minutes", type=float, default=38, help="of training")
    parser.add_argument("--images", type=int, default=10_000, help="to measure")
    parser.add_argument("--times", type=int, default=10, help="t, for each image")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    test = data.load("mnist", "test").x_0
    test = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(0))]
    result: dict[str, object] = {
        "command": f"python benchmarks/mnist_bound.py --start {options.start} --minutes {options.minutes:g} "
        f"--images {options.images} --times {options.times}"
    }
    diffusion = GaussianDiffusion(even_schedule())
    model, description = started(options.start, diffusion)
    if not description["steps"]:
        plain = load(options.start)
        result["before"] = {
            variance: measured(
                plain.unet, plain.diffusion, test[:200], 20, variance=variance
            )
            for variance in ("beta", "posterior")
        }
        print("\nbefore, on its own schedule:", result["before"], flush=True)

    if options.minutes > 0:
        before, recent, clock = description["steps"], [], time.process_time()
        run = train(model, diffusion, data.load("mnist").x_0, options.minutes)
        curve = []
        for step, bits, norm, model in run:
            recent.append(bits)
            if len(recent) == 100:
                curve.append(round(sum(recent) / len(recent), 4))
                print(f"step {step}: {curve[-1]} bits, norm {norm:.1f}", flush=True)
                recent.clear()
            if step % 500 == 0:
                keep(options.weights, model, description | {"steps": before + step})
        description |= {"steps": before + step}
        keep(options.weights, model, description)
        result["training"] = {
            "steps": step,
            "steps_before": before,
            "batch_size": BATCH,
            "cpu_minutes": round((time.process_time() - clock) / 60, 1),
            "bits_of_every_100_steps": curve,
        }

    result |= measured(
        model.eval(),
        diffusion,
        test[: options.images],
        options.times,
        variance="posterior",
    )
    result["precision"] = PRECISION
    result["environment"] = environment()
    write_json(options.out, result)
    print({k: v for k, v in result.items() if k not in ("before", "training")})


def keep(path: Path, model: Rounded, description: dict[str, object]) -> None:
    """Write the averaged weights."""
    checkpoint.save(path, model.state_dict(), description)


if __name__ == "__main__":
    main()
