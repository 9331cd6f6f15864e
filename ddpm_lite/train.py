"""Algorithm 1 of DDPM, with what makes it work in practice: warm-up, clipping, an average of the weights, resuming.

All that is random in a step is a function of the seed and the number of the step. So a run that is continued from
a checkpoint, or (dropout apart) spread over several processes, takes the same steps as one that is neither. Chapter 9.
"""

from __future__ import annotations

import copy
import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm_lite import __version__, _check, _distributed, checkpoint, gaussian
from ddpm_lite.data import check_images, from_uint8
from ddpm_lite.model import Model
from ddpm_lite.models.unet import UNet
from ddpm_lite.objective import simple_loss
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.schedule import linear_schedule


class Recipe(NamedTuple):
    """What suits a data set: a network, a number of steps, and the options of ``train``."""

    shape: tuple[int, int, int]
    unet: dict[str, object]
    steps: int
    options: dict[str, object]


_DIGITS_UNET = {"base_channels": 32, "channel_mults": (1, 2), "blocks_per_level": 1}
_MNIST_UNET = _DIGITS_UNET | {"channel_mults": (1, 2, 2), "attention_levels": (2,)}
_MNIST = Recipe(
    (1, 28, 28), _MNIST_UNET | {"num_classes": 10}, 12_000, {"batch_size": 64}
)
# Ho et al. (2020, appendix B), but for their 800,000 steps.
_CIFAR_UNET = {"base_channels": 128, "channel_mults": (1, 2, 2, 2), "groups": 32}
_CIFAR_UNET |= {"attention_levels": (1,), "dropout": 0.1}
_CIFAR_OPTIONS = {"batch_size": 128, "learning_rate": 2e-4, "warmup": 5000}
_CIFAR_OPTIONS |= {"ema_decay": 0.9999, "flip": True}

RECIPES = {
    "digits": Recipe((1, 8, 8), _DIGITS_UNET, 1100, {"batch_size": 64}),
    "mnist": _MNIST,
    "fashion-mnist": _MNIST,
    "cifar10": Recipe((3, 32, 32), _CIFAR_UNET, 200_000, _CIFAR_OPTIONS),
}


def recipe_for(shape: Sequence[int]) -> Recipe:
    """A recipe for square images of any shape (C, H, W): halved up to three times, attention at 16×16."""
    channels, size, _ = shape
    levels = 1
    while levels < 4 and size % 2**levels == 0 and size >= 4 * 2**levels:
        levels += 1
    unet = {
        "base_channels": 64,
        "channel_mults": (1, 2, 2, 2)[:levels],
        "attention_levels": [i for i in range(levels) if size == 16 * 2**i],
    }
    return Recipe((channels, size, size), unet, 50_000, {"batch_size": 64})


def new_model(recipe: Recipe, seed: int = 0) -> Model:
    """An untrained model, with initial weights fixed by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_check.integer("seed", seed, 0))
        unet = UNet(recipe.shape[0], **recipe.unet)
    return Model(unet, GaussianDiffusion(linear_schedule()), recipe.shape)


class TrainState(NamedTuple):
    """Where training is after a step."""

    step: int
    """Steps done, from 1."""
    loss: Tensor
    """L_simple of this step's batch, a scalar on the device of the network; ``float(loss)`` waits for it."""
    ema: nn.Module
    """The averaged network, for sampling; the same object at every step."""
    losses: Tensor
    """The losses of all steps so far, those before a resumption included, shape (step,)."""
    skipped: int
    """How many of these steps were left out because a float16 gradient overflowed."""


PRECISIONS = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
# Steps, on an accelerator: to look at a number there means to wait for it.
_CHECK_EVERY = 50
_MOST_OVERFLOWS = 20  # float16 steps in a row that may be lost while the scale is found


