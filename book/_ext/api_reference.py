"""Links between the API reference and the chapters, both ways, from the table in ``book/api.toml``.

- Each documented name gets a line "In the book", with the chapter and the equations that it implements. In its
  docstring, "chapter 7" becomes a link to the chapter, and "Ho et al. 2020" a link to the paper.
- Each chapter whose equations the package computes gets a box at its end, "In the package", with these names.
- On every other page the first mention of a public name in code type, such as ``q_sample``, links to the reference.

What the table and the package do not agree on is a warning, and so an error where warnings are errors.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import nbformat
from docutils import nodes
from pybtex.database import parse_file
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging

import ddpm_lite

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BOOK = Path(__file__).parent.parent
TABLE = BOOK / "api.toml"
PAGE = "api"

CHAPTERS = {
    int(stem[:2]): stem
    for stem in re.findall(
        r"file: (\d\d_\w+)", (BOOK / "_toc.yml").read_text(encoding="utf-8")
    )
}
_CHAPTERS_NAMED = re.compile(r"\b[Cc]hapters? \d+(?:(?:, | and | to )\d+)*")
_PAPER_NAMED = re.compile(
    r"([A-Z][\w-]+)(?: et al\.| & [A-Z][\w-]+|, [A-Z]\w+ & [A-Z]\w+) (?:(\d{4})|\((\d{4})\))"
)
_MARKUP = re.compile(r"(``.*?``|\\.|(?:\* )?\*\*[\w, \\*]+?\*\* --)|[*|]")

logger = logging.getLogger(__name__)


def table() -> dict[str, dict[str, list[str]]]:
    """What ``api.toml`` says, with the full names of the modules."""
    written = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    modules = {}
    for name, entry in written.items():
        nested = [sub for sub, value in entry.items() if isinstance(value, dict)]
        if nested:
            raise ValueError(f"{TABLE.name}: quote the dots in {name}.{nested[0]}")
        modules[f"ddpm_lite.{name}"] = entry
    return modules


def public_names(module: ModuleType) -> dict[str, object]:
    """The functions and classes of a module, and the methods and properties of these that have a docstring."""
    names: dict[str, object] = {}
    for name, item in vars(module).items():
        if (
            name.startswith("_")
            or not (inspect.isfunction(item) or inspect.isclass(item))
            or item.__module__ != module.__name__
        ):
            continue
        names[name] = item
        if inspect.isclass(item):
            names |= {
                f"{name}.{member}": value
                for member, value in vars(item).items()
                if not member.startswith("_")
                and (inspect.isfunction(value) or isinstance(value, property))
                and value.__doc__
            }
    return names


@cache
def documented() -> dict[str, tuple[list[str], list[str]]]:
    """For each public name, in full, its chapters and its equations.

    Raises:
        ValueError: if the table has a name that is not public, or an equation that is not in the book.
    """
    home = equation_pages()
    found = {}
    for module_name, entry in table().items():
        names = public_names(importlib.import_module(module_name))
        if unknown := set(entry) - {"chapters"} - set(names):
            raise ValueError(
                f"{TABLE.name}: {module_name} has no {sorted(unknown)}"
            )
        if not entry.get("chapters"):
            raise ValueError(f"{TABLE.name}: {module_name} has no chapters")
        for name in names:
            owner = name.partition(".")[0]
            equations = entry.get(name, [])
            if unknown := set(equations) - set(home):
                raise ValueError(f"{TABLE.name}: no equation {sorted(unknown)}")
            pages = [home[label] for label in equations or entry.get(owner, [])]
            chapters = sorted({page for page in pages if page[:2].isdigit()})
            found[f"{module_name}.{name}"] = (
                chapters or entry["chapters"],
                equations,
            )
        found[module_name] = (entry["chapters"], [])
    return found


@cache
def equation_pages() -> dict[str, str]:
    """The page of each labelled equation of the book."""
    return {
        label: path.stem
        for path in sorted(BOOK.glob("*.ipynb"))
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "markdown"
        for label in re.findall(
            r"^\$\$[ \t]*\((eq-[^)\s]+)\)[ \t]*$", cell.source, re.MULTILINE
        )
    }


@cache
def papers() -> dict[tuple[str, str], str]:
    """The address of each paper of the bibliography, by its first author's last name and its year."""
    addresses: dict[tuple[str, str], list[str]] = {}
    for entry in parse_file(str(BOOK / "references.bib")).entries.values():
        author = " ".join(entry.persons["author"][0].last_names).strip("{}")
        if "url" in entry.fields:
            addresses.setdefault((author, entry.fields["year"]), []).append(
                entry.fields["url"]
            )
    return {paper: urls[0] for paper, urls in addresses.items() if len(urls) == 1}


