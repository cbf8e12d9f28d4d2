import json
import sys

import pytest
import torch
import transformers
from _helpers.library_folders import SECRETS, make_transformers, save_base, tuned, vectors_of
from safetensors.torch import load_file

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import Provenance, TensorHeader
from lwptv_lightning.libraries import FolderError, plan_folder
from lwptv_lightning.task_vectors import checkpoints_of

RECIPE = MergeRecipe(scale=0.5)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def loaded_from(folder, kind):
    """Load a folder, and check that transformers says nothing was missing, left over or of another shape."""
    model, said = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(said.values()), said
    return model


@pytest.mark.parametrize("name", ["clip", "gpt2", "bert"])
@pytest.mark.parametrize("size", [None, "40KB"])
def test_a_folder_gives_a_folder_that_loads_as_merged(name, size, tmp_path):
    base = make_transformers(name)
    vectors = vectors_of(base, tmp_path / "base")
    out = save_merged(vectors, RECIPE, tmp_path / "out", max_shard_size=size)
    names = {file.name for file in out.iterdir()}
    assert ("model.safetensors.index.json" in names) == (size is not None)
    assert names >= {"config.json", "tokenizer_config.json", "preprocessor_config.json"}
    assert not names & set(SECRETS)
    assert "library_name: transformers" in (out / "README.md").read_text()
    state, merged = loaded_from(out, type(base)).state_dict(), merge(vectors, RECIPE)
    assert all(torch.equal(state[key], value) for key, value in merged.items())
    assert set(open_checkpoint(out).names) == set(open_checkpoint(tmp_path / "base").names)


def test_a_module_writes_the_names_that_the_bases_file_has(tmp_path):
    base = make_transformers("gpt2")
    vectors = vectors_of(base, tmp_path / "base", model=base)
    module = MergeModule(make_transformers("gpt2"), vectors, RECIPE).merge_()
    out = module.save_merged(tmp_path / "out")
    assert set(open_checkpoint(out).names) == set(open_checkpoint(tmp_path / "base").names)
    tokens = torch.arange(6)[None]
    loaded = loaded_from(out, transformers.AutoModelForCausalLM)
    torch.testing.assert_close(loaded(tokens).logits, module.model(tokens).logits, rtol=0, atol=1e-6)


def test_a_base_in_memory_gives_a_folder_from_what_the_module_says(tmp_path):
    base = make_transformers("bert")
    vectors = TaskVectors.open(base, {"a": tuned(base, 1)})
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert type(loaded_from(out, transformers.AutoModelForMaskedLM)) is type(base)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("vit", "ViTForImageClassification"),
        ("resnet", "ResNetForImageClassification"),
        ("bert classifier", "BertModel"),
    ],
)
def test_without_its_classifier_it_is_what_lacks_nothing(name, kind, tmp_path):
    base = make_transformers(name, 3)
    save_base(base, tmp_path / "base")
    state = load_file(tmp_path / "base" / "model.safetensors")
    experts = {}
    for task, classes in {"a": 2, "b": 5}.items():
        own = {key: value + 0.01 if value.is_floating_point() else value for key, value in state.items()}
        heads = [key for key in own if key.startswith("classifier")]
        experts[task] = own | {key: torch.zeros(classes, *own[key].shape[1:]) for key in heads}
    vectors = TaskVectors.open(tmp_path / "base", experts)
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert config_of(out)["architectures"] == [kind]
    loaded = loaded_from(out, getattr(transformers, kind))
    assert type(loaded).__name__ == kind
    said = Provenance.of(open_checkpoint(out))
    assert len(said.left_out) == 2
    assert kind in said.notes[0]
    by_auto = transformers.AutoModel if kind == "BertModel" else transformers.AutoModelForImageClassification
    assert type(loaded_from(out, by_auto)).__name__ == kind


def test_the_configuration_says_the_dtype_that_is_written(tmp_path):
    base = make_transformers("clip").to(torch.bfloat16)
    save_base(base, tmp_path / "base")
    config = config_of(tmp_path / "base")
    key = "dtype" if "dtype" in config else "torch_dtype"
    config[key] = config["vision_config"][key] = "float16"
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    vectors = TaskVectors.open(tmp_path / "base", {"a": tuned(base, 1)})
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert config_of(out)[key] == config_of(out)["vision_config"][key] == "bfloat16"
    assert loaded_from(out, type(base)).dtype == torch.bfloat16


