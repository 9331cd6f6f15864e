"""The equations of chapter 8, each by a route of its own, and the table that the chapter quotes from the benchmark."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import sympy as sp
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from book import BOOK, ROOT, read
from ddpm_lite import UNet, simple_loss
from ddpm_lite.models.unet import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    TimeEmbedding,
    Upsample,
    sinusoidal_embedding,
)


def same(left: sp.Expr, right: sp.Expr) -> bool:
    """Whether two expressions are equal for all values of their symbols."""
    return sp.simplify(left - right) == 0


def counted_flops(module: nn.Module, *inputs: Tensor | int) -> int:
    """What PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


# What the network has to do.


@pytest.mark.equation("eq-unet-weights")
@pytest.mark.parametrize(
    ("k", "c_in", "c_out"), [(1, 3, 5), (3, 3, 128), (3, 7, 2), (5, 4, 4)]
)
def test_weights_of_a_layer(k: int, c_in: int, c_out: int) -> None:
    with torch.device("meta"):
        convolution = sum(p.numel() for p in nn.Conv2d(c_in, c_out, k).parameters())
        n = c_in * 6 * 6
        full = sum(p.numel() for p in nn.Linear(n, n).parameters())
    assert convolution == k**2 * c_in * c_out + c_out
    assert convolution != k**2 * c_in * c_out  # the bias forgotten
    assert k == 1 or convolution != k * c_in * c_out + c_out  # a line for a square
    assert full == n**2 + n
    assert full != n**2


