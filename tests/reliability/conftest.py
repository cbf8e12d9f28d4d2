"""How much a test tries, and the table of docs/reliability.md, which the long forms write with ``--rows``."""

from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def pytest_addoption(parser):
    parser.addoption("--rows", action="store_true", help="write what the long tests found to docs/reliability.md")


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.long)])
def amount(request):
    """``amount(short, long)``: how often to try; the test runs in both forms, the long one with ``-m long``."""
    return lambda short, long: {"short": short, "long": long}[request.param]


@pytest.fixture
def row(request):
    """``row(tried, outcome)``: the line of the test in the table, with its command, once all has held."""
    name = f"{Path(request.node.path).name}::{request.node.name.removesuffix('[long]')}"

    def write(tried, outcome):
        # Without the option where the whole suite runs, whose command line is not read by this file.
        if request.node.get_closest_marker("long") and request.config.getoption("--rows", default=False):
            with_row(name, tried, outcome)

    return write


def with_row(name, tried, outcome):
    """Put a line in the place of the one that names the same test, or below the others."""
    line = f"| {tried} | {outcome} | `{name}` |"
    before = DOCUMENT.read_text(encoding="utf-8").splitlines()
    if old := [number for number, other in enumerate(before) if other.endswith(f"| `{name}` |")]:
        before[old[0]] = line
    else:
        last = max(number for number, other in enumerate(before) if other.startswith("|"))
        before.insert(last + 1, line)
    DOCUMENT.write_text("\n".join(before) + "\n", encoding="utf-8")