def test_how_weights_were_packed_is_left_out_where_they_are_not_any_more(tmp_path):
    base = make_transformers("bert")
    vectors = vectors_of(base, tmp_path / "base")
    config = config_of(tmp_path / "base") | {"quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    same = save_merged(vectors, RECIPE, tmp_path / "same")
    assert "quantization_config" in config_of(
        same
    )  # names and dtypes are the file's, so that it is as packed as before
    origin, *_ = checkpoints_of(vectors)
    packed = origin.of_model(None)
    packed.stored_headers = {**origin.headers, "weight_scale_inv": TensorHeader((1,), torch.float32)}
    folder = plan_folder(packed, origin.headers)
    assert "quantization_config" not in json.loads(folder.files["config.json"])
    assert folder.notes == ("Its weights are plain numbers: the base's quantization_config is left out.",)


def test_code_that_auto_map_names_is_copied_and_not_run(tmp_path):
    base = make_transformers("bert")
    vectors = vectors_of(base, tmp_path / "base")
    names = {"AutoModel": "modeling_own.Own", "AutoTokenizer": ["tokenization_own.Own", None], "x": "other/repo--y.Z"}
    config = config_of(tmp_path / "base") | {"auto_map": names}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    (tmp_path / "base" / "modeling_own.py").write_text("from .parts import x\nraise SystemExit(9)")
    (tmp_path / "base" / "parts.py").write_text("from . import modeling_own")
    (tmp_path / "base" / "setup.py").write_text("")
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    assert {file.name for file in out.glob("*.py")} == {"modeling_own.py", "parts.py"}
    assert Provenance.of(open_checkpoint(out)).notes == [
        "Code of the base was copied, and not run: modeling_own.py, parts.py."
    ]


def test_names_that_are_no_class_of_transformers_are_refused_with_what_would_be_random(tmp_path):
    base = make_transformers("clip")
    save_base(base, tmp_path / "base")
    wrapper = torch.nn.ModuleDict({"inner": base})
    tasks = {"a": {f"inner.{name}": value for name, value in tuned(base, 1).items()}}
    vectors = TaskVectors.open(tmp_path / "base", tasks, model=wrapper)
    with pytest.raises(FolderError, match=r"CLIPModel; its CLIPModel would have .*stay random.*'safetensors'"):
        save_merged(vectors, RECIPE, tmp_path / "out")
    out = save_merged(vectors, RECIPE, tmp_path / "out", format="safetensors")
    assert "config.json" not in {file.name for file in out.iterdir()}


def test_without_transformers_what_cannot_be_told_is_refused(tmp_path, monkeypatch):
    base = make_transformers("bert classifier")
    vectors = vectors_of(base, tmp_path / "base")
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert save_merged(vectors, RECIPE, tmp_path / "as it was").is_dir()
    vectors.classifiers = ("classifier",)
    with pytest.raises(FolderError, match=r"transformers must be installed.*extra 'clip'"):
        save_merged(vectors, RECIPE, tmp_path / "out")


@pytest.mark.parametrize("name", ["token classifier", "roberta classifier"])
def test_without_an_encoder_of_these_tensors_it_is_its_own_class_without_outputs(name, tmp_path):
    models = base, expert = [make_transformers(name, classes) for classes in (3, 5)]
    own = expert.state_dict()
    fitting = {key: value for key, value in tuned(base, 1).items() if value.shape == own[key].shape}
    expert.load_state_dict({**own, **fitting})
    for model, folder in zip(models, ("base", "a"), strict=True):
        save_base(model, tmp_path / folder)
    vectors = TaskVectors.open(tmp_path / "base", {"a": tmp_path / "a"})
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    with pytest.warns(UserWarning, match="zero-element"):
        model, said = type(base).from_pretrained(out, output_loading_info=True)
    state, merged = model.state_dict(), merge(vectors, RECIPE)
    assert said["missing_keys"]
    assert all(state[key].numel() == 0 for key in said["missing_keys"])
    assert not said["unexpected_keys"]
    assert not said["mismatched_keys"]
    assert all(torch.equal(value, merged[key]) for key, value in state.items() if value.numel())


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
def test_an_encoder_with_the_heads_of_a_classifiers_model_stays_an_encoder(tmp_path):
    model, expert = make_transformers("bert classifier"), make_transformers("bert classifier", 5)
    save_base(model.bert, tmp_path / "base")
    expert.bert.load_state_dict(tuned(model.bert, 1))
    vectors = TaskVectors.open(tmp_path / "base", {"a": save_base(expert, tmp_path / "a")}, model=model)
    module = MergeModule(model, vectors, RECIPE, output_key="logits")
    out = module.save_merged(tmp_path / "out", heads=True)
    loaded = loaded_from(out, transformers.BertModel).state_dict()
    merged = module.model.bert.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in merged.items())