def fastest_precision(device: torch.device | str) -> str:
    """The precision that suits the hardware: "bfloat16" where it is native, "float16" on older GPUs, else "float32".

    Weights, schedule, loss and optimiser stay in float32; this is the precision of the network's matrix products.
    """
    device = torch.device(device)
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
        return "bfloat16" if native else "float16"
    native = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return "bfloat16" if native else "float32"


def train(
    model: nn.Module,
    diffusion: GaussianDiffusion,
    x_0: Tensor,
    y: Tensor | None = None,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    warmup: int = 100,
    ema_decay: float = 0.999,
    max_grad_norm: float = 1.0,
    label_dropout: float = 0.1,
    flip: bool = False,
    precision: str = "float32",
    seed: int = 0,
    folder: str | Path | None = None,
    save_every: int = 1000,
) -> Iterator[TrainState]:
    """Train a network to predict ε (Ho et al. 2020, algorithm 1); one ``TrainState`` a step.

    Adam with a learning rate that rises over ``warmup`` steps and then falls to 0 along a half cosine. The averaged
    weights are ``ema += (1 - d) (weights - ema)`` with d = min(ema_decay, (step + 1) / (step + 10)), so that the
    random start is forgotten soon.

    With a ``folder``, everything that the next step depends on is written there every ``save_every`` steps, after
    the last one, and when the loop is left. A run started again with the same arguments goes on from the newest file
    that is whole (and yields the state found there first). It takes the very steps that it would have taken: on the
    CPU, bit for bit.

    In a process group (``torchrun``) each process works on its share of every batch, and the first one writes.

    Args:
        model: an ``eps_model(x_t, t)``, or ``model(x_t, t, y)`` when ``y`` is given; trained in place.
        diffusion: the forward process.
        x_0: the data, shape (N, ...), on the model's device or on the CPU; images (N, C, H, W), float in [-1, 1] or
            uint8, which are turned into floats batch by batch.
        y: class labels, int64, shape (N,), or None.
        steps: number of steps.
        batch_size: items a step, over all processes; at most N.
        learning_rate: its largest value.
        warmup: steps over which it rises.
        ema_decay: d of the average above, in [0, 1).
        max_grad_norm: gradients of a larger norm are scaled down to it.
        label_dropout: the share of labels that are replaced by -1, "no label", so that the network learns both.
        flip: mirror every image, left to right, with probability ½.
        precision: of the network's products, "float32", "bfloat16" or "float16" (with a scaled loss; a step whose
            gradient overflows is left out). ``fastest_precision`` names the one that suits a device.
        seed: of the order of the data, t, ε and dropout. With the model's initial weights it fixes the run.
        folder: where to keep checkpoints, ``step-*.safetensors``, the last two of them; None for none.
        save_every: steps between them.

    Raises:
        TypeError, ValueError: for arguments that do not fit, or do not fit the run that ``folder`` holds.
        FloatingPointError: if the loss or its gradient is not finite, with the step. On the CPU the weights and
            ``ema`` of the last state are still good; elsewhere it is noticed within 50 steps. No such state is
            ever written.
        OSError: if a checkpoint cannot be written; the one before is still there.
    """
    whole = isinstance(x_0, Tensor) and x_0.dtype == torch.uint8 and x_0.ndim == 4
    if not whole and _check.floating("x_0", x_0).ndim == 4:
        check_images(x_0)
    _check.integer("steps", steps, 1)
    _check.integer("batch_size", batch_size, 1, len(x_0))
    _check.integer("warmup", warmup, 0)
    if _check.number("ema_decay", ema_decay, 0, 1) == 1:
        raise ValueError(f"ema_decay must be below 1, got {ema_decay}")
    _check.number("learning_rate", learning_rate, 0)
    _check.number("max_grad_norm", max_grad_norm, 0)
    _check.number("label_dropout", label_dropout, 0, 1)
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}"
        )
    _check.integer("seed", seed, 0)
    _check.integer("save_every", save_every, 1)
    if y is not None and (y.shape != x_0.shape[:1] or y.is_floating_point()):
        raise ValueError(
            f"y must be {len(x_0)} integer labels, got {y.dtype} of shape {tuple(y.shape)}"
        )
    y = None if y is None else y.cpu()
    rank, world = _distributed.place()
    grouped = world > 1
    if batch_size % world:
        raise ValueError(
            f"batch_size must be a multiple of the {world} processes, got {batch_size}"
        )
    share = slice(rank * batch_size // world, (rank + 1) * batch_size // world)

    device = next(model.parameters()).device
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    losses = torch.zeros(steps, device=device)
    done, skipped, in_a_row = 0, 0, 0
    keeper = None
    if folder is not None:
        plan = {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "warmup": warmup,
            "ema_decay": ema_decay,
            "max_grad_norm": max_grad_norm,
            "label_dropout": label_dropout,
            "flip": flip,
            "precision": precision,
            "seed": seed,
            "data": [list(x_0.shape), _fingerprint(x_0)],
            "labels": None if y is None else _fingerprint(y),
            "schedule": _fingerprint(diffusion.schedule.beta),
        }
        keeper = _Keeper(Path(folder), plan, model, ema, optimizer, scaler, losses)
        done, skipped = keeper.resume()
        if done:
            yield TrainState(done, losses[done - 1], ema, losses[:done], skipped)

    network = DistributedDataParallel(model) if grouped else model
    random = torch.Generator(device)
    random_cpu = torch.Generator()
    # The first step that was not finite, its loss, and the norm of its gradient.
    bad = torch.zeros(3, device=device)

    def stop_if_bad() -> None:
        if bad[0] > 0:
            step, loss, norm = bad.tolist()
            raise FloatingPointError(
                f"the loss is {loss:g} and the norm of its gradient {norm:g} at step {step:.0f}; "
                "try a smaller learning rate"
            )

    model.train()
    batches = _batches(len(x_0), batch_size, seed, done)
    for step, items in zip(range(done + 1, steps + 1), batches):
        # Every process draws for the whole batch and keeps its share, so that the number of processes is no matter.
        random.manual_seed(_seed(seed, step, 0))
        t = torch.randint(
            1, diffusion.T + 1, (batch_size,), device=device, generator=random
        )[share]
        batch = _sent(x_0[_sent(items[share], x_0.device)], device)
        if whole:
            batch = from_uint8(batch)
        eps = gaussian.randn((batch_size, *batch.shape[1:]), batch, random)[share]
        if flip:
            coin = torch.rand(batch_size, device=device, generator=random)[share] < 0.5
            batch = torch.where(coin[:, None, None, None], batch.flip(-1), batch)
        eps_model = network
        if y is not None:
            random_cpu.manual_seed(_seed(seed, step, 1))
            drop = torch.rand(batch_size, generator=random_cpu) < label_dropout
            labels = y[items].masked_fill(drop, -1)[share]
            eps_model = partial(network, y=_sent(labels, device))

        with (
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(
                device.type, PRECISIONS[precision], enabled=precision != "float32"
            ),
        ):
            torch.manual_seed(_seed(seed, step, 2 + rank))  # for dropout
            loss = simple_loss(eps_model, diffusion, batch, t=t, eps=eps)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        loss = loss.detach()
        if grouped:
            dist.all_reduce(loss, dist.ReduceOp.SUM)
            loss /= world
        finite = loss.isfinite() & norm.isfinite()
        overflow = precision == "float16" and not bool(finite)
        skipped, in_a_row = skipped + overflow, (in_a_row + 1) * overflow
        if precision != "float16" or in_a_row > _MOST_OVERFLOWS:
            now = torch.stack([torch.full_like(loss, step), loss, norm])
            bad = torch.where(finite | (bad[0] > 0), bad, now.to(bad))
        last = step == steps or (keeper is not None and step % save_every == 0)
        if last or device.type == "cpu" or step % _CHECK_EVERY == 0:
            stop_if_bad()

        rise = min(1.0, step / warmup) if warmup else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rise * fall
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        d = min(ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            weights = list(model.parameters())
            torch._foreach_lerp_(list(ema.parameters()), weights, 1 - d)
        losses[step - 1] = loss
        if last and keeper is not None and rank == 0:
            keeper.write(step, skipped)
        try:
            yield TrainState(step, loss, ema, losses[:step], skipped)
        except GeneratorExit:
            if not last and keeper is not None and rank == 0:
                stop_if_bad()
                keeper.write(step, skipped)
            raise


class _Keeper(NamedTuple):
    """Writes and reads all that the next step of a run depends on."""

    folder: Path
    plan: dict[str, object]
    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: Tensor

    def write(self, step: int, skipped: int) -> None:
        parts = {"model": self.model.state_dict(), "ema": self.ema.state_dict()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            parts[f"adam.{i}"] = moments
        tensors = {f"{p}.{name}": x for p in parts for name, x in parts[p].items()}
        tensors["losses"] = self.losses[:step]
        description = {
            "kind": "ddpm_lite.train",
            "version": __version__,
            "step": step,
            "skipped": skipped,
            "scaler": self.scaler.state_dict(),
            "plan": self.plan,
        }
        checkpoint.save(
            self.folder / f"step-{step:08d}.safetensors", tensors, description
        )
        for path in sorted(self.folder.glob("step-*.safetensors"))[:-2]:
            path.unlink()

    def resume(self) -> tuple[int, int]:
        """Put everything back as the newest whole file has it; the steps done and skipped, 0 if there is no file."""
        for left_by_a_killed_process in self.folder.glob(".step-*.safetensors"):
            left_by_a_killed_process.unlink(missing_ok=True)
        found = checkpoint.newest(self.folder, "step-*.safetensors")
        if found is None:
            return 0, 0
        path, tensors, description = found
        plan = description.get("plan")
        if description.get("kind") != "ddpm_lite.train" or not isinstance(plan, dict):
            raise checkpoint.CheckpointError(f"{path} holds no training run")
        for name, value in self.plan.items():
            if plan.get(name) != value:
                raise ValueError(
                    f"the run in {self.folder} has {name} = {plan.get(name)}, got {value}; "
                    "give it the same arguments, or another folder"
                )

        def part(prefix: str) -> dict[str, Tensor]:
            names = [name for name in tensors if name.startswith(prefix)]
            return {name.removeprefix(prefix): tensors[name] for name in names}

        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part("adam.").items():
            i, key = name.split(".")
            moments.setdefault(int(i), {})[key] = value
        try:
            self.model.load_state_dict(part("model."))
            self.ema.load_state_dict(part("ema."))
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
            self.scaler.load_state_dict(description["scaler"])
            self.losses[: description["step"]] = tensors["losses"].to(self.losses)
        except (RuntimeError, KeyError, ValueError) as error:
            raise checkpoint.CheckpointError(
                f"{path} belongs to another network: {error}"
            ) from error
        return description["step"], description["skipped"]


def _batches(n: int, batch_size: int, seed: int, done: int) -> Iterator[Tensor]:
    """Indices of each batch from step ``done`` + 1 on: every item once an epoch, in a new order each.

    The odd rest of an epoch is left out.
    """
    for step in itertools.count(done):
        epoch, k = divmod(step, n // batch_size)
        if k == 0 or step == done:
            generator = torch.Generator().manual_seed(_seed(seed, epoch))
            order = torch.randperm(n, generator=generator)
        yield order[k * batch_size : (k + 1) * batch_size]


def _seed(seed: int, *key: int) -> int:
    """A seed of its own for each key."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0])


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on the device; on the way to a GPU nothing waits for it."""
    if device.type != "cuda" or x.device == device:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def _fingerprint(x: Tensor) -> int:
    return zlib.crc32(x.detach().cpu().contiguous().numpy())
