"""Data sets as tensors, and the one place where integers become floats in [-1, 1] and back. Chapter 9."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddpm_lite import _check


class Images(NamedTuple):
    """A data set in memory."""

    x_0: Tensor
    """float32 in [-1, 1], shape (N, C, H, W); uint8 if it was read from a folder."""
    y: Tensor
    """Class labels, int64, shape (N,)."""


def from_uint8(images: Tensor, levels: int = 256) -> Tensor:
    """Integer grey values 0..levels-1 as float32 in [-1, 1].

    Raises:
        TypeError: if ``images`` is not uint8.
        ValueError: if a value is not below ``levels``.
    """
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        raise TypeError(
            f"images must be a uint8 tensor, got {getattr(images, 'dtype', type(images).__name__)}"
        )
    _check.integer("levels", levels, 2, 256)
    if levels < 256 and images.numel() and int(images.max()) >= levels:
        raise ValueError(
            f"images must have values below levels = {levels}, got {int(images.max())}"
        )
    return images.float() * (2 / (levels - 1)) - 1


def to_uint8(x_0: Tensor, levels: int = 256) -> Tensor:
    """Floats in [-1, 1] as the nearest integer grey values 0..levels-1; values outside are clipped.

    Raises:
        TypeError: if ``x_0`` is not floating point.
        ValueError: if ``x_0`` has a NaN.
    """
    _check.floating("x_0", x_0)
    _check.integer("levels", levels, 2, 256)
    if bool(x_0.isnan().any()):
        raise ValueError("x_0 must have no NaN")
    return ((x_0.clamp(-1, 1) + 1) * ((levels - 1) / 2)).round().to(torch.uint8)


def check_images(x_0: Tensor) -> Tensor:
    """Return ``x_0`` if it can be image data: floating point, (N, C, H, W), within [-1, 1].

    Raises:
        TypeError, ValueError: naming what is wrong, such as values that still run from 0 to 255.
    """
    _check.floating("x_0", x_0)
    if x_0.ndim != 4 or x_0.shape[0] == 0:
        raise ValueError(
            f"x_0 must have shape (N, C, H, W), N at least 1, got {tuple(x_0.shape)}"
        )
    low, high = float(x_0.min()), float(x_0.max())
    if not -1.001 <= low <= high <= 1.001:
        raise ValueError(
            f"images must lie in [-1, 1], got values from {low:g} to {high:g}"
        )
    return x_0


def digits(split: str = "train") -> Images:
    """The 1,797 handwritten digits that scikit-learn carries: 8×8 pixels, 17 grey values (Alpaydin & Kaynak 1998).

    Args:
        split: "train" (1,437 images) or "test" (360); the same for everyone, with the classes in proportion.

    Returns:
        Images of shape (N, 1, 8, 8).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _check_split(split)
    data = load_digits()
    index = np.arange(len(data.target))
    train, test = train_test_split(
        index, test_size=360, stratify=data.target, random_state=0
    )
    chosen = train if split == "train" else test
    images = torch.from_numpy(data.images[chosen].astype(np.uint8))[:, None]
    y = torch.from_numpy(data.target[chosen]).long()
    return Images(from_uint8(images, levels=17), y)


def downloaded(
    name: str, split: str = "train", root: str | Path | None = None
) -> Images:
    """A data set that torchvision knows, in its layout on the disk.

    Args:
        name: "mnist", "fashion-mnist" (both 60,000 and 10,000 images of shape (1, 28, 28)) or "cifar10" (50,000 and
            10,000 of shape (3, 32, 32)).
        split: "train" or "test".
        root: the folder that holds the files (as ``MNIST/raw``), or is to hold them; None for the environment
            variable ``DDPM_LITE_DATA``, or else ``~/.cache/ddpm_lite``. What is missing is downloaded.

    Raises:
        ValueError: for another name or split.
        OSError: if files are missing and cannot be downloaded.
    """
    from torchvision import datasets

    _check_split(split)
    if name not in _TORCHVISION:
        raise ValueError(f"name must be one of {', '.join(_TORCHVISION)}, got {name!r}")
    kind, train = getattr(datasets, _TORCHVISION[name]), split == "train"
    root = root or os.environ.get("DDPM_LITE_DATA") or Path.home() / ".cache/ddpm_lite"
    try:
        data = kind(root, train, download=True)  # nothing, when all files are there
    except RuntimeError as error:
        raise OSError(
            f"{name} is not complete in {root} and cannot be downloaded: {error}"
        ) from error
    images = torch.as_tensor(data.data)
    images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return Images(from_uint8(images), torch.as_tensor(data.targets))


