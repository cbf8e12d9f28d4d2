import pytest

from lwptv_lightning import collect_statistics, layers_from_names, score_layers


@pytest.fixture
def stats(vectors):
    return collect_statistics(vectors, layers_from_names(vectors.names))


def test_a_table_iterates_over_tasks(stats):
    table = score_layers(stats)
    assert {task: dict(row) for task, row in table}["b"]["fc"] == table.values[1, table.layers.index("fc")]
