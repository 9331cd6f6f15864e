"""``evaluate`` against closed forms and scipy."""

import json
import os
import sys
from importlib import resources
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.spatial.distance import cdist
from torch import nn

from ddpm_lite import _distributed, checkpoint, load
from ddpm_lite.data import Images, digits, to_uint8
from ddpm_lite.data import load as load_data
from ddpm_lite.evaluate import (
    Classifier,
    classifier_accuracy,
    features,
    fit_classifier,
    frechet_distance,
    in_parts,
    measure,
    nearest_neighbours,
    precision_recall,
    two_sample_accuracy,
)


def normal(n, d, seed, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(
        n, d, generator=generator, dtype=torch.float64
    ) @ torch.randn(d, d, generator=generator, dtype=torch.float64)


def distance_by_scipy(x, y, root=linalg.sqrtm) -> float:
    a, b = x.flatten(1).double().numpy(), y.flatten(1).double().numpy()
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    return float(
        ((a.mean(0) - b.mean(0)) ** 2).sum()
        + np.trace(cov_a + cov_b - 2 * root(cov_a @ cov_b).real)
    )


@given(st.integers(2, 6), st.integers(0, 1000), st.floats(0.1, 5), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_frechet_distance_is_that_of_scipys_matrix_root(d, seed, scale, shift):
    x, y = normal(60, d, seed), normal(80, d, seed + 1, scale, shift)
    assert frechet_distance(x, y) == pytest.approx(
        distance_by_scipy(x, y), rel=1e-5, abs=1e-5
    )
    assert frechet_distance(x, y) == pytest.approx(
        frechet_distance(y, x), rel=1e-6, abs=1e-6
    )


def test_wrong_distances_are_rejected():
    x, y = normal(60, 3, 0), normal(80, 3, 1, shift=1)
    entry_by_entry = distance_by_scipy(x, y, root=lambda c: np.sqrt(np.abs(c)))
    assert frechet_distance(x, y) != pytest.approx(entry_by_entry, rel=1e-5), (
        "the root taken entry by entry"
    )
    mean = float((x.mean(0) - y.mean(0)).square().sum())
    not_squared = distance_by_scipy(x, y) - mean + mean**0.5
    assert frechet_distance(x, y) != pytest.approx(not_squared, rel=1e-5), (
        "the norm of the means not squared"
    )


def test_distance_of_a_set_to_itself_is_zero_even_with_constant_pixels():
    x = digits("test").x_0
    assert float(x.std(0).min()) == 0
    assert frechet_distance(8 * x, 8 * x) == pytest.approx(0, abs=1e-3)


def test_distance_of_a_shifted_set_is_the_square_of_the_shift():
    x = normal(100, 3, 0)
    assert frechet_distance(x, x + torch.tensor([1.0, 2.0, -2.0])) == pytest.approx(
        9, rel=1e-6
    )


@pytest.mark.parametrize("shape", [(100, 1), (100,)])
def test_distance_of_numbers_is_that_of_their_means_and_deviations(shape):
    x, y = normal(100, 1, 0).view(shape), normal(100, 1, 1, 2, 0.5).view(shape)
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_images_are_flattened():
    x, y = digits("train").x_0[:200], digits("test").x_0[:200]
    assert frechet_distance(x, y) == pytest.approx(
        frechet_distance(x.flatten(1), y.flatten(1))
    )


def test_training_digits_are_about_28_from_held_out_digits():
    """The reference of the project, on the scale 0..16, all 360 held-out digits against as many of training."""
    assert 15 < frechet_distance(8 * digits("train").x_0, 8 * digits("test").x_0) < 40


def test_two_sample_accuracy_is_half_for_one_law_and_one_for_two():
    """Two sets of 500 of one law: the accuracy has a standard deviation near 0.016, so 0.1 is 6 of them."""
    x, y = torch.randn(2, 500, 4, generator=torch.Generator().manual_seed(0))
    assert two_sample_accuracy(x, y) == pytest.approx(0.5, abs=0.1)
    assert two_sample_accuracy(x, y + 10) == 1
    assert 0.6 < two_sample_accuracy(x, y + 0.5) < 0.9


def test_two_sample_accuracy_of_a_set_with_itself_is_not_above_half():
    x = digits("test").x_0
    assert two_sample_accuracy(x, x) < 0.55


def test_two_sample_accuracy_is_balanced_and_fixed_by_its_seed():
    x, y = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).split(
        [350, 50]
    )
    assert two_sample_accuracy(x, y) < 0.75, (
        "with 7 of 8 from one set a constant answer would give 0.875"
    )
    assert two_sample_accuracy(x, y, seed=1) == two_sample_accuracy(x, y, seed=1)


@pytest.mark.parametrize("measure", [frechet_distance, two_sample_accuracy])
@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (
            torch.zeros(20, 2),
            torch.zeros(20, 3),
            ValueError,
            r"one shape, got \(20, 2\) and \(20, 3\)",
        ),
        (
            torch.zeros(20, 2),
            torch.zeros(9, 2),
            ValueError,
            r"at least 10 items .* got \(20, 2\) and \(9, 2\)",
        ),
        (
            torch.zeros(20, 2).byte(),
            torch.zeros(20, 2),
            TypeError,
            r"x must be floating point, got torch\.uint8",
        ),
        (
            torch.zeros(20, 2),
            np.zeros((20, 2)),
            TypeError,
            r"y must be a torch\.Tensor, got ndarray",
        ),
        (
            torch.full((20, 2), torch.nan),
            torch.zeros(20, 2),
            ValueError,
            "x must .*(finite|NaN)",
        ),
        (
            torch.zeros(20, 2),
            torch.full((20, 2), torch.inf),
            ValueError,
            "y must .*(finite|NaN)",
        ),
    ],
)
def test_bad_input_is_refused_by_name(measure, x, y, error, message):
    with pytest.raises(error, match=message):
        measure(x, y)


