"""What keeps the project alive: the workflows, the spelling, the citation, the page for instructors."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import spelling
import yaml

import ddpm_lite
from book import BOOK, NOTEBOOKS, ROOT, prose

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
BUILT = ("_build", "dist", ".venv")  # folders that the workflows make themselves

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def problems(workflow: dict) -> list[str]:
    """What is wrong with a workflow; empty if nothing is."""
    found = []
    if True not in workflow:  # YAML reads "on" as true
        found.append("nothing starts it")
    if workflow.get("permissions") != {"contents": "read"}:
        found.append("it may do more than read")
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    )
    for name, job in workflow["jobs"].items():
        if "timeout-minutes" not in job and "needs" not in job:
            found.append(f"{name} has no limit of time")
        for needed in [job.get("needs", [])]:
            if isinstance(needed, str) and needed not in workflow["jobs"]:
                found.append(f"{name} needs {needed}, which does not exist")
        for step in job["steps"]:
            action = step.get("uses", "")
            if action and not re.fullmatch(
                r"[\w.-]+/[\w.-]+@(v\d+(\.\d+)*|release/v\d+|[0-9a-f]{40})", action
            ):
                found.append(f"{action} is not pinned")
            words = shlex.split(step.get("run", ""), comments=True)
            for before, word in zip(["", *words], words):
                if before == "make" and word not in targets:
                    found.append(f"make {word} does not exist")
                if (
                    re.fullmatch(r"\.?[\w-]+(/[\w.-]+)+|[\w-]+\.(py|md|txt|toml)", word)
                    and not word.startswith(BUILT)
                    and not (ROOT / word).exists()
                ):
                    found.append(f"{word} does not exist")
    return found


def test_there_is_a_workflow_for_each_promise() -> None:
    assert {path.stem for path in WORKFLOWS} == {
        "tests",
        "site",
        "colab",
        "links",
        "release",
    }


@each_workflow
def test_workflow_names_only_what_exists(path: Path) -> None:
    assert problems(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


def test_tests_run_on_three_pythons_and_two_torches() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    pythons = jobs["all"]["strategy"]["matrix"]["python"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lowest = re.search(r'requires-python = ">=([\d.]+)"', project)[1]
    assert len(pythons) == 3
    assert pythons[0] == lowest
    pins = [entry["pins"] for entry in jobs["torch"]["strategy"]["matrix"]["include"]]
    oldest = re.search(r'"torch>=([\d.]+)"', project)[1]
    vision = re.search(r'"torchvision>=([\d.]+)"', project)[1]
    assert pins == [
        f"torch=={oldest}.* torchvision=={vision}.*",
        "torch torchvision",
    ]


@pytest.mark.parametrize("name", ["colab", "links"])
def test_what_can_break_by_itself_is_tried_every_week(name: str) -> None:
    text = (ROOT / f".github/workflows/{name}.yml").read_text(encoding="utf-8")
    (entry,) = yaml.safe_load(text)[True]["schedule"]
    minute, hour, day, month, weekday = entry["cron"].split()
    assert (day, month) == ("*", "*")
    assert all(part.isdigit() for part in (minute, hour, weekday))


def test_only_the_job_that_publishes_has_a_token_for_pypi() -> None:
    text = (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "permissions" not in jobs["build"]
    assert "secrets." not in text


def test_colab_copies_go_where_the_buttons_point() -> None:
    text = (ROOT / ".github/workflows/site.yml").read_text(encoding="utf-8")
    branch = re.search(r"publish_branch: (\w+)", text)[1]
    source = (BOOK / "_ext/colab_copies.py").read_text(encoding="utf-8")
    assert f'BRANCH = "{branch}"' in source


# Citation


def zenodo() -> dict:
    """The metadata for Zenodo."""
    return json.loads((ROOT / ".zenodo.json").read_text(encoding="utf-8"))


def test_zenodo_says_what_the_citation_file_says() -> None:
    record = zenodo()
    for key in ("title", "version", "license", "keywords"):
        assert record[key] == CITATION[key], key
    assert record["description"] == " ".join(CITATION["abstract"].split())
    assert [c["name"] for c in record["creators"]] == [
        author["name"] for author in CITATION["authors"]
    ]
    assert record["publication_date"] == CITATION["date-released"]
    related = {entry["identifier"] for entry in record["related_identifiers"]}
    assert {CITATION["repository-code"], CITATION["url"]} <= related
    assert CITATION["references"][0]["url"] in related
    assert record["upload_type"] == CITATION["type"] == "software"


def test_addresses_of_the_citation_are_those_of_the_book() -> None:
    assert CITATION["repository-code"] == CONFIG["repository"]["url"]
    assert CITATION["url"] == CONFIG["html"]["baseurl"]


def test_page_cites_this_version_as_the_citation_file_does() -> None:
    page = (BOOK / "cite.md").read_text(encoding="utf-8")
    plain = page.replace("\\_", "_")
    version, year = CITATION["version"], CITATION["date-released"][:4]
    bibtex = re.search(r"```bibtex\n(@software.*?)```", plain, re.DOTALL)[1]
    for key, value in {
        "title": CITATION["title"],
        "author": "{" + CITATION["authors"][0]["name"] + "}",
        "year": year,
        "version": version,
        "url": CITATION["url"],
    }.items():
        assert re.search(rf"{key}\s+= " + re.escape(f"{{{value}}}"), bibtex), key
    apa = re.search(r"^> (.*)$", page, re.MULTILINE)[1]
    assert apa == (
        f"{CITATION['authors'][0]['name']}. ({year}). *{CITATION['title']}* (Version {version}) "
        f"[Computer software]. {CITATION['url']}"
    )
    assert version == ddpm_lite.__version__


def test_addresses_on_the_page_name_pages_and_equations_that_exist() -> None:
    page = (BOOK / "cite.md").read_text(encoding="utf-8")
    site = re.escape(CONFIG["html"]["baseurl"])
    addresses = re.findall(rf"{site}(v[\d.]+/)?(\w+)\.html(?:#([\w-]+))?", page)
    assert len(addresses) >= 4
    for version, name, anchor in addresses:
        assert version in ("", f"v{ddpm_lite.__version__}/")
        assert (BOOK / f"{name}.ipynb").exists()
        if anchor:
            label = anchor.removeprefix("equation-")
            assert f"({label})" in prose(BOOK / f"{name}.ipynb")
    chapter = re.search(r"@incollection.*?title\s+= {(.*?)}", page, re.DOTALL)[1]
    assert prose(BOOK / "05_posterior.ipynb").startswith(f"# {chapter}\n")


# The page for instructors


def test_exercises_of_the_plan_are_those_of_the_chapters() -> None:
    plan = (BOOK / "teaching.md").read_text(encoding="utf-8")
    exercises = {
        label: path.stem
        for path in NOTEBOOKS
        for label in re.findall(r"^:label: (ex-\S+)", prose(path), re.MULTILINE)
    }
    planned = re.findall(r"\{ref\}`(ex-[^`]+)`", plan)
    assert len(planned) >= 20
    assert set(planned) <= set(exercises)
    assert len(planned) == len(set(planned)), "an exercise is given twice"
    for number in range(1, 7):
        lecture, work = re.findall(rf"^\| {number} \| (.*) \|$", plan, re.MULTILINE)
        chapters = set(re.findall(r"\{doc\}`(\d\d_\w+)`", lecture))
        assert {exercises[e] for e in re.findall(r"`(ex-[^`]+)`", work)} <= chapters


def test_times_on_the_page_are_those_of_the_chapters() -> None:
    page = (BOOK / "teaching.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"^\| \{doc\}`(\d\d_\w+)` \| (.*?) \| (.*?) \|$", page, re.MULTILINE
    )
    assert len(shown) >= 10
    for name, reading, running in shown:
        box = re.search(r"^\*\*Time\*\*: (.*)$", prose(BOOK / f"{name}.ipynb"), re.M)[1]
        assert box.startswith(f"{reading} to read, {running} to run on two CPU cores")


# Spelling


def test_nothing_is_misspelt() -> None:
    found = spelling.texts()
    assert len(found["book/05_posterior.ipynb"]) > 10_000
    assert spelling.mistakes(found) == []


def test_every_word_of_the_list_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = spelling.WORDS.read_text(encoding="utf-8").split()
    assert words == sorted(set(words))
    (tmp_path / "none.txt").touch()
    monkeypatch.setattr(spelling, "WORDS", tmp_path / "none.txt")
    wrong = {
        line.split(" ==> ")[0].rpartition(" ")[2].lower()
        for line in spelling.mistakes(spelling.texts())
    }
    assert wrong == set(words)


# The checks above must be able to fail.


def test_misspelt_and_american_words_are_found_and_code_is_left_alone() -> None:
    text = "We recieve the color of `color`.\n\n$recieve$\n\n```python\nrecieve\n```\n"
    found = spelling.mistakes({"page.md": spelling.prose(text)})
    assert found == [
        "page.md:1: recieve ==> receive",
        "page.md:1: color ==> colour",
    ]


def test_comments_and_docstrings_are_read_where_they_stand() -> None:
    source = (
        'recieve = 1  # recieved\n\n\ndef f():\n    """Do.\n\n    Teh end.\n    """\n'
    )
    found = spelling.mistakes({"module.py": spelling.remarks(source)})
    assert found == [
        "module.py:1: recieved ==> received",
        "module.py:7: Teh ==> The",
    ]


def test_prose_keeps_boxes_and_captions() -> None:
    text = "```{exercise} Colour\n:label: ex-recieve\nFavourite `x`.\n```\nAfter.\n```\ncode\n```\n![a](b.png)"
    words = spelling.prose(text).split()
    assert words == ["Colour", "Favourite", ".", "After.", "![a"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"steps": [{"uses": "actions/checkout@main"}]}, "is not pinned"),
        ({"steps": [{"run": "make nothing"}]}, "make nothing does not exist"),
        ({"steps": [{"run": "python book/no.py"}]}, "book/no.py does not exist"),
        ({"needs": "nobody"}, "needs nobody"),
        ({"timeout-minutes": None}, "no limit of time"),
    ],
    ids=["pin", "target", "file", "needs", "limit"],
)
def test_a_bad_workflow_is_refused(change: dict, problem: str) -> None:
    job = {"timeout-minutes": 5, "steps": [{"run": "make test"}], **change}
    job = {key: value for key, value in job.items() if value is not None}
    workflow = {True: "push", "permissions": {"contents": "read"}, "jobs": {"a": job}}
    assert any(problem in found for found in problems(workflow))
    assert problems({**workflow, "permissions": None})[0] == "it may do more than read"
