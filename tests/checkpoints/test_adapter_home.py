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


def no_ties(base, modules):
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
    home = home_of(names_of("0"), [base_of("0.weight")], [model], lambda base, modules: [list(base.names)])
    assert home.modules["0"] is model[0]
    assert home.tied == [["0.weight"]]


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def vit(tmp_path):
    """A transformers ViT and its folder, whose file has other names than the model since transformers 5."""
    transformers = pytest.importorskip("transformers")
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, image_size=32, patch_size=16))
    model.save_pretrained(tmp_path / "vit")
    return model, tmp_path / "vit"


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("whole", [True, False])
def test_transformers_names_in_a_model_are_those_of_its_file(vit, whole, given):
    model, folder = vit
    adapted = model if whole else model.vit
    names = [name.removesuffix(".weight") for name in adapted.state_dict() if name.endswith("proj.weight")]
    names = [name for name in names if "layer" in name] or ["encoder.layer.0.attention.attention.query"]
    base = open_checkpoint(folder)
    home = home_of(names_of(*names), [base], [model] if given else [], no_ties)
    found = {home.rename(f"{name}.weight") for name in names}
    assert len(found) == len(names)
    assert found <= set(base.names)
    assert all(f"{name}.weight".startswith("vit.") == whole for name in names)


def test_what_a_configuration_describes_has_the_paths_of_the_file(vit):
    _, folder = vit
    base = open_checkpoint(folder)
    home = home_of(names_of("vit.embeddings.patch_embeddings.projection"), [base], [], no_ties)
    layers = {name.removesuffix(".weight") for name in base.names if name.endswith("query.weight")}
    assert all(isinstance(home.described[path], nn.Linear) for path in layers)
    assert home_of(names_of("a"), [base_of("a.weight")], [], no_ties).described == {}
