"""The built site as its readers meet it: its files, and its pages in Chromium, light and dark, on a laptop and a phone.

Without Chromium the tests that need it skip, but not in CI (environment variable ``CI``).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Locator
from website import (
    ADDED,
    ADDRESS,
    COLAB,
    REPOSITORY,
    Site,
    Visit,
    axe_faults,
    chromium,
    executable,
    hidden_text,
    image_faults,
    link_faults,
    mathematics_faults,
    picture_faults,
    weight,
    width_faults,
)

from book import BOOK, PAGES, ROOT, prose

WRITTEN = [path.stem for path in PAGES]
GENERATED = ["genindex", "py-modindex", "search"]
FIGURES = [path.stem for path in PAGES if "data-widget=" in prose(path)]
VARIED = ["index", "04_forward_process", "errata", "solutions"]  # all that a page has
TWO = [("light", 1280), ("dark", 360)]
FOUR = [*TWO, ("dark", 1280), ("light", 360)]

each_written = pytest.mark.parametrize("name", WRITTEN)
each_name = pytest.mark.parametrize("name", WRITTEN + GENERATED)


@pytest.fixture(scope="module")
def site(built: Path) -> Site:
    return Site(built / "html")


# Files


def reading_order() -> list[str]:
    """The pages, first to last, as the table of contents has them."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    chapters = [each["file"] for part in contents["parts"] for each in part["chapters"]]
    return [contents["root"], *chapters]


def test_the_site_has_the_pages_of_the_book_and_no_others(site: Site) -> None:
    expected = {f"{name}.html" for name in WRITTEN + GENERATED}
    assert set(site.pages) == expected
    assert sorted(reading_order()) == sorted(WRITTEN)


@each_name
def test_every_link_leads_somewhere(site: Site, name: str) -> None:
    assert link_faults(site, f"{name}.html") == []


@each_written
def test_every_image_speaks_and_waits(site: Site, name: str) -> None:
    assert image_faults(site.pages[f"{name}.html"]) == []


