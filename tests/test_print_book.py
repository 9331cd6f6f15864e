"""The PDF: one document of all pages, whose links, numbers and contents are right."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader

from book import BOOK, PAGES

sys.path.append(str(BOOK))
import print_book

PAGE = """<html><head>
<link rel="stylesheet" href="_static/theme.css"><script>window.MathJax = {{}}</script>
<script src="_static/mathjax.js"></script><script src="_static/theme.js"></script></head>
<body><nav>Menu</nav><article><section id="top"><h1>{title}<a class="headerlink" href="#top">#</a></h1>{text}
</section></article></body></html>"""
ONE = """<p id="eq">Text. <a href="two.html#eq">2</a> <a href="two.html">two</a> <a href="#eq">here</a>
<a href="https://arxiv.org/abs/2006.11239#x">paper</a> <a href="genindex.html">index</a></p>
<details class="solution"><summary>Solution</summary><p>Open.</p></details>
<div class="cell tag_hide-input"><details class="above-input"><summary>Hide</summary><pre>plt.plot()</pre></details>
<img src="a.png" loading="lazy" alt="A"></div><script>alert()</script>
<div class="actions"><p><a href="two.html">Read</a></p></div>
<div class="ddpm-widget"><p>Move it.</p><noscript><p>With JavaScript</p></noscript></div>
<pre>one line</pre><pre>{lines}</pre>"""
HEADING = """<h2>Why <mjx-assistive-mml style="display: none"><math><mi>x</mi></math></mjx-assistive-mml>
works<a class="headerlink" href="#why">#</a></h2>"""
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360000002000001e221bc330000000049454e44ae426082"
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site of two pages."""
    monkeypatch.setattr(print_book, "order", lambda: [("", ["one"]), ("Part", ["two"])])
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static/mathjax.js").write_text(
        "window.MathJax = { startup: { promise: Promise.resolve() } }"
    )
    (tmp_path / "_static/theme.css").touch()
    (tmp_path / "a.png").write_bytes(PIXEL)
    one = ONE.replace("{lines}", "line\n" * 50)
    (tmp_path / "one.html").write_text(PAGE.format(title="First & one", text=one))
    two = f'<p id="eq">More.</p><p style="break-before: page">Last.</p>{HEADING}'
    (tmp_path / "two.html").write_text(PAGE.format(title="Second", text=two))
    return tmp_path


def test_every_page_of_the_book_is_printed_once() -> None:
    printed = [name for _, pages in print_book.order() for name in pages]
    assert printed[0] == "index"
    assert len(printed) == len(set(printed))
    assert set(printed) <= {path.stem for path in PAGES}


def test_links_between_pages_become_links_within_the_document(site: Path) -> None:
    page = BeautifulSoup(print_book.document(site), "html.parser")
    addresses = [link["href"] for link in page.select("main a[href]")]
    assert addresses == [
        "#two--eq",
        "#two",
        "#one--eq",
        "https://arxiv.org/abs/2006.11239#x",
        "genindex.html",
    ]
    anchors = [tag["id"] for tag in page.select("[id]")]
    assert len(anchors) == len(set(anchors))
    assert {"one", "two", "one--eq", "two--eq"} <= set(anchors)


def test_what_paper_cannot_do_is_left_out_and_what_is_folded_is_open(
    site: Path,
) -> None:
    page = BeautifulSoup(print_book.document(site), "html.parser")
    assert page.select("main details[open]")
    assert "Open." in page.main.get_text()
    assert "plt.plot" not in page.get_text()
    assert "Read" not in page.main.get_text()
    assert print_book.STILL in page.main.get_text()
    assert "JavaScript" not in page.main.get_text()
    assert not page.select("main script, .headerlink, nav:not(.print-contents)")
    assert not page.select("[loading]")
    assert [script.get("src") for script in page.select("script")] == [
        None,
        "_static/mathjax.js",
    ]
    assert page.select("link[rel=stylesheet]")


def test_short_code_stays_on_one_page_and_long_code_may_break(site: Path) -> None:
    page = BeautifulSoup(print_book.document(site), "html.parser")
    one_line, long = page.select("main pre")
    assert one_line["class"] == ["short"]
    assert not long.has_attr("class")


def test_contents_say_on_which_page_a_chapter_begins(
    site: Path, tmp_path: Path
) -> None:
    pdf = tmp_path / "out" / "book.pdf"
    print_book.main(site, pdf)
    reader = PdfReader(pdf)
    text = [page.extract_text() for page in reader.pages]
    assert len(text) == 5  # title, contents, one, two, and the end of two
    contents = " ".join(text[1].split())
    assert "About this book 3 Part Second 4" in contents
    assert "Text." in text[2]
    assert "More." in text[3]
    assert "Last." in text[4]
    assert text[3].split().count("Second") == 2, "the header names the chapter"
    assert "4" in text[3].split(), "every page has its number"
    about, second, (inner,) = reader.outline
    assert [about.title, second.title] == ["About this book", "Second"]
    assert inner.title == "Why x works", "with the mathematics, and once"


def test_a_missing_picture_stops_the_press(site: Path, tmp_path: Path) -> None:
    (site / "a.png").unlink()
    with pytest.raises(SystemExit, match=r"a\.png"):
        print_book.main(site, tmp_path / "book.pdf")
    assert not (tmp_path / "book.pdf").exists()
