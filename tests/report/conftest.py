import pytest
from _helpers.made_findings import findings_of

from lwptv_lightning.report import write_report


@pytest.fixture(scope="session")
def found():
    """Findings of the zoo's size with all figures."""
    return findings_of()


@pytest.fixture(scope="session")
def written(found, tmp_path_factory):
    """The folder of their report."""
    return write_report(found, tmp_path_factory.mktemp("report")).parent
