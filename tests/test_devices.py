"""On a GPU: nothing lies on the wrong device, and no step waits for the GPU. Seen without one.

torch's fake tensors have a shape, a type and a device, and no values: an operation on two devices fails, and so does
looking at a value, for which the CPU would have to wait.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm_lite import (
    MLP,
    GaussianDiffusion,
    Model,
    UNet,
    ancestral,
    ddim,
    linear_schedule,
    simple_loss,
)

GPU = torch.device("cuda", 0)
TIMES = [50, 30, 7, 0]


@pytest.fixture
def diffusion() -> GaussianDiffusion:
    return GaussianDiffusion(linear_schedule(50))


@pytest.fixture(autouse=True)
def _a_gpu_without_values(diffusion):
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


class Copies(TorchDispatchMode):
    """Counts the tensors that are sent from device to device while the CPU waits."""

    waited = 0

    def __torch_dispatch__(self, operation, types, inputs=(), options=None):
        options = options or {}
        if operation is torch.ops.aten._to_copy.default:
            moves = options.get("device", inputs[0].device) != inputs[0].device
            self.waited += moves and not options.get("non_blocking", False)
        return operation(*inputs, **options)


@pytest.fixture
def unet() -> UNet:
    with GPU:
        return UNet(base_channels=8, blocks_per_level=1, groups=4, num_classes=10)


@pytest.fixture
def x_0() -> torch.Tensor:
    return torch.zeros(4, 1, 8, 8, device=GPU)


def test_a_look_and_a_wrong_device_are_noticed(x_0):
    with pytest.raises(DataDependentOutputException):
        bool(x_0.isfinite().all())
    with pytest.raises(Exception, match=r"two (different )?devices"):
        x_0 + torch.zeros(4, 1, 8, 8)
    with Copies() as copies:
        x_0.cpu().to(GPU).to(GPU).to("cpu", non_blocking=True)
    assert copies.waited == 2


def test_networks_look_at_no_value(unet, x_0, diffusion):
    t = torch.full((4,), 3, device=GPU)
    assert unet(x_0, t, t).device == GPU
    with GPU:
        mlp = MLP()
    assert mlp(torch.zeros(4, 2, device=GPU), t).device == GPU
    assert simple_loss(unet, diffusion, x_0).device == GPU


@pytest.mark.parametrize("s", [None, 3, torch.full((4,), 3)])
@pytest.mark.parametrize("t", [7, torch.full((4,), 7)])
def test_the_process_looks_at_no_value(x_0, diffusion, t, s):
    t, s = (z.to(GPU) if isinstance(z, torch.Tensor) else z for z in (t, s))
    mean, variance = diffusion.q_posterior(x_0, x_0, t, s)
    assert mean.device == variance.device == GPU
    assert diffusion.transition_variance(x_0, t, s).device == GPU


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        (ancestral, {}),
        (ancestral, {"variance": "beta"}),
        (ddim, {}),
        (ddim, {"eta": 1.0, "clip": 1.0}),
    ],
)
def test_a_step_of_a_sampler_waits_for_nothing(unet, x_0, diffusion, sampler, options):
    states = sampler(unet, diffusion, x_0, TIMES, **options)
    next(states)  # the first time, ᾱ goes to the GPU
    with Copies() as copies:
        assert [state.x_t.device for state in states] == [GPU] * 3
    assert copies.waited == 0


def test_on_the_meta_device_there_is_nothing_to_look_at():
    """There the cost of a network is counted."""
    with torch.device("meta"):
        mlp, x, t = MLP(), torch.zeros(4, 2), torch.ones(4, dtype=torch.int64)
        assert mlp(x, t).shape == x.shape


def test_labels_go_to_the_gpu_once(unet, diffusion):
    model = Model(unet, diffusion, (1, 8, 8))
    states = model.trajectory(4, y=3, steps=3, seed=0)
    next(states)
    with Copies() as copies:
        assert {state.x_t.device for state in states} == {GPU}
    assert copies.waited == 0


def test_a_wrong_label_is_refused_before_the_gpu_sees_it(unet, diffusion):
    """There the process would be lost."""
    model = Model(unet, diffusion, (1, 8, 8))
    with pytest.raises(ValueError, match="y must be between -1 and 9, got 10"):
        model.sample(4, y=10, steps=3)
