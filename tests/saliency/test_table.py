import pytest
import torch

from lwptv_lightning import LayerTable, collect_statistics, layers_from_names, score_layers


@pytest.fixture
def stats(vectors):
    return collect_statistics(vectors, layers_from_names(vectors.names))


def test_a_table_iterates_over_tasks(stats):
    table = score_layers(stats)
    assert {task: dict(row) for task, row in table}["b"]["fc"] == table.values[1, table.layers.index("fc")]


def test_every_bit_survives_json(stats):
    table = score_layers(stats, "rms")
    again = LayerTable.from_json(table.to_json())
    assert (again.tasks, again.layers) == (table.tasks, table.layers)
    assert torch.equal(again.values, table.values)
    assert torch.equal(again.numel, table.numel)
    assert again.values.dtype == torch.float64


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"tasks": 1, "layers": [], "numel": [], "values": []}'])
def test_what_is_no_table_is_refused(text):
    with pytest.raises(ValueError, match="expected a table of tasks, layers, numel and values in JSON"):
        LayerTable.from_json(text)


def test_a_table_of_another_shape_is_refused(stats):
    text = score_layers(stats).to_json().replace('"tasks": ["a", ', '"tasks": [')
    with pytest.raises(ValueError, match=r"must have the shape \(T, L\) = \(2, 4\), not \(3, 4\)"):
        LayerTable.from_json(text)
