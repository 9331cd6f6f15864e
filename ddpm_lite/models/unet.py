"""The UNet of DDPM: the network that looks at x_t and t and names the noise in it. Chapter 8 of the book.

Read it from the bottom up: ``UNet.forward`` is the whole story, the classes above it are its parts. The
architecture is that of Ho et al. (2020, appendix B), layer by layer, so that published weights carry over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_lite import _check


def sinusoidal_embedding(position: Tensor, channels: int) -> Tensor:
    """Positions as sines and cosines of ``channels / 2`` frequencies, from 1 down to 1/10000.

    Args:
        position: shape (B,).
        channels: even, at least 4.

    Returns:
        float32, shape (B, channels): the sines, then the cosines (Vaswani et al. 2017, section 3.5, in the
        layout of the DDPM code).
    """
    half = channels // 2
    exponent = torch.arange(half, dtype=torch.float32, device=position.device) / (
        half - 1
    )
    angle = position[:, None].float() * torch.exp(-math.log(10000) * exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeEmbedding(nn.Module):
    """t -> sinusoids of t - 1 -> two linear layers; the result tells every residual block the time."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1 = nn.Linear(channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, t: Tensor) -> Tensor:
        sinusoids = sinusoidal_embedding(
            t - 1, self.channels
        )  # published weights count time from 0
        return self.linear_2(
            F.silu(self.linear_1(sinusoids.to(self.linear_1.weight.dtype)))
        )


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm``, and fast in bfloat16 too when a pixel's channels lie side by side in memory (channels_last).

    On a CPU convolutions are faster in that layout, but torch's normalisation in bfloat16 is slower than a change of
    layout, the normalisation there, and the change back.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_contiguous() or x.dtype == self.weight.dtype:
            return super().forward(x)
        there, back = torch.contiguous_format, torch.channels_last
        x = _Layout.apply(x, there, back)
        return _Layout.apply(super().forward(x), back, there)


