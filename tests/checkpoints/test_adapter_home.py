import pytest
import torch
from torch import nn

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints.adapter_home import home_of
from lwptv_lightning.checkpoints.adapter_names import AdapterNames


def names_of(*paths):
    factors = {f"base_model.model.{path}.lora_{factor}.weight": torch.ones(1, 1) for path in paths for factor in "AB"}
    return AdapterNames.of(open_checkpoint(factors))


def base_of(*names):
    return open_checkpoint({name: torch.ones(1, 1) for name in names})


def no_ties(base):
    return []


@pytest.mark.parametrize(
    ("base", "path", "name"),
    [
        (("fc.weight", "head.weight"), "fc", "fc.weight"),
        (("model.fc.weight", "model.head.weight"), "fc", "model.fc.weight"),
        (("fc.weight", "head.weight"), "vit.fc", "fc.weight"),
    ],
)
def test_a_base_may_have_a_prefix_more_or_less(base, path, name):
    home = home_of(names_of(path), [base_of(*base)], [], no_ties)
    assert home.rename(f"{path}.weight") == name
    assert home.header(name).shape == (1, 1)


def test_the_base_with_the_most_modules_is_the_home():
    other, mine = base_of("blocks.0.fc.weight"), base_of("layer.0.q.weight", "layer.0.k.weight")
    home = home_of(names_of("layer.0.q", "layer.0.k"), [other, mine], [], no_ties)
    assert home.base is mine


def test_where_none_has_a_module_names_stay():
    home = home_of(names_of("a"), [base_of("b.weight")], [nn.Linear(1, 1)], no_ties)
    assert home.rename("a.weight") == "a.weight"
    assert home.header("a.weight") is None


def test_modules_are_found_by_path():
    model = nn.Sequential(nn.Linear(1, 1))
    home = home_of(names_of("0"), [base_of("0.weight")], [model], lambda base: [list(base.names)])
    assert home.modules["0"] is model[0]
    assert home.tied == [["0.weight"]]
