"""The equation ledger (book/equations.toml) says the truth: every equation has an entry, every check exists."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
from collections import Counter

import pytest

from book import BOOK, PAGES, ROOT, equation_labels, prose

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LEDGER = tomllib.loads((BOOK / "equations.toml").read_text(encoding="utf-8"))
LABELS = [label for page in PAGES for label in equation_labels(page)]


@pytest.fixture(scope="module")
def marked() -> dict[str, dict[str, set[str]]]:
    """The collected tests, by the kind of their marker ("equation" or "erratum") and the label that it names."""

    class Collector:
        tests: dict[str, dict[str, set[str]]]

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            self.tests = {"equation": {}, "erratum": {}}
            for item in session.items:
                name = item.nodeid.split("[")[0]
                for kind, tests in self.tests.items():
                    for marker in item.iter_markers(kind):
                        for label in marker.args:
                            tests.setdefault(label, set()).add(name)

    collector = Collector()
    with contextlib.redirect_stdout(io.StringIO()):
        status = pytest.main(
            [
                "--collect-only",
                "-q",
                "-p",
                "no:cacheprovider",
                f"--rootdir={ROOT}",
                str(ROOT / "tests"),
            ],
            [collector],
        )
    assert status == pytest.ExitCode.OK
    return collector.tests


@pytest.fixture(scope="module")
def established(marked: dict[str, dict[str, set[str]]]) -> dict[str, set[str]]:
    """The collected tests, by the equation that their marker names."""
    return marked["equation"]


def test_every_labelled_equation_has_one_entry() -> None:
    assert set(LABELS) == set(LEDGER)


def test_no_label_is_used_twice_and_all_begin_with_eq() -> None:
    assert [label for label, count in Counter(LABELS).items() if count > 1] == []
    assert [
        label for label in LABELS if not re.fullmatch(r"eq-[a-z0-9-]+", label)
    ] == []


def test_entries_say_how_the_equation_is_known() -> None:
    for label, entry in LEDGER.items():
        assert entry["kind"] in {"definition", "symbolic", "numeric", "code"}, label
        assert set(entry) == (
            {"kind"} if entry["kind"] == "definition" else {"kind", "test"}
        ), label


def test_named_tests_exist_and_carry_the_marker(
    established: dict[str, set[str]],
) -> None:
    missing = {
        label: entry["test"]
        for label, entry in LEDGER.items()
        if entry["kind"] != "definition"
        and entry["test"] not in established.get(label, set())
    }
    assert missing == {}


def test_markers_name_equations_of_the_book(established: dict[str, set[str]]) -> None:
    assert set(established) - set(LABELS) == set()


def test_every_erratum_has_a_test_and_every_such_test_an_erratum(
    marked: dict[str, dict[str, set[str]]],
) -> None:
    labels = re.findall(
        r"^\((err-[a-z0-9-]+)\)=\n### ", prose(BOOK / "errata.ipynb"), re.MULTILINE
    )
    assert len(labels) == len(set(labels)) >= 25
    assert set(marked["erratum"]) == set(labels)


def test_most_equations_are_checked_by_a_machine() -> None:
    checked = sum(entry["kind"] != "definition" for entry in LEDGER.values())
    assert checked >= 2 / 3 * len(LEDGER)


def test_the_page_about_the_checks_is_what_the_ledger_says() -> None:
    path = BOOK / "write_ledger_page.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page()
    assert f"Of {len(LEDGER)} labelled equations" in writer.page()


def test_every_reference_to_an_equation_has_a_target() -> None:
    for page in PAGES:
        for label in re.findall(r"\{eq\}`([^`]+)`", prose(page)):
            assert label in LEDGER, f"{page.name} refers to {label}"
