"""Print the built site as one PDF: title page, contents with page numbers, every page of the book, outline, links.

    python book/print_book.py _build/html _build/pdf/ddpm_lite.pdf

Chromium does it, so that the PDF shows what the site shows: the same numbers, boxes and figures, with all
solutions open. The code that draws a figure, folded away on the site, is left out. It prints twice, because the page
numbers in the contents are known only after the first time. The titles in the outline are set afterwards: Chromium
leaves out their mathematics and doubles those at the top of a page.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Page, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import DictionaryObject, NameObject, TextStringObject

import ddpm_lite

BOOK = Path(__file__).parent
STYLE = BOOK / "print.css"
LEFT_OUT = (
    "script, noscript, iframe, button, .headerlink, .prev-next-area, .actions, [data-no-print], "
    ".tag_hide-input details.above-input, .tag_hide-cell details"
)
SHORT = 15  # lines of code, or rows of a table, that stay on one page
STILL = "On the site this figure is interactive. The picture is a still of it."


def order() -> list[tuple[str, list[str]]]:
    """The parts of the book, each with its pages, from the table of contents; the first part has no name."""
    toc = yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))
    parts = [("", [toc["root"]])]
    for part in toc["parts"]:
        parts.append(
            (part["caption"], [chapter["file"] for chapter in part["chapters"]])
        )
    return parts


def article(site: Path, name: str, names: set[str]) -> Tag:
    """The text of one page of the site, with anchors and links that work when all pages are one."""
    soup = BeautifulSoup((site / f"{name}.html").read_bytes(), "html.parser")
    found = soup.select_one("article")
    for tag in found.select(".ddpm-widget noscript"):
        tag.name, tag.string = "p", STILL
    for tag in found.select(LEFT_OUT):
        tag.decompose()
    for tag in found.select("pre, table"):
        lines = tag.select("tr") or tag.get_text().strip().split("\n")
        if len(lines) <= SHORT:
            tag["class"] = [*tag.get("class", []), "short"]
    for tag in found.select("details"):
        tag["open"] = ""
    for tag in found.select("[loading]"):
        del tag["loading"]
    for tag in found.select("[id]"):
        tag["id"] = f"{name}--{tag['id']}"
    for tag in found.select("a[href]"):
        tag["href"] = _address(tag["href"], name, names)
    found["id"] = name
    found["style"] = f"page: p-{name}"
    return found


def _address(target: str, name: str, names: set[str]) -> str:
    """Where a link of the page ``name`` leads to in the book."""
    page, _, anchor = target.partition("#")
    page = page.removesuffix(".html") if page.endswith(".html") else page or name
    if page not in names:
        return target
    return f"#{page}--{anchor}" if anchor else f"#{page}"


def document(site: Path) -> str:
    """The whole book as one page of HTML; the page numbers of the contents are still empty."""
    parts = order()
    names = {name for _, pages in parts for name in pages}
    config = yaml.safe_load(
        (BOOK.parent / "_config.yml").read_text(encoding="utf-8")
    )
    articles = {name: article(site, name, names) for name in sorted(names)}
    articles[parts[0][1][0]].h1.string = "About this book"
    titles = {name: found.h1.get_text().strip() for name, found in articles.items()}
    contents, headers = [], []
    for part, pages in parts:
        if part:
            contents.append(f'<p class="part">{html.escape(part)}</p>')
        for name in pages:
            title = html.escape(titles[name])
            contents.append(f'<p><a href="#{name}">{title}</a><span></span></p>')
            quoted = titles[name].replace("\\", "\\\\").replace('"', '\\"')
            headers.append(
                f'@page p-{name} {{ @top-right {{ content: "{quoted}" }} }}'
            )
    head = BeautifulSoup(
        (site / f"{parts[0][1][0]}.html").read_bytes(), "html.parser"
    ).head
    kept = [
        tag
        for tag in head.find_all(["link", "script"])
        if "stylesheet" in tag.get("rel", []) or "mathjax" in str(tag).lower()
    ]
    text = "\n".join(str(articles[name]) for _, pages in parts for name in pages)
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light">
<head>
<meta charset="utf-8">
<title>{html.escape(config["title"])}</title>
<base href="{site.resolve().as_uri()}/">
{"".join(map(str, kept))}
<style>{STYLE.read_text(encoding="utf-8")}
{chr(10).join(headers)}</style>
</head>
<body>
<header class="title-page">
<p class="title">{html.escape(config["title"])}</p>
<p>{html.escape(config["author"])}</p>
<p>Version {ddpm_lite.__version__}</p>
<p>{config["repository"]["url"]}</p>
<p>Text and figures: CC BY 4.0. Code: MIT License.</p>
</header>
<nav class="print-contents"><p class="title">Contents</p>{"".join(contents)}</nav>
<main>{text}</main>
</body>
</html>"""


def pages_of_chapters(pdf: Path) -> list[int]:
    """The page on which each page of the site begins, in the order of the book, counted from 1."""
    reader = PdfReader(pdf)
    return [
        reader.get_destination_page_number(entry) + 1
        for entry in reader.outline
        if not isinstance(entry, list)
    ]


def name_bookmarks(pdf: Path, titles: list[str]) -> None:
    """Set the titles of the outline, which a reader of the PDF then sees beside the first page."""
    writer = PdfWriter(pdf, incremental=True)
    entries = _below(writer.get_outline_root())
    for entry, title in zip(entries, titles, strict=True):
        entry[NameObject("/Title")] = TextStringObject(title)
    writer.page_mode = "/UseOutlines"
    writer.write(pdf)


def _below(entry: DictionaryObject) -> Iterator[DictionaryObject]:
    """The entries of the outline below this one, from top to bottom."""
    child = entry.get("/First")
    while child is not None:
        yield child.get_object()
        yield from _below(child.get_object())
        child = child.get_object().get("/Next")


def set_type(page: Page, source: Path) -> None:
    """Open the whole book, and wait for its mathematics and its pictures."""
    page.goto(source.resolve().as_uri(), wait_until="load")
    page.evaluate(
        "MathJax.startup.promise.then(() => document.fonts.ready).then(() => true)"
    )
    missing = page.evaluate(
        "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src)"
    )
    wrong = page.evaluate(
        "[...document.querySelectorAll('mjx-merror')].map(e => e.textContent)"
    )
    if missing or wrong:
        raise SystemExit(f"pictures missing: {missing}; mathematics wrong: {wrong}")


def main(site: Path, pdf: Path) -> None:
    """Print the site to a PDF."""
    pdf.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        page = browser.new_page(reduced_motion="reduce")
        page.route(re.compile("^https?:"), lambda route: route.abort())
        page.set_default_timeout(0)
        source, printed = Path(folder, "book.html"), Path(folder, "book.pdf")
        source.write_text(document(site), encoding="utf-8")
        set_type(page, source)
        settings = {"prefer_css_page_size": True, "outline": True, "tagged": True}
        page.pdf(path=printed, **settings)
        page.evaluate(
            """pages => document.querySelectorAll(".print-contents span").forEach(
                (span, i) => { span.textContent = pages[i] })""",
            pages_of_chapters(printed),
        )
        page.pdf(path=printed, **settings)
        titles = page.evaluate(
            """[...document.querySelectorAll("main :is(h1, h2, h3, h4, h5, h6)")].map(
                h => h.textContent.trim().replace(/\\s+/g, " "))"""
        )
        browser.close()
        name_bookmarks(printed, titles)
        shutil.move(printed, pdf)
    print(
        f"{pdf}: {len(PdfReader(pdf).pages)} pages, {pdf.stat().st_size / 1e6:.1f} MB"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
