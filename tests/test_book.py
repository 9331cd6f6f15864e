"""The notebooks are in the state in which nbval means something and a reader finds nothing odd."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest

from book import BOOK, NOTEBOOKS, PAGES, ROOT, prose, read

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)

MACHINE_PATH = re.compile(
    r"(?<![\w./:-])/(?:root|home|Users|work|tmp|private|var|mnt|opt)/\S+|\b[A-Z]:\\\\?\w+"
)


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with a notebook's cells and outputs; empty for one that is fit to be published."""
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("cells were not run once each, from top to bottom")
    if not any(cell.outputs for cell in code):
        found.append("no cell has an output")
    for number, cell in enumerate(code, start=1):
        expects_output = re.search(
            r"^\s*(?:print\(|plt\.show\(|plot\.show_source\()",
            cell.source,
            re.MULTILINE,
        )
        if expects_output and not cell.outputs:
            found.append(f"code cell {number} prints or draws, but no output is stored")
        figures = [
            output for output in cell.outputs if "image/png" in output.get("data", {})
        ]
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"code cell {number} ended in {output.ename}")
            if output.get("name") == "stderr":
                found.append(
                    f"code cell {number} wrote a warning or error: {output.text[:80]}"
                )
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            if MACHINE_PATH.search(text):
                found.append(f"code cell {number} shows a path of one machine")
        for figure in figures:
            if len(base64.b64decode(figure.data["image/png"])) > 100_000:
                found.append(f"the figure of code cell {number} is over 100 KB")
        if (
            figures
            and len(cell.metadata.get("mystnb", {}).get("image", {}).get("alt", ""))
            < 30
        ):
            found.append(f"the figure of code cell {number} has no alternative text")
    return found


@each_notebook
def test_notebook_is_fit_to_be_published(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    assert problems(notebook) == []
    assert path.stat().st_size < 600_000


@each_notebook
def test_notebook_is_in_the_form_that_make_notebooks_writes(path: Path) -> None:
    notebook = read(path)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert [cell.id for cell in notebook.cells] == [
        f"cell-{number:02d}" for number in range(len(notebook.cells))
    ]
    assert all("execution" not in cell.metadata for cell in notebook.cells)


@each_page
def test_page_names_no_path_of_one_machine(path: Path) -> None:
    assert MACHINE_PATH.findall(prose(path)) == []


@each_page
def test_images_of_a_page_exist_and_have_alternative_text(path: Path) -> None:
    text = prose(path)
    for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)", text):
        assert len(alternative) >= 30, target
        assert (BOOK / target).is_file(), target
    for block, target in re.findall(
        r"(```\{(?:figure|image)\} (\S+).*?```)", text, re.DOTALL
    ):
        assert (BOOK / target).is_file(), target
        assert re.search(r"^:alt: .{30,}$", block, re.MULTILINE), target


@each_page
def test_links_between_pages_have_a_target(path: Path) -> None:
    names = {page.stem for page in PAGES}
    for target in re.findall(r"\{doc\}`(?:[^`<]*<)?([^`>]+)>?`", prose(path)):
        assert target in names, target
    for target in re.findall(
        r"(?<!!)\[[^\]]+\]\((?!https?://|#)([^)#\s]+)[^)\s]*\)", prose(path)
    ):
        assert target in names or (BOOK / target).exists(), target


def test_every_exercise_has_one_solution() -> None:
    exercises = re.findall(
        r"^:label: (ex-\S+)", "\n".join(prose(page) for page in PAGES), re.MULTILINE
    )
    solved = re.findall(
        r"^```\{solution\} (ex-\S+)", prose(BOOK / "solutions.ipynb"), re.MULTILINE
    )
    assert len(exercises) >= 4
    assert sorted(exercises) == sorted(solved)


def test_citations_are_in_the_bibliography_and_the_bibliography_is_cited() -> None:
    entries = set(
        re.findall(
            r"^@\w+\{(\S+),",
            (BOOK / "references.bib").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    )
    cited = set()
    for page in PAGES:
        for keys in re.findall(r"\{cite:?\w*\}`([^`]+)`", prose(page)):
            cited |= {
                re.sub(r"\{.*|<.*", "", key).strip()
                for key in keys.split(",")
                if not key.strip().startswith("section")
            }
    assert cited == entries


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_local_links_of_the_front_matter_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", text):
        assert (ROOT / target).exists(), target
    assert MACHINE_PATH.findall(text) == []


# The checks above must be able to fail.


def good_notebook() -> nbformat.NotebookNode:
    output = nbformat.v4.new_output("stream", name="stdout", text="3\n")
    return nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("print(3)", execution_count=1, outputs=[output])
        ]
    )


def test_a_good_notebook_has_no_problems() -> None:
    assert problems(good_notebook()) == []


def test_a_stripped_notebook_is_refused() -> None:
    notebook = good_notebook()
    notebook.cells[0].outputs = []
    assert "code cell 1 prints or draws, but no output is stored" in problems(notebook)
    notebook.cells[0].execution_count = None
    assert "cells were not run once each, from top to bottom" in problems(notebook)


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (
            nbformat.v4.new_output(
                "error", ename="ValueError", evalue="", traceback=[]
            ),
            "ended in ValueError",
        ),
        (
            nbformat.v4.new_output("stream", name="stdout", text="/home" + "/me/x.py"),
            "shows a path of one machine",
        ),
        (
            nbformat.v4.new_output("stream", name="stderr", text="UserWarning"),
            "wrote a warning",
        ),
        (
            nbformat.v4.new_output(
                "display_data",
                data={"image/png": base64.b64encode(bytes(100_001)).decode()},
            ),
            "over 100 KB",
        ),
        (
            nbformat.v4.new_output("display_data", data={"image/png": "AAAA"}),
            "has no alternative text",
        ),
    ],
    ids=["error", "path", "stderr", "size", "alt"],
)
def test_a_bad_output_is_refused(output: nbformat.NotebookNode, problem: str) -> None:
    notebook = good_notebook()
    notebook.cells[0].outputs.append(output)
    assert any(problem in found for found in problems(notebook))


def test_cells_out_of_order_are_refused() -> None:
    notebook = good_notebook()
    notebook.cells.append(nbformat.v4.new_code_cell("x = 1", execution_count=1))
    assert "cells were not run once each, from top to bottom" in problems(notebook)
