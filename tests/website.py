"""The built site: what is wrong with its files, and with its pages in a browser. Nothing found is what a test wants."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from book import NOTEBOOKS, ROOT

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
ADDRESS = CONFIG["html"]["baseurl"]  # of the published site
REPOSITORY = CONFIG["repository"]["url"]
COLAB = REPOSITORY.replace(
    "https://github.com/", "https://colab.research.google.com/github/"
)
ADDED = "ddpm_lite.pdf"  # to the site, by the workflow that publishes it

# Files


class Site:
    """The pages in a folder, parsed when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def pages(self) -> dict[str, BeautifulSoup]:
        return {
            path.name: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
            for path in sorted(self.folder.glob("*.html"))
        }

    @cached_property
    def anchors(self) -> dict[str, set[str]]:
        return {
            name: {tag["id"] for tag in page.find_all(id=True)}
            for name, page in self.pages.items()
        }


def addresses(page: BeautifulSoup) -> list[str]:
    """All that a page links to or loads."""
    found = {tag["href"] for tag in page.find_all(["a", "link"], href=True)}
    found |= {tag["src"] for tag in page.find_all(src=True)}
    found |= {tag["action"] for tag in page.find_all(action=True)}
    for tag in page.find_all(srcset=True):
        found |= {entry.split()[0] for entry in tag["srcset"].split(",")}
    for tag in page.find_all("meta", property="og:image"):
        found.add(tag["content"])
    return sorted(found)


def link_faults(site: Site, name: str) -> list[str]:
    """Addresses of a page that lead nowhere, as far as that can be said without the network."""
    faults = []
    for address in addresses(site.pages[name]):
        if address.startswith(ADDRESS):
            fault = inside(site, "index.html", address.removeprefix(ADDRESS))
        elif urlsplit(address).scheme or urlsplit(address).netloc:
            fault = outside(address)
        else:
            fault = inside(site, name, address)
        if fault:
            faults.append(f"{address}: {fault}")
    return faults


def inside(site: Site, name: str, address: str) -> str | None:
    parts = urlsplit(address)
    target = unquote(parts.path) or name
    if target == ADDED:
        return None
    if not (site.folder / target).is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if target in site.anchors and anchor and anchor not in site.anchors[target]:
        return "no such anchor"
    return None


def outside(address: str) -> str | None:
    parts = urlsplit(address)
    if parts.scheme == "data":
        return None
    if parts.scheme != "https":
        return "not https"
    if not re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc):
        return "not a public host"
    if re.search(r"[\s<>\"\\^`{|}]", address):
        return "not an address"
    for place in (REPOSITORY, COLAB):
        if address == place or address.startswith(f"{place}/"):
            return in_repository(address.removeprefix(place).strip("/"))
    return None


def in_repository(place: str) -> str | None:
    """What is wrong with an address, relative to that of the repository."""
    if place.split("?")[0] in ("", "issues", "issues/new", "releases"):
        return None
    view, branch, path = (place.split("/", 2) + ["", ""])[:3]
    if view not in ("blob", "edit", "raw", "tree"):
        return "no such place in the repository"
    if branch == CONFIG["repository"]["branch"]:
        exists = (ROOT / unquote(path.split("#")[0])).exists()
    else:  # the branch of the copies has nothing but notebooks
        exists = branch == "colab" and path in [each.name for each in NOTEBOOKS]
    return None if exists else "no such file in the repository"


def image_faults(page: BeautifulSoup) -> list[str]:
    """Images of the text that say nothing to those who cannot see them, or make the page jump or load slowly."""
    faults = []
    for image in page.select("article img"):
        alternative = image.get("alt", "").strip()
        if not alternative:
            faults.append(f"{image}: no alternative text")
        elif re.search(r"_images/|\.(png|svg|webp)$", alternative):
            faults.append(f"{image}: a file name as alternative text")
        if not (image.has_attr("width") and image.has_attr("height")):
            faults.append(f"{image}: no size")
        if image.get("loading") != "lazy" and not image.find_parent(class_="hero"):
            faults.append(f"{image}: not lazy")
    for image in page.find_all("img", alt=False):
        faults.append(f"{image}: no attribute alt")
    return faults


# A browser

PATIENCE = 300_000  # milliseconds; how long a page takes is not what is tested


def executable(own: str) -> str:
    """Chromium: the system's, or else Playwright's own. Where there is none the test skips, but in CI it fails."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [path for path in map(shutil.which, names) if path]
    if Path(own).exists():
        found.append(own)
    if not found:
        message = "Chromium not found: the site was not tested in a browser"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return found[0]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a network."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable(playwright.chromium.executable_path),
            args=[
                "--no-proxy-server",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
            timeout=PATIENCE,
        )
        yield browser
        browser.close()


SETTLE = """async () => {
    await window.MathJax?.startup?.promise;
    for (const box of document.querySelectorAll("details")) box.open = true;
    for (const box of document.querySelectorAll(".toggle-hidden")) box.classList.remove("toggle-hidden");
    for (const image of document.images) image.loading = "eager";
    await Promise.allSettled([...document.images].map((image) => image.decode()));
    await document.fonts.ready;
}"""


# The theme waits 300 ms after a change of the window; what is asked for later comes later.
FOLLOW = "new Promise((done) => requestAnimationFrame(() => setTimeout(done, 500)))"


class Visit:
    """A page in a browser, loaded to the end, its folded parts unfolded, its lazy images loaded."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        context.set_default_timeout(PATIENCE)
        self.page: Page = context.new_page()
        self.complaints: list[str] = []  # of the browser
        self.requests: list[str] = []
        complain = self.complaints.append
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("requestfailed", lambda it: complain(f"failed: {it.url}"))
        self.page.on(
            "response",
            lambda it: it.status >= 400 and complain(f"{it.status}: {it.url}"),
        )
        self.page.on("pageerror", lambda error: complain(f"error: {error}"))
        self.page.on(
            "console",
            lambda it: it.type in ("error", "warning") and complain(f"console: {it}"),
        )
        self.page.goto(address)
        self.page.evaluate(SETTLE)

    def show(self, theme: str = "light", width: int = 1280) -> None:
        """Change what the system of the reader asks for, and the window, and let the page follow."""
        self.page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.evaluate(FOLLOW)


