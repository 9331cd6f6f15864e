"""Draw the pictures of the landing page with the model that comes with the package.

    python book/draw_landing_page.py

``digits.webp`` plays once, in under five seconds, and rests on the digits; ``digits_still.png`` takes its place for
readers who prefer no motion; ``card.png`` is what other sites show beside a link. Ink is opaque and paper transparent
in the first two, so that they read well on a light page and on a dark one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

import ddpm_lite
from ddpm_lite.plot import BLUE, GREY

FOLDER = Path(__file__).parent / "_static" / "landing"
COLUMNS, ROWS = 17, 4
STEPS = 64
GAP = 2  # pixels between two digits
INK = (40, 144, 208)  # legible on white and on the dark page


def tile(x: torch.Tensor) -> Image.Image:
    """Images (COLUMNS * ROWS, 1, H, W) in [-1, 1], tiled, with 16 degrees of ink."""
    height, width = x.shape[2] + GAP, x.shape[3] + GAP
    alpha = torch.zeros(ROWS * height, COLUMNS * width)
    for i, image in enumerate(((x[:, 0].clamp(-1, 1) + 1) / 2 * 15).round() * 17):
        row, column = divmod(i, COLUMNS)
        top, left = row * height, column * width
        alpha[top : top + height - GAP, left : left + width - GAP] = image
    alpha = alpha[:-GAP, :-GAP]
    tiled = Image.new("RGB", (alpha.shape[1], alpha.shape[0]), INK)
    tiled.putalpha(Image.fromarray(alpha.to(torch.uint8).numpy()))
    return tiled


def draw(folder: Path = FOLDER, seed: int = 0) -> None:
    """Write the three pictures to ``folder``."""
    states = [
        state.x_t
        for state in ddpm_lite.load("digits").trajectory(
            COLUMNS * ROWS, steps=STEPS, seed=seed
        )
    ]
    frames = [tile(x_t) for x_t in states]
    half = STEPS // 2  # nothing is to be seen in the first half, so it goes faster
    frames[0].save(
        folder / "digits.webp",
        save_all=True,
        append_images=frames[1:],
        duration=[35] * half + [85] * (len(frames) - half),
        loop=1,
        lossless=True,
        exact=True,
        method=6,
    )

    # In the still time runs from left to right; the last quarter shows finished digits.
    x_t = states[-1].clone()
    for i in range(len(x_t)):
        done = min(1.0, (i % COLUMNS) / (0.75 * COLUMNS))
        x_t[i] = states[round(done**0.6 * STEPS)][i]
    still = tile(x_t)
    still.save(folder / "digits_still.png", optimize=True)

    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    figure.text(0.06, 0.83, "Denoising Diffusion", fontsize=50, weight="bold")
    figure.text(0.06, 0.71, "from First Principles", fontsize=50, weight="bold")
    figure.text(
        0.06,
        0.6,
        "A book whose every equation is checked by a machine",
        fontsize=24,
        color=GREY,
    )
    figure.text(
        0.06, 0.06, "ddpm_lite", fontsize=24, color=BLUE, family="monospace"
    )
    axis = figure.add_axes((0.06, 0.14, 0.88, 0.42))
    axis.imshow(still, interpolation="nearest")
    axis.set_axis_off()
    figure.savefig(folder / "card.png")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw()
    for path in sorted(FOLDER.iterdir()):
        print(f"wrote {path.name}: {path.stat().st_size / 1000:.0f} KB")
