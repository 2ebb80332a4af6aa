"""The files around the package say what is so: citation, changelog, contributing, workflows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lightning_efficient import __version__

ROOT = Path(__file__).parents[1]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def steps(workflow: str) -> list[str]:
    jobs = yaml.safe_load(read(f".github/workflows/{workflow}.yml"))["jobs"]
    return [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]


def test_the_citation_names_this_version_and_each_paper_with_title_authors_and_year() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    for paper in citation["references"]:
        assert paper["title"]
        assert all(author["family-names"] and author["given-names"] for author in paper["authors"])
        assert 2018 < paper["year"] < 2027


def test_the_changelog_begins_with_this_version() -> None:
    assert re.findall(r"^## (\d\S*?),? ", read("CHANGELOG.md"), re.MULTILINE)[0] == __version__


def test_the_workflow_runs_what_ci_runs_and_nothing_else() -> None:
    assert steps("ci") == [".ci/run"]


def test_the_weekly_workflow_names_targets_of_the_makefile() -> None:
    weekly = yaml.safe_load(read(".github/workflows/weekly.yml"))["jobs"]["weekly"]
    assert set(weekly["strategy"]["matrix"]["target"]) <= set(TARGETS)
    assert steps("weekly") == ["make ${{ matrix.target }}"]


def test_workflows_try_every_python_that_the_package_names() -> None:
    named = re.findall(r"Python :: (3\.\d+)", read("pyproject.toml"))
    assert yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["ci"]["strategy"]["matrix"]["python"] == named


def test_contributing_lists_what_ci_runs_in_its_order() -> None:
    run = re.findall(r"^make (\S+)$", read(".ci/run"), re.MULTILINE)
    assert run[-1] == "test"
    assert re.findall(r"^\| `make (\S+)` \|", read("CONTRIBUTING.md"), re.MULTILINE) == run


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md", "CHANGELOG.md"])
def test_targets_and_files_that_a_page_names_exist(page: str) -> None:
    text = read(page)
    assert set(re.findall(r"`?make ([a-z][\w-]*)`", text)) <= set(TARGETS)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []
