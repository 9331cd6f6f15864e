"""The API reference: all that is public is on the page, with a link to its chapter, and the chapters link back."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from sphinx.testing.util import SphinxTestApp

import ddpm_lite
from book import BOOK

sys.path.append(str(BOOK / "_ext"))
import api_reference

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(ddpm_lite.__path__, "ddpm_lite.")
    if not module.ispkg and not module.name.rpartition(".")[2].startswith("_")
)
CHAPTER = """\
# A chapter

$$ x $$ (eq-forward-marginal)

## In `linear_schedule` we trust

`linear_schedule(T)`, then `GaussianDiffusion.q_sample` and `q_sample` again, `beta` and
[`cosine_schedule`](api), `no_such_name`.
"""


def build(folder: Path, page: str, chapter: str = CHAPTER) -> SphinxTestApp:
    """A book of the given API page, a chapter 4, and empty pages in place of the others."""
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "conf.py").write_text(
        "extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'api_reference']\n"
        "myst_enable_extensions = ['dollarmath']\n"
        "autodoc_inherit_docstrings = False\n"
        "master_doc = 'index'\n"
    )
    (source / "index.md").write_text("# Book\n\n```{toctree}\n:glob:\n*\n```\n")
    (source / "api.md").write_text(page, encoding="utf-8")
    labels: dict[str, list[str]] = {
        "notation": [],
        **{stem: [] for stem in api_reference.CHAPTERS.values()},
    }
    for label, stem in api_reference.equation_pages().items():
        labels.setdefault(stem, []).append(label)
    for stem, here in labels.items():
        equations = "\n\n".join(f"$$ x $$ ({label})" for label in here)
        (source / f"{stem}.md").write_text(f"# {stem}\n\n{equations}\n")
    if chapter:
        others = [eq for eq in labels["04_forward_process"] if f"({eq})" not in chapter]
        equations = "\n\n".join(f"$$ x $$ ({label})" for label in others)
        (source / "04_forward_process.md").write_text(f"{chapter}\n\n{equations}\n")
    app = SphinxTestApp("html", srcdir=source, builddir=folder / "build")
    app.build()
    return app


def html(app: SphinxTestApp, page: str) -> BeautifulSoup:
    """A page that was built."""
    return BeautifulSoup((app.outdir / f"{page}.html").read_bytes(), "html.parser")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> SphinxTestApp:
    """The real API page among stand-ins for the chapters."""
    page = (BOOK / "api.md").read_text(encoding="utf-8")
    app = build(tmp_path_factory.mktemp("api"), page)
    yield app
    app.cleanup()


def entries(page: BeautifulSoup) -> dict[str, BeautifulSoup]:
    """What stands under each name that the page defines."""
    return {
        term["id"]: term.find_next_sibling("dd")
        for term in page.select("dl.py > dt[id]")
    }


def test_the_page_builds_without_a_warning(built: SphinxTestApp) -> None:
    assert built.warning.getvalue() == ""


def test_every_public_module_is_on_the_page(built: SphinxTestApp) -> None:
    on_page = {tag["id"] for tag in html(built, "api").select("[id^=module-]")}
    assert on_page == {f"module-{name}" for name in MODULES}
    assert set(api_reference.table()) == set(MODULES)


def test_every_public_name_is_on_the_page(built: SphinxTestApp) -> None:
    on_page = set(entries(html(built, "api")))
    for name in MODULES:
        for public in api_reference.public_names(importlib.import_module(name)):
            assert f"{name}.{public}" in on_page, public
    for name in ddpm_lite.__all__:
        item = getattr(ddpm_lite, name)
        assert f"{item.__module__}.{name}" in on_page
        links = {link["href"] for link in html(built, "api").select("table a[href]")}
        assert f"#{item.__module__}.{name}" in links, "missing at the top level"


def test_everything_public_has_a_docstring() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__doc__
        for public, item in api_reference.public_names(module).items():
            assert item.__doc__, f"{name}.{public}"


def test_every_function_and_class_links_to_a_chapter(built: SphinxTestApp) -> None:
    chapters = {f"{stem}.html" for stem in api_reference.CHAPTERS.values()}
    found = entries(html(built, "api"))
    for name in set(api_reference.documented()) & set(found):
        links = {
            link["href"].partition("#")[0]
            for link in found[name].find_all("a", href=True)
        }
        assert links & chapters, name


def test_a_name_with_equations_links_to_each_and_each_chapter_back(
    built: SphinxTestApp,
) -> None:
    found = entries(html(built, "api"))
    pages = {}
    for name, (_, equations) in api_reference.documented().items():
        for label in equations:
            home = api_reference.equation_pages()[label]
            target = f"{home}.html#equation-{label}"
            assert found[name].find("a", href=target), (name, label)
            if home in api_reference.CHAPTERS.values():
                page = pages.setdefault(home, html(built, home))
                box = page.select_one(".in-the-package")
                assert box.find("a", href=f"api.html#{name}"), (name, home)


def test_chapters_and_papers_named_in_a_docstring_are_links(
    built: SphinxTestApp,
) -> None:
    found = entries(html(built, "api"))
    loss = found["ddpm_lite.objective.simple_loss"]
    paper = loss.find("a", string="Ho et al. 2020")
    assert paper["href"].endswith("2006.11239")
    module = html(built, "api").find(id="module-ddpm_lite.process")
    names = [link.get_text() for link in module.find_all("a", class_="internal")]
    assert names[:2] == ["4", "5"]


def test_first_mention_of_a_name_in_a_page_is_a_link(built: SphinxTestApp) -> None:
    page = html(built, "04_forward_process")
    links = [
        unquote(link["href"])
        for text in page.select("section section > p")
        for link in text.find_all("a", href=True)
    ]
    assert links == [
        "api.html#ddpm_lite.schedule.linear_schedule",
        "api.html#ddpm_lite.process.GaussianDiffusion.q_sample",
        "api.html",
    ]
    assert not page.select("h2 code a"), "headings stay as they are"


def test_what_is_named_twice_or_like_a_word_is_not_linked_alone() -> None:
    ways = api_reference.spellings()
    assert ways["ddpm_lite.sample"] == "ddpm_lite.sampler.sample"
    assert ways["simple_loss"] == "ddpm_lite.objective.simple_loss"
    assert ways["gaussian.sample"] == "ddpm_lite.gaussian.sample"
    assert ways["UNet.forward"] == "ddpm_lite.models.unet.UNet.forward"
    assert not {
        "sample",
        "forward",
        "points",
        "digits",
        "T",
        "log_density",
        "save",
    } & set(ways)


# The checks above must be able to fail.


def test_a_name_without_an_entry_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {
        name: entry
        for name, entry in api_reference.documented().items()
        if "linear_schedule" not in name
    }
    monkeypatch.setattr(api_reference, "documented", lambda: kept)
    page = "# API\n\n```{eval-rst}\n.. automodule:: ddpm_lite.schedule\n   :members:\n```\n"
    app = build(tmp_path, page, chapter="")
    warnings = app.warning.getvalue()
    app.cleanup()
    assert "ddpm_lite.schedule.linear_schedule has no entry in api.toml" in warnings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('[schedule]\nchapters = ["04_forward_process"]\nno_such = []', "no_such"),
        (
            '[schedule]\nchapters = ["04_forward_process"]\nlinear_schedule = ["eq-none"]',
            "eq-none",
        ),
        ("[schedule]\nchapters = []", "no chapters"),
        ('[models.unet]\nchapters = ["08_unet"]', "quote the dots"),
    ],
    ids=["unknown name", "unknown equation", "no chapter", "unquoted"],
)
def test_a_wrong_table_is_refused(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "api.toml"
    table.write_text(line)
    monkeypatch.setattr(api_reference, "TABLE", table)
    with pytest.raises(ValueError, match=message):
        api_reference.documented.__wrapped__()
