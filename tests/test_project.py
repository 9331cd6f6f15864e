"""Promises about the project as a whole: its size, its licences and citation, its pinned versions."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest
import yaml
from cffconvert import Citation

import ddpm_lite
from book import ROOT

PACKAGE = ROOT / "ddpm_lite"
MATHEMATICS = [
    "gaussian",
    "schedule",
    "process",
    "objective",
    "bound",
    "sampler",
    "guidance",
    "models",
]


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    source = path.read_text(encoding="utf-8")
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        ):
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            code -= set(range(node.lineno, node.end_lineno + 1))
    return len(code)


def imports(path: Path) -> set[str]:
    """The names of all modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {
                node.module,
                *(f"{node.module}.{alias.name}" for alias in node.names),
            }
    return names


def test_the_package_is_small_enough_to_read() -> None:
    sizes = {
        path.relative_to(PACKAGE): lines_of_code(path) for path in PACKAGE.rglob("*.py")
    }
    mathematics = sum(
        size
        for path, size in sizes.items()
        if path.parts[0].removesuffix(".py") in MATHEMATICS
    )
    assert 200 < mathematics < 1000
    assert sum(sizes.values()) < 2500


def test_lines_of_code_leave_out_what_is_not_code(tmp_path: Path) -> None:
    path = tmp_path / "example.py"
    path.write_text(
        '"""Two\nlines."""\n\n# comment\nx = 1  # one\n\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n'
    )
    assert lines_of_code(path) == 4


def test_symbolic_imports_no_torch_and_plot_imports_no_model() -> None:
    assert not any(
        name.startswith("torch") for name in imports(PACKAGE / "symbolic.py")
    )
    assert {
        name for name in imports(PACKAGE / "plot.py") if name.startswith("ddpm_lite.")
    } <= {
        "ddpm_lite._check",
        "ddpm_lite.checkpoint",
    }


def test_nothing_unpickles() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {"pickle", "joblib", "dill", "cloudpickle"} & imports(path), path
        assert not re.search(
            r"torch\.(load|save)\(|allow_pickle", path.read_text(encoding="utf-8")
        ), path


def test_citation_file_is_valid_and_names_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    Citation(text).validate()
    assert yaml.safe_load(text)["version"] == ddpm_lite.__version__
    for page in ("README.md", "book/index.md"):
        assert f"version = {{{ddpm_lite.__version__}}}" in (ROOT / page).read_text(
            encoding="utf-8"
        )


@pytest.mark.parametrize(
    ("name", "words"), [("LICENSE", "MIT License"), ("LICENSE-book", "CC-BY-4.0")]
)
def test_licences_are_there(name: str, words: str) -> None:
    assert words in (ROOT / name).read_text(encoding="utf-8")


def test_constraints_are_versions_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 50
    for line in pins:
        assert re.fullmatch(
            r"[a-z0-9-]+==[0-9][\w.]*(; python_version (<|>=) '3\.11')?", line
        ), line
