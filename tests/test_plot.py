"""``plot``: what is in the figures, and that files are whole."""

import ast
import inspect
import io
import os
from itertools import pairwise

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest
import torch

from ddpm_lite import plot

IMAGES = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 4, 4)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def shown(figure) -> list[np.ndarray]:
    return [
        np.asarray(image.get_array()) for axis in figure.axes for image in axis.images
    ]


def test_grid_shows_every_image_in_order_row_by_row():
    figure = plot.image_grid(IMAGES, columns=2)
    assert len(figure.axes) == 6
    assert [float(image.mean()) for image in shown(figure)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1]
    )
    tops = [round(axis.get_subplotspec().rowspan.start) for axis in figure.axes]
    assert tops == [0, 0, 1, 1, 2, 2]


def test_grid_clips_and_takes_colour_and_any_dtype():
    figure = plot.image_grid(
        3 * torch.ones(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    )
    assert shown(figure)[0].shape == (4, 4, 3)
    assert float(shown(figure)[0].max()) == 1


def test_grid_has_its_title_and_labels():
    figure = plot.image_grid(
        IMAGES, columns=3, row_labels=["first", "second"], title="digits"
    )
    assert figure.get_suptitle() == "digits"
    assert [text.get_text() for axis in figure.axes for text in axis.texts] == [
        "first",
        "second",
    ]


def test_emergence_has_a_column_for_each_time_and_a_row_for_each_image():
    states = [(t, torch.full((3, 1, 4, 4), t / 1000)) for t in (1000, 500, 0)]
    figure = plot.emergence(states, images=2)
    assert [axis.get_title() for axis in figure.axes] == [
        "$t=1000$",
        "$t=500$",
        "$t=0$",
        "",
        "",
        "",
    ]
    assert [float(image.mean()) for image in shown(figure)] == pytest.approx(
        [1, 0.75, 0.5] * 2
    )


def test_emergence_shows_what_there_is():
    assert len(plot.emergence([(1, IMAGES[:1]), (0, IMAGES[:1])], images=6).axes) == 2


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_a_saved_figure_is_whole_and_closed(tmp_path, ending):
    figure = plot.image_grid(IMAGES)
    path = tmp_path / "new" / f"grid{ending}"
    plot.save(figure, path)
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_size > 500
    assert not plt.fignum_exists(figure.number)
    if ending == ".png":
        assert matplotlib.image.imread(path).ndim == 3


def test_a_name_without_ending_gives_a_whole_file(tmp_path):
    """matplotlib adds an ending to such a name, past the temporary file that is to be renamed."""
    plot.save(plot.image_grid(IMAGES), tmp_path / "grid")
    assert os.listdir(tmp_path) == ["grid"]
    assert matplotlib.image.imread(tmp_path / "grid", format="png").ndim == 3


def test_an_unknown_ending_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="xyz"):
        plot.save(plot.image_grid(IMAGES), tmp_path / "grid.xyz")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        plot.save(plot.image_grid(IMAGES), tmp_path / "file" / "grid.png")


@pytest.mark.parametrize(
    ("x_0", "error", "message"),
    [
        (
            torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
            TypeError,
            r"x_0 must be floating point, got torch\.uint8",
        ),
        (torch.zeros(4, 4), ValueError, r"x_0 must have shape .* got \(4, 4\)"),
        (
            torch.zeros(0, 1, 4, 4),
            ValueError,
            r"x_0 must have shape .* got \(0, 1, 4, 4\)",
        ),
        (
            torch.zeros(2, 2, 4, 4),
            ValueError,
            r"x_0 must have shape .* got \(2, 2, 4, 4\)",
        ),
    ],
)
def test_what_is_no_image_is_refused_by_name(x_0, error, message):
    with pytest.raises(error, match=message):
        plot.image_grid(x_0)


@pytest.mark.parametrize("columns", [0, 2.5])
def test_bad_columns_are_refused_by_name(columns):
    with pytest.raises(
        (TypeError, ValueError), match=f"columns must be .* got {columns}"
    ):
        plot.image_grid(IMAGES, columns=columns)


def test_drawing_leaves_the_global_style_alone_and_use_style_sets_it():
    before = dict(plt.rcParams)
    plot.image_grid(IMAGES)
    assert dict(plt.rcParams) == before
    with plt.rc_context():
        plot.use_style()
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"][0] == plot.BLUE
    assert dict(plt.rcParams) == before


def test_an_animation_has_every_frame_in_order_and_comes_to_rest():
    def figure(height: float):
        drawn, axis = plt.subplots(figsize=(1, 1))
        axis.set_axis_off()
        axis.set_ylim(0, 1)
        axis.axhspan(0, height, color="black")
        return drawn

    heights = [0.1, 0.5, 0.9]
    data = plot.animated_png((figure(h) for h in heights), seconds=3, loops=2)
    assert plt.get_fignums() == []
    with PIL.Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.n_frames, picture.info["loop"]) == ("PNG", 3, 2)
        darkness, durations = [], []
        for frame in range(3):
            picture.seek(frame)
            durations.append(picture.info["duration"])
            darkness.append(255 - np.asarray(picture.convert("L")).mean())
    assert durations == [1000, 1000, 1500]
    assert darkness == sorted(darkness)
    assert darkness[2] > 1.5 * darkness[0]


def test_an_animation_of_nothing_is_refused():
    with pytest.raises(ValueError, match="figures must hold at least one frame"):
        plot.animated_png([])


def test_colours_stay_apart_in_grey():
    """Read without colour, each still differs from its neighbours in the cycle."""
    grey = [
        sum(
            w * int(colour[i : i + 2], 16)
            for w, i in zip((0.299, 0.587, 0.114), (1, 3, 5))
        )
        for colour in (plot.BLUE, plot.ORANGE, plot.GREEN, plot.RED, plot.PURPLE)
    ]
    assert min(abs(a - b) for a, b in pairwise(grey)) > 10


def test_the_module_imports_no_model_code():
    tree = ast.parse(inspect.getsource(plot))
    ours = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ddpm_lite")
        for alias in node.names
    }
    assert ours <= {"ddpm_lite._check", "ddpm_lite.checkpoint", "ddpm_lite.data"}
