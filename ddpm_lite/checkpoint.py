"""Files that are whole or not there: tensors with a JSON description, in one safetensors file. Chapter 9.

The description travels in the header of the tensors' own file, so the two can never disagree. Nothing here
unpickles, so a file from a stranger cannot run code.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

_KEY = "ddpm_lite"


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
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(
            0o666 & ~umask
        )  # mkstemp makes files that only the owner can read
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
    content = to_bytes(tensors, metadata={_KEY: json.dumps(description)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
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
    return tensors, description
