import json

import open_clip
import pytest
import torch
from _helpers.library_folders import OPEN_CLIP, SECRETS, make_open_clip, tuned, vectors_of

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors, merge, save_merged
from lwptv_lightning.libraries import FolderError
from lwptv_lightning.task_vectors import checkpoints_of

RECIPE = MergeRecipe(scale=0.5)
needs_local_dir = pytest.mark.skipif(
    not hasattr(open_clip.factory, "LOCAL_DIR_PREFIX"), reason="open_clip reads folders since 3.0"
)


def assert_loads(folder, merged):
    state = open_clip.create_model(f"local-dir:{folder}").state_dict()
    assert state.keys() == merged.keys()
    assert all(torch.equal(state[name], value) for name, value in merged.items())


@needs_local_dir
def test_a_folder_gives_a_folder_that_open_clip_loads_and_not_the_one_of_another_library_beside_it(tmp_path):
    base = make_open_clip(tmp_path / "base")
    vectors = vectors_of(base, tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text('{"model_type": "clip", "architectures": ["CLIPModel"]}')
    out = save_merged(vectors, RECIPE, tmp_path / "out")
    names = {file.name for file in out.iterdir()}
    assert names == {"README.md", "open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json"}
    assert not names & set(SECRETS)
    assert_loads(out, merge(vectors, RECIPE))
    assert_loads(MergeModule(base, vectors, RECIPE).save_merged(tmp_path / "module"), merge(vectors, RECIPE))


def test_a_file_is_one_that_open_clip_takes_as_pretrained(tmp_path):
    base = make_open_clip(tmp_path / "base")
    vectors = TaskVectors.open(base, {"a": tuned(base, 1)})
    file = save_merged(vectors, RECIPE, tmp_path / "merged.safetensors")
    open_clip.add_model_config(_config(tmp_path / "lwptv-tiny.json"))
    state = open_clip.create_model("lwptv-tiny", pretrained=str(file)).state_dict()
    merged = merge(vectors, RECIPE)
    assert all(torch.equal(state[name], value) for name, value in merged.items())


@needs_local_dir
def test_tensors_of_another_model_are_refused_with_what_differs(tmp_path):
    base = make_open_clip(tmp_path / "base")
    vectors = vectors_of(base, tmp_path / "base")
    wider = json.loads(json.dumps(OPEN_CLIP))
    wider["vision_cfg"]["layers"] = 3
    (tmp_path / "base" / "open_clip_config.json").write_text(json.dumps({"model_cfg": wider}))
    origin, *_ = checkpoints_of(vectors)
    origin.stored_headers = {}
    with pytest.raises(FolderError, match=r"open_clip would load another model.*would have 'visual\.transformer"):
        save_merged(vectors, RECIPE, tmp_path / "out")
    (tmp_path / "base" / "open_clip_config.json").unlink()
    with pytest.raises(FolderError, match=r"no open_clip_config\.json with a 'model_cfg' beside the base"):
        save_merged(vectors, RECIPE, tmp_path / "out", format="open_clip")


def _config(path):
    path.write_text(json.dumps(OPEN_CLIP))
    return path