def seen(kernels: list[int], strides: list[int]) -> int:
    """The input pixels on which one output depends, by the gradient; positive weights cannot cancel."""
    stack = nn.Sequential(
        *(
            nn.Conv1d(1, 1, k, stride=s, dtype=torch.float64)
            for k, s in zip(kernels, strides)
        )
    )
    for parameter in stack.parameters():
        nn.init.constant_(parameter, 0.5)
    x = torch.zeros(1, 1, 400, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(stack(x)[0, 0, 1], x)
    window = gradient.nonzero()[:, 2]
    return int(window.max() - window.min()) + 1


@pytest.mark.equation("eq-unet-receptive-step", "eq-unet-receptive-field")
def test_receptive_field_is_where_the_gradient_is_not_zero() -> None:
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(20):
        depth = int(rng.integers(1, 6))
        strides = rng.integers(1, 3, depth).tolist()
        kernels = [int(rng.integers(s, 6)) for s in strides]  # no gaps between windows
        by_gradient = seen(kernels, strides)
        by_steps = 1
        for k, s in zip(reversed(kernels), reversed(strides)):
            by_steps = (by_steps - 1) * s + k
        by_sum = 1 + sum(
            (k - 1) * math.prod(strides[:i]) for i, k in enumerate(kernels)
        )
        own_stride_too = 1 + sum(
            (k - 1) * math.prod(strides[: i + 1]) for i, k in enumerate(kernels)
        )
        assert by_gradient == by_steps == by_sum
        rejected += own_stride_too != by_gradient
    assert rejected > 10


# The time.


def by_mpmath(t: int, c: int, spacing: int, first: int = 1) -> list[float]:
    """The embedding to 30 digits."""
    with mpmath.workdps(30):
        angles = [
            (t - first) * mpmath.mpf(10000) ** (-mpmath.mpf(k) / spacing)
            for k in range(c // 2)
        ]
        return [float(f(a)) for f in (mpmath.sin, mpmath.cos) for a in angles]


@pytest.mark.equation("eq-unet-frequencies", "eq-unet-embedding")
@pytest.mark.parametrize("c", [8, 32])
def test_embedding(c: int) -> None:
    times = torch.tensor([1, 2, 57, 500, 1000])
    ours = sinusoidal_embedding(times - 1, c).double().numpy()
    expected = np.array([by_mpmath(int(t), c, c // 2 - 1) for t in times])
    assert np.abs(ours - expected).max() < 1e-4
    theirs = get_timestep_embedding(
        times - 1, c, flip_sin_to_cos=False, downscale_freq_shift=1
    )
    assert np.abs(ours - theirs.double().numpy()).max() < 1e-4
    wrong = {
        "spacing c/2": [by_mpmath(int(t), c, c // 2) for t in times],
        "t for t - 1": [by_mpmath(int(t), c, c // 2 - 1, first=0) for t in times],
        "cosines first": np.roll(expected, c // 2, axis=1),
        "interleaved": expected.reshape(-1, 2, c // 2)
        .transpose(0, 2, 1)
        .reshape(-1, c),
    }
    for name, other in wrong.items():
        assert np.abs(ours - np.array(other)).max() > 0.01, name


def test_the_network_embeds_t_minus_1() -> None:
    torch.manual_seed(0)
    layer = TimeEmbedding(8, 16)
    t = torch.tensor([1, 40])
    sinusoids = torch.tensor([by_mpmath(int(each), 8, 3) for each in t]).float()
    expected = layer.linear_2(nn.functional.silu(layer.linear_1(sinusoids)))
    assert torch.allclose(layer(t), expected, atol=1e-4)


@pytest.mark.equation("eq-unet-similarity")
def test_likeness_of_two_times() -> None:
    t, other = sp.symbols("t t_prime", real=True)
    omega = sp.symbols("omega_0:3", positive=True)
    dot = sum(
        sp.sin(w * (t - 1)) * sp.sin(w * (other - 1))
        + sp.cos(w * (t - 1)) * sp.cos(w * (other - 1))
        for w in omega
    )
    assert same(dot, sum(sp.cos(w * (t - other)) for w in omega))
    assert not same(dot, sum(sp.cos(w * (t + other)) for w in omega))
    assert not same(dot, sum(sp.sin(w * (t - other)) for w in omega))
    e = sinusoidal_embedding(torch.arange(1000), 16).double()
    angles = 10000.0 ** (-np.arange(8) / 7)
    assert float(e[4] @ e[29]) == pytest.approx(np.cos(angles * 25).sum(), abs=1e-4)


# The residual block.


@pytest.mark.equation("eq-unet-residual")
@pytest.mark.parametrize(("c_in", "c_out"), [(8, 8), (8, 12)])
def test_block_is_its_way_around_plus_its_convolutions(
    randomised: Callable, c_in: int, c_out: int
) -> None:
    block = randomised(ResidualBlock(c_in, c_out, 6, groups=4, dropout=0.0))
    inner = []
    block.conv_2.register_forward_hook(lambda _, __, output: inner.append(output))
    x, time = torch.randn(2, c_in, 4, 4), torch.randn(2, 6)
    result = block(x, time)
    around = x if c_in == c_out else block.shortcut(x)
    assert torch.allclose(result, around + inner[0], atol=1e-6)
    assert not torch.allclose(result, inner[0], atol=1e-2)


@pytest.mark.equation("eq-unet-jacobian")
def test_derivative_through_three_blocks(randomised: Callable) -> None:
    blocks = [
        randomised(ResidualBlock(4, 4, 6, groups=2, dropout=0.0), seed).double()
        for seed in range(3)
    ]
    time = torch.randn(1, 6, dtype=torch.float64)
    start = torch.randn(1, 4, 2, 2, dtype=torch.float64)

    def jacobian(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return torch.autograd.functional.jacobian(f, x).view(16, 16)

    def all_blocks(x: Tensor) -> Tensor:
        for block in blocks:
            x = block(x, time)
        return x

    factors, y = [], start
    for block in blocks:
        factors.append(jacobian(lambda x, b=block: b(x, time) - x, y))
        y = block(y, time)
    whole, eye = jacobian(all_blocks, start), torch.eye(16, dtype=torch.float64)
    first, second, third = factors
    right = (eye + third) @ (eye + second) @ (eye + first)
    assert torch.allclose(whole, right, atol=1e-10)
    assert not torch.allclose(whole, third @ second @ first, atol=0.1)
    assert not torch.allclose(
        whole, (eye + first) @ (eye + second) @ (eye + third), atol=0.01
    )


@pytest.mark.equation("eq-unet-initial-loss")
def test_loss_of_a_constant_answer(diffusion) -> None:
    eps, c = sp.symbols("epsilon c", real=True)
    density = sp.exp(-(eps**2) / 2) / sp.sqrt(2 * sp.pi)
    loss = sp.integrate(sp.expand((eps - c) ** 2) * density, (eps, -sp.oo, sp.oo))
    assert same(loss, 1 + c**2)
    assert not same(loss, sp.Integer(1))
    assert not same(loss, (1 + c) ** 2)
    # A new network, 40 batches of 64 values: six standard deviations, false alarm below 1e-8.
    torch.manual_seed(0)
    unet = UNet(1, 4, (1,), 1, (), groups=2)
    x_0 = torch.zeros(40, 1, 8, 8)
    measured = float(simple_loss(unet, diffusion, x_0).detach())
    assert measured == pytest.approx(1, abs=6 * (2 / x_0.numel()) ** 0.5)


# Normalisation.


def group_norm(x: np.ndarray, axes: str, groups: int = 2, ddof: int = 0) -> np.ndarray:
    """x minus mean over deviation, over a group of one image, one channel of one image, or one channel of all."""
    B, C, H, W = x.shape
    if axes == "batch":
        parts, over = x, (0, 2, 3)
    else:
        parts = x.reshape(B, groups if axes == "group" else C, -1, H, W)
        over = (2, 3, 4)
    mean = parts.mean(axis=over, keepdims=True)
    variance = parts.var(axis=over, keepdims=True, ddof=ddof)
    return ((parts - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape)


@pytest.mark.equation("eq-unet-group-norm")
def test_group_norm() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (3, 4, 2, 2)) * np.array([1, 2, 3])[:, None, None, None]
    block = ResidualBlock(4, 4, 6, groups=2, dropout=0.0).double()
    scale, shift = rng.normal(size=4), rng.normal(size=4)
    block.norm_1.weight.data[:] = torch.from_numpy(scale)
    block.norm_1.bias.data[:] = torch.from_numpy(shift)
    result = block.norm_1(torch.from_numpy(x)).detach().numpy()

    def affine(normal: np.ndarray) -> np.ndarray:
        return scale[:, None, None] * normal + shift[:, None, None]

    assert np.allclose(result, affine(group_norm(x, "group")), atol=1e-12)
    for wrong in (
        group_norm(x, "channel"),
        group_norm(x, "batch"),
        group_norm(x, "group", ddof=1),
    ):
        assert np.abs(result - affine(wrong)).max() > 0.01


@pytest.mark.equation("eq-unet-batch-statistics")
def test_variance_of_a_batch() -> None:
    images = [sp.symbols(f"x{b}_0:2", real=True) for b in range(3)]
    values = [value for image in images for value in image]

    def mean(numbers: list) -> sp.Expr:
        return sum(numbers) / sp.Integer(len(numbers))

    def variance(numbers: list) -> sp.Expr:
        return mean([(number - mean(numbers)) ** 2 for number in numbers])

    within = mean([variance(image) for image in images])
    between = variance([mean(image) for image in images])
    assert same(variance(values), within + between)
    assert not same(variance(values), within)
    assert not same(variance(values), mean([within, between]))
    layer = nn.BatchNorm2d(1, affine=False, momentum=None).double()
    x = torch.randn(5, 1, 2, 3, dtype=torch.float64) * torch.arange(1, 6).view(
        5, 1, 1, 1
    )
    layer(x)  # its running variance divides by one less
    mixture = x.var((1, 2, 3), correction=0).mean() + x.mean((1, 2, 3)).var(
        correction=0
    )
    assert float(layer.running_var) == pytest.approx(float(mixture) * 30 / 29)


# Attention.


def attention(
    layer: SelfAttention, x: Tensor, scale: float, axis: int = 2
) -> np.ndarray:
    """The layer in numpy, with one head; ``axis`` is that of the softmax."""
    B, C, H, W = x.shape
    rows = layer.norm(x).flatten(2).transpose(1, 2).detach().numpy()

    def linear(part: nn.Linear, values: np.ndarray) -> np.ndarray:
        return values @ part.weight.detach().numpy().T + part.bias.detach().numpy()

    q, k, v = (linear(part, rows) for part in (layer.query, layer.key, layer.value))
    weight = np.exp(q @ k.transpose(0, 2, 1) / scale)
    weight /= weight.sum(axis=axis, keepdims=True)
    change = linear(layer.out, weight @ v).transpose(0, 2, 1).reshape(B, C, H, W)
    return x.numpy() + change


@pytest.mark.equation("eq-unet-attention")
def test_attention(randomised: Callable) -> None:
    layer = randomised(SelfAttention(16, groups=4, head_channels=None)).double()
    x = torch.randn(
        2,
        16,
        3,
        3,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(0),
    )
    result = layer(x).detach().numpy()
    assert np.abs(result - attention(layer, x, scale=4)).max() < 1e-10
    for wrong in (
        attention(layer, x, scale=1),
        attention(layer, x, scale=16),
        attention(layer, x, scale=4, axis=1),
    ):
        assert np.abs(result - wrong).max() > 1e-3


@pytest.mark.equation("eq-unet-attention-scale")
def test_variance_of_a_dot_product_by_enumeration() -> None:
    half, root = sp.Rational(1, 2), sp.sqrt(2)
    laws = [
        {-1: half, 1: half},
        {-root: half / 2, 0: half, root: half / 2},
        {-half: sp.Rational(4, 5), 2: sp.Rational(1, 5)},  # not symmetric
    ]
    for law, d in itertools.product(laws, (1, 2)):
        mean, square = 0, 0
        for values in itertools.product(law, repeat=2 * d):
            probability = sp.prod([law[value] for value in values])
            dot = sum(values[i] * values[d + i] for i in range(d))
            mean += probability * dot
            square += probability * dot**2
        assert sp.simplify(mean) == 0
        assert sp.simplify(square - d) == 0
        assert d == 1 or sp.simplify(square - sp.sqrt(d)) != 0
        assert d == 1 or sp.simplify(square - 1) != 0


@pytest.mark.equation("eq-unet-permutation")
def test_attention_commutes_with_a_permutation(randomised: Callable) -> None:
    layer = randomised(SelfAttention(8, groups=2, head_channels=4)).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, 4, 4, dtype=torch.float64, generator=generator)
    order = torch.randperm(16, generator=generator)

    def shuffle(image: Tensor) -> Tensor:
        return image.flatten(2)[:, :, order].view(image.shape)

    assert torch.allclose(layer(shuffle(x)), shuffle(layer(x)), atol=1e-12)
    assert not torch.allclose(layer(shuffle(x)), layer(x), atol=1e-3)  # not invariant
    convolution = nn.Conv2d(8, 8, 3, padding=1).double()
    assert not torch.allclose(
        convolution(shuffle(x)), shuffle(convolution(x)), atol=1e-3
    )


@pytest.mark.equation("eq-unet-attention-cost")
@pytest.mark.parametrize(("C", "H", "W", "head"), [(128, 16, 16, None), (64, 4, 8, 16)])
def test_cost_of_attention(C: int, H: int, W: int, head: int | None) -> None:
    with torch.device("meta"):
        layer, x = SelfAttention(C, 8, head), torch.zeros(1, C, H, W)
        counted = counted_flops(layer, x)
    N = H * W
    assert counted == 4 * N**2 * C + 8 * N * C**2
    assert counted != 2 * N**2 * C + 4 * N * C**2  # products only
    assert counted != 4 * N**2 * C + 6 * N * C**2  # the last layer forgotten
    assert counted != 4 * N * C**2 + 8 * N**2 * C


# Down, up, and the whole.


@pytest.mark.equation("eq-unet-halving")
def test_half_of_a_size() -> None:
    down, up = Downsample(2), Upsample(2)
    for H, W in [(2, 3), (7, 8), (28, 28), (15, 2), (33, 31)]:
        lower = down(torch.zeros(1, 2, H, W))
        assert lower.shape[2:] == ((H + 1 - 3) // 2 + 1, (W + 1 - 3) // 2 + 1)
        assert lower.shape[2:] == (H // 2, W // 2)
        assert (lower.shape[2:] == (-(-H // 2), -(-W // 2))) == (H % 2 == W % 2 == 0)
        assert (up(lower).shape[2:] == (H, W)) == (H % 2 == W % 2 == 0)
    n = sp.Symbol("n", integer=True, positive=True)
    for H in (2 * n, 2 * n + 1):
        assert same(sp.floor((H + 1 - 3) / 2) + 1, sp.floor(H / 2))


@pytest.mark.equation("eq-unet-conv-flops")
@pytest.mark.parametrize(
    ("k", "c_in", "c_out", "size", "stride"),
    [(3, 4, 6, 8, 1), (1, 5, 2, 4, 1), (3, 4, 4, 8, 2)],
)
def test_cost_of_a_convolution(
    k: int, c_in: int, c_out: int, size: int, stride: int
) -> None:
    layer = nn.Conv2d(c_in, c_out, k, stride=stride, padding=k // 2)
    x = torch.zeros(1, c_in, size, size)
    counted, pixels = counted_flops(layer, x), (size // stride) ** 2
    formula = 2 * k**2 * c_in * c_out * pixels
    assert counted == formula
    assert counted != formula // 2  # a product and its addition counted once
    assert stride == 1 or counted != 2 * k**2 * c_in * c_out * size**2  # input pixels
    # And by writing the convolution as the matrix product that it is: rows of patches times a matrix.
    patches = nn.functional.unfold(x, k, padding=k // 2, stride=stride)
    assert counted == 2 * patches.shape[2] * patches.shape[1] * c_out


@pytest.mark.equation("eq-unet-level-cost")
def test_cost_of_a_level() -> None:
    k, c, H, W, m_0, m_i = sp.symbols("k c H W m_0 m_i", positive=True)
    i = sp.Symbol("i", integer=True, nonnegative=True)

    def cost(m: sp.Expr, level: sp.Expr | int) -> sp.Expr:
        return 2 * k**2 * (m * c) ** 2 * (H / 2**level) * (W / 2**level)

    ratio = cost(m_i, i) / cost(m_0, 0)
    assert same(ratio, (m_i / m_0) ** 2 * sp.Integer(4) ** (-i))
    assert not same(ratio, (m_i / m_0) ** 2 * sp.Integer(2) ** (-i))
    assert not same(ratio, (m_i / m_0) * sp.Integer(4) ** (-i))
    with torch.device("meta"):
        unet = UNet(1, 8, (1, 2, 3), 2, (), groups=4)
        x = torch.zeros(1, 1, 16, 16)
        with FlopCounterMode(display=False) as counter:
            unet(x, 1)
    counts = counter.get_flop_counts()
    second_blocks = [f"UNet.down.{n}.block.conv_2" for n in (1, 4, 7)]
    costs = [sum(counts[name].values()) for name in second_blocks]
    assert [F / costs[0] for F in costs] == [1, 2**2 / 4, 3**2 / 16]


def test_costs_that_the_chapter_quotes() -> None:
    with torch.device("meta"):
        cifar = UNet(3, 128, (1, 2, 2, 2), attention_levels=(1,), groups=32)
        total = counted_flops(cifar, torch.zeros(1, 3, 32, 32), 1)
        back = cifar(torch.zeros(1, 3, 32, 32), 1)
        with FlopCounterMode(display=False) as counter:
            back.sum().backward()
    assert round(total / 1e9, 1) == 12.4
    assert counter.get_total_flops() / total == pytest.approx(2, abs=0.02)


# The benchmark that the chapter quotes.

RESULT = ROOT / "benchmarks" / "results" / "unet_parts.json"
DEFINITIONS = ("NoTime", "RawTime", "CutSkip", "Nothing", "take_away")


def notebook_code() -> ast.Module:
    """All code of the chapter."""
    cells = read(BOOK / "08_unet.ipynb").cells
    return ast.parse("\n".join(c.source for c in cells if c.cell_type == "code"))


def literal(name: str) -> object:
    """The literal that the chapter assigns to a name."""
    for node in notebook_code().body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"the chapter assigns nothing to {name}")


def test_tables_of_the_chapter_are_those_of_the_result_file() -> None:
    result = json.loads(RESULT.read_text())
    table = {part: values["loss"] for part, values in result["without"].items()}
    assert literal("RESULTS") == table
    assert literal("ONE_TIME") == result["one_time_in_each_batch"]
    assert literal("SMALL") == {
        **result["unet"],
        "channel_mults": tuple(result["unet"]["channel_mults"]),
    }


def test_what_the_chapter_says_about_the_tables() -> None:
    result = json.loads(RESULT.read_text())
    table = {part: np.array(v["loss"]) for part, v in result["without"].items()}
    whole = table["nothing"]
    more = {part: (losses / whole.mean()).mean() - 1 for part, losses in table.items()}
    assert max(more, key=more.get) == "skips"
    assert more["skips"] > sum(abs(m) for part, m in more.items() if part != "skips")
    assert more["skips"] == pytest.approx(5, abs=0.5)
    assert more["normalisation"] == pytest.approx(0.5, abs=0.1)
    assert more["way around"] == pytest.approx(1 / 7, abs=0.02)
    assert more["time"] == pytest.approx(1 / 8, abs=0.02)
    assert 1 - more["sinusoids"] / more["time"] == pytest.approx(1 / 3, abs=0.1)
    for part in ("attention", "group norm"):
        assert abs(table[part] - whole).mean() < np.ptp(whole), part
    assert (table["lower levels"] < whole).all()
    seconds = {part: v["seconds"] for part, v in result["without"].items()}
    assert 2 < seconds["lower levels"] / seconds["nothing"] < 2.5
    assert 3 * sum(seconds.values()) < 480
    one_time = result["one_time_in_each_batch"]
    assert one_time["nothing"]["eval"] == one_time["nothing"]["train"]
    ratio = np.divide(one_time["group norm"]["train"], one_time["group norm"]["eval"])
    assert ratio.mean() == pytest.approx(1.8, abs=0.1)


def test_the_chapter_takes_parts_away_as_the_benchmark_does() -> None:
    def definitions(tree: ast.Module) -> dict[str, str]:
        return {
            node.name: ast.unparse(node).replace("parts.", "")
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and node.name in DEFINITIONS
        }

    benchmark = ast.parse((ROOT / "benchmarks" / "unet_parts.py").read_text())
    assert definitions(notebook_code()) == definitions(benchmark)
    assert len(definitions(benchmark)) == len(DEFINITIONS)


def test_each_part_is_really_gone(
    randomised: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(
        "unet_parts", ROOT / "benchmarks" / "unet_parts.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 400, 1000])
    with torch.no_grad():
        whole = randomised(UNet(**module.CONFIG)).eval()
        for part in module.PARTS[1:]:
            unet = randomised(UNet(**module.CONFIG)).eval()
            module.take_away(part, unet)
            unet.eval()
            assert unet(x, t).shape == x.shape
            assert not torch.allclose(unet(x, t), whole(x, t), atol=1e-3), part
            if part == "time":
                assert torch.equal(unet(x, t), unet(x, t.flip(0)))
            if part == "skips":  # only what comes from below is left
                kept = [unet.conv_in, unet.down[0].block.conv_2]
                given: list[Tensor] = []

                def note(_: nn.Module, inputs: tuple, into: list = given) -> None:
                    into.append(inputs[0])

                for stage in list(unet.up)[-2:]:
                    stage.block.register_forward_pre_hook(note)
                unet(x, t)
                for received, source in zip(given, reversed(kept)):
                    assert bool((received[:, -source.out_channels :] == 0).all())
                    assert bool((received[:, : -source.out_channels] != 0).any())
            if part == "normalisation":
                assert not any(isinstance(m, nn.GroupNorm) for m in unet.modules())
