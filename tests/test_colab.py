"""The copies for Colab: plain Markdown, the site's numbers, and they run with the wheel and what Colab has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from urllib.parse import urldefrag

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbclient import NotebookClient
from nbformat import NotebookNode
from packaging.requirements import Requirement

import ddpm_lite
from book import NOTEBOOKS, ROOT, equation_labels, read

NAMES = [path.stem for path in NOTEBOOKS]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
REPOSITORY = CONFIG["repository"]["url"]
SITE = CONFIG["html"]["baseurl"]
# What a reader has besides the package: of Colab's many packages those that the book may use, and a kernel.
COLAB = ["torch", "torchvision", "numpy", "matplotlib", "sympy", "scikit-learn"]
KERNEL = "ipykernel"

each_copy = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="session")
def copies(built: Path) -> dict[str, NotebookNode]:
    return {path.stem: read(path) for path in (built / "colab").glob("*.ipynb")}


@pytest.fixture(scope="session")
def site(built: Path) -> dict[str, BeautifulSoup]:
    """The pages of the site."""
    return {
        path.stem: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in (built / "html").glob("*.html")
    }


def markdown(notebook: NotebookNode) -> str:
    """The text of a copy. No cell can change how the next one is read."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return "\n\n".join(cells)


def rendered(notebook: NotebookNode) -> BeautifulSoup:
    """The text as a notebook program shows it, by a parser that knows Markdown, tables and formulas, but no MyST."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    html = parser.use(dollarmath_plugin, allow_labels=False).render(markdown(notebook))
    return BeautifulSoup(html, "html.parser")


def test_every_notebook_has_a_copy(copies: dict[str, NotebookNode]) -> None:
    assert sorted(copies) == NAMES
    for notebook in copies.values():
        nbformat.validate(notebook)


def test_code_that_checks_a_solution_is_folded(
    copies: dict[str, NotebookNode],
) -> None:
    cells = copies["solutions"].cells
    below = [
        cell
        for text, cell in pairwise(cells)
        if "<summary>Solution to" in text.source and cell.cell_type == "code"
    ]
    assert len(below) > 50
    for cell in below:
        assert cell.metadata["jupyter"] == {"source_hidden": True}
        assert cell.metadata["cellView"] == "form"
    assert "cellView" not in next(it for it in cells if it.cell_type == "code").metadata


# Plain Markdown

LEFTOVERS = {
    "directive": r"^[> ]*(?:```|~~~)\S*\{|^[> ]*:::",
    "option": r"^[> ]*:[\w-]+:( |$)",
    "role": r"\{[a-z][\w:+-]*\}`|\{(?:eq|doc|ref|numref|cite|term|prf)\b",
    "equation label": r"\$\$ *\([\w-]+\)",
    "label": r"^[> ]*\([\w-]+\)=",
    "substitution": r"\{\{",
    "comment or break": r"^(?:%|\+\+\+)",
    "link that leads nowhere": r"\]\((?!https://|data:image/)|\b(?:href|src)=(?!\"https://)",
    "HTML": r"<(?!/?(?:details|summary|br|a|em|strong)\b)/?[a-z]",
    "TeX that needs the site": r"\\(?:eqref|ref|label|newcommand|def)\b",
}


def leftovers(text: str) -> list[str]:
    """What is in a Markdown cell that only the site can show."""
    formulas = re.findall(r"\$\$.*?\$\$|\$[^$\n]+\$", text, re.DOTALL)
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"(?<=\$\$).*?(?=\$\$)", "", prose, flags=re.DOTALL)
    prose = re.sub(r"(?<!\$)\$[^$\n]+\$", "", prose)
    prose = re.sub(r"(?<![`}])`[^`\n]+`(?!`)", "", prose)
    found = {
        name
        for name, pattern in LEFTOVERS.items()
        if re.search(pattern, prose, re.MULTILINE)
    }
    tex = "TeX that needs the site"
    if any(re.search(LEFTOVERS[tex], formula) for formula in formulas):
        found.add(tex)
    return sorted(found)


@each_copy
def test_no_syntax_of_the_site_is_left(
    copies: dict[str, NotebookNode], name: str
) -> None:
    for cell in copies[name].cells:
        if cell.cell_type == "markdown":
            assert leftovers(cell.source) == [], cell.source


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("```{note}\nText\n```", "directive"),
        ("> :::{admonition} Title\n> Text\n> :::", "directive"),
        ("````{exercise} Title\n:label: ex-name\n````", "directive"),
        (":label: ex-name", "option"),
        ("By {eq}`eq-name` this is so.", "role"),
        ("{cite:p}`ho2020denoising`", "role"),
        ("See {ref}`there <err-name>`.", "role"),
        ("{prf:ref}`name`", "role"),
        ("$$\nx\n$$ (eq-name)", "equation label"),
        ("(err-name)=\n## Title", "label"),
        ("{{ equations }} equations", "substitution"),
        ("% a comment", "comment or break"),
        ("+++", "comment or break"),
        ("[Chapter 5](05_posterior)", "link that leads nowhere"),
        ("[Chapter 5](05_posterior.ipynb)", "link that leads nowhere"),
        ("[Title](#title)", "link that leads nowhere"),
        ("![Digits](_static/emergence.png)", "link that leads nowhere"),
        ('<a href="faq.html">FAQ</a>', "link that leads nowhere"),
        ('<div class="ddpm-widget"></div>', "HTML"),
        (r"By $\eqref{eq-name}$", "TeX that needs the site"),
        (r"By \eqref{eq-name}", "TeX that needs the site"),
        ("$$\nx \\label{name}\n$$", "TeX that needs the site"),
    ],
)
def test_syntax_of_the_site_is_noticed(text: str, found: str) -> None:
    assert found in leftovers(f"Before.\n\n{text}\n\nAfter.")


@pytest.mark.parametrize(
    "text",
    [
        "$$\nx = \\begin{aligned} a \\\\ b \\end{aligned}\n\\tag{1.2}\n$$\n\nSo (1.2) holds.",
        "> **Exercise 1.1 (Title)**\n>\n> $$ \\frac{a}{b} $$",
        "The set $\\{a\\}$ and `{name}` and `f[x](y)`",
        "```python\nx = {a}  # [a](b)\n```",
        "<details>\n<summary>Solution</summary>\n\nText\n\n</details>",
        "Ho *et al.* [[2020](https://arxiv.org/abs/2006.11239)]: 3 - 2 (1)=",
    ],
)
def test_plain_markdown_passes(text: str) -> None:
    assert leftovers(text) == []


def test_there_are_no_macros_to_expand() -> None:
    """The copies repeat formulas as they are written."""
    assert "macros" not in str(CONFIG)


# What the book does not use everywhere, on a page of its own

SMALL_CONFIG = {
    "title": "Small",
    "html": {"baseurl": "https://example.org/small/"},
    "repository": {"url": REPOSITORY, "branch": "main"},
    "execute": {"execute_notebooks": "off"},
    "parse": CONFIG["parse"],
    "bibtex_bibfiles": ["references.bib"],
    "sphinx": {
        "local_extensions": {"colab_copies": str(ROOT / "book" / "_ext")},
        "extra_extensions": ["sphinx_proof", "sphinx_exercise"],
        "config": {"numfig": True, "bibtex_reference_style": "author_year"},
    },
}
SMALL_PAGE = """\
# Page