def folder(path: str | Path, size: int, *, skip_unreadable: bool = False) -> Images:
    """All images below a folder: the shorter side scaled to ``size``, the middle square cut out.

    Grey if all of them are, else RGB. The label of an image is the number of its own folder among the folders that
    hold images, in alphabetical order.

    Args:
        path: the folder; files with other endings than those of images are left alone.
        size: height and width.
        skip_unreadable: leave out, with a warning that names them, files that cannot be read.

    Returns:
        Images as uint8 (a folder may be large), shape (N, C, size, size).

    Raises:
        ValueError: for a folder without images, or naming a file that cannot be read.
    """
    from torchvision.transforms import functional

    _check.integer("size", size, 1)
    files = sorted(
        file for file in Path(path).rglob("*") if file.suffix.lower() in _IMAGE_ENDINGS
    )

    def read(file: Path) -> Image.Image | None:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":
                    raise OSError(f"more than 8 bits a channel (mode {image.mode})")
                image = ImageOps.exif_transpose(image)
                image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            if not skip_unreadable:
                raise ValueError(f"cannot read the image {file}: {error}") from error
            warnings.warn(f"left out {file}: {error}", stacklevel=2)
            return None
        image = functional.resize(image, size, antialias=True)
        return functional.center_crop(image, size)

    with ThreadPoolExecutor() as pool:  # decoding sets the interpreter free
        images = zip(files, pool.map(read, files))
        found = [(file, image) for file, image in images if image]
    if not found:
        raise ValueError(f"no images ({', '.join(_IMAGE_ENDINGS)}) in {path}")
    mode = "L" if all(image.mode == "L" for _, image in found) else "RGB"
    x_0 = [functional.pil_to_tensor(image.convert(mode)) for _, image in found]
    classes = sorted({file.parent for file, _ in found})
    y = [classes.index(file.parent) for file, _ in found]
    return Images(torch.stack(x_0), torch.tensor(y))


_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
_IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DATA_SETS = {"digits": digits} | {
    name: partial(downloaded, name) for name in _TORCHVISION
}


def load(name: str, split: str = "train") -> Images:
    """A data set by name: "digits", "mnist", "fashion-mnist" or "cifar10"."""
    if name not in DATA_SETS:
        raise ValueError(
            f"data must be one of {', '.join(DATA_SETS)}, or on the command line a folder of images, got {name!r}"
        )
    return DATA_SETS[name](split)


def points(name: str, n: int, seed: int = 0) -> Tensor:
    """Points in the plane, to see diffusion with the naked eye.

    Args:
        name: "spiral", "moons" or "circles".
        n: number of points.
        seed: of the draw.

    Returns:
        float32, shape (n, 2); each coordinate with mean 0 and variance 1.
    """
    from sklearn.datasets import make_circles, make_moons

    _check.integer("n", n, 2)
    rng = np.random.default_rng(seed)
    if name == "spiral":
        angle = 3 * np.pi * np.sqrt(rng.random(n))  # even along the curve
        x = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1)
        x += 0.2 * rng.standard_normal((n, 2))
    elif name == "moons":
        x, _ = make_moons(n, noise=0.05, random_state=seed)
    elif name == "circles":
        x, _ = make_circles(n, noise=0.04, factor=0.5, random_state=seed)
    else:
        raise ValueError(f'name must be "spiral", "moons" or "circles", got {name!r}')
    return torch.from_numpy((x - x.mean(0)) / x.std(0)).float()


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", got {split!r}')