def link_docstring(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    lines: list[str],
) -> None:
    """Link the chapters and papers that a docstring names, and say where the book has what it documents."""
    if what in ("attribute", "data"):
        if lines and lines[0].startswith("Alias for field number"):
            lines.clear()  # what Python says of a named tuple
        return
    for number, line in enumerate(lines):
        # In docstrings stars and bars are meant as they stand: step-*.safetensors, |x|.
        line = _MARKUP.sub(lambda match: match[1] or f"\\{match[0]}", line)
        line = _CHAPTERS_NAMED.sub(_link_chapters, line)
        lines[number] = _PAPER_NAMED.sub(_link_paper, line)
    if name not in documented():
        logger.warning("%s has no entry in %s", name, TABLE.name)
        return
    chapters, equations = documented()[name]
    if what == "module" and any(":doc:" in line for line in lines):
        return
    links = [f":doc:`chapter {int(stem[:2])} <{stem}>`" for stem in chapters]
    if equations:
        word = "equation" if len(equations) == 1 else "equations"
        links.append(f"{word} {', '.join(f':eq:`{label}`' for label in equations)}")
    lines += ["", f"*In the book:* {', '.join(links)}.", ""]


def tidy_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returned: str | None,
) -> tuple[str | None, str | None]:
    """Write the default of a dataclass so that Sphinx can read the signature."""
    return signature and signature.replace("<factory>", "{}"), returned


def _link_chapters(match: re.Match) -> str:
    text = match[0]
    numbers = re.findall(r"\d+", text)
    if not all(int(number) in CHAPTERS for number in numbers):
        return text
    if len(numbers) == 1:
        return f":doc:`{text} <{CHAPTERS[int(numbers[0])]}>`"
    return re.sub(r"\d+", lambda n: f":doc:`{n[0]} <{CHAPTERS[int(n[0])]}>`", text)


def _link_paper(match: re.Match) -> str:
    address = papers().get((match[1], match[2] or match[3]))
    return f"`{match[0]} <{address}>`__" if address else match[0]


def link_page(app: Sphinx, doctree: nodes.document) -> None:
    """Link a page to the reference: a box at the end of a chapter, and the first mention of each name."""
    page = app.env.docname
    app.env.note_dependency(str(TABLE))
    if page == PAGE:
        return
    _link_first_mentions(doctree, page)
    if page in CHAPTERS.values():
        _append_box(doctree, page)


def _link_first_mentions(doctree: nodes.document, page: str) -> None:
    targets = spellings()
    seen = set()
    for literal in list(doctree.findall(nodes.literal)):
        target = targets.get(re.sub(r"\(.*\)$", "", literal.astext()))
        if target is None or target in seen or _inside_link_or_heading(literal):
            continue
        seen.add(target)
        literal.replace_self(_reference(target, page, literal.deepcopy()))


def _inside_link_or_heading(node: nodes.Node) -> bool:
    while node := node.parent:
        if isinstance(node, nodes.title | nodes.reference | addnodes.pending_xref):
            return True
    return False


@cache
def spellings() -> dict[str, str]:
    """Each way to write a public name that can mean nothing else, and the name in full.

    ``sampler.ddim`` and ``UNet.forward`` always; ``ddim`` too, if there is only one and it does not look like a
    word or a variable: the names of the top level, and those with a capital or an underscore.
    """
    ways: dict[str, set[str]] = {}
    top = {
        name: f"{getattr(ddpm_lite, name).__module__}.{name}"
        for name in ddpm_lite.__all__
    }
    for full in documented():
        parts = full.split(".")
        for start in range(len(parts)):
            ways.setdefault(".".join(parts[start:]), set()).add(full)
    for name, full in top.items():
        ways[f"ddpm_lite.{name}"] = {full}
    return {
        way: next(iter(full))
        for way, full in ways.items()
        if len(full) == 1
        and way != "ddpm_lite"
        and ("." in way or way in top or re.search(r"_|[A-Z]\w", way))
    }


def _append_box(doctree: nodes.document, page: str) -> None:
    home = equation_pages()
    items = nodes.bullet_list()
    for name, (_, equations) in documented().items():
        here = [label for label in equations if home[label] == page]
        if not here:
            continue
        short = nodes.literal("", ".".join(name.split(".")[1:]))
        line = nodes.paragraph(
            "", "", _reference(name, page, short), nodes.Text(": ")
        )
        for number, label in enumerate(here):
            if number:
                line += nodes.Text(", ")
            line += addnodes.pending_xref(
                "",
                nodes.inline("", label),
                refdomain="math",
                reftype="eq",
                reftarget=label,
                refdoc=page,
            )
        items += nodes.list_item("", line)
    if items.children:
        box = nodes.admonition(classes=["in-the-package"])
        box += nodes.title("", "In the package")
        box += nodes.paragraph("", "What computes the equations of this chapter:")
        box += items
        last = list(doctree.findall(nodes.section))
        (last[0] if last else doctree).append(box)


def _reference(
    target: str, page: str, content: nodes.Node
) -> addnodes.pending_xref:
    kind = "mod" if target in table() else "obj"
    return addnodes.pending_xref(
        "",
        content,
        refdomain="py",
        reftype=kind,
        reftarget=target,
        refdoc=page,
        refspecific=False,
        refexplicit=True,
    )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect(
        "autodoc-process-docstring", link_docstring, priority=600
    )  # after napoleon
    app.connect("autodoc-process-signature", tidy_signature)
    app.connect("doctree-read", link_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