```{prf:theorem} Small
:label: small
A *part*ial claim: $|a| < b$, by `` a`b `` and {cite:p}`ho2020denoising`.
```

```{prf:proof}
See {prf:ref}`small`.
```

```{admonition} Hint $x$ & more
:class: dropdown
3\\. is a number, and 2\\*3\\*4 another.
```

:::{tip}
$$
a &= b \\\\
- c &= d
$$ (eq-small)
:::

```{figure} dot.png
:name: fig-small
:alt: A dot

The dot.
```

<div class="ddpm-widget" data-widget="forward">
<img src="dot.png" alt="still">
</div>

3. Third, with {eq}`eq-small` and {numref}`fig-small`

   and more
4. [Fourth](other.md)

| a | b |
| --- | --- |
| $\\|x\\|$ | `c` |

````
```
````
"""
SMALL_COPY = r"""
> **Theorem 1 (Small)**
>
> A <em>part</em>ial claim: $|a| < b$, by `` a`b `` and [[Ho *et al.*, 2020](https://arxiv.org/abs/2006.11239)].

> Proof. See Theorem 1.

<details>
<summary>Hint $x$ &amp; more</summary>

3\. is a number, and 2\*3\*4 another.

</details>

> **Tip**
>
> $$ \begin{aligned} a &= b \\ - c &= d \end{aligned} \tag{1} $$

![A dot](data:image/png;base64,UE5H)

**Fig. 1.** The dot.

*Here the [page on the site](https://example.org/small/page.html) has an interactive figure.*

3. Third, with (1) and Fig. 1

   and more

4. [Fourth](https://example.org/small/other.html)

| a | b |
| --- | --- |
| $\vert x\vert$ | `c` |

````
```
````"""


def small_copy(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """Builds the copy of a book of one page."""
    cells = [nbformat.v4.new_markdown_cell(page), nbformat.v4.new_code_cell("1")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": ""}}
    nbformat.write(
        nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "page.ipynb"
    )
    (folder / "other.md").write_text("# Other\n\n```{bibliography}\n```\n")
    (folder / "dot.png").write_bytes(b"PNG")
    shutil.copy(ROOT / "book" / "references.bib", folder)
    toc = {"format": "jb-book", "root": "page", "chapters": [{"file": "other"}]}
    (folder / "_toc.yml").write_text(yaml.safe_dump(toc))
    (folder / "_config.yml").write_text(yaml.safe_dump(SMALL_CONFIG))
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    options = ["--builder", "custom", "--custom-builder", "colab"]
    return subprocess.run(
        [jupyter_book, "build", folder, *options], capture_output=True, text=True
    )


def test_every_construct_has_its_plain_form(tmp_path: Path) -> None:
    run = small_copy(tmp_path, SMALL_PAGE)
    assert run.returncode == 0, run.stdout + run.stderr
    copy = read(tmp_path / "_build" / "colab" / "page.ipynb")
    assert [cell.cell_type for cell in copy.cells] == ["markdown"] * 2 + ["code"] * 2
    title, text = copy.cells[0].source.split("\n", 1)
    assert title == "# Page"
    assert text == SMALL_COPY
    assert "https://example.org/small/page.html" in copy.cells[1].source


def test_what_is_not_known_is_an_error(tmp_path: Path) -> None:
    run = small_copy(
        tmp_path, "# Page\n\n<div>Text</div>\n\nText {cite:p}`ho2020denoising`"
    )
    assert run.returncode != 0
    assert "the copies for Colab know no HTML but widgets" in run.stdout + run.stderr


# The same words, formulas and numbers as on the site


def letters(text: str) -> str:
    """Letters and digits, in which the site and Markdown agree."""
    return "".join(filter(str.isalnum, text))


def in_prose(tag: Tag) -> bool:
    return tag.find_parent(class_=["cell_input", "cell_output"]) is None


@each_copy
def test_every_paragraph_of_the_page_is_in_the_copy(
    site: dict[str, BeautifulSoup], copies: dict[str, NotebookNode], name: str
) -> None:
    copy = letters(rendered(copies[name]).text)
    article = site[name].select_one("article")
    paragraphs = [
        tag.text
        for tag in article.find_all(["h1", "h2", "h3", "p", "td", "th", "figcaption"])
        if (in_prose(tag) or tag.name == "figcaption")
        and not tag.find_parent(["summary", "figcaption"])
        and not tag.find_parent(class_="ddpm-widget")
    ]
    assert len(paragraphs) > 50
    for paragraph in paragraphs:
        assert letters(paragraph) in copy, paragraph
    widgets = len(article.select(".ddpm-widget"))
    assert copy.count("hasaninteractivefigure") == widgets


def tex(formula: str) -> str:
    """What distinguishes formulas, however their lines are aligned."""
    return letters(re.sub(r"\\(begin|end)\{(split|aligned)\}|\\tag\{.*\}", "", formula))


@each_copy
def test_formulas_and_their_numbers_are_those_of_the_page(
    site: dict[str, BeautifulSoup], copies: dict[str, NotebookNode], name: str
) -> None:
    article = site[name].select_one("article")
    expected = []
    for formula in filter(in_prose, article.select("div.math")):
        number = formula.select_one(".eqno")
        shown = number.extract().text.rstrip("#") if number else ""
        expected.append((shown, tex(formula.text)))
    found = []
    for formula in re.findall(r"\$\$(.*?)\$\$", markdown(copies[name]), re.DOTALL):
        number = re.search(r"\\tag\{(.*)\}", formula)
        found.append((f"({number[1]})" if number else "", tex(formula)))
    assert found == expected
    labels = equation_labels(ROOT / "book" / f"{name}.ipynb")
    assert sum(number != "" for number, _ in found) == len(labels)


def test_numbers_are_compared() -> None:
    assert tex(r"\begin{split} a_1 \\ b \end{split}") == tex(r"a_1 \\ b \tag{1.2}")
    assert tex("a_1") != tex("a_2")


@each_copy
def test_code_and_outputs_are_those_of_the_notebook(
    copies: dict[str, NotebookNode], name: str
) -> None:
    originals = read(ROOT / "book" / f"{name}.ipynb")
    code = [
        [cell for cell in notebook.cells if cell.cell_type == "code"]
        for notebook in (originals, copies[name])
    ]
    assert len(code[1]) == len(code[0]) + 1
    for original, copied in zip(code[0], code[1][1:]):
        assert copied.source == original.source
        assert len(copied.outputs) == len(original.outputs)
        for before, after in zip(original.outputs, copied.outputs):
            assert after.get("data") == before.get("data")
            assert after.get("text") == before.get("text")
            if "image/png" in after.get("data", {}):
                alternative = after.metadata["image/png"]["alt"]
                assert alternative == original.metadata.mystnb.image.alt


# Links


@each_copy
def test_links_to_the_site_lead_to_something(
    site: dict[str, BeautifulSoup], copies: dict[str, NotebookNode], name: str
) -> None:
    links = [tag["href"] for tag in rendered(copies[name]).find_all("a", href=True)]
    inside = [link for link in links if link.startswith(SITE)]
    assert len(inside) > 2
    for link in inside:
        address, anchor = urldefrag(link.removeprefix(SITE))
        page = site[address.removesuffix(".html") or "index"]
        assert not anchor or page.find(id=anchor), link


def colab_links(page: BeautifulSoup) -> list[str]:
    return [
        tag["href"]
        for tag in page.find_all("a", href=True)
        if "colab.research.google.com" in tag["href"]
    ]


def test_each_notebook_has_a_button_that_opens_its_copy(
    site: dict[str, BeautifulSoup],
) -> None:
    owner_and_name = REPOSITORY.removeprefix("https://github.com/")
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", owner_and_name)
    opened = "https://colab.research.google.com/github/{}/blob/colab/{}.ipynb"
    for name in NAMES:
        header = site[name].select_one(".article-header-buttons")
        assert colab_links(header) == [opened.format(owner_and_name, name)]
    existing = {opened.format(owner_and_name, name) for name in NAMES}
    for page in site.values():
        assert set(colab_links(page)) <= existing


# The first cell


def first_cell(notebook: NotebookNode) -> str:
    return next(cell.source for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("gpu", [None, "Tesla T4"])
@pytest.mark.parametrize("installed", [True, False])
def test_the_first_cell_installs_what_is_missing_and_keeps_torch(
    copies: dict[str, NotebookNode],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    installed: bool,
    gpu: str | None,
) -> None:
    (source,) = {first_cell(notebook) for notebook in copies.values()}
    commands: list[list[str]] = []
    missing = [] if installed else ["ddpm_lite", "torchvision"]
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in missing else name
    )
    monkeypatch.setattr(
        "subprocess.run", lambda command, check: commands.append(command)
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu is not None)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: gpu)
    exec(source, {})
    assert (gpu or "GPU: none") in capsys.readouterr().out
    if installed:
        assert commands == []
    else:
        branch = CONFIG["repository"]["branch"]
        (command,) = commands
        assert command[:4] == [sys.executable, "-m", "pip", "install"]
        assert command[-2:] == [
            f"torch=={metadata.version('torch')}",
            f"ddpm-lite @ git+{REPOSITORY}@{branch}",
        ]
        assert str(Requirement(command[-1]).url) == f"git+{REPOSITORY}@{branch}"


# They run


def with_dependencies(names: Iterable[str]) -> set[str]:
    """Distributions, and all that they need on this machine."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