def mathematics_faults(page: Page) -> list[str]:
    """Formulas that were not set, or in which MathJax found a mistake, and TeX that is no formula."""
    return page.evaluate(
        r"""() => {
            const short = (node) => node.textContent.trim().slice(0, 80);
            const faults = [];
            for (const formula of document.querySelectorAll(".math")) {
                if (!formula.querySelector("mjx-container")) faults.push(`not set: ${short(formula)}`);
            }
            const wrong = "mjx-merror, [data-mjx-error], mjx-container [style*='color: red']";
            for (const error of document.querySelectorAll(wrong)) faults.push(`a mistake: ${short(error)}`);
            const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walker.nextNode()) {
                const text = walker.currentNode;
                if (text.parentElement.closest("code, pre, script, style, mjx-container")) continue;
                if (/\$|\\[([]|\\[a-zA-Z]/.test(text.data)) faults.push(`TeX in the text: ${short(text)}`);
            }
            if (/\$|\\/.test(document.title)) faults.push(`TeX in the title: ${document.title}`);
            return faults;
        }"""
    )


def width_faults(page: Page) -> list[str]:
    """What makes a page wider than the window."""
    return page.evaluate(
        """() => {
            const room = document.documentElement.clientWidth;
            if (document.scrollingElement.scrollWidth <= room) return [];
            const cut = (element) => {
                for (let box = element.parentElement; box; box = box.parentElement) {
                    if (getComputedStyle(box).overflowX !== "visible") return true;
                }
            };
            const wide = [...document.querySelectorAll("body *")]
                .filter((element) => element.getBoundingClientRect().right > room + 0.5 && !cut(element))
                .map((element) => `${element.tagName}.${element.className} to `
                    + `${element.getBoundingClientRect().right}: ${element.textContent.trim().slice(0, 60)}`);
            return [`${document.scrollingElement.scrollWidth} wide`, ...wide];
        }"""
    )


def picture_faults(page: Page) -> list[str]:
    """Images that the browser could not show."""
    return page.evaluate(
        """[...document.images].filter((image) => !image.naturalWidth).map((image) => image.src)"""
    )


# Faults that a page cannot mend: a rule of axe, and the elements in which it may find them.
TOLERATED = {
    # Sphinx sets a long signature, one argument a line, as a list of definitions without terms.
    "definition-list": r"#ddpm_lite\S+ > dl",
}


THIN = """() => {
    for (const formula of document.querySelectorAll("mjx-container")) formula.replaceWith("formula");
    const seen = new Set();
    for (const token of document.querySelectorAll("pre span")) {
        let kind = "";
        for (let box = token; box; box = box.parentElement) kind += `${box.tagName} ${box.className}/`;
        if (seen.has(kind)) token.replaceWith(...token.childNodes);
        seen.add(kind);
    }
}"""


def axe_faults(page: Page) -> list[str]:
    """What axe-core has to say of a page, which is changed: axe takes a time for each element, and most are letters.

    A formula becomes a word, in the colour of the formula. Of the coloured words of code one of each kind is left.
    """
    page.evaluate(THIN)
    found = Axe().run(page, None, {"resultTypes": ["violations"], "preload": False})
    faults = []
    for violation in found.response["violations"]:
        for node in violation["nodes"]:
            where = " ".join(map(str, node["target"]))
            why = [each["message"] for each in node["any"] + node["all"] + node["none"]]
            if not re.fullmatch(TOLERATED.get(violation["id"], ""), where):
                faults.append(f"{violation['id']}: {where}: {node['html']}: {why}")
    return faults


def weight(visit: Visit, site: Site, base: str) -> int:
    """The bytes of a page without the theme: the text, its pictures and its interactive figures."""
    paths = {urlsplit(url.removeprefix(base)).path for url in visit.requests}
    own = [
        path
        for path in paths
        if not path.startswith("_static/")
        or path.startswith(("_static/widgets/", "_static/landing/"))
    ]
    return sum((site.folder / path).stat().st_size for path in own)


def letters(text: str) -> str:
    """Letters and digits, in which the file and what is shown agree."""
    return "".join(filter(str.isalnum, text))


def hidden_text(page: Page, source: BeautifulSoup) -> list[str]:
    """Paragraphs of the file that a reader cannot see, folded ones apart."""
    shown = letters(page.locator("article").inner_text())
    paragraphs: list[Tag] = source.select(
        "article :is(h1, h2, h3, p, pre, td, figcaption)"
    )
    return [
        tag.text
        for tag in paragraphs
        if not tag.find_parent("details") and letters(tag.text) not in shown
    ]
