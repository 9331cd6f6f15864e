"""Write the page "How this book is checked" from the equation ledger.

    python book/write_ledger_page.py

A test fails when the page is not what the ledger says.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOOK = Path(__file__).parent
PAGE = BOOK / "how_this_book_is_checked.md"
KINDS = ("definition", "symbolic", "numeric", "code")

INTRODUCTION = """\
# How this book is checked

<!-- Written by book/write_ledger_page.py from book/equations.toml; do not edit. -->

A formula that is wrong in one place looks like one that is right. So this book does not rely on
proofreading. Every labelled equation stands in a ledger, and the ledger says how the equation is
known:

- **definition**: it says what a symbol means, or repeats a rule that is taken as known. There is
  nothing to check.
- **symbolic**: sympy derives it, from what stands above it and not from the answer.
- **numeric**: an independent numerical route confirms it: quadrature, simulation, or a formula of
  another origin.
- **code**: the package's own coefficients are compared with it.

For the last three the ledger names a test. The test carries the equation's label, and the test
suite fails when an equation has no entry, when an entry has no equation, or when the test does not
exist. And since a check that cannot fail proves nothing, each test also shows the check a wrong
version, where there is one a version that has been published, and demands that it is refused.

The notebooks are executed again in every run of the tests, cell by cell, and what they print is
compared with what you see on these pages.

"""


def labels(path: Path) -> list[str]:
    """The equation labels of a notebook, in order."""
    cells = nbformat.read(path, as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.findall(r"^\$\$[ \t]*\(([^)\s]+)\)[ \t]*$", prose, re.MULTILINE)


def title(path: Path) -> str:
    """The first heading of a notebook."""
    return (
        nbformat.read(path, as_version=4)
        .cells[0]
        .source.split("\n")[0]
        .lstrip("# ")
    )


def page() -> str:
    """The Markdown of the page."""
    ledger = tomllib.loads((BOOK / "equations.toml").read_text(encoding="utf-8"))
    chapters = {path: labels(path) for path in sorted(BOOK.glob("*.ipynb"))}
    summary = ["| chapter | equations | " + " | ".join(KINDS) + " |"]
    summary.append("| --- " * (len(KINDS) + 2) + "|")
    counts = dict.fromkeys(KINDS, 0)
    sections = []
    for path, names in chapters.items():
        if not names:
            continue
        of_chapter = [ledger[name]["kind"] for name in names]
        numbers = [of_chapter.count(kind) for kind in KINDS]
        for kind, number in zip(KINDS, numbers):
            counts[kind] += number
        link = f"[{title(path)}]({path.stem})"
        summary.append(
            f"| {link} | {len(names)} | {' | '.join(map(str, numbers))} |"
        )
        rows = ["| equation | known as | test |", "| --- | --- | --- |"]
        for name in names:
            test = ledger[name].get("test", "").removeprefix("tests/")
            shown = f"`{test}`" if test else ""
            rows.append(f"| {{eq}}`{name}` | {ledger[name]['kind']} | {shown} |")
        sections.append(f"## {title(path)}\n\n" + "\n".join(rows))
    total = sum(counts.values())
    checked = total - counts["definition"]
    numbers = " | ".join(f"**{counts[kind]}**" for kind in KINDS)
    summary.append(f"| **all** | **{total}** | {numbers} |")
    sentence = (
        f"Of {total} labelled equations {checked} are checked by a machine.\n\n"
    )
    return (
        INTRODUCTION
        + sentence
        + "\n".join(summary)
        + "\n\n"
        + "\n\n".join(sections)
        + "\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
