"""Check the spelling of all that people read: pages, figures' captions, docstrings, comments, front matter.

    python tests/spelling.py

codespell knows common misspellings. Its table of British and American forms, turned around, finds the American ones;
the book is written in British English. `tests/words.txt` has the words that it takes for mistakes and are none.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

import codespell_lib
import nbformat

ROOT = Path(__file__).parent.parent
WORDS = ROOT / "tests/words.txt"
FRONT_MATTER = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "LICENSE-book",
    "Makefile",
    "_config.yml",
    "constraints.txt",
    "pyproject.toml",
]
# Not language: mathematics, code in a line, addresses, targets of roles and links, options of directives.
_NO_LANGUAGE = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]+\$|(?:\{[\w:-]+\})?`+[^`\n]+`+|https?://\S+|\]\([^)\s]*\)"
    r"|^\([\w-]+\)=$|^:(?:label|name|class):[^\n]*$|<[^>\n]+>|\{[\w:-]+\}|\\\w+",
    re.DOTALL | re.MULTILINE,
)
_FENCE = re.compile(r"\s*(`{3,})(.*)")


def prose(markdown: str) -> str:
    """Markdown without what is no language; lines stay where they are."""
    lines: list[str] = []
    open_fences: list[tuple[int, bool]] = []  # how many backticks, and is it code?
    for line in markdown.split("\n"):
        if fence := _FENCE.fullmatch(line):
            ticks, what = len(fence[1]), fence[2].strip()
            if not what and open_fences and ticks >= open_fences[-1][0]:
                open_fences.pop()
            else:
                open_fences.append((ticks, not what.startswith("{")))
            line = what if what.startswith("{") else ""
        code = any(is_code for _, is_code in open_fences)
        lines.append("" if code else line)
    language = _NO_LANGUAGE.sub(
        lambda match: "\n" * match[0].count("\n") or " ", "\n".join(lines)
    )
    return language.replace("*", "")  # *f*orward is one word


def remarks(source: str) -> str:
    """The comments and docstrings of Python code; lines stay where they are."""
    lines = [""] * (source.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] += token.string
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            for number, line in enumerate(node.value.value.splitlines()):
                lines[node.lineno - 1 + number] += line
    return prose("\n".join(lines))


def text_of_notebook(path: Path) -> str:
    """The prose, the comments, and the captions and alternative texts of a notebook."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(prose(cell.source))
        else:
            parts.append(remarks(cell.source))
            shown = cell.metadata.get("mystnb", {})
            parts.append(shown.get("image", {}).get("alt", ""))
            parts.append(prose(shown.get("figure", {}).get("caption", "")))
    return "\n".join(parts)


def texts(root: Path = ROOT) -> dict[str, str]:
    """All that is to be checked, by the name of the file."""
    found = {
        name: prose((root / name).read_text(encoding="utf-8")) for name in FRONT_MATTER
    }
    for path in [*root.glob("book/*.md"), *root.glob(".github/workflows/*.yml")]:
        found[str(path.relative_to(root))] = prose(path.read_text(encoding="utf-8"))
    for path in root.glob("book/*.ipynb"):
        found[str(path.relative_to(root))] = text_of_notebook(path)
    for folder in ("ddpm_lite", "tests", "benchmarks", "book"):
        for path in (root / folder).rglob("*.py"):
            found[str(path.relative_to(root))] = remarks(
                path.read_text(encoding="utf-8")
            )
    return found


def american() -> str:
    """A dictionary for codespell, from American forms to British ones."""
    table = (
        Path(codespell_lib.__file__).parent / "data/dictionary_en-GB_to_en-US.txt"
    ).read_text(encoding="utf-8")
    pairs = [line.split("->") for line in table.splitlines()]
    british = {gb for gb, _ in pairs}
    return "".join(f"{us}->{gb}\n" for gb, us in pairs if us not in british)


def mistakes(found: dict[str, str]) -> list[str]:
    """What codespell says of the texts: "file:line: wrong ==> right", or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in found.items():
            path = Path(folder, "texts", f"{name}.txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        dictionary = Path(folder, "american.txt")
        dictionary.write_text(american(), encoding="utf-8")
        options = ["--builtin", "clear,rare", "-D", "-", "-D", dictionary]
        run = subprocess.run(
            [sys.executable, "-m", "codespell_lib", *options, "-I", WORDS, "texts"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    if run.stderr:
        raise RuntimeError(run.stderr)
    return [
        re.sub(r"^(\./)?texts/(.*?)\.txt:", r"\2:", line)
        for line in run.stdout.splitlines()
    ]


if __name__ == "__main__":
    wrong = mistakes(texts())
    print("\n".join(wrong))
    sys.exit(bool(wrong))
