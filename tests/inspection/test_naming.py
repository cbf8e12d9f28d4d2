import pytest
import torch
from _helpers.library_folders import make_transformers, save_base, tuned

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, open_checkpoint
from lwptv_lightning.inspection import verify
from lwptv_lightning.inspection.naming import naming_model


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
@pytest.mark.parametrize("classes", [3, 5])
def test_what_a_module_wrote_in_its_models_names_is_verified_from_files_in_others(classes, tmp_path):
    base, expert = make_transformers("vit"), make_transformers("vit", classes)
    own = expert.state_dict()
    state = {name: value if value.shape == own[name].shape else own[name] for name, value in tuned(base, 1).items()}
    expert.load_state_dict(state)
    save_base(base, tmp_path / "base")
    save_base(expert, tmp_path / "a")
    vectors = TaskVectors.open(tmp_path / "base", {"a": tmp_path / "a"}, model=base)
    out = MergeModule(base, vectors, MergeRecipe(ratio=0.25), output_key="logits").save_merged(tmp_path / "out")
    found = verify(out, tmp_path / "base", {"a": tmp_path / "a"})
    assert found.passed, (found.inputs, found.differing)
    assert found.compared == len(open_checkpoint(out).names)
    expert.load_state_dict({**state, "vit.layernorm.bias": state["vit.layernorm.bias"] + 1})
    save_base(expert, tmp_path / "b")
    assert list(verify(out, tmp_path / "base", {"a": tmp_path / "b"}).inputs) == ["a"]


def test_no_model_is_built_where_the_names_are_the_bases(tmp_path):
    folder = save_base(make_transformers("bert"), tmp_path / "base")
    assert naming_model(open_checkpoint(folder), folder) is None
    assert naming_model(open_checkpoint({"strange": torch.ones(1)}), folder) is None
