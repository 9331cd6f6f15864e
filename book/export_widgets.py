"""Train the network of the sampler that runs in the browser, and write the files of the interactive figures.

    python book/export_widgets.py            # all of them: about two minutes
    python book/export_widgets.py stills     # only the pictures, from the network that is there

Writes ``data.mjs``, ``network.mjs`` and the stills to ``book/_static/widgets``. The arithmetic that uses them is
``diffusion.mjs`` there, and tests/test_widgets.py holds it against the package.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

import ddpm_lite
from ddpm_lite import MLP, GaussianDiffusion, NoiseSchedule, data, plot
from ddpm_lite.train import train

WIDGETS = Path(__file__).parent / "_static" / "widgets"
EVEN = {"T": 1000, "most": 10, "least": -10}  # log SNR at t = 1 and at t = T
UNIT = 1e-4  # weights are written as whole multiples of it
WIDTH = 48


def even_schedule() -> NoiseSchedule:
    """Even in log SNR, so that some time is within 1.1 % of any SNR that another schedule may ask for."""
    log_snr = torch.linspace(
        EVEN["most"], EVEN["least"], EVEN["T"], dtype=torch.float64
    )
    alpha_bar = torch.cat([torch.ones(1), torch.sigmoid(log_snr)])
    return NoiseSchedule(1 - alpha_bar[1:] / alpha_bar[:-1])


def trained_network() -> MLP:
    """The ε-network of the spiral."""
    diffusion = GaussianDiffusion(even_schedule())
    torch.manual_seed(0)
    states = train(
        MLP(width=WIDTH),
        diffusion,
        data.points("spiral", 20_000),
        steps=20_000,
        batch_size=512,
        learning_rate=4e-3,
    )
    for state in states:
        if state.step % 2000 == 0:
            loss = float(state.losses[state.step - 2000 : state.step].mean())
            print(f"step {state.step}: loss {loss:.4f}", flush=True)
    return state.ema


def whole(values: Tensor, unit: float) -> list[int]:
    """Values as whole multiples of ``unit``."""
    return (values.double() / unit).round().long().flatten().tolist()


def write(name: str, value: object) -> None:
    """A JSON value that a page loads by a <script> element, as ``ddpm.<name>``."""
    path = WIDGETS / f"{name}.mjs"
    text = json.dumps(value, separators=(",", ":"))
    path.write_text(
        f"// Written by book/export_widgets.py.\nglobalThis.ddpm.{name} = {text};\n",
        encoding="utf-8",
    )
    print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} KB")


def read(name: str) -> dict:
    """What ``write`` wrote."""
    text = (WIDGETS / f"{name}.mjs").read_text(encoding="utf-8")
    return json.loads(text.split(" = ", 1)[1].rstrip(";\n"))


def frequencies(width: int) -> list[float]:
    """Of the time embedding, in float32 as ``sinusoidal_embedding`` has them: an ``exp`` of the browser may differ."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float32) / (half - 1)
    return torch.exp(-math.log(10_000) * exponent).tolist()


def export_network(network: MLP) -> None:
    """The rounded weights, and what belongs to them."""
    write(
        "network",
        {
            **network.config,
            "unit": UNIT,
            "schedule": EVEN,
            "frequencies": frequencies(network.config["width"]),
            "layers": {
                name: whole(weights, UNIT)
                for name, weights in network.state_dict().items()
            },
        },
    )


def imported_network() -> MLP:
    """The network as the browser has it, with rounded weights."""
    exported = read("network")
    network = MLP(exported["dim"], exported["width"], exported["depth"])
    network.load_state_dict(
        {
            name: torch.tensor(exported["layers"][name]).reshape(weights.shape)
            * exported["unit"]
            for name, weights in network.state_dict().items()
        }
    )
    return network.eval()


def spiral(n: int) -> Tensor:
    """The first of the points that the network was trained on, in the same units."""
    return data.points("spiral", 20_000)[:n]


def export_data() -> None:
    """A digit, in its 17 grey values, and points of the spiral."""
    write(
        "data",
        {
            "digit": whole(digit() + 1, 1 / 8),
            "spiral": whole(spiral(600), 1e-3),
        },
    )


def digit() -> Tensor:
    """The first 3 among the training digits, shape (8, 8), in [-1, 1]."""
    digits = data.digits("train")
    return digits.x_0[int((digits.y == 3).nonzero()[0]), 0]


def square(axis: plt.Axes, title: str) -> None:
    axis.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)


def save(figure: plt.Figure, name: str) -> None:
    path = WIDGETS / f"{name}.png"
    plot.save(figure, path)
    print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} KB")


