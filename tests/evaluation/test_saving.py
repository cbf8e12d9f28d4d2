import pytest
import timm
import torch
from _helpers.library_folders import tuned, vectors_of
from safetensors.torch import load_file

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, open_checkpoint
from lwptv_lightning.checkpoints import Provenance

RECIPE = MergeRecipe(scale=0.5)


def make(classes):
    return timm.create_model("resnet10t", num_classes=classes).eval()


@pytest.fixture
def module():
    base, own = make(3), make(2).state_dict()
    own |= {name: value for name, value in tuned(base, 1).items() if not name.startswith("fc.")}
    vectors = TaskVectors.open(base.state_dict(), {"a": own}, model=base)
    return MergeModule(make(3), vectors, RECIPE)


def test_a_module_that_was_loaded_without_task_vectors_writes_the_same_folder(module, make_trainer, tmp_path):
    first = module.save_merged(tmp_path / "first")
    trainer = make_trainer()
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = MergeModule.load_from_checkpoint(tmp_path / "m.ckpt", model=make(3))
    second = loaded.save_merged(tmp_path / "second")
    assert (first / "config.json").read_bytes() == (second / "config.json").read_bytes()
    assert Provenance.of(open_checkpoint(second)).left_out == ["fc.weight", "fc.bias"]
    state = timm.create_model(f"local-dir:{second}", pretrained=True).state_dict()
    assert all(torch.equal(value, module.model.state_dict()[name]) for name, value in state.items())


def test_a_file_is_divided_only_when_that_is_asked_for(module, tmp_path):
    assert module.save_merged(tmp_path / "m.safetensors").name == "m.safetensors"
    index = module.save_merged(tmp_path / "n.safetensors", max_shard_size="5MB")
    assert index.name == "n.safetensors.index.json"
    assert open_checkpoint(index).headers == open_checkpoint(tmp_path / "m.safetensors").headers


def test_what_is_there_stays_without_overwrite_and_nothing_is_merged_for_it(module, tmp_path):
    for path in (tmp_path / "m.safetensors", tmp_path / "out"):
        module.save_merged(path)
        fresh = MergeModule(module.model, module.vectors, RECIPE)
        with pytest.raises(FileExistsError, match="exists"):
            fresh.save_merged(path, overwrite=False)
        assert fresh.installed is None


def test_a_model_of_no_library_is_written_as_its_base_is(tmp_path):
    inner = make(3)
    vectors = vectors_of(inner, tmp_path / "base")
    out = MergeModule(inner, vectors, RECIPE).save_merged(tmp_path / "out", format="safetensors")
    assert {file.name for file in out.iterdir()} == {"README.md", "model.safetensors"}


def test_heads_stand_in_the_folder_or_beside_the_file_and_give_the_logits_again(module, tmp_path):
    inputs = torch.randn(2, 3, 64, 64)
    module.merge_().eval()
    out = module.save_merged(tmp_path / "out", heads=True)
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "heads.safetensors",
        "model.safetensors",
    ]
    file = module.save_merged(tmp_path / "m.safetensors", heads=True)
    assert (tmp_path / "m.heads.safetensors").read_bytes() == (out / "heads.safetensors").read_bytes()
    features = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    state = {name.removeprefix("a/fc."): value for name, value in load_file(out / "heads.safetensors").items()}
    head = torch.nn.Linear(512, 2)
    head.load_state_dict(state)
    torch.testing.assert_close(head(features(inputs)), module(inputs, "a"), rtol=0, atol=1e-5)
    assert open_checkpoint(out).names == open_checkpoint(file).names


def test_heads_that_are_none_are_refused_before_the_merge(tmp_path):
    base = make(3)
    fresh = MergeModule(base, TaskVectors.open(base, {"a": tuned(base, 1)}), RECIPE)
    with pytest.raises(ValueError, match="there are no heads to write"):
        fresh.save_merged(tmp_path / "out", heads=True)
    assert fresh.installed is None
    assert not list(tmp_path.iterdir())