def test_what_is_not_built_here_is_added_before_the_site_is_published() -> None:
    workflow = (ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8")
    assert f"cp _build/pdf/{ADDED} _build/html/" in workflow


def test_next_and_previous_lead_through_the_book(site: Site) -> None:
    order = [f"{name}.html" for name in reading_order()]
    for before, here, after in zip([None, *order], order, [*order[1:], None]):
        for arrow, expected in ((".left-prev", before), (".right-next", after)):
            link = site.pages[here].select_one(arrow)
            assert (link and link["href"]) == expected, (here, arrow)


def test_exercises_and_solutions_lead_to_each_other(site: Site) -> None:
    solutions = site.pages["solutions.html"]
    seen = set()
    for name, page in site.pages.items():
        for exercise in page.select(".exercise"):
            (link,) = exercise.select(".to-solution a")
            target, anchor = link["href"].split("#")
            assert target == "solutions.html"
            solution = solutions.find(id=anchor)
            assert "solution" in solution["class"]
            back = solution.select_one(".admonition-title a")["href"]
            assert back == f"{name}#{exercise['id']}"
            seen.add(anchor)
    assert seen == {it["id"] for it in solutions.select(".solution")} != set()


def test_no_number_is_given_twice(site: Site) -> None:
    for kind in (".caption-number", ".eqno"):
        numbers = [it.text for page in site.pages.values() for it in page.select(kind)]
        assert sorted(numbers) == sorted(set(numbers)) != []
        assert [it for it in numbers if not re.search(r"[\dA-Z]\.\d", it)] == []


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def base(site: Site) -> Iterator[str]:
    """The address at which the site is served."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Handler, directory=site.folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module", params=WRITTEN + GENERATED)
def visit(
    request: pytest.FixtureRequest, browser: Browser, base: str
) -> Iterator[Visit]:
    """A page. The tests that look at the same one share the visit."""
    with browser.new_context() as context:
        yield Visit(context, f"{base}{request.param}.html")


def test_page_loads_without_a_complaint(visit: Visit, base: str) -> None:
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith((base, "data:"))] == []
    assert picture_faults(visit.page) == []


def test_mathematics_is_set(visit: Visit) -> None:
    assert mathematics_faults(visit.page) == []


def test_page_is_light(visit: Visit, site: Site, base: str) -> None:
    assert weight(visit, site, base) < 1_500_000


def test_phone_scrolls_in_one_direction(visit: Visit) -> None:
    visit.show(width=360)
    assert width_faults(visit.page) == []


def test_page_is_accessible(visit: Visit) -> None:
    name = visit.page.url.rpartition("/")[2].removesuffix(".html")
    for theme, width in FOUR if name in VARIED else TWO:
        visit.show(theme, width)
        assert visit.page.locator("html").get_attribute("data-theme") == theme
        assert axe_faults(visit.page) == [], (theme, width)


@pytest.mark.parametrize("name", ["index", FIGURES[0]])
def test_page_opened_from_the_disk_is_the_same(
    browser: Browser, site: Site, name: str
) -> None:
    with browser.new_context() as context:
        visit = Visit(context, (site.folder / f"{name}.html").as_uri())
        # The theme asks for its icons early, in a way that has no meaning on a disk; they are loaded all the same.
        early = ("/webfonts/", "console: Failed to load resource: net::ERR_FAILED")
        assert [it for it in visit.complaints if not any(e in it for e in early)] == []
        assert mathematics_faults(visit.page) == picture_faults(visit.page) == []
        for figure in visit.page.locator("[data-widget]").all():
            figure.scroll_into_view_if_needed()
            figure.locator(".ddpm-live canvas, .ddpm-live svg").first.wait_for()


def test_pages_without_javascript_show_text_and_figures(
    browser: Browser, site: Site, base: str
) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        for name in WRITTEN:
            page.goto(f"{base}{name}.html")
            assert hidden_text(page, site.pages[f"{name}.html"]) == [], name
            for picture in page.locator("article :not(details) img").all():
                picture.scroll_into_view_if_needed()
                assert picture.bounding_box()["height"] > 20, name


# What the reader can do


@pytest.mark.parametrize("load", [True, False], ids=["from a chapter", "on the page"])
def test_link_to_a_solution_unfolds_it(browser: Browser, base: str, load: bool) -> None:
    with browser.new_context() as context:
        page = Visit(context, f"{base}05_posterior.html").page
        link = page.locator(".exercise .to-solution a").first
        anchor = link.get_attribute("href").split("#")[1]
        if load:
            link.click()
        else:
            page.goto(f"{base}solutions.html")
            page.locator(f"#{anchor}.toggle-hidden").wait_for()
            page.evaluate("anchor => { location.hash = anchor }", anchor)
        solution = page.locator(f"#{anchor}")
        solution.locator(".cell_output").wait_for(state="visible")
        page.wait_for_function(
            """anchor => Math.abs(document.getElementById(anchor)
                .getBoundingClientRect().top) < innerHeight / 2""",
            arg=anchor,
        )
        page.locator(".solution.toggle-hidden").first.wait_for()  # the others wait
        assert page.locator(".solution:not(.toggle-hidden)").count() == 1


def drawn(figure: Locator) -> str:
    """What an interactive figure shows, at its end if it has one: its pictures, curves and numbers."""
    for play in figure.get_by_role("button", name="Play").all():
        play.press("Enter")
    return figure.locator(".ddpm-live").evaluate(
        """(live) => live.innerText + [...live.querySelectorAll("svg")].map((it) => it.innerHTML)
            + [...live.querySelectorAll("canvas")].map((it) => it.toDataURL())"""
    )


@pytest.mark.parametrize("name", FIGURES)
def test_interactive_figures_obey_the_keyboard(
    browser: Browser, base: str, name: str
) -> None:
    with browser.new_context(reduced_motion="reduce") as context:
        visit = Visit(context, f"{base}{name}.html")
        figures = visit.page.locator("[data-widget]").all()
        assert figures
        for figure in figures:
            figure.scroll_into_view_if_needed()
            figure.locator(".ddpm-live").wait_for()
            sliders = figure.get_by_role("slider").all()
            assert sliders
            for slider in sliders:
                slider.press("Home")
                least = drawn(figure)
                slider.press("End")
                most = drawn(figure)
                slider.press("ArrowLeft")
                assert len({least, most, drawn(figure)}) == 3
            for choice in figure.get_by_role("combobox").all():
                before = drawn(figure)
                choice.press("ArrowDown")
                assert drawn(figure) != before
        assert visit.complaints == []


def test_the_sampler_walks_to_its_end(browser: Browser, base: str) -> None:
    with browser.new_context(reduced_motion="no-preference") as context:
        page = Visit(context, f"{base}10_sampling.html").page
        figure = page.locator("[data-widget=sampler]")
        figure.scroll_into_view_if_needed()
        figure.get_by_role("slider").press("ArrowLeft")
        walk = figure.locator("[data-step]")
        steps = walk.get_attribute("data-steps")
        assert walk.get_attribute("data-step") == "0" != steps
        figure.get_by_role("button", name="Play").click()
        figure.locator(f"[data-playing=false][data-step='{steps}']").wait_for()
        figure.get_by_text("distance from the data").first.wait_for()


def test_search_finds_a_chapter_and_says_when_there_is_nothing(
    browser: Browser, base: str
) -> None:
    with browser.new_context() as context:
        visit = Visit(context, f"{base}index.html")
        page = visit.page
        page.keyboard.press("Control+k")
        page.keyboard.type("posterior")
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=posterior*")
        page.get_by_text("Search finished").wait_for()
        links = page.locator("#search-results li > a").all()
        found = [link.get_attribute("href") for link in links]
        assert any("05_posterior.html" in address for address in found[:3])
        first_of_reference = min(i for i, it in enumerate(found) if "api.html" in it)
        assert all("api.html" in it for it in found[first_of_reference:])
        page.wait_for_load_state("networkidle")  # excerpts are on their way
        page.goto(f"{base}search.html?q=zebra")
        page.get_by_text("did not match any documents").wait_for()
        assert page.locator("#search-results li a").count() == 0
        assert visit.complaints == []


def test_theme_that_a_reader_chooses_stays(browser: Browser, base: str) -> None:
    with browser.new_context(color_scheme="light") as context:
        page = Visit(context, f"{base}index.html").page
        button = page.locator(".theme-switch-button:visible")
        for _ in range(3):
            button.click()
            if page.locator("html[data-mode=dark]").count():
                break
        assert page.locator("html[data-mode=dark][data-theme=dark]").count() == 1
        page.goto(f"{base}notation.html")
        assert page.locator("html[data-mode=dark][data-theme=dark]").count() == 1


# The checks above must be able to fail.

GOOD = f"""
<h1 id="top">Title</h1>
<p>Text with a <a href="#top">link</a>, <a href="other.html#there">another</a>, <a href="{ADDRESS}other.html">the
site</a>, <a href="{REPOSITORY}/blob/main/LICENSE">a file</a>, <a href="{REPOSITORY}/issues">issues</a>,
<a href="{COLAB}/blob/colab/01_elbo.ipynb">Colab</a>, <a href="https://doi.org/10.1000/(x)1">a source</a>, and
<code>$code$</code>.</p>
<img src="dot.svg" alt="A dot" width="20" height="20" loading="lazy">
<p class="math"><mjx-container></mjx-container></p>
"""


def planted(folder: Path, body: str) -> Site:
    """A site of two pages, the first with the given text."""
    frame = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Page</title>'
        '<link rel="icon" href="dot.svg"></head><body><main><article>{}</article></main></body></html>'
    )
    (folder / "page.html").write_text(frame.format(body))
    (folder / "other.html").write_text(frame.format('<h1 id="there">Other</h1>'))
    (folder / "dot.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><circle r="9"/></svg>'
    )
    return Site(folder)


def test_a_good_page_passes(tmp_path: Path, browser: Browser) -> None:
    site = planted(tmp_path, GOOD)
    with browser.new_context() as context:
        visit = Visit(context, (tmp_path / "page.html").as_uri())
        visit.show(width=360)
        assert link_faults(site, "page.html") == []
        assert image_faults(site.pages["page.html"]) == []
        assert visit.complaints == picture_faults(visit.page) == []
        assert mathematics_faults(visit.page) == width_faults(visit.page) == []
        assert axe_faults(visit.page) == []
        assert hidden_text(visit.page, site.pages["page.html"]) == []
        size = (tmp_path / "page.html").stat().st_size
        size += (tmp_path / "dot.svg").stat().st_size
        assert weight(visit, site, f"{tmp_path.as_uri()}/") == size


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("nowhere.html", "no such file"),
        ("#nowhere", "no such anchor"),
        ("other.html#nowhere", "no such anchor"),
        (f"{ADDRESS}nowhere.html", "no such file"),
        (f"{ADDRESS}other.html#nowhere", "no such anchor"),
        (f"{REPOSITORY}/blob/main/nowhere.py", "no such file in the repository"),
        (f"{REPOSITORY}/blob/colab/nowhere.ipynb", "no such file in the repository"),
        (f"{REPOSITORY}/blob/old/LICENSE", "no such file in the repository"),
        (f"{REPOSITORY}/nothing", "no such place in the repository"),
        (f"{COLAB}/blob/colab/nowhere.ipynb", "no such file in the repository"),
        ("http://example.org/", "not https"),
        ("ftp://example.org/", "not https"),
        ("//example.org/", "not https"),
        ("file:///page.html", "not https"),
        ("https://localhost/", "not a public host"),
        ("https://127.0.0.1/", "not a public host"),
        ("https://example/", "not a public host"),
        ("https://example.org:8000/", "not a public host"),
        ("https://example.org/{page}", "not an address"),
    ],
)
@pytest.mark.parametrize("attribute", ["a href", "img src", "source srcset"])
def test_a_bad_address_is_noticed(
    tmp_path: Path, attribute: str, address: str, fault: str
) -> None:
    tag, name = attribute.split()
    site = planted(tmp_path, f'{GOOD}<{tag} {name}="{address}">')
    assert link_faults(site, "page.html") == [f"{address}: {fault}"]


@pytest.mark.parametrize(
    ("image", "fault"),
    [
        ('<img src="dot.svg" alt="" width="1" height="1" loading="lazy">', "no alter"),
        ('<img src="dot.svg" width="1" height="1" loading="lazy">', "no alternative"),
        (
            '<img src="dot.svg" alt="_images/dot.svg" width="1" height="1" loading="lazy">',
            "a file name",
        ),
        ('<img src="dot.svg" alt="A dot" loading="lazy">', "no size"),
        ('<img src="dot.svg" alt="A dot" width="1" height="1">', "not lazy"),
    ],
)
def test_a_bad_image_is_noticed(image: str, fault: str) -> None:
    page = BeautifulSoup(f"<article>{image}</article>", "html.parser")
    assert any(fault in found for found in image_faults(page))


def test_an_image_of_the_theme_without_alt_is_noticed() -> None:
    assert image_faults(BeautifulSoup('<img src="dot.svg">', "html.parser"))
    assert not image_faults(BeautifulSoup('<img src="dot.svg" alt="">', "html.parser"))


COMPLAINTS = {
    "missing picture": ('<img src="gone.png" alt="Gone">', "gone.png"),
    "missing script": ('<script src="gone.js"></script>', "gone.js"),
    "other host": (
        '<script src="https://example.org/a.js"></script>',
        "example.org/a.js",
    ),
    "exception": ("<script>nonsense()</script>", "nonsense is not defined"),
    "late exception": (
        "<script>Promise.reject(Error('late'))</script>",
        "late",
    ),
    "message": ("<script>console.error('alas')</script>", "alas"),
}
MATHEMATICS = {
    "not set": ('<p class="math">\\(x\\)</p>', "not set"),
    "error": (
        '<p class="math"><mjx-container><mjx-merror>Missing</mjx-merror></mjx-container></p>',
        "a mistake: Missing",
    ),
    "unknown macro": (
        '<p class="math"><mjx-container><mjx-mtext style="color: red;">\\foo</mjx-mtext></mjx-container></p>',
        "a mistake: \\foo",
    ),
    "dollar": ("<p>It is $x$.</p>", "TeX in the text"),
    "bracket": ("<p>It is \\(x).</p>", "TeX in the text"),
    "macro": ("<p>It is \\alpha.</p>", "TeX in the text"),
}
ACCESS = {
    "contrast": ('<p style="color: #aaa">Pale</p>', "color-contrast"),
    "no name": ("<button></button>", "button-name"),
    "no label": ('<input type="range">', "label"),
    "no text": ('<img src="dot.svg">', "image-alt"),
    "no link text": ('<a href="other.html"></a>', "link-name"),
    "second main": ("<main>More</main>", "landmark-no-duplicate-main"),
    "outside": ("</article></main><p>Outside</p><main><article>", "region"),
    "wrong role": ('<p role="nonsense">Text</p>', "aria-roles"),
    "heading order": ("<h5>Small</h5>", "heading-order"),
}
WIDE = '<p style="width: 500px">Wide</p>'


@pytest.mark.parametrize(
    ("body", "expected", "check"),
    [
        *[(*case, lambda visit: visit.complaints) for case in COMPLAINTS.values()],
        *[
            (*case, lambda visit: mathematics_faults(visit.page))
            for case in MATHEMATICS.values()
        ],
        *[(*case, lambda visit: axe_faults(visit.page)) for case in ACCESS.values()],
        (WIDE, "P. to 508: Wide", lambda visit: width_faults(visit.page)),
        (
            '<img src="gone.png" alt="Gone">',
            "gone.png",
            lambda visit: picture_faults(visit.page),
        ),
    ],
    ids=[*COMPLAINTS, *MATHEMATICS, *ACCESS, "wide", "no picture"],
)
def test_a_bad_page_is_noticed(
    tmp_path: Path, browser: Browser, body: str, expected: str, check
) -> None:
    planted(tmp_path, GOOD + body)
    with browser.new_context() as context:
        visit = Visit(context, (tmp_path / "page.html").as_uri())
        visit.show(width=360)
        assert any(expected in fault for fault in check(visit))


def test_text_that_needs_javascript_is_noticed(
    tmp_path: Path, browser: Browser
) -> None:
    site = planted(tmp_path, GOOD + '<p style="display: none">Later</p>')
    with browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        assert hidden_text(page, site.pages["page.html"]) == ["Later"]


def test_without_a_browser_the_tests_skip_but_not_in_ci(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    own = tmp_path / "own"
    for ci, outcome in (("", pytest.skip.Exception), ("true", pytest.fail.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(outcome, match="not tested in a browser"):
            executable(str(own))
    own.touch()
    assert executable(str(own)) == str(own)
    system = tmp_path / "google-chrome"
    system.touch(mode=0o755)
    assert executable(str(own)) == str(system)
