"""The UNet against diffusers' with the same weights, and its properties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_lite import UNet
from ddpm_lite.interop import unet_from_diffusers, unet_to_diffusers
from ddpm_lite.models.unet import GroupNorm, sinusoidal_embedding

CIFAR = {
    "in_channels": 3,
    "base_channels": 128,
    "channel_mults": (1, 2, 2, 2),
    "attention_levels": (1,),
    "groups": 32,
}
GREY = {
    "base_channels": 32,
    "channel_mults": (1, 2, 2),
    "blocks_per_level": 1,
    "attention_levels": (1, 2),
}
LABELLED = {
    "base_channels": 16,
    "channel_mults": (1, 2),
    "attention_levels": (0,),
    "head_channels": 8,
    "groups": 4,
    "num_classes": 10,
}
SMALL = {
    "base_channels": 8,
    "channel_mults": (1, 2, 2),
    "blocks_per_level": 1,
    "groups": 4,
}


@pytest.mark.parametrize(
    ("config", "size"),
    [(CIFAR, 32), (GREY, 28), (LABELLED, 8)],
    ids=["cifar", "grey", "labelled"],
)
def test_output_is_that_of_diffusers_with_the_same_weights(randomised, config, size):
    """The configuration goes to them and comes back, the weights are theirs."""
    built = UNet(**config)
    theirs = randomised(unet_to_diffusers(built, size))
    ours = unet_from_diffusers(theirs)
    assert ours.config == built.config
    generator = torch.Generator().manual_seed(0)
    x, t = (
        torch.randn(2, ours.config["in_channels"], size, size, generator=generator),
        torch.tensor([1, 777]),
    )
    y = torch.tensor([3, 9]) if "num_classes" in config else None
    with torch.no_grad():
        expected = theirs(x, t - 1, y).sample
        scale = float(expected.abs().max())
        assert scale > 0.1
        assert float((ours(x, t, y) - expected).abs().max()) < 1e-5 * max(1.0, scale)
        assert float((ours(x, t + 1, y) - expected).abs().max()) > 1e-5 * max(
            1.0, scale
        ), "time not shifted by one"


def test_the_cifar_network_has_as_many_parameters_as_that_of_the_paper():
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(**CIFAR).parameters()) == 35_746_307


def test_sinusoids_are_those_of_the_definition():
    position, channels = torch.tensor([0, 3, 999]), 8
    angle = position[:, None].double() * 10_000 ** -(torch.arange(4).double() / 3)
    expected = torch.cat([angle.sin(), angle.cos()], dim=1)
    assert torch.allclose(
        sinusoidal_embedding(position, channels).double(), expected, atol=1e-4
    )


def test_a_new_network_predicts_zero():
    unet = UNet(**SMALL)
    assert (
        float(unet(torch.randn(2, 1, 8, 8), torch.tensor([1, 9])).detach().abs().max())
        == 0
    )


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([(1,), (1, 2), (2, 1, 1)]),
    st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_shape_is_kept_whatever_it_is(batch, in_channels, height, width, mults, blocks):
    factor = 2 ** (len(mults) - 1)
    unet = UNet(
        in_channels, 4, mults, blocks, attention_levels=range(len(mults)), groups=2
    )
    x = torch.zeros(batch, in_channels, height * factor, width * factor)
    with torch.no_grad():
        assert unet(x, torch.ones(batch, dtype=torch.int64)).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_output_has_the_dtype_of_the_network(randomised, dtype):
    unet = randomised(UNet(**SMALL)).eval()
    x, t = (
        torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 9]),
    )
    with torch.no_grad():
        expected = unet(x, t)
        result = unet.to(dtype)(x.to(dtype), t)
    assert result.dtype == dtype
    assert torch.allclose(
        result.float(), expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-4
    )


def test_output_depends_on_time_but_not_on_the_rest_of_the_batch(randomised):
    unet = randomised(UNet(**SMALL)).eval()
    x, t = (
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 2, 1000]),
    )
    with torch.no_grad():
        together = unet(x, t)
        for i in range(3):
            assert torch.allclose(
                unet(x[i : i + 1], t[i : i + 1]), together[i : i + 1], atol=1e-5
            )
        for other in (torch.tensor([2, 1, 999]), t + 1):
            assert bool(
                ((unet(x, other) - together).abs().amax(dim=(1, 2, 3)) > 1e-4).all()
            )


def test_output_depends_on_the_label_and_minus_one_means_none(randomised):
    unet = randomised(UNet(**SMALL, num_classes=3)).eval()
    x, t = (
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(
            4, -1, -1, -1
        ),
        torch.full((4,), 5),
    )
    with torch.no_grad():
        labelled, plain = unet(x, t, torch.tensor([0, 1, 2, -1])), unet(x, t)
    assert torch.allclose(labelled[3], plain[3], atol=1e-6)
    for i in range(4):
        for j in range(i):
            assert float((labelled[i] - labelled[j]).abs().max()) > 1e-4


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_labels_and_times_of_any_integer_dtype_are_accepted(randomised, dtype):
    unet = randomised(UNet(**SMALL, num_classes=3)).eval()
    x, t, y = torch.zeros(2, 1, 4, 4), torch.tensor([1, 9]), torch.tensor([-1, 2])
    with torch.no_grad():
        assert torch.equal(unet(x, t.to(dtype), y.to(dtype)), unet(x, t, y))


def test_every_parameter_gets_a_gradient(randomised):
    unet = randomised(UNet(**SMALL, attention_levels=(0, 2), num_classes=3))
    x, t = (
        torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 50, 1000]),
    )
    unet(x, t, torch.tensor([0, 1, 2])).square().mean().backward()
    silent = [
        name
        for name, p in unet.named_parameters()
        if p.grad is None or not bool((p.grad != 0).any())
    ]
    # A constant added to every key changes no softmax, so the bias of the keys has no gradient but rounding.
    assert [name for name in silent if not name.endswith("key.bias")] == []


def test_dropout_acts_in_training_only(randomised):
    unet = randomised(UNet(**SMALL, dropout=0.5))
    x, t = (
        torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([5]),
    )
    with torch.no_grad():
        assert not torch.equal(unet.train()(x, t), unet(x, t))
        assert torch.equal(unet.eval()(x, t), unet(x, t))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_convolutions_see_the_channels_of_a_pixel_side_by_side(randomised, precision):
    """The layout that they are fast in, on a CPU; any layer in between may lose it, forwards or backwards."""
    unet = randomised(UNet(**SMALL | {"attention_levels": (0, 1)}))
    seen = {}

    def look(name):
        def hook(_, inputs, output):
            seen[f"input of {name}"] = inputs[0]
            output.register_hook(lambda g: seen.update({f"gradient of {name}": g}))

        return hook

    for name, layer in unet.named_modules():
        if name.endswith(("conv_1", "conv_2")):
            layer.register_forward_hook(look(name))
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = unet(torch.randn(2, 1, 8, 8), torch.tensor([1, 9])).square().mean()
    loss.backward()
    normalised = [n for n in seen if "input" in n or "conv_1" in n]
    assert len(normalised) == 3 * 11
    assert [
        n
        for n in normalised
        if not seen[n].is_contiguous(memory_format=torch.channels_last)
    ] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_group_norm_counts_in_the_precision_of_its_weights(dtype):
    """Half-precision input with a mean of 20 deviations is normalised as if it had come in float32."""
    norm, generator = GroupNorm(2, 8), torch.Generator().manual_seed(0)
    if dtype == torch.float64:
        norm.double()
    x = (20 + torch.randn(2, 8, 16, 16, generator=generator)).to(dtype)
    groups = x.double().view(2, 2, -1)
    expected = (groups - groups.mean(2, keepdim=True)) / groups.std(
        2, correction=0, keepdim=True
    )
    result = norm(x).detach()
    assert result.dtype == dtype
    error = (result.double().view(2, 2, -1) - expected).abs().max()
    assert float(error) < {torch.float64: 1e-4}.get(dtype, 2e-2)


def test_autocast_changes_the_output_by_its_rounding_only(randomised):
    unet = randomised(UNet(**GREY)).eval()
    x, t = torch.randn(4, 1, 28, 28), torch.tensor([1, 100, 500, 1000])
    with torch.no_grad():
        exact = unet(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = unet(x, t).float()
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02


def test_config_rebuilds_the_network(randomised):
    unet = UNet(**LABELLED, dropout=0.1)
    again = UNet(**unet.config)
    again.load_state_dict(unet.state_dict())
    assert again.config == unet.config


X, T = torch.zeros(2, 1, 8, 8), torch.tensor([1, 2])


@pytest.mark.parametrize(
    ("x_t", "t", "y", "error", "message"),
    [
        (
            torch.zeros(2, 1, 8, 6),
            T,
            None,
            ValueError,
            r"multiples of 4, .* got \(2, 1, 8, 6\)",
        ),
        (
            torch.zeros(2, 1, 7, 8),
            T,
            None,
            ValueError,
            "height and width of x_t must be multiples of 4",
        ),
        (
            torch.zeros(2, 3, 8, 8),
            T,
            None,
            ValueError,
            r"x_t must have shape \(B, 1, H, W\), got \(2, 3, 8, 8\)",
        ),
        (
            torch.zeros(2, 64),
            T,
            None,
            ValueError,
            r"x_t must have shape \(B, 1, H, W\), got \(2, 64\)",
        ),
        (
            X.to(torch.uint8),
            T,
            None,
            TypeError,
            r"x_t must be floating point, got torch\.uint8; .*from_uint8",
        ),
        (
            X,
            T.float(),
            None,
            (TypeError, ValueError),
            r"t must be an integer tensor.* got torch\.float32",
        ),
        (
            X,
            T.bool(),
            None,
            (TypeError, ValueError),
            r"t must be an integer tensor.* got torch\.bool",
        ),
        (
            X,
            torch.tensor([1, 2, 3]),
            None,
            ValueError,
            r"t must .*shape \(2,\).* got .*\(3,\)",
        ),
        (X, torch.tensor([0, 2]), None, ValueError, "t must be .* got 0"),
        (X, 2.0, None, TypeError, "t must be .*integer tensor.* got 2.0"),
        (
            X,
            T,
            torch.tensor([0, 3]),
            ValueError,
            "y must be between -1 and 2, got 0 to 3",
        ),
        (
            X,
            T,
            torch.tensor([-2, 0]),
            ValueError,
            "y must be between -1 and 2, got -2 to 0",
        ),
        (
            X,
            T,
            torch.tensor([0.0, 1.0]),
            TypeError,
            r"y must be an integer tensor, got torch\.float32",
        ),
        (X, T, torch.tensor([0]), ValueError, r"y must have shape \(2,\)"),
    ],
)
def test_bad_input_is_refused_by_name(x_t, t, y, error, message):
    unet = UNet(**SMALL, num_classes=3)
    with pytest.raises(error, match=message):
        unet(x_t, t, y)


def test_one_label_for_the_whole_batch_is_accepted_or_refused_by_name(randomised):
    """``_check.times`` lets an int through; then it has to work as one."""
    unet = randomised(UNet(**SMALL, num_classes=3)).eval()
    with torch.no_grad():
        assert torch.equal(unet(X, T, 2), unet(X, T, torch.tensor([2, 2])))


def test_labels_for_a_network_without_are_refused():
    with pytest.raises(
        ValueError,
        match="y was given, but this network has no labels; build it with num_classes",
    ):
        UNet(**SMALL)(X, T, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
        ({"base_channels": 7}, ValueError, "base_channels must be even, got 7"),
        ({"base_channels": 2}, ValueError, "base_channels must be at least 4, got 2"),
        ({"base_channels": 8.0}, TypeError, "base_channels must be an int, got 8.0"),
        (
            {"channel_mults": ()},
            ValueError,
            r"len\(channel_mults\) must be at least 1, got 0",
        ),
        (
            {"channel_mults": (1, 0)},
            ValueError,
            "channel_mults must be at least 1, got 0",
        ),
        (
            {"blocks_per_level": 0},
            ValueError,
            "blocks_per_level must be at least 1, got 0",
        ),
        (
            {"attention_levels": (3,)},
            ValueError,
            "attention_levels must be between 0 and 2, got 3",
        ),
        (
            {"groups": 3},
            ValueError,
            r"groups must divide every number of channels \[8, 16, 16\], got 3",
        ),
        (
            {"head_channels": 5},
            ValueError,
            "head_channels must divide every number of channels .* got 5",
        ),
        ({"dropout": 1.5}, ValueError, r"dropout must be between 0 and 1, got 1\.5"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
    ],
)
def test_bad_configuration_is_refused_by_name(changes, error, message):
    with pytest.raises(error, match=message):
        UNet(**SMALL | changes)


def test_on_an_accelerator_torch_compiles_it_as_one_graph():
    """The device "meta" stands for one: nothing there can be looked at on the way."""
    with torch.device("meta"):
        unet = UNet(base_channels=8, blocks_per_level=1, groups=4, num_classes=10)
        x_t, t = torch.zeros(2, 1, 8, 8), torch.ones(2, dtype=torch.int64)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    assert compiled(x_t, t, t).shape == x_t.shape
