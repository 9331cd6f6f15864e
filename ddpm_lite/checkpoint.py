"""Files that are whole or not there: tensors with a JSON description, in one safetensors file. Chapter 9.

The description travels in the header of the tensors' own file, so the two can never disagree, together with a
checksum of the tensors, so that damage on the disk is found. Nothing here unpickles, so a file from a stranger
cannot run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

_KEY, _SUM = "ddpm_lite", "sha256"


class CheckpointError(ValueError):
    """A file that is damaged, or was not written by this package."""


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes ``path`` if all goes well and vanishes if not.

    The temporary file lies in the same folder, so that the renaming cannot be half done.

    Raises:
        OSError: if the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
    except OSError as error:
        raise OSError(f"cannot write to the folder {path.parent}: {error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:  # Windows does not sync what is only read
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp lets only the owner read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save(
    path: str | Path, tensors: dict[str, Tensor], description: dict[str, object]
) -> None:
    """Write tensors and their description to ``path``, all or nothing.

    Args:
        path: the file, usually ``*.safetensors``.
        tensors: by name.
        description: anything that JSON can hold.

    Raises:
        OSError: if the file cannot be written; a file that was there before is then untouched.
    """
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }
    header = {_KEY: json.dumps(description), _SUM: _checksum(tensors)}
    with atomic(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata=header))


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read what ``save`` wrote: the tensors, on the CPU, and the description.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is truncated, damaged, or not one of this package.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies, because Windows does not delete a file of which a tensor is a part.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: {error}"
        ) from error
    try:
        description = json.loads(metadata[_KEY])
        if not isinstance(description, dict):
            raise TypeError("the description is no JSON object")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} was not written by ddpm_lite: it has no description"
        ) from error
    if metadata.get(_SUM) != _checksum(tensors):
        raise CheckpointError(f"{path} is damaged: its checksum does not fit")
    return tensors, description


def newest(
    folder: str | Path, pattern: str
) -> tuple[Path, dict[str, Tensor], dict[str, object]] | None:
    """The last checkpoint in a folder, by name, that can be read: its path and what ``load`` gives; None if none can.

    Args:
        folder: where to look; it need not exist.
        pattern: of the file names, such as "step-*.safetensors".

    Warns:
        UserWarning: naming each damaged file that is passed over.
    """
    for path in sorted(Path(folder).glob(pattern), reverse=True):
        try:
            return path, *load(path)
        except CheckpointError as error:
            warnings.warn(f"{error}; going back to the one before", stacklevel=2)
    return None


def _checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