# Precision and recall


def share_by_numpy(points, centres, radii_of, k, skip_self=1, inside=np.less_equal):
    """One item after the other, straight from equation 1 of the paper."""
    count = 0
    for x in points:
        for j, centre in enumerate(centres):
            to_others = np.sort(np.linalg.norm(radii_of - radii_of[j], axis=1))
            radius = to_others[k - 1 + skip_self]
            if inside(np.linalg.norm(x - centre), radius):
                count += 1
                break
    return count / len(points)


@given(st.integers(10, 25), st.integers(10, 25), st.integers(1, 5), st.integers(0, 999))
@settings(max_examples=10, deadline=None)
def test_precision_and_recall_are_those_of_brute_force(n, m, k, seed):
    real, generated = normal(n, 2, seed), normal(m, 2, seed + 1, shift=0.5)
    a, b = real.numpy(), generated.numpy()
    precision, recall = precision_recall(real, generated, k)
    assert precision == pytest.approx(share_by_numpy(b, a, a, k))
    assert recall == pytest.approx(share_by_numpy(a, b, b, k))


def test_wrong_precisions_are_rejected():
    """On whole numbers, where points lie on the borders of balls."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(0, 9, (30, 2), generator=generator).double()
    generated = torch.randint(4, 13, (30, 2), generator=generator).double()
    a, b = real.numpy(), generated.numpy()
    precision, recall = precision_recall(real, generated)
    assert precision == pytest.approx(share_by_numpy(b, a, a, 3))
    assert recall == pytest.approx(share_by_numpy(a, b, b, 3))
    assert precision != recall
    wrong = {
        "radii from the other set": share_by_numpy(b, a, b, 3),
        "each item counted as its own neighbour": share_by_numpy(b, a, a, 3, 0),
        "borders left out": share_by_numpy(b, a, a, 3, inside=np.less),
    }
    for mistake, value in wrong.items():
        assert precision != pytest.approx(value), mistake


def test_precision_and_recall_of_cases_that_can_be_counted():
    line = torch.arange(10.0)[:, None]  # ball of radius 1 around each, for k = 1
    assert precision_recall(line, line, 1) == [1, 1]
    assert precision_recall(line, line + 100, 1) == [0, 0]
    half = torch.cat([line[:5], line[:5] + 50])
    assert precision_recall(line, half, 1) == [0.5, 0.6], "0..5 of 0..9 are reached"
    assert precision_recall(half, line, 1) == [0.6, 0.5]
    same = torch.full((10, 1), 3.0)  # all samples alike: balls of radius 0
    assert precision_recall(line, same, 1) == [1, 0.1], "a collapse costs recall only"


def test_more_than_one_part_changes_nothing():
    real, generated = normal(2500, 2, 0), normal(1300, 2, 1)
    distance = cdist(generated, real)
    radius = np.sort(cdist(real, real), axis=1)[:, 3]
    expected = (distance <= radius).any(1).mean()
    assert precision_recall(real, generated)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (10, ValueError), (1.5, TypeError)]
)
def test_k_is_refused_when_there_is_no_such_neighbour(k, error):
    with pytest.raises(error, match="k must be"):
        precision_recall(normal(20, 2, 0), normal(10, 2, 1), k)


def test_bad_features_are_refused_by_name():
    with pytest.raises(ValueError, match="generated must be finite"):
        precision_recall(normal(20, 2, 0), torch.full((20, 2), torch.nan))
    with pytest.raises(ValueError, match=r"samples and train must .* one shape"):
        nearest_neighbours(normal(20, 2, 0), normal(20, 3, 0))


# Nearest neighbours


def test_nearest_neighbours_of_cases_that_can_be_counted():
    train = torch.cat([torch.arange(9.0), torch.tensor([20.0])])[:, None]
    samples = torch.tensor([0, 0.5, 8.25, 17.0, -4, 1, 2, 3, 4, 5])[:, None]
    ratio, index = nearest_neighbours(samples, train)
    assert ratio[:5].tolist() == [0, 0.5, 0.25, 3 / 12, 4]
    assert index[3:6].tolist() == [9, 0, 1]
    assert ratio[3] != 3 / 8, "divided by the sample's second neighbour in training"


@pytest.mark.parametrize("n", [10, 1300])
def test_nearest_neighbours_are_those_of_scipy(n):
    samples, train = normal(n, 3, 0), normal(1200, 3, 1)
    ratio, index = nearest_neighbours(samples.view(n, 1, 3), train.view(-1, 1, 3))
    distance, among = cdist(samples, train), cdist(train, train)
    np.fill_diagonal(among, np.inf)
    assert (index.numpy() == distance.argmin(1)).all()
    expected = distance.min(1) / among.min(1)[distance.argmin(1)]
    assert ratio.numpy() == pytest.approx(expected, rel=1e-6)


def test_a_training_image_that_is_there_twice_makes_no_nan():
    train = torch.arange(12.0)[:, None] // 2
    ratio, _ = nearest_neighbours(torch.linspace(0, 5.5, 12)[:, None], train)
    assert bool(ratio.isfinite().all())
    assert float(ratio[0]) == 0


def test_held_out_digits_are_as_near_to_training_as_the_project_says():
    grey = [to_uint8(digits(s).x_0, 17).float() for s in ("test", "train")]
    ratio, _ = nearest_neighbours(*grey)
    assert float((ratio < 1).double().mean()) == pytest.approx(0.422, abs=5e-4)
    assert float(ratio.min()) == pytest.approx(0.57, abs=5e-3)
    assert float(nearest_neighbours(grey[1], grey[1])[0].max()) == 0, "all copies"


# The classifier


@pytest.mark.parametrize("size", [8, 28])
def test_a_classifier_is_small_and_has_64_features(size):
    network = Classifier()
    assert sum(p.numel() for p in network.parameters()) < 120_000
    x = torch.zeros(3, 1, size, size)
    assert network.features(x).shape == (3, 64)
    assert float(network.features(torch.randn(3, 1, size, size)).detach().min()) >= 0
    assert network(x).shape == (3, 10)


@pytest.fixture(scope="module")
def fitted():
    return fit_classifier(*digits("train"), seed=1)


def test_a_classifier_learns_the_digits(fitted):
    """A linear classifier gets about 0.95 of the 360 held-out digits right."""
    assert classifier_accuracy(fitted, *digits("test")) > 0.95
    assert not fitted.training


def test_accuracy_is_a_share():
    class Always(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))

        def forward(self, x):
            return self.weight.expand(len(x), 3)

    y = torch.tensor([1, 1, 1, 0])
    assert classifier_accuracy(Always(), torch.zeros(4, 1, 2, 2), y) == 0.75


def test_fitting_is_fixed_by_its_seed_and_leaves_the_random_state_alone():
    x_0, y = digits("test").x_0[:64, :, ::8, ::8], digits("test").y[:64]

    def weights(seed):
        parameters = fit_classifier(x_0, y, seed).parameters()
        return torch.cat([p.detach().flatten() for p in parameters])

    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize(
    ("x_0", "y", "error", "message"),
    [
        (
            torch.zeros(4, 1, 8, 8).byte(),
            torch.zeros(4).long(),
            TypeError,
            "x_0 must be floating",
        ),
        (
            torch.full((4, 1, 8, 8), 9.0),
            torch.zeros(4).long(),
            ValueError,
            r"lie in \[-1, 1\]",
        ),
        (
            torch.zeros(4, 1, 8, 8),
            torch.zeros(3).long(),
            ValueError,
            "y must have shape",
        ),
        (
            torch.zeros(4, 1, 8, 8),
            torch.full((4,), -1),
            ValueError,
            "y must be at least 0",
        ),
    ],
)
def test_what_cannot_be_fitted_is_refused(x_0, y, error, message):
    with pytest.raises(error, match=message):
        fit_classifier(x_0, y)


def test_parts_are_joined_in_order():
    network = nn.Linear(1, 1)
    x = torch.arange(600.0)[:, None]
    torch.testing.assert_close(in_parts(network, x), network(x).detach())
    assert not in_parts(network, x).requires_grad


# Features


def test_pixels_are_whole_grey_values():
    x_0 = digits("test").x_0
    expected = torch.from_numpy(np.rint(8 * (x_0.numpy() + 1))).flatten(1)
    assert torch.equal(features(x_0 + 0.01, "pixels", 17), expected.float())


@pytest.fixture(scope="module")
def weights_folder():
    with resources.as_file(resources.files("ddpm_lite.weights")) as folder:
        yield folder


def test_the_bundled_classifier_is_small_half_precision_and_no_model(weights_folder):
    path = weights_folder / "mnist_classifier.safetensors"
    assert path.stat().st_size <= 250_000
    tensors, description = checkpoint.load(path)
    floats = [t for t in tensors.values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float16}
    card = json.loads((weights_folder / "mnist_classifier.json").read_text())
    assert description == {"kind": "ddpm_lite.Classifier", "card": card}
    assert card["accuracy"]["mnist_test_split"] > 0.985
    with pytest.raises(
        FileNotFoundError, match=r"a bundled model \((?!.*classifier).*\)"
    ):
        load("mnist_classifier")


def test_features_of_28_greys_are_those_of_the_bundled_classifier(weights_folder):
    x_0 = torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = Classifier()
    network.load_state_dict(
        checkpoint.load(weights_folder / "mnist_classifier.safetensors")[0]
    )
    rounded = ((x_0 + 1) * 127.5).round() / 127.5 - 1
    expected = network.eval().features(rounded).detach()
    found = features(x_0, "mnist-classifier")
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found.shape == (300, 64)


@pytest.mark.skipif(
    "DDPM_LITE_DATA" not in os.environ,
    reason="MNIST is absent: set DDPM_LITE_DATA to the folder that holds MNIST/raw",
)
def test_the_bundled_classifier_tells_real_digits_apart(weights_folder):
    """1,000 test images; at the accuracy of the card, 0.99, fewer than 970 right has a probability below 1e-7."""
    test = load_data("mnist", "test")
    network = Classifier().eval()
    network.load_state_dict(
        checkpoint.load(weights_folder / "mnist_classifier.safetensors")[0]
    )
    assert classifier_accuracy(network, test.x_0[-1000:], test.y[-1000:]) > 0.97


def test_inception_is_that_of_torchmetrics_and_sees_three_channels_of_bytes(
    monkeypatch,
):
    seen = []

    class Stub(nn.Module):
        def __init__(self, name, features_list):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            seen.append(x)
            return self.weight * x.flatten(1).float()

    for name in (
        "torch_fidelity",
        "torchmetrics",
        "torchmetrics.image",
        "torchmetrics.image.fid",
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["torchmetrics.image.fid"].NoTrainInceptionV3 = Stub
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = features(digits("test").x_0[:20], "inception", 17)
    assert found.shape == (20, 3 * 64)
    assert (seen[0].dtype, seen[0].shape) == (torch.uint8, (20, 3, 8, 8))
    assert (int(seen[0].min()), int(seen[0].max())) == (0, 255), "0..255, not 0..16"


@pytest.mark.parametrize("absent", ["torch_fidelity", "torchmetrics"])
def test_without_its_packages_inception_says_what_to_install(monkeypatch, absent):
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(
        ValueError, match=r"pip install torchmetrics torch-fidelity.*downloaded"
    ):
        features(torch.zeros(10, 3, 8, 8), "inception")


@pytest.mark.parametrize(("name", "size"), [("vgg", 28), ("mnist-classifier", 8)])
def test_an_extractor_that_does_not_fit_is_refused(name, size):
    with pytest.raises(
        ValueError, match=rf"extractor must be .*, got '{name}', \[1, {size}, {size}\]"
    ):
        features(torch.zeros(10, 1, size, size), name)


def test_the_other_processes_do_not_wait_for_what_the_first_does_alone(
    tiny_model, monkeypatch
):
    x_0, y = digits("test")
    images = Images(x_0[:20], y[:20])
    options = {"n": 12, "steps": 1, "levels": 17}
    first = measure(tiny_model, images, images, **options)
    assert first.pop("measures")["frechet_distance"] > 0
    monkeypatch.setattr(_distributed, "place", lambda: (1, 1))
    assert measure(tiny_model, images, images, **options) == first
