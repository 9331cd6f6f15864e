"""``models/mlp.py``: the network for points, against a forward pass written with numpy, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lite import ExactEps, GaussianDiffusion, linear_schedule, simple_loss
from ddpm_lite.models import MLP
from ddpm_lite.train import train


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def by_numpy(network: MLP, x_t: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The same function from the weights alone."""
    weights = {k: v.double().numpy() for k, v in network.state_dict().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    half = network.config["width"] // 2
    angle = (t[:, None] - 1) * 10_000.0 ** -(np.arange(half) / (half - 1))
    sinusoids = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    time = linear("time_embedding.linear_1", sinusoids)
    time = linear("time_embedding.linear_2", silu(time))
    h = linear("linear_in", x_t)
    for i in range(network.config["depth"]):
        h = h + linear(f"hidden.{i}", silu(h + time))
    return linear("linear_out", silu(h))


@pytest.mark.parametrize("config", [(2, 16, 3), (1, 4, 1), (5, 32, 2)])
def test_output_is_that_of_the_same_weights_in_numpy(randomised, config) -> None:
    network = randomised(MLP(*config))
    x_t, t = torch.randn(7, config[0]), torch.tensor([1, 2, 3, 10, 100, 999, 1000])
    with torch.no_grad():
        output = network(x_t, t).numpy()
    right = by_numpy(network, x_t.double().numpy(), t.numpy())
    assert np.abs(right).max() > 0.1
    assert np.abs(output - right).max() < 1e-3 * max(1, np.abs(right).max())
    shifted = by_numpy(network, x_t.double().numpy(), t.numpy() + 1)
    assert np.abs(output - shifted).max() > 1e-2, "the time is used"


def test_a_new_network_predicts_zero() -> None:
    assert not MLP()(torch.randn(3, 2), torch.tensor([1, 5, 9])).any()


def test_config_rebuilds_the_network(randomised) -> None:
    network = randomised(MLP(3, width=8, depth=2))
    copy = MLP(**network.config)
    copy.load_state_dict(network.state_dict())
    x_t, t = torch.randn(4, 3), torch.tensor([1, 2, 3, 4])
    assert torch.equal(copy(x_t, t), network(x_t, t))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from([4, 6, 16]),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_shape_is_kept_and_items_do_not_mix(dim, width, depth, n) -> None:
    torch.manual_seed(0)
    network = MLP(dim, width, depth)
    torch.nn.init.normal_(network.linear_out.weight)
    x_t, t = torch.randn(n, dim), torch.arange(1, n + 1)
    output = network(x_t, t)
    assert output.shape == x_t.shape
    for i in range(n):
        one = network(x_t[i : i + 1], t[i : i + 1])
        assert torch.allclose(one, output[i : i + 1], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_has_the_dtype_of_the_network(dtype) -> None:
    network = MLP(width=8).to(dtype)
    output = network(torch.zeros(1, 2, dtype=dtype), torch.tensor([1]))
    assert output.dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"dim": 2.0}, TypeError, "dim must be an int"),
        ({"width": 7}, ValueError, "width must be even, got 7"),
        ({"width": 2}, ValueError, "width must be at least 4, got 2"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": True}, TypeError, "depth must be an int"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        MLP(**arguments)


@pytest.mark.parametrize(
    ("x_t", "t", "error", "message"),
    [
        (torch.zeros(3, 3), torch.ones(3).long(), ValueError, r"shape \(B, 2\)"),
        (torch.zeros(3, 2, 1), torch.ones(3).long(), ValueError, r"shape \(B, 2\)"),
        (torch.zeros(3, 2).long(), torch.ones(3).long(), TypeError, "floating point"),
        (torch.zeros(3, 2), torch.ones(2).long(), ValueError, "t must have shape"),
        (torch.zeros(3, 2), torch.ones(3), TypeError, "t must be an integer tensor"),
        (torch.zeros(3, 2), torch.zeros(3).long(), ValueError, "t must be at least 1"),
        (np.zeros((3, 2)), torch.ones(3).long(), TypeError, "x_t must be a torch"),
    ],
)
def test_bad_input_is_refused(x_t, t, error, message) -> None:
    with pytest.raises(error, match=message):
        MLP(width=8)(x_t, t)


def test_training_comes_close_to_the_best_loss_there_is() -> None:
    """Two normal blobs: the loss of ``ExactEps`` is the floor; a short training ends near it, an untrained net at 1."""
    schedule = linear_schedule(T=50)
    diffusion = GaussianDiffusion(schedule)
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
    x_0 = means[torch.randint(2, (2000,), generator=generator)]
    x_0 = x_0 + 0.2 * torch.randn(2000, 2, generator=generator)
    exact = ExactEps(schedule, means, 0.04 * torch.eye(2).expand(2, 2, 2))
    torch.manual_seed(0)
    network = MLP(width=32)
    *_, last = train(network, diffusion, x_0, steps=300, batch_size=128, warmup=30)

    def loss(eps_model) -> float:
        big = x_0.repeat(10, 1)
        with torch.no_grad():
            return float(
                simple_loss(eps_model, diffusion, big, torch.Generator().manual_seed(1))
            )

    assert loss(exact) - 0.01 < loss(last.ema) < loss(exact) + 0.06
    assert loss(MLP(width=32)) > loss(exact) + 0.3
