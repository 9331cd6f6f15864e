"""A network together with all that is needed to use it: its schedule, the shape of its data, where it came from."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from ddpm_lite import __version__, _check, checkpoint
from ddpm_lite.models.unet import UNet
from ddpm_lite.process import GaussianDiffusion
from ddpm_lite.sampler import State, trajectory
from ddpm_lite.schedule import NoiseSchedule

_ENTRIES_AT_A_TIME = 2**18  # 334 images of MNIST: twice as many are slower on a CPU


@dataclass
class Model:
    """A UNet with its diffusion and the shape of one image.

    Attributes:
        unet: the network, an ``eps_model(x_t, t)``.
        diffusion: the forward process that it was trained on.
        shape: (C, H, W) of one image.
        card: where it came from: data, command, steps, seed, measured quality; anything that JSON can hold.
    """

    unet: UNet
    diffusion: GaussianDiffusion
    shape: tuple[int, int, int]
    card: dict[str, object] = field(default_factory=dict)

    def sample(
        self,
        n: int,
        *,
        y: int | Tensor | None = None,
        sampler: str = "ddim",
        steps: int | None = 50,
        seed: int | None = None,
        **options: object,
    ) -> Tensor:
        """Draw ``n`` images, in batches that fit into memory.

        Args:
            n: number of images.
            y: for a network with labels, the class of all images or, int64 of shape (n,), of each; None for no label.
            sampler: "ddim", "dpm++" or "ancestral".
            steps: number of steps; None for all T.
            seed: for the same images every time; None for new ones.
            **options: ``spacing`` of the steps, and further arguments of the sampler (``eta``, ``variance``, ``clip``).

        Returns:
            float32 in [-1, 1], shape (n, C, H, W).
        """
        y, generator = self._prepare(n, y, seed)
        batch = max(1, _ENTRIES_AT_A_TIME // math.prod(self.shape))
        parts = []
        for first in range(0, n, batch):
            size = min(batch, n - first)
            labels = None if y is None else y[first : first + size]
            states = self._states(size, labels, sampler, steps, generator, options)
            parts.append(deque(states, maxlen=1).pop().x_t.clamp(-1, 1))
        return torch.cat(parts)

    def trajectory(
        self,
        n: int,
        *,
        y: int | Tensor | None = None,
        sampler: str = "ddim",
        steps: int | None = 50,
        seed: int | None = None,
        **options: object,
    ) -> Iterator[State]:
        """The states that ``sample`` goes through in one batch, from noise to images; the arguments are the same."""
        y, generator = self._prepare(n, y, seed)
        return self._states(n, y, sampler, steps, generator, options)

    def _prepare(
        self, n: int, y: int | Tensor | None, seed: int | None
    ) -> tuple[Tensor | None, torch.Generator | None]:
        """The labels of all images, and the source of noise."""
        _check.integer("n", n, 1)
        if y is not None:
            classes = self.unet.config["num_classes"]
            y = y.cpu() if isinstance(y, Tensor) else y
            y = _check.times("y", y, torch.empty(n), -1, classes and classes - 1)
            y = y.to(next(self.unet.parameters()).device)
        if seed is None:
            return y, None
        return y, torch.Generator().manual_seed(_check.integer("seed", seed, 0))

    def _states(
        self,
        n: int,
        y: Tensor | None,
        sampler: str,
        steps: int | None,
        generator: torch.Generator | None,
        options: dict[str, object],
    ) -> Iterator[State]:
        eps_model = self.unet if y is None else _Labelled(self.unet, y)
        options = {"clip": 1.0, **options}
        shape = (n, *self.shape)
        return trajectory(
            eps_model, self.diffusion, shape, sampler, steps, generator, **options
        )

    def save(self, path: str | Path) -> None:
        """Write the model to ``path`` (a ``.safetensors`` file), all or nothing."""
        description = {
            "kind": "ddpm_lite.Model",
            "version": __version__,
            "unet": self.unet.config,
            "beta": self.diffusion.schedule.beta[1:].tolist(),
            "shape": list(self.shape),
            "card": self.card,
        }
        checkpoint.save(path, self.unet.state_dict(), description)


class _Labelled(torch.nn.Module):
    """A network with the labels already given: an ``eps_model(x_t, t)``."""

    def __init__(self, unet: UNet, y: Tensor) -> None:
        super().__init__()
        self.unet, self.y = unet, y

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.unet(x_t, t, self.y)


def load(name: str | Path) -> Model:
    """Load a model: one that comes with the package, by name, or one that was trained, by its folder or file.

    Args:
        name: "digits" or "mnist", a folder that ``ddpm-lite train`` wrote, or a ``.safetensors`` file.

    Returns:
        The model in evaluation mode, in float32 on the CPU.

    Raises:
        FileNotFoundError: if it is neither a bundled model nor a path; the message lists the bundled ones.
        CheckpointError: if the file is damaged or holds something else.
    """
    weights = resources.files("ddpm_lite.weights")
    bundled = sorted(
        Path(file.name).stem
        for file in weights.iterdir()
        if file.name.endswith(".safetensors") and "classifier" not in file.name
    )
    if str(name) in bundled:
        with resources.as_file(weights / f"{name}.safetensors") as path:
            return _read(path)
    path = Path(name)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"no model {str(name)!r}: neither a bundled model ({', '.join(bundled)}), nor a folder with a "
            f"model.safetensors, nor a file"
        )
    return _read(path)


def _read(path: Path) -> Model:
    tensors, description = checkpoint.load(path)
    if description.get("kind") != "ddpm_lite.Model":
        raise checkpoint.CheckpointError(
            f"{path} holds no model, but {json.dumps(description.get('kind'))}"
        )
    try:
        unet = UNet(**description["unet"])
        unet.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
        diffusion = GaussianDiffusion(NoiseSchedule(description["beta"]))
        shape = tuple(description["shape"])
        unet.check_shape("a batch", (1, *shape))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(
            f"{path} does not fit its description: {error}"
        ) from error
    return Model(unet.eval(), diffusion, shape, description.get("card", {}))
