"""The landing page keeps its promises, and the site's extension does what it says."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pytest
import yaml
from bs4 import BeautifulSoup
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

import ddpm_lite
from book import BOOK, NOTEBOOKS, ROOT, equation_labels, prose, read

sys.path.append(str(BOOK / "_ext"))
import reader_site

PAGE = (BOOK / "index.md").read_text(encoding="utf-8")
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
CHAPTERS = [path for path in NOTEBOOKS if path.name[0].isdigit()]
LIGHT, DARK = (255, 255, 255), (18, 18, 18)  # the pages of the theme


@pytest.fixture(scope="module")
def artist() -> ModuleType:
    """The script that draws the pictures."""
    path = BOOK / "draw_landing_page.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture() -> tuple[Path, Path]:
    """The moving picture of the page, and the one that replaces it for readers who prefer no motion."""
    found = re.search(
        r'<source media="\(prefers-reduced-motion: reduce\)" srcset="([^"]+)">\s*<img src="([^"]+)"',
        PAGE,
    )
    return BOOK / found[2], BOOK / found[1]


# The numbers


def test_no_number_of_the_page_is_typed_by_hand() -> None:
    shown = re.findall(r"grid-item-card\} (.*)", PAGE)
    assert [re.fullmatch(r"\{\{ (\w+) \}\}", title)[1] for title in shown] == list(
        reader_site.numbers()
    )


def test_numbers_are_those_of_the_page_about_the_checks() -> None:
    counted = reader_site.numbers()
    page = (BOOK / "how_this_book_is_checked.md").read_text(encoding="utf-8")
    sentence = re.search(
        r"Of (\d+) labelled equations (\d+) are checked by a machine", page
    )
    assert (counted["equations"], counted["checked"]) == tuple(
        map(int, sentence.groups())
    )
    assert counted["equations"] == sum(len(equation_labels(path)) for path in NOTEBOOKS)
    assert counted["notebooks"] == len(NOTEBOOKS)
    assert counted["errata"] == prose(BOOK / "errata.ipynb").count("\n**The claim.**")


def test_both_forms_of_the_citation_name_this_version() -> None:
    assert f"version = {{{ddpm_lite.__version__}}}" in PAGE
    assert f"(Version {ddpm_lite.__version__}) [Computer software]" in PAGE


# The pictures


def test_moving_picture_is_small_and_stops_by_itself() -> None:
    path, _ = picture()
    image = Image.open(path)
    milliseconds = 0
    for frame in range(image.n_frames):
        image.seek(frame)
        image.load()
        milliseconds += image.info["duration"]
    assert path.stat().st_size < 400_000
    assert image.info["loop"] == 1
    assert image.n_frames > 30
    assert 2000 < milliseconds <= 5000  # longer ones need a button that stops them


def test_still_has_one_frame_and_the_same_shape() -> None:
    moving, still = picture()
    assert getattr(Image.open(still), "n_frames", 1) == 1
    assert Image.open(still).size == Image.open(moving).size
    width, height = Image.open(moving).size
    assert f'width="{width}" height="{height}"' in PAGE


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: tuple[int, ...]) -> float:
        c = np.array(colour) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white_is_21() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)


@pytest.mark.parametrize("paper", [LIGHT, DARK], ids=["light", "dark"])
def test_pictures_can_be_seen_on_the_page(paper: tuple[int, ...]) -> None:
    for path in picture():
        image = Image.open(path)
        image.seek(getattr(image, "n_frames", 1) - 1)
        pixels = np.asarray(image.convert("RGBA"))
        assert (pixels[..., 3] == 0).mean() > 0.2  # paper is left out
        ink = pixels[pixels[..., 3] == 255][0, :3]
        assert contrast(tuple(ink), paper) >= 3  # WCAG 1.4.11


def test_pictures_are_drawn_by_the_model_of_the_package(
    artist: ModuleType, tmp_path: Path
) -> None:
    artist.draw(tmp_path)
    for committed in picture():
        drawn = Image.open(tmp_path / committed.name)
        stored = Image.open(committed)
        for frame in {0, getattr(stored, "n_frames", 1) - 1}:
            drawn.seek(frame)
            stored.seek(frame)
            ink = [
                np.asarray(image.convert("RGBA"), float)[..., 3]
                for image in (drawn, stored)
            ]
            assert np.abs(ink[0] - ink[1]).mean() < 5  # another seed: 40 to 70
    assert (tmp_path / "card.png").stat().st_size < 300_000


def test_pictures_of_the_configuration_exist() -> None:
    for name in (
        CONFIG["logo"],
        CONFIG["html"]["favicon"],
        CONFIG["sphinx"]["config"]["ogp_image"],
    ):
        assert (BOOK / name).is_file(), name


# The box at the top of each chapter


def minutes(path: Path) -> float:
    """A guess of the time to read: 200 words a minute, 20 s for a formula or figure, 3 s for a line of code."""
    notebook = read(path)
    text = prose(path)
    displayed = len(re.findall(r"\$\$.+?\$\$", text, re.DOTALL))
    text = re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$\n]+\$|\{[\w:-]+\}`[^`]*`", "x", text)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    lines = sum(
        bool(line.strip())
        for cell in code
        if "hide-input" not in cell.metadata.get("tags", [])
        for line in cell.source.splitlines()
    )
    figures = sum(
        "image/png" in output.get("data", {})
        for cell in code
        for output in cell.outputs
    )
    words = len(re.findall(r"[A-Za-z][\w'’-]*", text))
    return words / 200 + (20 * (displayed + figures) + 3 * lines) / 60


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter_says_how_long_it_takes(path: Path) -> None:
    box = read(path).cells[0].source
    assert "{admonition} This chapter at a glance" in box
    stated = re.search(
        r"\*\*Time\*\*: (\d+) minutes to read, .*(?:minute|second)s? to run", box
    )
    assert stated, "no time to read and to run"
    assert 0.6 < int(stated[1]) / minutes(path) < 1.4


# The extension, on a book of two pages


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sphinx, Path]:
    """A small book, built."""
    folder = tmp_path_factory.mktemp("book")
    Image.new("RGB", (30, 20)).save(folder / "dot.png")
    (folder / "index.md").write_text(
        "# One\n\n{{ equations }} equations, {{ run_in_colab }}\n\n"
        "$$ a = b $$ (eq-short)\n\n$$ a &= b \\\\ c &= d $$ (eq-long)\n\n"
        "Take $x$, ($y$) and $z$ or **$w$.**\n\n"
        "Of 8 × 8 pixels 98% are `a_name_that_is_long.x_0` and not `x_0[8] * 3`.\n\n"
        "![a dot](dot.png)\n\n```{toctree}\ntwo\nthree\n```\n",
        encoding="utf-8",
    )
    exercise = "```{{exercise}}\n:label: ex-{0}\n\nWhy {0}?\n```\n\n"
    (folder / "two.md").write_text(
        "# Two\n\nSee {eq}`eq-short`.\n\n"
        + "".join(map(exercise.format, ["one", "two", "open"])),
        encoding="utf-8",
    )
    solution = "```{{solution}} ex-{0}\n:label: sol-{0}\n\nBecause.\n```"
    cells = [
        nbformat.v4.new_markdown_cell("# Three"),
        nbformat.v4.new_code_cell("'for all'"),
        nbformat.v4.new_markdown_cell(solution.format("one")),
        nbformat.v4.new_code_cell("'check one'"),
        nbformat.v4.new_code_cell("'check one again'"),
        nbformat.v4.new_markdown_cell(solution.format("two") + "\n\nMore."),
        nbformat.v4.new_code_cell("'of no solution'"),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": ""}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "three.ipynb"
    )
    with docutils_namespace():
        app = Sphinx(
            srcdir=folder,
            confdir=None,
            outdir=folder / "html",
            doctreedir=folder / "trees",
            buildername="html",
            status=None,
            warningiserror=True,
            confoverrides={
                "extensions": ["myst_nb", "sphinx_exercise", "reader_site"],
                "nb_execution_mode": "off",
                # Its own: an extension adds to it, and Sphinx would hand the default on to the next book.
                "source_suffix": {".rst": "restructuredtext"},
                "html_theme": "sphinx_book_theme",
                "html_theme_options": {
                    "extra_footer": CONFIG["html"]["extra_footer"],
                    "repository_url": CONFIG["repository"]["url"],
                },
                "myst_enable_extensions": ["dollarmath", "substitution"],
                "numfig": True,
            },
        )
        app.build()
    return app, folder / "html"


def html(site: tuple[Sphinx, Path], page: str) -> str:
    return (site[1] / f"{page}.html").read_text(encoding="utf-8")


def test_numbers_and_button_reach_the_page(site: tuple[Sphinx, Path]) -> None:
    body = html(site, "index")
    assert f"{reader_site.numbers()['equations']} equations" in body
    assert re.search(
        r'href="https://colab\.research\.google\.com/github/[\w/.-]+\.ipynb">(<span[^>]*>)?Run chapter 4 in Colab',
        body,
    )
    name = re.search(r"/(\w+)\.ipynb", body)[1]
    assert (BOOK / f"{name}.ipynb").is_file()


def test_version_and_licences_stand_on_every_page(site: tuple[Sphinx, Path]) -> None:
    for page in ("index", "two"):
        assert f"Version {ddpm_lite.__version__}. Text and figures:" in html(site, page)
        assert "creativecommons.org/licenses/by/4.0" in html(site, page)


def test_images_say_their_size_and_wait(site: tuple[Sphinx, Path]) -> None:
    image = re.search(r"<img [^>]*_images/dot\.png[^>]*>", html(site, "index"))[0]
    assert 'loading="lazy" width="30" height="20"' in image
    assert 'alt="a dot"' in image


def test_solutions_are_folded_with_the_cells_that_check_them(
    site: tuple[Sphinx, Path],
) -> None:
    page = BeautifulSoup(html(site, "three"), "html.parser")
    first, second = page.select(".solution.dropdown")
    assert [cell.text.strip() for cell in first.select(".cell")] == [
        "'check one'",
        "'check one again'",
    ]
    assert not second.select(".cell")
    for text in ("'for all'", "'of no solution'"):
        assert text in page.text


def test_exercise_ends_with_a_link_to_its_solution(site: tuple[Sphinx, Path]) -> None:
    page = BeautifulSoup(html(site, "two"), "html.parser")
    links = {box["id"]: box.select("a.internal") for box in page.select(".exercise")}
    assert [link["href"] for link in links["ex-one"]] == ["three.html#sol-one"]
    assert [link["href"] for link in links["ex-two"]] == ["three.html#sol-two"]
    assert links["ex-open"] == []
    for box in page.select("#ex-one, #ex-two"):
        assert box.find_all(True)[-1].text == "Solution"


def test_numbers_in_an_appendix_have_its_letter(site: tuple[Sphinx, Path]) -> None:
    page = BeautifulSoup(html(site, "two"), "html.parser")
    numbers = [it.text.strip() for it in page.select(".exercise .caption-number")]
    assert numbers == ["Exercise T.1", "Exercise T.2", "Exercise T.3"]
    assert page.select_one("a[href='index.html#equation-eq-short']").text == "(I.1)"
    title = BeautifulSoup(html(site, "three"), "html.parser").select_one(".solution p")
    assert title.text.startswith("Solution to Exercise T.1")


def test_formula_stays_with_its_comma_and_its_brackets(
    site: tuple[Sphinx, Path],
) -> None:
    page = BeautifulSoup(html(site, "index"), "html.parser")
    groups = page.select(".unbroken")
    assert [it.text for it in groups] == [r"\(x\),", r"(\(y\))", r"\(w\)."]
    line = groups[0].find_parent("p").text
    assert line == r"Take \(x\), (\(y\)) and \(z\) or \(w\)."


def test_numbers_stay_together_and_long_names_come_apart(
    site: tuple[Sphinx, Path],
) -> None:
    page = html(site, "index")
    assert "Of 8\u00a0×\u00a08 pixels 98% are" in page
    assert ">a_name_<wbr>that_<wbr>is_<wbr>long.<wbr>x_0<" in page
    assert ">x_0[8]<" in page


def test_equations_are_written_for_the_previews(site: tuple[Sphinx, Path]) -> None:
    text = (site[1] / "_static" / reader_site.DATA).read_text(encoding="utf-8")
    found = json.loads(text.removeprefix("window.equations = ").removesuffix(";\n"))
    assert found == {
        "index.html": {
            "equation-eq-short": "a = b",
            "equation-eq-long": r"\begin{split}a &= b \\ c &= d\end{split}",
        }
    }
    page, anchor = re.search(
        r'href="(index\.html)#(equation-[^"]+)"', html(site, "two")
    ).groups()
    assert anchor in found[page]
    assert reader_site.DATA in html(site, "two")
