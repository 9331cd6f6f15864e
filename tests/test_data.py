"""``data``: the sets are what they say, and integers become floats and back without loss."""

import os

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from ddpm_lite import data

NO_MNIST = "MNIST is absent: set DDPM_LITE_DATA to the folder that holds MNIST/raw"


@pytest.mark.parametrize("levels", [2, 16, 17, 256])
def test_every_grey_value_survives_the_way_to_floats_and_back(levels):
    grey = torch.arange(levels, dtype=torch.int64).to(torch.uint8)
    x_0 = data.from_uint8(grey, levels)
    assert (x_0.dtype, float(x_0[0]), float(x_0[-1])) == (torch.float32, -1, 1)
    assert torch.allclose(
        x_0.double(), torch.linspace(-1, 1, levels, dtype=torch.float64), atol=1e-6
    )
    assert torch.equal(data.to_uint8(x_0, levels), grey)
    truncated = ((x_0 + 1) * ((levels - 1) / 2)).to(torch.uint8)
    assert levels < 256 or not torch.equal(truncated, grey), (
        "without rounding some value is lost"
    )


@given(
    st.floats(allow_nan=False, width=32),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
@settings(max_examples=50, deadline=None)
def test_any_float_becomes_the_nearest_grey_value(value, dtype):
    x_0 = torch.tensor([value]).to(dtype)
    nearest = np.clip((x_0.double().numpy() + 1) * 127.5, 0, 255)
    assert abs(float(data.to_uint8(x_0)) - nearest[0]) <= (
        0.56 if dtype == torch.float16 else 0.5001
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: data.from_uint8(torch.zeros(2)),
            TypeError,
            r"images must be a uint8 tensor, got torch\.float32",
        ),
        (
            lambda: data.from_uint8(torch.zeros(2).long()),
            TypeError,
            r"images must be a uint8 tensor, got torch\.int64",
        ),
        (
            lambda: data.from_uint8(np.zeros(2, np.uint8)),
            TypeError,
            "images must be a uint8 tensor, got uint8|ndarray",
        ),
        (
            lambda: data.from_uint8(torch.tensor([17]).byte(), 17),
            ValueError,
            "images must .* below levels = 17, got 17",
        ),
        (
            lambda: data.from_uint8(torch.zeros(2).byte(), 1),
            ValueError,
            "levels must be between 2 and 256, got 1",
        ),
        (
            lambda: data.to_uint8(torch.zeros(2).byte()),
            TypeError,
            r"x_0 must be floating point, got torch\.uint8",
        ),
        (
            lambda: data.to_uint8(torch.tensor([0.0, float("nan")])),
            ValueError,
            "x_0 must have no NaN",
        ),
        (
            lambda: data.check_images(torch.zeros(2, 8, 8)),
            ValueError,
            r"x_0 must have shape \(N, C, H, W\).*\(2, 8, 8\)",
        ),
        (
            lambda: data.check_images(torch.zeros(0, 1, 8, 8)),
            ValueError,
            "x_0 must have shape .* N at least 1",
        ),
        (
            lambda: data.check_images(255 * torch.ones(1, 1, 2, 2)),
            ValueError,
            r"lie in \[-1, 1\], .* from 255 to 255",
        ),
        (
            lambda: data.check_images(torch.full((1, 1, 2, 2), torch.nan)),
            ValueError,
            r"lie in \[-1, 1\], .* nan",
        ),
        (
            lambda: data.check_images(torch.zeros(1, 1, 2, 2).byte()),
            TypeError,
            "x_0 must be floating point",
        ),
        (
            lambda: data.digits("valid"),
            ValueError,
            """split must be "train" or "test", got 'valid'""",
        ),
        (
            lambda: data.load("mnist", "valid"),
            ValueError,
            """split must be "train" or "test", got 'valid'""",
        ),
        (
            lambda: data.load("cifar"),
            ValueError,
            "data must be one of digits, mnist, .*, got 'cifar'",
        ),
        (
            lambda: data.points("line", 10),
            ValueError,
            "name must be \"spiral\", .* got 'line'",
        ),
        (lambda: data.points("moons", 1), ValueError, "n must be at least 2, got 1"),
        (lambda: data.points("moons", 10.0), TypeError, "n must be an int, got 10.0"),
    ],
)
def test_bad_input_is_refused_by_name(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_check_images_returns_what_it_accepts():
    images = data.digits("test").x_0
    assert data.check_images(images) is images


def test_digits_are_those_of_scikit_learn_in_two_parts():
    train, test = data.digits("train"), data.digits("test")
    assert train.x_0.shape == (1437, 1, 8, 8)
    assert test.x_0.shape == (360, 1, 8, 8)
    assert train.y.dtype == torch.int64
    both = [
        (*map(int, (16 * (x + 1) / 2).round().flatten()), int(y))
        for part in (train, test)
        for x, y in zip(*part)
    ]
    source = load_digits()
    assert sorted(both) == sorted(
        (*map(int, x), int(y)) for x, y in zip(source.data, source.target)
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_hold_every_class_in_proportion_and_span_the_range(split):
    images = data.check_images(data.digits(split).x_0)
    assert (float(images.min()), float(images.max())) == (-1, 1)
    share = torch.bincount(data.digits(split).y, minlength=10) / len(images)
    whole = torch.bincount(torch.from_numpy(load_digits().target)) / 1797
    assert torch.allclose(share, whole, atol=0.005)


def test_digits_are_the_same_every_time():
    assert torch.equal(data.digits().x_0, data.load("digits").x_0)


@pytest.mark.skipif("DDPM_LITE_DATA" not in os.environ, reason=NO_MNIST)
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_mnist_is_complete(split, count):
    images = data.load("mnist", split)
    assert data.check_images(images.x_0).shape == (count, 1, 28, 28)
    assert (float(images.x_0.min()), float(images.x_0.max())) == (-1, 1)
    assert torch.bincount(images.y, minlength=10).min() > count / 12
    assert (
        images.y[:5].tolist()
        == {"train": [5, 0, 4, 1, 9], "test": [7, 2, 1, 0, 4]}[split]
    )


@pytest.mark.parametrize("folder", ["MNIST/raw", "elsewhere"])
def test_mnist_that_is_absent_or_incomplete_is_downloaded(
    tmp_path, monkeypatch, folder
):
    class Offline(Exception):
        pass

    def download(self):
        raise Offline

    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(Offline):
        data.downloaded("mnist", root=tmp_path)


def test_mnist_that_cannot_be_downloaded_is_an_os_error_that_names_the_folder(
    tmp_path, monkeypatch
):
    """torchvision raises a bare RuntimeError, which the command line would show as a traceback."""

    def download(self):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", download)
    with pytest.raises(OSError, match=tmp_path.name):
        data.downloaded("mnist", root=tmp_path)


def test_a_name_that_torchvision_is_not_asked_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of mnist, .* got 'kmnist'"):
        data.downloaded("kmnist", root=tmp_path)


@pytest.mark.parametrize("name", ["spiral", "moons", "circles"])
def test_points_are_standardised_and_fixed_by_the_seed(name):
    x = data.points(name, 500, seed=3)
    assert (x.shape, x.dtype) == ((500, 2), torch.float32)
    assert torch.allclose(x.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(x.std(0, correction=0), torch.ones(2), atol=1e-5)
    assert torch.equal(x, data.points(name, 500, seed=3))
    assert not torch.equal(x, data.points(name, 500, seed=4))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mnist", (1, 28, 28)), ("fashion-mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))],
)
def test_what_torchvision_has_comes_as_tensors_of_one_kind(monkeypatch, name, shape):
    """CIFAR-10 comes as numpy (N, H, W, C) with a list of labels, MNIST as tensors (N, H, W)."""

    class Stub:
        def __init__(self, root, train, download):
            grey = shape[0] == 1
            rng = np.random.default_rng(0)
            size = (4, 28, 28) if grey else (4, 32, 32, 3)
            values = rng.integers(0, 256, size, dtype=np.uint8)
            self.data = torch.from_numpy(values) if grey else values
            self.targets = torch.arange(4) if grey else [0, 1, 2, 3]

    original = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
    monkeypatch.setattr(torchvision.datasets, original[name], Stub)
    images = data.load(name)
    assert data.check_images(images.x_0).shape == (4, *shape)
    assert images.y.tolist() == [0, 1, 2, 3]
    raw = np.asarray(Stub(None, None, None).data).reshape(4, *shape[1:], -1)
    back = data.to_uint8(images.x_0).permute(0, 2, 3, 1).numpy()
    assert (back == raw).all()