def forward_still() -> None:
    """The digit and the spiral at six times."""
    schedule = ddpm_lite.linear_schedule(1000)
    diffusion = GaussianDiffusion(schedule)
    generator = torch.Generator().manual_seed(0)
    shown = [0, 50, 100, 200, 400, 1000]
    figure, axes = plt.subplots(2, len(shown), figsize=(7, 2.6))
    for row, x_0 in zip(axes, (digit(), spiral(600))):
        eps = torch.randn(x_0.shape, generator=generator)
        for axis, t in zip(row, shown):
            x_t = diffusion.q_sample(x_0[None], t, eps[None])[0] if t else x_0
            if x_0.shape == (8, 8):
                axis.imshow(x_t, cmap="gray_r", vmin=-1, vmax=1)
                axis.set_axis_off()
                axis.set_title(f"$t = {t}$", fontsize=9)
            else:
                axis.scatter(*x_t.T, s=0.8, color=plot.BLUE, antialiased=False)
                square(axis, f"SNR {schedule.snr[t]:.2g}" if t else "SNR ∞")
    save(figure, "forward")


def normal(x: np.ndarray, mean: float, variance: float) -> np.ndarray:
    return np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(
        2 * np.pi * variance
    )


def posterior_still() -> None:
    """Two witnesses and their product, as the widget shows them first."""
    schedule = ddpm_lite.linear_schedule(50)
    t, x_0, x_t = 25, 1.0, -0.5
    alpha_bar, alpha, beta = (
        schedule.alpha_bar[t - 1],
        schedule.alpha[t],
        schedule.beta[t],
    )
    mean, variance = GaussianDiffusion(schedule).q_posterior(
        torch.tensor([x_0]).double(), torch.tensor([x_t]).double(), t
    )
    grid = np.linspace(-3, 3, 400)
    figure, axis = plt.subplots(figsize=(7, 2.8))
    for name, m, v, colour, line in (
        (
            "start: $q(x_{t-1} | x_0)$",
            alpha_bar.sqrt() * x_0,
            1 - alpha_bar,
            plot.BLUE,
            "--",
        ),
        ("present: $x_t$", x_t / alpha.sqrt(), beta / alpha, plot.RED, "-."),
        ("posterior: $q(x_{t-1} | x_t, x_0)$", mean, variance, plot.GREEN, "-"),
    ):
        axis.plot(
            grid, normal(grid, float(m), float(v)), line, color=colour, label=name
        )
    axis.set(
        xlabel="$x_{t-1}$", title=f"$t = {t}$, $x_0 = {x_0:g}$, $x_t = {x_t:g}$"
    )
    axis.set(ylabel="density", xlim=(-3, 3))
    axis.legend(loc="upper left")
    save(figure, "posterior")


def schedules_still() -> None:
    """Three schedules with 300 steps."""
    T = 300
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.8))
    with warnings.catch_warnings():
        # One of them is too short, which is the point.
        warnings.simplefilter("ignore")
        fixed = ddpm_lite.linear_schedule(T, 1e-4, 0.02)
    stretched, cosine = ddpm_lite.linear_schedule(T), ddpm_lite.cosine_schedule(T)
    schedules = (
        ("linear, range × 1000/T", stretched, plot.BLUE, "--"),
        ("linear, 0.0001 to 0.02", fixed, plot.RED, "-."),
        ("cosine", cosine, plot.GREEN, "-"),
    )
    for name, schedule, colour, line in schedules:
        left.plot(schedule.alpha_bar, line, color=colour, label=name)
        right.plot(schedule.snr.log(), line, color=colour, label=name)
    left.set(xlabel="$t$", title=r"$\bar\alpha_t$")
    right.set(xlabel="$t$", title="log SNR", ylim=(-14, 10))
    right.legend(loc="lower left")
    save(figure, "schedules")


def sampler_still() -> None:
    """Points on their way from noise to the spiral, by both samplers in 20 steps."""
    schedule = even_schedule()
    x_T = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
    figure, axes = plt.subplots(2, 6, figsize=(7, 2.7))
    for row, sampler in zip(axes, (ddpm_lite.ancestral, ddpm_lite.ddim)):
        states = sampler(
            imported_network(),
            GaussianDiffusion(schedule),
            x_T,
            schedule.times(20),
            generator=torch.Generator().manual_seed(1),
        )
        shown = [state for i, state in enumerate(states) if i % 4 == 0]
        for axis, state in zip(row, shown):
            axis.scatter(*spiral(600).T, s=0.5, color="silver", antialiased=False)
            axis.scatter(
                *state.x_t.T, s=0.8, c=x_T[:, 0], cmap="viridis", antialiased=False
            )
            square(axis, f"$t = {state.t}$")
        row[0].set_ylabel(
            sampler.__name__ if sampler is ddpm_lite.ancestral else "DDIM"
        )
    save(figure, "sampler")


def main() -> None:
    torch.set_num_threads(
        1
    )  # the tensors are small: more threads wait for each other
    if sys.argv[1:] != ["stills"]:
        export_data()
        export_network(trained_network())
    plot.use_style()
    forward_still()
    posterior_still()
    schedules_still()
    sampler_still()


if __name__ == "__main__":
    main()
