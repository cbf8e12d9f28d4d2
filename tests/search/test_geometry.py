import pytest
import torch

from lwptv_lightning import layers_from_names
from lwptv_lightning.search.geometry import changes_by_layer, cosines


def flat(vectors, task):
    return torch.cat([(vectors.expert(task, name) - vectors.base(name)).double().flatten() for name in vectors.names])


def test_cosines_are_those_of_whole_task_vectors(vectors):
    found = torch.tensor(cosines(vectors), dtype=torch.float64)
    for row, task in enumerate(vectors.tasks):
        for column, other in enumerate(vectors.tasks):
            expected = torch.nn.functional.cosine_similarity(flat(vectors, task), flat(vectors, other), dim=0)
            assert float(found[row, column]) == pytest.approx(float(expected), abs=1e-6)
    assert found.diagonal().tolist() == [1, 1, 1]


def test_the_squares_of_layers_changes_add_up(vectors):
    layers = layers_from_names(vectors.names)
    models = {task: {name: vectors.expert(task, name) for name in vectors.names} for task in vectors.tasks}
    found = changes_by_layer(models | {"base": {}}, vectors, layers)
    assert [*found] == [layer.name for layer in layers if {*layer.tensors} & {*vectors.names}]
    for task in vectors.tasks:
        total = sum(own[task] ** 2 for own in found.values()) ** 0.5
        assert total == pytest.approx(float(flat(vectors, task).norm()), rel=1e-6)
    assert all(own["base"] == 0 for own in found.values())
