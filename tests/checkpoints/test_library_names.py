import pytest
import torch

from lwptv_lightning import TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import model_names, named_as
from lwptv_lightning.checkpoints.skeleton import tied_names


def test_names_of_a_transformers_file_are_those_of_its_model():
    transformers = pytest.importorskip("transformers")
    small = {"n_embd": 4, "n_layer": 1, "n_head": 1, "vocab_size": 5, "bos_token_id": 0, "eos_token_id": 0}
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**small))
    found = model_names(model, ["h.0.ln_1.weight", "transformer.wpe.weight", "lm_head.weight", "strange"])
    assert found == {
        "h.0.ln_1.weight": "transformer.h.0.ln_1.weight",
        "transformer.wpe.weight": "transformer.wpe.weight",
        "lm_head.weight": "lm_head.weight",
    }
    assert tied_names(model) == {"transformer.wte.weight", "lm_head.weight"}


@pytest.fixture
def vits(tmp_path):
    """Two transformers models and their folders, whose files have other names than the models since transformers 5."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    found = []
    for name in ("base", "a"):
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=16))
        model.save_pretrained(tmp_path / name)
        found += [model, tmp_path / name]
    return found


@pytest.mark.parametrize("given", ["module", "folders and model", "folder and module", "folders"])
def test_files_and_models_of_transformers_stand_side_by_side(vits, given):
    base, base_folder, tuned, folder = vits
    sources = {
        "module": (base, folder, None),
        "folders and model": (base_folder, folder, base),
        "folder and module": (base_folder, tuned, base),
        "folders": (base_folder, folder, None),
    }
    source, expert, model = sources[given]
    vectors = TaskVectors.open(source, {"a": expert}, model=model)
    names = base.state_dict() if given != "folders" else open_checkpoint(base_folder).names
    assert set(vectors.names) == set(names)
    assert all(vectors.stack(name).any() for name in names if name.endswith(("dense.weight", "proj.weight")))


def test_tensors_that_a_model_combines_have_no_name_of_its_own(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=9, num_local_experts=2)
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path)
    names = open_checkpoint(tmp_path).names
    found = model_names(model, names)
    own = model.state_dict()
    assert set(found.values()) <= set(own)
    assert all(name in found or ".experts." in name for name in names)


def test_files_of_one_model_name_its_tensors_otherwise(vits):
    base, base_folder, _, _ = vits
    stored, own = open_checkpoint(base_folder).names, list(base.state_dict())
    found = named_as(own, stored, base)
    assert list(found) == own
    assert set(found.values()) == set(stored)
    assert found["vit.layers.0.attention.q_proj.weight"] == "vit.encoder.layer.0.attention.attention.query.weight"
