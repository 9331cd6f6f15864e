"""``checkpoint``: whole files or none, and nothing that was not written here."""

import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ddpm_lite import CheckpointError, checkpoint

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([1, -2]),
    "c": torch.ones(3, dtype=torch.bfloat16),
}
DESCRIPTION = {"kind": "test", "numbers": [1, 2.5, None], "name": "β̃"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, TENSORS, DESCRIPTION)
    return path


def assert_untouched(path):
    tensors, _ = checkpoint.load(path)
    assert torch.equal(tensors["a"], TENSORS["a"])
    assert os.listdir(path.parent) == [path.name], "a temporary file was left"


def test_load_returns_what_was_saved(path):
    tensors, description = checkpoint.load(path)
    assert description == DESCRIPTION
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from(
        [
            torch.float16,
            torch.bfloat16,
            torch.float32,
            torch.float64,
            torch.int64,
            torch.bool,
        ]
    ),
)
@settings(max_examples=25, deadline=None)
def test_any_shape_and_dtype_survives(tmp_path_factory, shape, dtype):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    checkpoint.save(path, {"x": tensor}, {})
    assert torch.equal(checkpoint.load(path)[0]["x"], tensor)
    assert checkpoint.load(path)[0]["x"].dtype == dtype


def test_views_and_parameters_can_be_saved(tmp_path):
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    checkpoint.save(
        tmp_path / "x.safetensors", {"w": weight, "transposed": weight.T}, {}
    )
    tensors, _ = checkpoint.load(tmp_path / "x.safetensors")
    assert torch.equal(tensors["transposed"], weight.detach().T)


def test_the_folder_is_made_and_the_file_is_readable_as_the_umask_says(tmp_path):
    path = tmp_path / "a" / "b" / "x.safetensors"
    old = os.umask(0o027)
    try:
        checkpoint.save(path, TENSORS, {})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_cut_anywhere_is_refused(path):
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(
            CheckpointError,
            match=r"model\.safetensors is damaged or no safetensors file",
        ):
            checkpoint.load(path)


def test_a_file_with_something_behind_is_refused(path):
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        checkpoint.load(path)


def test_a_damaged_header_is_refused(path):
    content = path.read_bytes()
    for position in range(8):
        path.write_bytes(
            content[:position]
            + bytes([content[position] ^ 0xFF])
            + content[position + 1 :]
        )
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"ddpm_lite": "{not JSON"}]
)
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(2)}, path, metadata)
    with pytest.raises(
        CheckpointError, match=r"foreign\.safetensors was not written by ddpm_lite"
    ):
        checkpoint.load(path)


@pytest.mark.parametrize("description", ["[1, 2]", "3", "null", '"text"'])
def test_a_description_that_is_no_object_is_refused(tmp_path, description):
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.ones(2)}, path, {"ddpm_lite": description})
    with pytest.raises(
        CheckpointError, match=r"foreign\.safetensors was not written by ddpm_lite"
    ):
        checkpoint.load(path)


class Trap:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write",
    [torch.save, lambda thing, path: Path(path).write_bytes(pickle.dumps(thing))],
)
def test_a_pickle_is_refused_and_not_run(tmp_path, write):
    path, trap = tmp_path / "model.safetensors", tmp_path / "trap"
    write(Trap(trap), path)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is damaged or no safetensors file"
    ):
        checkpoint.load(path)
    assert not trap.exists()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at .*nowhere\.safetensors"
    ):
        checkpoint.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(tmp_path)


def test_a_write_that_fails_midway_leaves_the_old_file_and_nothing_else(
    path, monkeypatch
):
    whole = Path.write_bytes

    def half(self, content):
        whole(self, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"a": torch.zeros(2, 3)}, {})
    assert_untouched(path)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_writing_leaves_the_old_file_and_nothing_else(path, error):
    def write():
        with checkpoint.atomic(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert_untouched(path)


def test_a_failing_rename_leaves_no_temporary(path, monkeypatch):
    def replace(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(PermissionError):
        checkpoint.save(path, TENSORS, {})
    assert_untouched(path)


def test_a_description_that_json_cannot_hold_leaves_the_old_file(path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoint.save(path, {"a": torch.zeros(1)}, {"x": object()})
    assert_untouched(path)


def test_the_old_file_stays_until_the_new_one_is_whole(path):
    with checkpoint.atomic(path) as temporary:
        assert temporary.parent == path.parent
        assert torch.equal(checkpoint.load(path)[0]["a"], TENSORS["a"])
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("I am no folder")
    with pytest.raises(OSError, match="file"):
        checkpoint.save(tmp_path / "file" / "x.safetensors", TENSORS, {})
    assert os.listdir(tmp_path) == ["file"]
