import pytest
import torch

from lwptv_lightning import Merge, MergeRecipe, TaskVectors
from lwptv_lightning.checkpoints import AdapterLayout, Spool
from lwptv_lightning.merging.factors import Factors, relative


@pytest.fixture
def made(tmp_path):
    base = {"fc.weight": torch.zeros(3, 2), "fc.bias": torch.zeros(3), "steady.weight": torch.ones(2, 2)}
    base["steady.bias"] = torch.zeros(2)
    expert = {**base, "fc.weight": torch.ones(3, 2), "fc.bias": torch.ones(3)}
    plan = Merge(TaskVectors.open(base, {"a": expert}), MergeRecipe(scale=0.5)).plan()
    spool = Spool(tmp_path / "spool")
    yield Factors(plan, AdapterLayout.of_names(plan.vectors.headers), 1, torch.float32, spool)
    spool.close()


def test_what_did_not_change_is_not_held(made):
    made.make(drop_rest=False)
    assert made.ranks == {"fc": 1}
    assert list(made.whole) == ["fc.bias"]
    assert made.square == pytest.approx(6 * 0.25 + 3 * 0.25)
    assert made.lost == pytest.approx(0, abs=1e-10)
    a, b = (made.spool.read(f"base_model.model.fc.lora_{factor}.weight") for factor in "AB")
    torch.testing.assert_close(b @ a, torch.full((3, 2), 0.5))


def test_a_bias_beside_factors_has_the_name_that_peft_gives_it(made, tmp_path):
    made.make(drop_rest=False)
    made.write(tmp_path / "adapter_model.safetensors", {})
    from safetensors.torch import load_file

    found = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(found) == [
        "base_model.model.fc.base_layer.bias",
        "base_model.model.fc.lora_A.weight",
        "base_model.model.fc.lora_B.weight",
    ]
    assert torch.equal(found["base_model.model.fc.base_layer.bias"], torch.full((3,), 0.5))


def test_nothing_is_lost_of_nothing():
    assert relative(0.0, 0.0) == 0
    assert relative(1.0, 4.0) == 0.5


def test_the_product_of_zeros_is_of_a_layer_with_elements(tmp_path):
    base = {"fc.weight": torch.zeros(3, 2), "none.weight": torch.zeros(4, 0), "none.bias": torch.zeros(4)}
    expert = {**base, "fc.weight": torch.ones(3, 2)}
    plan = Merge(TaskVectors.open(base, {"a": expert}), MergeRecipe(scale=0.0)).plan()
    spool = Spool(tmp_path / "spool")
    made = Factors(plan, AdapterLayout.of_names(plan.vectors.headers), 1, torch.float32, spool)
    made.make(drop_rest=False)
    spool.close()
    assert made.ranks == {"fc": 1}
