import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from _helpers.library_folders import make_transformers, vectors_of
from _helpers.processes import launch, report
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge, open_checkpoint, save_merged
from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.inspection import verify
from lwptv_lightning.libraries import write_distributed
from lwptv_lightning.task_vectors import checkpoints_of

pytestmark = pytest.mark.filterwarnings("ignore:.*single process:UserWarning")  # of the loading in tests
STATE = {"a.weight": torch.arange(12.0).reshape(4, 3), "b": torch.arange(4).half(), "steps": torch.tensor(7)}


def test_dcp_loads_what_was_written_under_the_names_of_a_state_dict(tmp_path):
    save_file(STATE, tmp_path / "w.safetensors")
    (tmp_path / "out").mkdir()
    write_distributed(tmp_path / "w.safetensors", tmp_path / "out", {"x": "y"})
    state = {name: torch.zeros_like(value) for name, value in STATE.items()}
    dcp.load(state, checkpoint_id=tmp_path / "out", no_dist=True)
    assert all(torch.equal(state[name], value) for name, value in STATE.items())
    assert open_checkpoint(tmp_path / "out").metadata.items() >= {"x": "y"}.items()


def test_a_merge_and_a_module_write_one_that_is_asked_for(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    tasks = {"a": {name: value + 1 for name, value in model.state_dict().items()}}
    vectors = TaskVectors.open(model, tasks)
    recipe, merged = MergeRecipe(scale=0.5), merge(vectors, MergeRecipe(scale=0.5))
    module = MergeModule(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)), vectors, recipe)
    outs = [
        save_merged(vectors, recipe, tmp_path / "out", format="dcp"),
        module.save_merged(tmp_path / "module", format="dcp"),
    ]
    for out in outs:
        state = {name: torch.zeros_like(value) for name, value in merged.items()}
        dcp.load(state, checkpoint_id=out, no_dist=True)
        assert all(torch.equal(state[name], value) for name, value in merged.items())
        assert Provenance.of(open_checkpoint(out)).recipe == recipe.to_dict()
        assert not list(out.glob("*.safetensors"))


def load_into_shards(folder):
    """Load the merged model into a sharded one, and report what each process has, and all together."""
    dist.init_process_group("gloo")
    model = torch.nn.Linear(3, 4, bias=False)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    state = get_model_state_dict(model)
    dcp.load(state, checkpoint_id=Path(folder) / "out")
    own = model.weight.to_local().tolist()
    report(folder, dist.get_rank(), {"own": own, "all": model.weight.full_tensor().tolist()})
    dist.destroy_process_group()


def test_a_sharded_run_loads_its_shards(tmp_path):
    vectors = TaskVectors.open({"weight": STATE["a.weight"]}, {"a": {"weight": STATE["a.weight"] + 2}})
    save_merged(vectors, MergeRecipe(scale=0.5), tmp_path / "out", format="dcp")
    expected = (STATE["a.weight"] + 1).tolist()
    first, second = launch(__file__, tmp_path, ranks=2)
    assert first["all"] == second["all"] == expected
    assert first["own"] + second["own"] == expected


if __name__ == "__main__":
    load_into_shards(sys.argv[1])


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
def test_a_module_with_tied_weights_writes_every_name_and_a_merge_of_files_says_which_it_has_not(tmp_path):
    model = make_transformers("gpt2")
    vectors = vectors_of(model, tmp_path / "base")
    merged = MergeModule(make_transformers("gpt2"), vectors, MergeRecipe(scale=0.5)).merge_()
    out = merged.save_merged(tmp_path / "out", format="dcp")
    state = make_transformers("gpt2").state_dict()
    dcp.load(state, checkpoint_id=str(out))
    assert all(torch.equal(value, state[name]) for name, value in merged.model.state_dict().items())
    assert verify(out, tmp_path / "base", dict(zip(vectors.tasks, checkpoints_of(vectors)[1:], strict=True))).passed
    files = save_merged(vectors, MergeRecipe(scale=0.5), tmp_path / "files", format="dcp")
    (note,) = Provenance.of(open_checkpoint(files)).notes
    assert "GPT2LMHeadModel.state_dict() has others: lm_head.weight." in note
