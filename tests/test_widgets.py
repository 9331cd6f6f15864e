"""The interactive figures: their arithmetic is the package's, to 1e-5, and their controls change the picture.

The JavaScript runs in node, in Chromium, or in both, whichever is found. Where there is neither the tests skip, but not
in CI (environment variable ``CI``).
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import ddpm_lite
from book import BOOK, PAGES, prose
from ddpm_lite import GaussianDiffusion, NoiseSchedule, data, gaussian

sys.path.insert(0, str(BOOK))
import export_widgets

WIDGETS = BOOK / "_static" / "widgets"
NODE = shutil.which("node")
CHROMIUM = (
    shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
TOLERANCE = 1e-5


ARITHMETIC = ("diffusion", "data", "network")


def in_node(folder: Path, body: str) -> str:
    """What a script that sets ``result`` leaves there; the arithmetic and the exported files are loaded."""
    addresses = [(WIDGETS / f"{name}.mjs").as_uri() for name in ARITHMETIC]
    imports = [f"import {json.dumps(address)};" for address in addresses]
    script = folder / "run.mjs"
    script.write_text("\n".join([*imports, body, "console.log(result);"]))
    return output_of([NODE, script])


def in_chromium(folder: Path, body: str, parts: Sequence[str] = ARITHMETIC) -> str:
    """The same in a page opened from the disk, without a server; nothing in it waits for anything."""
    addresses = [(WIDGETS / f"{name}.mjs").as_uri() for name in parts]
    scripts = [f'<script src="{address}"></script>' for address in addresses]
    page = folder / "run.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><body><pre id="result"></pre>{"".join(scripts)}'
        f'<script>{body}; document.querySelector("#result").textContent = result;</script>'
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options += [
        "--force-prefers-reduced-motion",
        f"--user-data-dir={folder / 'profile'}",
    ]
    dumped = output_of([CHROMIUM, *options, page.as_uri()])
    return html.unescape(
        re.search(r'<pre id="result">(.*?)</pre>', dumped, re.DOTALL)[1]
    )


def output_of(command: list) -> str:
    """What a command writes."""
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=300
    ).stdout


ENGINES = [name for name, path in {"node": NODE, "chromium": CHROMIUM}.items() if path]


def need(found: object, what: str) -> None:
    """Skip where JavaScript cannot run; in CI that is an error."""
    if not found:
        message = f"{what} not found: the JavaScript of the interactive figures was not tested"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


# What is run in JavaScript: a function and its arguments, all of them in one go.

SCHEDULES = {
    "linear_schedule(1000)": ddpm_lite.linear_schedule(1000),
    "linear_schedule(50)": ddpm_lite.linear_schedule(50),
    "linear_schedule(25)": ddpm_lite.linear_schedule(25),
    "cosine_schedule(1000)": ddpm_lite.cosine_schedule(1000),
    "cosine_schedule(25)": ddpm_lite.cosine_schedule(25),
    "even_schedule(1000, 10, -10)": export_widgets.even_schedule(),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # too short on purpose
    SCHEDULES["linear_schedule(300, 1e-4, 0.02)"] = ddpm_lite.linear_schedule(
        300, 1e-4, 0.02
    )
EVEN = SCHEDULES["even_schedule(1000, 10, -10)"]
STEPS = json.loads(
    re.search(r"const STEPS = (\[.*?\]);", (WIDGETS / "sampler.mjs").read_text())[1]
)
OFFERED = (
    "linear_schedule(1000)",
    "cosine_schedule(1000)",
    "even_schedule(1000, 10, -10)",
)
PAIRS = [(1, 0), (2, 1), (25, 24), (50, 49), (50, 10), (7, 0)]
TIMES = [1, 2, 37, 500, 999, 1000]
GENERATOR = torch.Generator().manual_seed(0)
X, Y, EPS = torch.randn(3, 40, 2, dtype=torch.float64, generator=GENERATOR)
WALK = EVEN.times(12)
Z = torch.randn(12, 40, 2, dtype=torch.float64, generator=GENERATOR)


def flat(x: torch.Tensor) -> str:
    return f"Float64Array.from({x.flatten().tolist()})"


CASES = {name: f"ddpm.{name}" for name in SCHEDULES}
CASES |= {
    f"times {T} {n}": f"ddpm.times({T}, {n})"
    for T in (50, 1000)
    for n in (1, 3, 7, 20, 50)
}
CASES |= {
    f"times_like {name} {n}": f"ddpm.times_like(ddpm.even_schedule(1000, 10, -10), ddpm.{name}, {n})"
    for name in OFFERED
    for n in STEPS
}
CASES |= {f"snr {t}": f"ddpm.snr(ddpm.linear_schedule(50)[{t}])" for t in (1, 25, 50)}
CASES |= {
    f"q_sample {t}": f"ddpm.q_sample({flat(X)}, {flat(EPS)}, ddpm.linear_schedule(50)[{t}])"
    for t in (1, 25, 50)
}
CASES |= {
    f"q_posterior {t} {s}": f"ddpm.q_posterior(ddpm.linear_schedule(50)[{t}], ddpm.linear_schedule(50)[{s}])"
    for t, s in PAIRS
}
CASES |= {
    f"network {t}": f"ddpm.eps_network(ddpm.network)({flat(X)}, {t})" for t in TIMES
}
for step, noise in {"ancestral_step": ", z[i]", "ddim_step": ""}.items():
    CASES[step] = f"""(() => {{
        const alpha_bar = ddpm.even_schedule(1000, 10, -10), network = ddpm.eps_network(ddpm.network);
        const times = {WALK}, z = [{", ".join(flat(z) for z in Z)}], states = [{flat(X)}];
        for (let i = 0; i + 1 < times.length; i++) {{
            const [x_t, t, s] = [states[i], times[i], times[i + 1]];
            states.push(ddpm.{step}(x_t, network(x_t, t), alpha_bar[t], alpha_bar[s]{noise}));
        }}
        return states;
    }})()"""
CASES["energy_distance"] = f"ddpm.energy_distance({flat(X)}, {flat(Y)})"
CASES |= {f"normals {seed}": f"ddpm.normals(20000, {seed})" for seed in (1, 2, 1000)}


@pytest.fixture(scope="module", params=ENGINES or ["node or Chromium"])
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict:
    """The values of all cases."""
    need(ENGINES, request.param)
    run = {"node": in_node, "chromium": in_chromium}[request.param]
    values = ", ".join(f"{json.dumps(name)}: {case}" for name, case in CASES.items())
    body = f"const result = JSON.stringify({{{values}}}, (_, v) => (ArrayBuffer.isView(v) ? Array.from(v) : v));"
    return json.loads(run(tmp_path_factory.mktemp(request.param), body))


def close(value: object, expected: object) -> bool:
    """Equal to 1e-5, relative for what is smaller than 1, as the end of a schedule is."""
    value, expected = np.asarray(value, float), np.asarray(expected, float)
    return value.shape == expected.shape and np.allclose(
        value, expected, rtol=TOLERANCE, atol=1e-14
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_the_package(found: dict, name: str) -> None:
    assert close(found[name], SCHEDULES[name].alpha_bar)


def test_snr_and_closed_form(found: dict) -> None:
    schedule = SCHEDULES["linear_schedule(50)"]
    for t in (1, 25, 50):
        assert close(found[f"snr {t}"], schedule.snr[t])
        assert close(
            found[f"q_sample {t}"],
            GaussianDiffusion(schedule).q_sample(X, t, EPS).flatten(),
        )


def test_times_of_a_coarser_walk(found: dict) -> None:
    for T in (50, 1000):
        for n in (1, 3, 7, 20, 50):
            assert found[f"times {T} {n}"] == ddpm_lite.linear_schedule(T).times(n)


@pytest.mark.parametrize("name", OFFERED)
def test_a_schedule_is_served_by_the_nearest_noise_that_the_network_knows(
    found: dict, name: str
) -> None:
    known = EVEN.snr[1:].log()
    for n in STEPS:
        asked = SCHEDULES[name].times(n)
        times = found[f"times_like {name} {n}"]
        assert len(times) == n + 1  # no two steps have become one
        assert times[-1] == 0
        for t, wanted in zip(times[:-1], SCHEDULES[name].snr[asked[:-1]].log()):
            gaps = (known - wanted).abs()
            assert gaps[t - 1] <= gaps.min() + 1e-9
            within = known[-1] <= wanted <= known[0]
            assert (
                not within or abs(EVEN.snr[t].log() - wanted) < 0.0101
            )  # 1.1 % of the SNR


@pytest.mark.parametrize(("t", "s"), PAIRS)
def test_posterior_weights_and_variance(found: dict, t: int, s: int) -> None:
    diffusion = GaussianDiffusion(SCHEDULES["linear_schedule(50)"])
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    weight_0, variance = diffusion.q_posterior(one, zero, t, s)
    weight_t, _ = diffusion.q_posterior(zero, one, t, s)
    expected = {"weight_0": weight_0, "weight_t": weight_t, "variance": variance}
    value = found[f"q_posterior {t} {s}"]
    assert value.keys() == expected.keys()
    assert all(close([value[key]], expected[key]) for key in expected)


@pytest.mark.parametrize("t", TIMES)
def test_network_in_the_page_is_the_mlp(found: dict, t: int) -> None:
    network = export_widgets.imported_network().double()
    expected = network(X, torch.full((len(X),), t)).detach()
    assert expected.std() > 0.1
    assert np.abs(found[f"network {t}"] - expected.flatten().numpy()).max() < TOLERANCE


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_walks_are_those_of_the_package(
    found: dict, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = iter(Z)
    monkeypatch.setattr(gaussian, "randn", lambda *_: next(noise))
    walk = {"ancestral": ddpm_lite.ancestral, "ddim": ddpm_lite.ddim}[name]
    network = export_widgets.imported_network().double()
    expected = [state.x_t for state in walk(network, GaussianDiffusion(EVEN), X, WALK)]
    states = np.array(found[f"{name}_step"]).reshape(len(WALK), 40, 2)
    assert np.abs(states - torch.stack(expected).numpy()).max() < TOLERANCE


def test_energy_distance(found: dict) -> None:
    assert close(found["energy_distance"], energy_distance(X, Y))


def test_random_numbers_are_normal_and_independent(found: dict) -> None:
    streams = [np.array(found[f"normals {seed}"]) for seed in (1, 2, 1000)]
    for x in streams:  # fixed seeds: either it always passes or never
        assert stats.kstest(x, "norm").pvalue > 0.01
        assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) < 0.025
    assert np.abs(np.corrcoef(streams) - np.eye(3)).max() < 0.025


# The exported files.


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    def mean(a: torch.Tensor, b: torch.Tensor) -> float:
        return (
            torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").mean().item()
        )

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def nearest(schedule: NoiseSchedule, steps: int) -> list[int]:
    """The times of ``EVEN`` nearest in log SNR to those of another schedule."""
    wanted = schedule.snr[schedule.times(steps)[:-1]].log()
    gaps = (EVEN.snr[1:].log() - wanted[:, None]).abs()
    return [*(1 + gaps.argmin(1)).tolist(), 0]


def distance(
    network: Callable, name: str, schedule: NoiseSchedule, steps: int, seed: int = 0
) -> float:
    """Energy distance of 800 samples from the points that the figure shows."""
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(800, 2, generator=generator)
    sampler = {"ancestral": ddpm_lite.ancestral, "ddim": ddpm_lite.ddim}[name]
    times = nearest(schedule, steps)
    *_, last = sampler(
        network, GaussianDiffusion(EVEN), x_T, times, generator=generator
    )
    return energy_distance(last.x_t.double(), export_widgets.spiral(600).double())


FRESH = (0.002, 0.012)  # of 800 fresh points, in nine cases out of ten


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_rounded_network_draws_the_spiral(sampler: str) -> None:
    assert distance(export_widgets.imported_network(), sampler, EVEN, 50) < FRESH[1]
    assert distance(ddpm_lite.MLP(width=48), sampler, EVEN, 50) > 10 * FRESH[1]


def test_what_chapter_10_says_is_to_be_seen_in_the_figure() -> None:
    network = export_widgets.imported_network()
    for seed in range(3):
        few = {
            (sampler, name): distance(network, sampler, SCHEDULES[name], 5, seed)
            for sampler in ("ancestral", "ddim")
            for name in OFFERED
        }
        linear, cosine, even = OFFERED
        for name in OFFERED:
            assert few["ddim", name] < 0.8 * few["ancestral", name]
            assert distance(network, "ddim", SCHEDULES[name], 20, seed) < FRESH[1]
        for sampler in ("ancestral", "ddim"):
            assert few[sampler, cosine] < 0.8 * few[sampler, linear]
            assert few[sampler, linear] < 0.8 * few[sampler, even]
    levels = {
        name: EVEN.snr[nearest(SCHEDULES[name], 5)[:-1]].log().round().tolist()
        for name in OFFERED
    }
    assert levels[even] == [-10, -6, -2, 2, 6]
    assert sum(abs(level) < 3 for level in levels[cosine]) == 4
    same = [distance(network, "ddim", EVEN, 5, seed) for seed in (0, 0, 1)]
    assert same[0] == same[1] != same[2]


def test_the_distance_of_fresh_data_is_what_the_figure_says() -> None:
    spiral = export_widgets.spiral(600).double()
    points = data.points("spiral", 80_000, seed=1).double().split(800)
    distances = [energy_distance(x, spiral) for x in points]
    low, high = np.quantile(distances, [0.05, 0.95])
    assert FRESH[0] == pytest.approx(low, abs=0.001)
    assert FRESH[1] == pytest.approx(high, abs=0.002)
    (caption,) = (
        prose(page) for page in PAGES if 'data-widget="sampler"' in prose(page)
    )
    assert f"between {FRESH[0]} and {FRESH[1]}" in caption


def test_exported_data_is_that_of_the_package() -> None:
    exported = export_widgets.read("data")
    grey = torch.tensor(exported["digit"]).reshape(8, 8)
    assert data.digits("train").x_0.eq(grey / 8 - 1).flatten(1).all(1).any()
    spiral = torch.tensor(exported["spiral"]).reshape(-1, 2) / 1000
    assert (spiral - data.points("spiral", 20_000)[:600]).abs().max() < 6e-4


# The files as a site.


def test_the_figures_are_light_and_load_nothing_from_elsewhere() -> None:
    files = [*WIDGETS.glob("*.js"), *WIDGETS.glob("*.mjs")]
    assert 50_000 < sum(path.stat().st_size for path in files) < 300_000
    assert all(path.stat().st_size < 120_000 for path in WIDGETS.glob("*.png"))
    for path in [*files, *WIDGETS.glob("*.css")]:
        addresses = re.findall(
            r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*",
            re.sub(r"^\s*//.*", "", path.read_text(), flags=re.M),
        )
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path.name


def test_only_the_loader_is_loaded_with_every_page() -> None:
    assert [path.name for path in WIDGETS.glob("*.js")] == [
        "widgets.js"
    ]  # Jupyter Book loads every .js
    loader = (WIDGETS / "widgets.js").read_text()
    parts = {
        name
        for row in re.findall(r"^    \w+: \[(.*)\],$", loader, re.M)
        for name in re.findall(r'"(\w+)"', row)
    }
    assert parts == {path.stem for path in WIDGETS.glob("*.mjs")}


def test_every_figure_stands_on_one_page_above_its_still() -> None:
    placed = []
    for page in PAGES:
        for block in re.findall(
            r'<div class="ddpm-widget".*?</div>', prose(page), re.DOTALL
        ):
            name = re.search(r'data-widget="(\w+)"', block)[1]
            placed.append(name)
            assert (
                f"globalThis.ddpm.widgets.{name} = "
                in (WIDGETS / f"{name}.mjs").read_text()
            )
            still, alternative = re.search(
                r'<img [^>]*src="([^"]+)"[^>]* alt="([^"]{30,})"', block
            ).groups()
            assert (BOOK / still).is_file()
            assert 'loading="lazy"' in block
            assert alternative.endswith(".")
    assert sorted(placed) == ["forward", "posterior", "sampler", "schedules"]


MOVES = {  # a control of each figure, by name, and the value it is set to
    "forward": [("t", 700), ("schedule", "cosine"), ("noise", None)],
    "posterior": [("t", 1), ("t", 9), ("x_0", -1), ("x_t", 1.5)],
    "schedules": [("T", 1000), ("t", 10)],
    "sampler": [
        ("step", None),
        ("steps", 3),
        ("step", None),
        ("noise", None),
        ("step", None),
        ("schedule", "even"),
        ("step", None),
        ("sampler", "ddim"),
        ("step", None),
        ("back", None),
    ],
}


def test_every_control_changes_the_picture(tmp_path: Path) -> None:
    need(CHROMIUM, "Chromium")
    body = f"""
        const shot = (figure) => [...figure.querySelectorAll("canvas")].map((each) => each.toDataURL()).join()
            + [...figure.querySelectorAll("svg")].map((each) => each.innerHTML).join();
        const seen = [], rows = [];
        for (const [name, moves] of Object.entries({json.dumps(MOVES)})) {{
            const figure = document.body.appendChild(document.createElement("div"));
            ddpm.widgets[name](figure);
            for (const [control, value] of moves) {{
                const before = shot(figure), element = figure.querySelector(`[name=${{control}}]`);
                if (value === null) element.click();
                else {{
                    element.value = value;
                    element.dispatchEvent(new Event(element.tagName === "SELECT" ? "change" : "input"));
                }}
                const after = shot(figure);
                if (!seen.includes(after)) seen.push(after);
                rows.push([name, control, before.length > 500 && after !== before, seen.indexOf(after)]);
            }}
        }}
        document.querySelector("[name=play]").click();
        const walk = document.querySelector("[data-step]").dataset;
        const result = JSON.stringify([rows, walk.playing, walk.step, walk.steps]);
    """
    parts = (*ARITHMETIC, "ui", *MOVES)
    rows, playing, step, steps = json.loads(in_chromium(tmp_path, body, parts))
    moves = [[name, control] for name in MOVES for control, _ in MOVES[name]]
    assert [row[:2] for row in rows] == moves
    assert [row for row in rows if not row[2]] == []
    # Noise, schedule, sampler and number of steps all count.
    stepped = [row[3] for row in rows if row[:2] == ["sampler", "step"]]
    assert len(set(stepped)) == len(stepped) == 5
    # Who wants less motion gets the end at once.
    assert (playing, step) == ("false", steps)