class _Layout(torch.autograd.Function):
    """The same tensor in another layout; its gradient comes back in the old one."""

    @staticmethod
    def forward(ctx, x, new, old):
        ctx.old = old
        return x.contiguous(memory_format=new)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.contiguous(memory_format=ctx.old), None, None


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, with the time added between them, and a way around both."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.norm_1 = GroupNorm(groups, in_channels, eps=1e-6)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_channels, out_channels)
        self.norm_2 = GroupNorm(groups, out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.shortcut(x) + h


class SelfAttention(nn.Module):
    """Every pixel looks at every other pixel of the same image and adds what it finds to itself."""

    def __init__(self, channels: int, groups: int, head_channels: int | None) -> None:
        super().__init__()
        self.heads = channels // (head_channels or channels)
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        pixels = self.norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        q, k, v = (
            layer(pixels)
            .view(B, H * W, self.heads, -1)
            .transpose(1, 2)  # (B, heads, H·W, C / heads)
            for layer in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, H * W, C)
        return x + self.out(h).transpose(1, 2).view(B, C, H, W)


class Downsample(nn.Module):
    """Halve height and width by a 3×3 convolution with stride 2, padded on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width by repeating pixels, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """A residual block, then self-attention if this resolution has it."""

    def __init__(self, block: ResidualBlock, attention: SelfAttention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.block(x, time)
        return x if self.attention is None else self.attention(x)


class UNet(nn.Module):
    """The ε-network of DDPM: images and times in, the predicted noise out.

    The CIFAR-10 network of Ho et al. (2020) is ``UNet(3, base_channels=128, channel_mults=(1, 2, 2, 2),
    attention_levels=(1,), groups=32, dropout=0.1)``, with 35.7 million parameters.

    Args:
        in_channels: channels of the image.
        base_channels: channels at full resolution; even, at least 4.
        channel_mults: one entry for each resolution, the channels there in units of ``base_channels``. Level
            i works at 1/2^i of the full height and width.
        blocks_per_level: residual blocks on the way down at each level; one more on the way up.
        attention_levels: the levels with self-attention. The middle of the network always has it.
        groups: groups of each GroupNorm; must divide every number of channels.
        head_channels: channels of an attention head; None for a single head.
        dropout: probability in the residual blocks.
        num_classes: number of classes for class labels; None for a network without labels.

    Raises:
        TypeError, ValueError: for arguments outside these ranges.
    """

    def __init__(
        self,
        in_channels: int = 1,
        base_channels: int = 32,
        channel_mults: Sequence[int] = (1, 2, 2),
        blocks_per_level: int = 2,
        attention_levels: Sequence[int] = (1,),
        groups: int = 8,
        head_channels: int | None = None,
        dropout: float = 0.0,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        levels = range(len(channel_mults))
        _check.integer("in_channels", in_channels, 1)
        if _check.integer("base_channels", base_channels, 4) % 2:
            raise ValueError(f"base_channels must be even, got {base_channels}")
        _check.integer("len(channel_mults)", len(channel_mults), 1)
        _check.integer("blocks_per_level", blocks_per_level, 1)
        _check.integer("groups", groups, 1)
        _check.number("dropout", dropout, 0, 1)
        for level in attention_levels:
            _check.integer("attention_levels", level, 0, len(levels) - 1)
        if num_classes is not None:
            _check.integer("num_classes", num_classes, 1)
        channels = [
            base_channels * _check.integer("channel_mults", m, 1) for m in channel_mults
        ]
        for c in channels:
            if c % groups:
                raise ValueError(
                    f"groups must divide every number of channels {channels}, got {groups}"
                )
            if head_channels is not None and c % _check.integer(
                "head_channels", head_channels, 1
            ):
                raise ValueError(
                    f"head_channels must divide every number of channels {channels}, got {head_channels}"
                )
        #: The arguments that rebuild this network, as JSON can hold them.
        self.config = {
            "in_channels": in_channels,
            "base_channels": base_channels,
            "channel_mults": list(channel_mults),
            "blocks_per_level": blocks_per_level,
            "attention_levels": list(attention_levels),
            "groups": groups,
            "head_channels": head_channels,
            "dropout": dropout,
            "num_classes": num_classes,
        }
        time_channels = 4 * base_channels

        def stage(c_in: int, c_out: int, attend: bool) -> Stage:
            return Stage(
                ResidualBlock(c_in, c_out, time_channels, groups, dropout),
                SelfAttention(c_out, groups, head_channels) if attend else None,
            )

        self.time_embedding = TimeEmbedding(base_channels, time_channels)
        self.class_embedding = (
            None if num_classes is None else nn.Embedding(num_classes, time_channels)
        )
        self.conv_in = nn.Conv2d(in_channels, base_channels, 3, padding=1)

        # The way down. Each output is kept for the way up; ``skips`` counts their channels.
        c, skips = base_channels, [base_channels]
        self.down = nn.ModuleList()
        for level in levels:
            for _ in range(blocks_per_level):
                self.down.append(stage(c, channels[level], level in attention_levels))
                c = channels[level]
                skips.append(c)
            if level != levels[-1]:
                self.down.append(Downsample(c))
                skips.append(c)

        self.middle = nn.ModuleList(
            [stage(c, c, attend=True), stage(c, c, attend=False)]
        )

        self.up = nn.ModuleList()
        for level in reversed(levels):
            for _ in range(blocks_per_level + 1):
                self.up.append(
                    stage(c + skips.pop(), channels[level], level in attention_levels)
                )
                c = channels[level]
            if level != 0:
                self.up.append(Upsample(c))

        self.norm_out = GroupNorm(groups, c, eps=1e-6)
        self.conv_out = zero_init(nn.Conv2d(c, in_channels, 3, padding=1))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict ε.

        Args:
            x_t: noisy images, shape (B, in_channels, H, W); H and W divisible by 2^(levels - 1).
            t: time steps, an integer tensor of shape (B,).
            y: class labels, int64 of shape (B,); -1, or None for the whole batch, for "no label".

        Returns:
            The predicted noise, shape of ``x_t``.

        Raises:
            TypeError, ValueError: for a shape, dtype or label that does not fit.
        """
        t, y = self._check_input(x_t, t, y)
        time = self.time_embedding(t)
        if y is not None:
            time = time + self.class_embedding(y.clamp(min=0)) * (y >= 0)[:, None]

        h = self.conv_in(x_t)
        if h.device.type == "cpu":  # faster convolutions, see GroupNorm
            h = h.contiguous(memory_format=torch.channels_last)
        skips = [h]
        for layer in self.down:
            h = layer(h, time) if isinstance(layer, Stage) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, time)
        for layer in self.up:
            h = (
                layer(torch.cat([h, skips.pop()], dim=1), time)
                if isinstance(layer, Stage)
                else layer(h)
            )
        return self.conv_out(F.silu(self.norm_out(h)))

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """Raise ValueError, naming the argument, unless a batch of this shape, (B, C, H, W), fits."""
        channels = self.config["in_channels"]
        halvings = len(self.config["channel_mults"]) - 1
        if len(shape) != 4 or shape[1] != channels:
            raise ValueError(
                f"{name} must have shape (B, {channels}, H, W), got {tuple(shape)}"
            )
        if any(_check.integer(name, size, 1) % 2**halvings for size in shape[2:]):
            raise ValueError(
                f"height and width of {name} must be multiples of {2**halvings}, "
                f"to be halved {halvings} times, got {tuple(shape)}"
            )

    def _check_input(
        self, x_t: Tensor, t: Tensor, y: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self.check_shape("x_t", _check.floating("x_t", x_t).shape)
        t = _check.times("t", t, x_t, 1)
        if y is not None:
            if self.class_embedding is None:
                raise ValueError(
                    "y was given, but this network has no labels; build it with num_classes"
                )
            y = _check.times("y", y, x_t, -1, self.config["num_classes"] - 1)
        return t, y


def zero_init(layer: nn.Module) -> nn.Module:
    """Start a layer at zero, so that the block around it starts as the identity (Ho et al., appendix B)."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
