import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC
from torchmetrics.regression import PearsonCorrCoef

from lwptv_lightning.evaluation.figures import figures_of, load_states, states_of


def test_each_part_has_its_name():
    result = {"map": torch.tensor(0.5), "per": {"a": torch.tensor([[1.0, 0.0]])}, "curve": (torch.tensor([0.25]), 2)}
    assert figures_of("id/a", result, "M") == {
        "id/a/map": 0.5,
        "id/a/per/a/0/0": 1.0,
        "id/a/per/a/0/1": 0.0,
        "id/a/curve/0": 0.25,
        "id/a/curve/1": 2.0,
    }
    assert figures_of("id/a", torch.tensor([0.5]), "M") == {"id/a": 0.5}
    assert figures_of("id/a", torch.zeros(0), "M") == {}


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="Mine finds a str for 'id/a/note'; only numbers can be logged"):
        figures_of("id/a", {"note": "good"}, "Mine")
    with pytest.raises(ValueError, match=r"Mine finds 1000000 numbers of shape \(1000, 1000\) for 'id/a'"):
        figures_of("id/a", torch.zeros(1000, 1000), "Mine")


@pytest.mark.parametrize("metric", [MulticlassAccuracy(3, average=None), MulticlassAUROC(3), PearsonCorrCoef()])
def test_states_of_parts_are_those_of_the_whole(metric):
    torch.manual_seed(0)
    batches = [(torch.randn(9, 3).softmax(1), torch.arange(9) % 3) for _ in range(3)]
    if isinstance(metric, PearsonCorrCoef):
        batches = [(logits[:, 0], targets.float()) for logits, targets in batches]
    parts, whole, together = [metric.clone() for _ in range(2)], metric.clone(), metric.clone()
    for index, batch in enumerate(batches):
        whole.update(*batch)
        parts[index % 2].update(*batch)
    together.update(*batches[0])
    load_states(together, [states_of(part) for part in parts], [2, 1])
    torch.testing.assert_close(together.compute(), whole.compute())