GUARD = """
import sys

def no_network(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        if not str(host).startswith(("127.0.0.1", "localhost", "('127.0.0.1'")):
            raise OSError(f"a notebook wants to connect to {host}")

sys.addaudithook(no_network)
"""


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Jupyter finds the kernel "reader": it has the wheel of the package and what Colab has, and nothing else."""
    folder = tmp_path_factory.mktemp("reader")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-book"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "ddpm_lite", source / "ddpm_lite", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = ["wheel", "--no-build-isolation", *offline, "--wheel-dir", folder, source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")

    venv.create(folder / "env", with_pip=False, symlinks=True)
    (packages,) = (folder / "env").glob("lib/*/site-packages")
    for name in with_dependencies(["ddpm-lite", *COLAB, KERNEL]) - {"ddpm-lite"}:
        distribution = metadata.distribution(name)
        for entry in {path.parts[0] for path in distribution.files}:
            link = packages / entry
            if entry not in ("..", "__pycache__") and not link.exists():
                link.symlink_to(distribution.locate_file(entry))
    subprocess.run([*pip, "install", *offline, "--target", packages, wheel], check=True)
    (packages / "guard.py").write_text(GUARD)
    (packages / "guard.pth").write_text("import guard\n")

    specification = folder / "jupyter" / "kernels" / "reader" / "kernel.json"
    specification.parent.mkdir(parents=True)
    command = [str(folder / "env/bin/python"), "-m", "ipykernel_launcher"]
    specification.write_text(
        json.dumps(
            {
                "argv": [*command, "-f", "{connection_file}"],
                "display_name": "A reader's Python",
                "language": "python",
            }
        )
    )
    return folder / "jupyter"


def run(notebook: NotebookNode, kernel: Path, folder: Path) -> NotebookNode:
    """Run a notebook in a folder."""
    client = NotebookClient(
        notebook,
        kernel_name="reader",
        timeout=600,
        resources={"metadata": {"path": str(folder)}},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(kernel))
        for variable in ("PYTHONPATH", "DDPM_LITE_DATA"):
            patch.delenv(variable, raising=False)
        return client.execute()


PROBE = """
import importlib.util, json, sys
import ddpm_lite, torch
absent = [name for name in {names} if importlib.util.find_spec(name) is None]
print(json.dumps([ddpm_lite.__file__, ddpm_lite.__version__, sys.path, absent]))
"""


@pytest.mark.long
def test_the_reader_has_the_wheel_and_nothing_of_the_repository(
    kernel: Path, tmp_path: Path
) -> None:
    # The kernel of the tests has all of these; so the list of what is absent means something.
    names = ["diffusers", "hypothesis", "nbval", "nbformat", "pytest", "sphinx"]
    cell = nbformat.v4.new_code_cell(PROBE.format(names=names))
    probe = run(nbformat.v4.new_notebook(cells=[cell]), kernel, tmp_path)
    package, version, path, absent = json.loads(probe.cells[0].outputs[0].text)
    assert "/reader" in package
    assert version == ddpm_lite.__version__
    assert not any(entry.startswith(str(ROOT)) for entry in path)
    assert absent == names


@pytest.mark.long
@pytest.mark.parametrize(
    "source",
    ["import diffusers", "import socket; socket.getaddrinfo('example.org', 80)"],
)
def test_what_a_reader_lacks_is_an_error(
    kernel: Path, tmp_path: Path, source: str
) -> None:
    cell = nbformat.v4.new_code_cell(source)
    with pytest.raises(Exception, match=r"No module named|wants to connect"):
        run(nbformat.v4.new_notebook(cells=[cell]), kernel, tmp_path)


@pytest.mark.long
@each_copy
def test_the_copy_runs_in_an_empty_folder(
    copies: dict[str, NotebookNode], kernel: Path, tmp_path: Path, name: str
) -> None:
    notebook = nbformat.from_dict(copies[name])
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    run(notebook, kernel, tmp_path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert outputs[0].text.startswith("GPU: ")
