"""Copies of the notebooks for Colab and plain Jupyter, which know no MyST, and the site's button that opens them.

    jupyter-book build book --config _config.yml --path-output . --builder custom --custom-builder colab

Sphinx has read the book when this builder starts, so numbers, references and citations are what the site shows. What
Sphinx knows as a tree is written as plain Markdown with a little HTML. Code cells stay as they are. A kind of node
that is not known here is an error: nothing is left out silently.

No converter was found that does this: sphinx-tojupyter 0.6 writes the code cells of a notebook as text, without their
outputs, and mystmd numbers a book by itself and writes MyST again.
"""

from __future__ import annotations

import base64
import copy
import html
import mimetypes
import re
from pathlib import Path
from typing import Any

import nbformat
from docutils import nodes
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.config import Config
from sphinx.errors import SphinxError
from sphinx_exercise.nodes import exercise_enumerable_node, solution_node

BRANCH = "colab"  # the branch of the repository that holds the copies
WIDGET = "ddpm-widget"  # the class of the interactive figures

SETUP = """\
# Installs the package if it is missing, in Colab for instance. A torch that is already there stays as it is.
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec

if find_spec("ddpm_lite") is None:
    present = [name for name in ("torch", "torchvision") if find_spec(name)]
    wanted = [f"{{name}}=={{version(name)}}" for name in present]
    wanted.append("ddpm-lite @ git+{repository}@{branch}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *wanted], check=True)

import torch

gpu = torch.cuda.is_available()
print("GPU:", torch.cuda.get_device_name() if gpu else "none, and none is needed")"""

NOTE = """\
This notebook is a page of the book *[{title}]({site})*. Its equations and figures have the numbers that they have \
[on the site]({page}), and links lead there. Run the next cell first: it installs the package if it is missing."""


def colab_url(config: Config, page: str) -> str:
    """Where Colab opens the copy of a page."""
    repository = config.html_theme_options["repository_url"].removeprefix(
        "https://"
    )
    host, path = repository.split("/", 1)
    assert host == "github.com", (
        f"Colab opens notebooks from GitHub, not from {host}"
    )
    return f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/{page}.ipynb"


class ColabBuilder(Builder):
    """Writes the copy of each notebook of the book."""

    name = "colab"
    format = "markdown"
    supported_image_types = ("image/png", "image/svg+xml", "image/jpeg")

    def init(self) -> None:
        self.site = self.config.html_baseurl.rstrip("/") + "/"
        self.fignumbers: dict[str, dict[str, tuple[int, ...]]] = {}

    def get_outdated_docs(self) -> list[str]:
        return sorted(self.env.found_docs)

    def prepare_writing(self, docnames: set[str]) -> None:
        pass

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        return f"{self.site}{docname}.html"

    def get_relative_uri(self, from_: str, to: str, typ: str | None = None) -> str:
        return self.get_target_uri(to)

    def write_doc(self, docname: str, doctree: nodes.document) -> None:
        source = Path(self.env.doc2path(docname))
        if source.suffix != ".ipynb":
            return
        self.fignumbers = self.env.toc_fignumbers.get(docname, {})
        writer = Writer(self, docname, nbformat.read(source, as_version=4))
        nbformat.write(
            writer.notebook(doctree), Path(self.outdir, f"{docname}.ipynb")
        )


