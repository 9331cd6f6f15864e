"""The figures of the book and of the command line, in one style. Imports no model code."""

from __future__ import annotations

import inspect
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ddpm_lite import _check, checkpoint

#: Colours that stay apart for colour-blind readers (Okabe & Ito 2008).
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#777777",
)

_STYLE = {
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, RED, PURPLE, GREY]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "figure.figsize": (7.0, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "ddpm_lite",
}


def use_style() -> None:
    """Draw every later figure in the style of the book."""
    plt.rcParams.update(_STYLE)


def image_grid(
    x_0: Tensor, columns: int = 8, *, row_labels: Sequence[str] = (), title: str = ""
) -> Figure:
    """Images side by side, row by row.

    Args:
        x_0: shape (N, C, H, W), C 1 or 3, in [-1, 1]; values outside are clipped.
        columns: images in a row.
        row_labels: a text to the left of each row.
        title: a text above.
    """
    _check.floating("x_0", x_0)
    if x_0.ndim != 4 or x_0.shape[0] == 0 or x_0.shape[1] not in (1, 3):
        raise ValueError(
            f"x_0 must have shape (N, C, H, W), N at least 1, C 1 or 3, got {tuple(x_0.shape)}"
        )
    _check.integer("columns", columns, 1)
    images = ((x_0.detach().cpu().float().clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1)
    rows = -(-len(images) // columns)
    size = 0.62
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(size * columns + (0.7 if row_labels else 0), size * rows),
            squeeze=False,
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for axis, image in zip(axes.flat, images):
            axis.imshow(
                image.numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest"
            )
        for axis, label in zip(axes[:, 0], row_labels):
            axis.text(
                -0.15, 0.5, label, transform=axis.transAxes, ha="right", va="center"
            )
        if title:
            figure.suptitle(title)
    return figure


def emergence(states: Sequence[tuple[int, Tensor]], images: int = 6) -> Figure:
    """Digits emerging from noise: one column for each time, one row for each image.

    Args:
        states: pairs (t, x_t) in the order of sampling, x_t of shape (B, C, H, W).
        images: how many of the batch to show.
    """
    times = [t for t, _ in states]
    rows = [x_t[i] for i in range(min(images, len(states[0][1]))) for _, x_t in states]
    figure = image_grid(torch.stack(rows), columns=len(states))
    for axis, t in zip(figure.axes, times):
        axis.set_title(f"$t={t}$", fontsize=9)
    return figure


def animated_png(
    figures: Iterable[Figure], seconds: float = 4.0, loops: int = 3
) -> bytes:
    """A moving picture as an animated PNG: browsers and notebooks play it, paper shows its first frame.

    Args:
        figures: the frames, all of one size; each is closed once it is drawn.
        seconds: how long one pass takes; the last frame is held for half a second more.
        loops: how often it plays before it rests on the last frame; 0 for ever.

    Returns:
        The file, with 32 colours, chosen from the first frame. ``IPython.display.Image(data)`` shows it.
    """
    frames = []
    for figure in figures:
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        frame = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        plt.close(figure)
        if not frames:
            palette = frame.quantize(32)
        frames.append(frame.quantize(palette=palette, dither=Image.Dither.NONE))
    if not frames:
        raise ValueError("figures must hold at least one frame")
    each = 1000 * seconds / len(frames)
    file = io.BytesIO()
    frames[0].save(
        file,
        format="PNG",
        save_all=True,
        optimize=True,
        append_images=frames[1:],
        duration=[each] * (len(frames) - 1) + [each + 500],
        loop=loops,
    )
    return file.getvalue()


def show_source(item: Callable[..., object] | type) -> None:
    """Show the source of a function or class in a notebook, as highlighted code."""
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(item))}```"))


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure to ``path`` (the ending names the format), all or nothing, and close it."""
    with checkpoint.atomic(path) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(path).suffix[1:] or "png")
    plt.close(figure)
