"""The book's files, as the book tests read them."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
PAGES = sorted([*NOTEBOOKS, *BOOK.glob("*.md")])

LABELLED = re.compile(r"^\$\$[ \t]*\((?P<label>[^)\s]+)\)[ \t]*$", re.MULTILINE)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook."""
    return nbformat.read(path, as_version=4)


def prose(path: Path) -> str:
    """The Markdown of a page, all cells of a notebook joined."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(
        cell.source for cell in read(path).cells if cell.cell_type == "markdown"
    )


def equation_labels(path: Path) -> list[str]:
    """The labels of the equations of a page, in order."""
    return [match["label"] for match in LABELLED.finditer(prose(path))]