class Writer:
    """Turns the tree of one page into cells. `inline_*` and `block_*` are named after the node that they write."""

    def __init__(
        self, builder: ColabBuilder, docname: str, original: NotebookNode
    ) -> None:
        self.builder = builder
        self.config = builder.config
        self.page = builder.get_target_uri(docname)
        self.original = original
        self.cells: list[NotebookNode] = []
        self.papers = papers(builder)
        numbers = builder.env.toc_secnumbers.get(docname, {}).get("")
        self.secnumber = f"{'.'.join(map(str, numbers))}. " if numbers else ""

    # Cells

    def notebook(self, doctree: nodes.document) -> NotebookNode:
        """The copy of the page."""
        self.section(doctree, level=0)
        repository = self.config.html_theme_options
        setup = SETUP.format(
            repository=repository["repository_url"],
            branch=repository["repository_branch"],
        )
        note = NOTE.format(
            title=self.config.html_title, site=self.builder.site, page=self.page
        )
        first = next(
            number for number, cell in enumerate(self.cells) if cell.source.strip()
        )
        self.cells[first + 1 : first + 1] = [
            nbformat.v4.new_markdown_cell(note),
            nbformat.v4.new_code_cell(setup),
        ]
        self.cells = [cell for cell in self.cells if cell.source.strip()]
        for number, cell in enumerate(self.cells):
            cell.id = f"cell-{number:02d}"
        metadata = {**self.original.metadata, "colab": {"toc_visible": True}}
        return nbformat.v4.new_notebook(cells=self.cells, metadata=metadata)

    def section(self, node: nodes.Element, level: int) -> None:
        """A section begins a cell, so that it can be folded; a code cell ends one."""
        self.cells.append(nbformat.v4.new_markdown_cell())
        for child in node.children:
            if isinstance(child, nodes.section):
                self.section(child, level + 1)
            elif is_code_cell(child):
                self.code_cell(child, folded=checks_solution(child))
            elif isinstance(child, nodes.title):
                number = self.secnumber if level == 1 else ""
                self.text(f"{'#' * level} {number}{self.inline(child)}")
            else:
                self.text(self.block(child))

    def text(self, text: str) -> None:
        """Adds to the Markdown cell at the end."""
        cell = self.cells[-1]
        cell.source = "\n\n".join(filter(None, [cell.source, text]))

    def code_cell(self, node: nodes.Element, folded: bool) -> None:
        """The original cell, and below it what the site says about its figure."""
        cell = copy.deepcopy(self.original.cells[node["cell_index"]])
        alternative = (
            cell.metadata.pop("mystnb", {}).get("image", {}).get("alt", "")
        )
        if folded or "hide-input" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True}
            cell.metadata["cellView"] = "form"  # in Colab
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.metadata["image/png"] = {"alt": alternative}
        self.cells += [cell, nbformat.v4.new_markdown_cell()]
        for figure in node.findall(nodes.figure):
            self.text(self.caption(figure))
            self.text(details("The figure in words", escape(alternative)))
            self.cells.append(nbformat.v4.new_markdown_cell())

    # Blocks

    def block(self, node: nodes.Node) -> str:
        """A node that stands on its own, such as a paragraph."""
        return self.dispatch("block", node)

    def blocks(self, children: list[nodes.Node]) -> str:
        return "\n\n".join(filter(None, map(self.block, children)))

    def dispatch(self, kind: str, node: nodes.Node) -> str:
        for parent in type(node).__mro__:
            if method := getattr(self, f"{kind}_{parent.__name__}", None):
                return method(node)
        raise SphinxError(
            f"{node.source}:{node.line}: the copies for Colab cannot write {kind} {type(node).__name__}"
        )

    def block_paragraph(self, node: nodes.Element) -> str:
        # A paragraph is no list or heading, whatever it begins with.
        return re.sub(r"^(\d+)?([-+#>.)])(?=\s)", r"\1\\\2", self.inline(node))

    def block_math_block(self, node: nodes.Element) -> str:
        # A line that begins with a sign could be read as an item of a list.
        text = re.sub(r"\n\s*(?=[-+=#>])", " ", node.astext().strip())
        if r"\\" in text and not text.startswith(r"\begin{aligned}"):
            text = f"\\begin{{aligned}}\n{text}\n\\end{{aligned}}"
        if node.get("label"):
            text += f"\n\\tag{{{self.number(node, 'displaymath')}}}"
        return f"$$\n{text}\n$$"

    def block_Admonition(self, node: nodes.Element) -> str:
        title, *rest = node.children
        if not isinstance(title, nodes.title):
            name = type(node).__name__.capitalize()
            named = name if name != "Admonition" else ""
            title, rest = nodes.title("", named), node.children
        kind = node.get("realtype") or (
            "exercise" if isinstance(node, exercise_enumerable_node) else ""
        )
        if kind:
            number = self.number(node, node.get("countertype", kind))
            title.insert(0, nodes.Text(f"{kind.capitalize()} {number}"))
        body = self.blocks(rest)
        if isinstance(node, solution_node) or "dropdown" in node["classes"]:
            return details(self.summary(title), body)
        heading = self.inline(title)
        return quote(f"**{heading}**\n\n{body}" if heading else body)

    block_proof_node = block_sidebar = lambda self, node: self.blocks(node.children)

    def block_block_quote(self, node: nodes.Element) -> str:
        return quote(self.blocks(node.children))

    def block_section(self, node: nodes.Element) -> str:
        return self.blocks(node.children)  # the inside of an exercise

    block_container = block_compound = block_section

    def block_bullet_list(self, node: nodes.Element) -> str:
        return self.items(node, ["- "] * len(node))

    def block_enumerated_list(self, node: nodes.Element) -> str:
        start = node.get("start", 1)
        return self.items(node, [f"{start + i}. " for i in range(len(node))])

    def items(self, node: nodes.Element, markers: list[str]) -> str:
        tight = all(len(item) == 1 for item in node)
        return ("\n" if tight else "\n\n").join(
            marker + indent(self.blocks(item.children), " " * len(marker)).lstrip()
            for marker, item in zip(markers, node)
        )

    def block_table(self, node: nodes.Element) -> str:
        rows = [
            [self.blocks(entry.children).replace("\n\n", "<br>") for entry in row]
            for row in node.findall(nodes.row)
        ]
        if not any(node.findall(nodes.thead)):
            rows.insert(0, [""] * len(rows[0]))
        rows.insert(1, ["---"] * len(rows[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def block_literal_block(self, node: nodes.Element) -> str:
        text, language = node.astext().rstrip("\n"), node.get("language", "")
        language = "" if language in ("default", "none", "text") else language
        fence = max("```", ticks(text), key=len)
        return f"{fence}{language}\n{text}\n{fence}"

    def block_figure(self, node: nodes.Element) -> str:
        pictures = [
            self.block(child)
            for child in node.children
            if not isinstance(child, (nodes.caption, nodes.legend))
        ]
        return "\n\n".join([*pictures, self.caption(node)])

    def block_image(self, node: nodes.Element) -> str:
        return self.inline(nodes.paragraph("", "", node.deepcopy()))

    def block_raw(self, node: nodes.Element) -> str:
        text = node.astext().strip()
        if WIDGET in text:
            return f"*Here the [page on the site]({self.page}) has an interactive figure.*"
        if node["format"] != "html" or text == "</div>" or "<script" in text:
            return ""  # for LaTeX, the end of a widget, or nothing that a notebook would run
        raise SphinxError(
            f"{self.page}: the copies for Colab know no HTML but widgets"
        )

    def block_transition(self, node: nodes.Element) -> str:
        return "---"

    def nothing(self, node: nodes.Node) -> str:
        """Of no use to a reader."""
        return ""

    block_target = block_comment = inline_target = nothing

    # Inline

    def inline(self, node: nodes.Element) -> str:
        """The children of a node, which stand in a line."""
        return "".join(self.dispatch("inline", child) for child in node.children)

    def inline_Text(self, node: nodes.Text) -> str:
        return escape(node.astext())

    def inline_math(self, node: nodes.Element) -> str:
        text = node.astext()
        if within(node, nodes.table):  # where a bar ends the cell
            text = text.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
        return f"${' '.join(text.split())}$"

    def inline_literal(self, node: nodes.Element) -> str:
        text = node.astext()
        space = " " if "`" in text else ""
        return f"{ticks(text)}{space}{text}{space}{ticks(text)}"

    def inline_emphasis(self, node: nodes.Element) -> str:
        if within_word(node):  # where some programs read no mark
            return f"<em>{self.inline(node)}</em>"
        return f"*{self.inline(node)}*"

    def inline_strong(self, node: nodes.Element) -> str:
        if within_word(node):
            return f"<strong>{self.inline(node)}</strong>"
        return f"**{self.inline(node)}**"

    def inline_reference(self, node: nodes.Element) -> str:
        text, target = self.inline(node), self.target(node)
        return f"[{text}]({target})" if target else text

    inline_inline = inline

    def inline_image(self, node: nodes.Element) -> str:
        path = Path(self.builder.srcdir, node["uri"])
        data = base64.b64encode(path.read_bytes()).decode()
        kind = mimetypes.guess_type(path)[0]
        return f"![{node.get('alt', '')}](data:{kind};base64,{data})"

    def inline_raw(self, node: nodes.Element) -> str:
        return node.astext() if node["format"] == "html" else ""

    # Pieces

    def summary(self, node: nodes.Element) -> str:
        """The title of a box that opens: HTML, in which Markdown would not be read."""
        pieces = []
        for child in node.children:
            text = html.escape(child.astext(), quote=False)
            if isinstance(child, nodes.math):
                text = f"${text}$"
            elif isinstance(child, nodes.reference) and self.target(child):
                text = f'<a href="{self.target(child)}">{text.strip()}</a>'
                text = f" {text}"
            pieces.append(text)
        return "".join(pieces)

    def target(self, node: nodes.Element) -> str:
        """Where a reference leads: nowhere on the same page, since notebooks have no anchors."""
        target = node.get("refuri", "")
        if target.startswith(self.page):
            return ""
        target = self.papers.get(target, target)
        return target.replace("(", "%28").replace(")", "%29")

    def number(self, node: nodes.Element, kind: str) -> str:
        """The number that the site shows: of an equation, a figure, an exercise or a theorem."""
        if kind == "displaymath" and not (
            self.config.numfig and self.config.math_numfig
        ):
            return str(node["number"])
        return ".".join(map(str, self.builder.fignumbers[kind][node["ids"][0]]))

    def caption(self, figure: nodes.Element) -> str:
        label = self.config.numfig_format["figure"] % self.number(figure, "figure")
        captions = [self.inline(node) for node in figure.findall(nodes.caption)]
        return " ".join([f"**{label}.**", *captions])


def papers(builder: ColabBuilder) -> dict[str, str]:
    """The addresses of the papers that are cited, by the place in the list of references that Sphinx links to."""
    found = {}
    for citation in builder.env.get_domain("cite").citations:
        page = builder.get_target_uri(citation.bibliography_key.docname)
        fields = citation.entry.fields
        if "doi" in fields:
            found[f"{page}#{citation.citation_id}"] = (
                f"https://doi.org/{fields['doi']}"
            )
        elif "url" in fields:
            found[f"{page}#{citation.citation_id}"] = fields["url"]
    return found


def escape(text: str) -> str:
    """Text in which Markdown reads no marks. Brackets alone are none, and in Jupyter `\\[` could begin a formula."""
    text = re.sub(r"([\\`*_<]|(?<=\])[(\[])", r"\\\1", text)
    return " ".join(text.split("\n"))


def quote(text: str) -> str:
    """A block quote. A formula goes into one line: Jupyter would take the marks at the line starts for part of it."""
    text = re.sub(
        r"\$\$\n(.*?)\n\$\$",
        lambda formula: f"$$ {' '.join(formula[1].split())} $$",
        text,
        flags=re.DOTALL,
    )
    return re.sub(r"^", "> ", text, flags=re.MULTILINE).replace("> \n", ">\n")


def details(summary: str, text: str) -> str:
    """A box that the reader opens."""
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def indent(text: str, by: str) -> str:
    return re.sub(r"^(?=.)", by, text, flags=re.MULTILINE)


def ticks(text: str) -> str:
    """More backticks than stand in a row in a text."""
    return "`" * (1 + max(map(len, re.findall("`+", text)), default=0))


def within(node: nodes.Node, kind: type[nodes.Node]) -> bool:
    while node := node.parent:
        if isinstance(node, kind):
            return True
    return False


def within_word(node: nodes.Element) -> bool:
    line = ["", *(child.astext() for child in node.parent.children), ""]
    place = node.parent.index(node) + 1
    return line[place - 1][-1:].isalnum() or line[place + 1][:1].isalnum()


def is_code_cell(node: nodes.Node) -> bool:
    return (
        isinstance(node, nodes.container) and node.get("nb_element") == "cell_code"
    )


def checks_solution(node: nodes.Element) -> bool:
    """Whether a code cell stands below a solution, with nothing but code between."""
    above = node.parent[: node.parent.index(node)]
    last = next((it for it in reversed(above) if not is_code_cell(it)), None)
    return isinstance(last, solution_node)


def take_any_output(app: Sphinx, config: Config) -> None:
    """MyST-NB asks each builder which kinds of output it prefers. The copies keep the original outputs."""
    preferences = [*config.nb_mime_priority_overrides, ("colab", "text/plain", 1)]
    config.nb_mime_priority_overrides = preferences


def add_button(
    app: Sphinx,
    pagename: str,
    templatename: str,
    context: dict[str, Any],
    doctree: Any,
) -> None:
    """The button of a page of the site that opens its copy."""
    if "kernelspec" in app.env.metadata.get(pagename, {}):
        context["header_buttons"].insert(
            0,
            {
                "type": "link",
                "text": "Colab",
                "tooltip": "Run this page in Colab",
                "icon": "fas fa-rocket",
                "label": "colab-button",
                "url": colab_url(app.config, pagename),
            },
        )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_builder(ColabBuilder)
    app.connect("config-inited", take_any_output)
    app.connect("html-page-context", add_button, priority=502)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
