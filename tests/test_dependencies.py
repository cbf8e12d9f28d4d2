"""The lower bounds of pyproject.toml, the versions that CI tests them with, and the reasons in SECURITY.md agree."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(names):
    return {each.name: each for each in map(Requirement, names) if not each.name.startswith("lwptv")}


def floor(requirement):
    """The one lower bound of a requirement."""
    (bound,) = [each.version for each in requirement.specifier if each.operator == ">="]
    return Version(bound)


NEEDED = requirements(PROJECT["dependencies"])
EXTRAS = PROJECT["optional-dependencies"]
TESTED = NEEDED | requirements(each for extra in ("test", "clip", "peft") for each in EXTRAS[extra])


def pinned():
    lines = (ROOT / ".ci" / "minimum.txt").read_text(encoding="utf-8").splitlines()
    return {name: Version(version) for name, version in (line.split("==") for line in lines if "==" in line)}


def test_every_dependency_has_a_lower_bound_which_ci_installs():
    assert {name: floor(each) for name, each in TESTED.items()} == pinned()


def test_the_versions_that_ci_installs_are_allowed():
    for name, version in pinned().items():
        assert version in TESTED[name].specifier, name


def test_each_lower_bound_has_its_reason():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.]+)` \| ([\d.]+) \| .+? \| .+? \|$", text, re.MULTILINE)
    assert {name: Version(version) for name, version in rows} == {name: floor(each) for name, each in NEEDED.items()}


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("torch", "2.9.1"),  # corrupts memory under weights_only
        ("lightning", "2.6.5"),  # runs what a checkpoint names; before it, releases that carried malware
        ("pillow", "12.2.0"),  # reads outside of memory
        ("timm", "1.0.27"),  # unpickles class maps
    ],
)
def test_versions_with_known_faults_that_files_reach_are_excluded(name, last):
    assert floor(NEEDED[name]) > Version(last)


def test_the_versions_of_python_are_those_that_ci_tests():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"python-version: \[(.+)\]", workflow)
    tested = re.findall(r"[\d.]+", matrix)
    assert [f"Programming Language :: Python :: {version}" for version in tested] == [
        each for each in PROJECT["classifiers"] if each.count("::") == 2 and "Python :: 3." in each
    ]
    assert PROJECT["requires-python"] == f">={tested[0]}"
    linted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]["target-version"]
    assert linted == f"py{tested[0].replace('.', '')}"
    assert "permissions:\n  contents: read\n" in workflow


def test_ci_runs_the_command_of_the_readme():
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"]).returncode == 0