def write(path, mode, size, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new(mode, size, colour).save(path)


def test_a_folder_of_images_of_any_shape_and_kind(tmp_path):
    write(tmp_path / "cats" / "a.png", "L", (40, 20), 255)
    write(tmp_path / "cats" / "b.JPG", "RGB", (16, 16), (255, 0, 0))
    write(tmp_path / "dogs" / "c.png", "RGBA", (10, 30), (0, 0, 255, 128))
    (tmp_path / "notes.txt").write_text("no image")
    images = data.folder(tmp_path, 8)
    assert (images.x_0.shape, images.x_0.dtype) == ((3, 3, 8, 8), torch.uint8)
    assert images.y.tolist() == [0, 0, 1]
    colours = images.x_0.float().mean((2, 3)).round()
    assert colours[0].tolist() == [255, 255, 255]
    assert colours[2].tolist() == [0, 0, 255]
    assert colours[1][0] > 250 > 10 > colours[1][2]


def test_a_folder_of_grey_images_stays_grey_and_the_middle_is_kept(tmp_path):
    """A white square in the middle of a black strip: the crop shows it whole, a squeezed strip would not."""
    image = PIL.Image.new("L", (60, 20))
    image.paste(255, (20, 0, 40, 20))
    image.save(tmp_path / "a.png")
    (x_0, y) = data.folder(tmp_path, 10)
    assert x_0.shape == (1, 1, 10, 10)
    assert bool((x_0 > 200).all())  # the scaled edge is a little soft
    assert y.tolist() == [0]


def test_the_orientation_of_a_photograph_is_respected(tmp_path):
    image = PIL.Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 10))  # white above
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "a.png", exif=exif)
    x_0 = data.folder(tmp_path, 4).x_0
    assert bool((x_0[..., 2:, :] > 200).all())
    assert bool((x_0[..., :2, :] < 55).all())


def test_an_unreadable_image_is_named_and_left_out_on_request(tmp_path):
    write(tmp_path / "a.png", "L", (8, 8), 7)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"cannot read the image .*b\.png"):
        data.folder(tmp_path, 8)
    with pytest.warns(UserWarning, match=r"left out .*b\.png"):
        assert len(data.folder(tmp_path, 8, skip_unreadable=True).x_0) == 1
    write(tmp_path / "b.png", "I;16", (8, 8), 4000)
    with pytest.raises(ValueError, match=r"b\.png: more than 8 bits a channel"):
        data.folder(tmp_path, 8)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no images \(\.png, .*\) in"):
        data.folder(tmp_path, 8)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        data.folder(tmp_path, 0)
