"""What a reader of the site gets beyond what its theme offers.

- The landing page knows the numbers of the book, ``{{ equations }}`` and so on, and each page the version.
- Images are loaded when they come into view. Their sizes stand in the page, so that the text does not jump.
- An exercise ends with a link to its solution, which is folded together with the cells that check it.
- What is numbered in an appendix has its letter: Fig. S.1 is the first of the solutions.
- No line begins with the comma that follows a formula, nor with the × 8 of 8 × 8. Long names in the text can be
  broken where a word of theirs ends.
- ``site.js`` shows an equation where it is referred to. It finds the equations in ``equations.js``, written
  here, because a page that is opened from a disk cannot read other pages.
"""

from __future__ import annotations

import json
import re
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import nbformat
from colab_copies import colab_url, is_code_cell
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node

from ddpm_lite import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOOK = Path(__file__).parent.parent
DATA = "equations.js"
FIRST_TO_RUN = "04_forward_process"  # needs only probability, and shows digits


def numbers(book: Path = BOOK) -> dict[str, int]:
    """What the landing page counts, each from the files themselves."""
    ledger = tomllib.loads((book / "equations.toml").read_text(encoding="utf-8"))
    cells = {
        path.stem: nbformat.read(path, as_version=4).cells
        for path in book.glob("*.ipynb")
    }
    errata = "\n".join(cell.source for cell in cells["errata"])
    return {
        "equations": len(ledger),
        "checked": sum(entry["kind"] != "definition" for entry in ledger.values()),
        "notebooks": len(cells),
        "errata": len(re.findall(r"^\(err-[a-z0-9-]+\)=$", errata, re.MULTILINE)),
    }


def fill_in(app: Sphinx, config: Config) -> None:
    """Give the pages the numbers and the button, the footer the version, and the search its order."""
    config.html_search_scorer = str(Path(__file__).with_name("search_order.js"))
    button = f"[Run chapter 4 in Colab]({colab_url(config, FIRST_TO_RUN)})"
    config.myst_substitutions = {**numbers(), "run_in_colab": button}
    options = config.html_theme_options
    options["extra_footer"] = options["extra_footer"].replace(
        "VERSION", __version__
    )


def mend(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object
) -> None:
    """Let images say their size and load late; drop what assistive technology stumbles over, and unused scripts."""
    sources = {name: source for source, name in app.builder.images.items()}

    def with_size(match: re.Match[str]) -> str:
        width, height = Image.open(app.srcdir / sources[match["name"]]).size
        return (
            f'<img loading="lazy" width="{width}" height="{height}" {match["rest"]}'
        )

    body = re.sub(
        r'<img (?P<rest>[^>]*src="_images/(?P<name>[^"]+\.png)")',
        with_size,
        context.get("body", ""),
    )
    # A label that hides the visible text; a role that has been withdrawn; the corner of a table, which heads nothing.
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    body = body.replace('<th class="head"><p></p></th>', "<td></td>")
    body = re.sub(
        r'(?<=<span class="pre">)[^<]{20,}',
        lambda name: re.sub(r"(?<=\w\w)([_./]|::)(?=\w\w)", r"\1<wbr>", name[0]),
        body,
    )
    context["body"] = body
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in f"{script.filename} {script.attributes}"
    ]


def letter_appendices(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Count by page what is numbered in an appendix, where Sphinx has one count for all pages without a number."""
    for page, kinds in env.toc_fignumbers.items():
        if not env.toc_secnumbers.get(page):
            for numbers in kinds.values():
                for place, label in enumerate(sorted(numbers, key=numbers.get), 1):
                    numbers[label] = (page[0].upper(), place)
    return []  # no page is to be read again


def lead_to_solutions(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """End an exercise with a link to its solution."""
    solutions = {
        entry["node"]["target_label"]: entry["node"]
        for entry in getattr(app.env, "sphinx_exercise_registry", {}).values()
        if isinstance(entry["node"], solution_node)
    }
    for exercise in doctree.findall(exercise_enumerable_node):
        if solution := solutions.get(exercise["label"]):
            there = app.builder.get_relative_uri(page, solution["docname"])
            address = f"{there}#{solution['label']}"
            link = nodes.reference("", "Solution", internal=True, refuri=address)
            exercise += nodes.paragraph("", "", link, classes=["to-solution"])


def fold_solutions(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Show a solution, and the cells that check it, when the reader asks for them."""
    if app.builder.format == "html":
        for solution in list(doctree.findall(solution_node)):
            solution["classes"].append("dropdown")
            below = solution.parent[solution.parent.index(solution) + 1 :]
            for cell in takewhile(is_code_cell, below):
                cell.parent.remove(cell)
                solution += cell


def keep_together(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Keep a formula with the comma after it and the bracket before it, from which a browser would part it.

    So too the numbers of 8 × 8.
    """
    if app.builder.format != "html":
        return
    for text in list(doctree.findall(nodes.Text)):
        as_written = (nodes.FixedTextElement, nodes.literal, nodes.math)
        if not isinstance(text.parent, as_written):
            joined = re.sub(r"(?<=\d) (?=×)|(?<=×) (?=\d)", "\u00a0", text)
            if joined != text:
                text.parent.replace(text, nodes.Text(joined))
    for formula in list(doctree.findall(nodes.math)):
        line = formula.parent
        place = line.index(formula)
        before, after = "", ""
        if place + 1 < len(line) and isinstance(line[place + 1], nodes.Text):
            after = re.match(r"[^\w\s(\[–—]*", line[place + 1])[0]
            line[place + 1] = nodes.Text(line[place + 1][len(after) :])
        if place > 0 and isinstance(line[place - 1], nodes.Text):
            before = re.search(r"[(\[“‘]*\Z", line[place - 1])[0]
            line[place - 1] = nodes.Text(line[place - 1].removesuffix(before))
        if before or after:
            parts = [nodes.Text(before), formula.deepcopy(), nodes.Text(after)]
            line[place] = nodes.inline("", "", *parts, classes=["unbroken"])


def equations(app: Sphinx) -> dict[str, dict[str, str]]:
    """The TeX of each labelled equation, by page and anchor."""
    found: dict[str, dict[str, str]] = {}
    for page in sorted(app.env.found_docs):
        for node in app.env.get_doctree(page).findall(nodes.math_block):
            if node.get("label"):
                here = found.setdefault(app.builder.get_target_uri(page), {})
                tex = node.astext().strip()
                if r"\\" in tex:  # as Sphinx does where the equation stands
                    tex = f"\\begin{{split}}{tex}\\end{{split}}"
                here[node["ids"][0]] = tex
    return found


def write_equations(app: Sphinx, error: Exception | None) -> None:
    """Write the equations beside the script that shows them."""
    if error is None and app.builder.format == "html":
        text = json.dumps(equations(app), ensure_ascii=False, indent=0)
        Path(app.outdir, "_static", DATA).write_text(
            f"window.equations = {text};\n", encoding="utf-8"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", fill_in)
    app.connect("env-get-updated", letter_appendices, priority=600)  # after Sphinx
    app.connect("doctree-resolved", lead_to_solutions)
    app.connect("doctree-resolved", fold_solutions)
    app.connect("doctree-resolved", keep_together)
    app.connect("html-page-context", mend)
    app.connect("build-finished", write_equations)
    app.add_js_file(DATA, loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
