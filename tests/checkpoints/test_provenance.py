import json

import pytest
import torch

from lwptv_lightning import open_checkpoint
from lwptv_lightning.checkpoints import Checkpoint, CheckpointError, Provenance, write_safetensors

STATE = {"b": torch.ones(2, 3), "a": torch.tensor(2.0), "half": torch.ones(4).bfloat16(), "empty": torch.zeros(0)}


TASKS = {"a,b": "0f" * 32, "sky é/\n\"'": None, "": "1e" * 32}
FULL = Provenance(
    kind="merged",
    base="ab" * 32,
    tasks=TASKS,
    recipe={"rule": "ties", "scale": 0.4, "options": {"density": 0.2}},
    mask={"a,b": ["stem", "head"], "": []},
    versions=Provenance.current_versions(lightning="2.6.6"),
)
VECTOR = Provenance(
    kind="task_vector",
    base="ab" * 32,
    tasks={"a,b": None},
    density=0.5,
    progress={"epoch": 1, "step": 7},
    metrics={"loss": 0.25, "nothing": float("inf")},
)


@pytest.mark.parametrize("made", [FULL, VECTOR, Provenance(kind="base"), Provenance(), Provenance(metrics={}, mask={})])
def test_a_file_says_what_was_written_into_it(made, tmp_path):
    write_safetensors(STATE, tmp_path / "m.safetensors", made.to_metadata())
    assert Provenance.of(open_checkpoint(tmp_path / "m.safetensors")) == made


def test_keys_of_earlier_versions_are_written():
    merged, vector = FULL.to_metadata(), VECTOR.to_metadata()
    assert merged["format"] == vector["format"] == "pt"
    assert json.loads(merged["lwptv_recipe"]) == FULL.recipe
    assert merged["lwptv_tasks"] == ",".join(TASKS)
    assert vector["lwptv_task"] == "a,b"
    assert (vector["lwptv_kind"], vector["lwptv_density"]) == ("task_vector", "0.5")
    assert vector["lwptv_base_fingerprint"] == VECTOR.base
    assert json.loads(vector["lwptv_progress"]) == VECTOR.progress
    assert Provenance(kind="base").to_metadata() == {"format": "pt", "lwptv_kind": "base"}


def test_files_of_earlier_versions_are_read():
    merged = Provenance.from_metadata({"format": "pt", "lwptv_recipe": '{"rule": "ties"}', "lwptv_tasks": "a,b"})
    assert merged == Provenance(kind="merged", recipe={"rule": "ties"}, tasks={"a": None, "b": None})
    about = {"lwptv_kind": "task_vector", "lwptv_task": "a,b", "lwptv_base_fingerprint": "ab", "lwptv_density": "1.0"}
    assert Provenance.from_metadata(about | {"lwptv_metrics": "{}"}) == Provenance(
        kind="task_vector", tasks={"a,b": None}, base="ab", density=1.0, metrics={}
    )
    assert Provenance.from_metadata({"origin": "elsewhere"}) == Provenance()


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("lwptv_kind", "task-vector", "is 'task-vector', expected one of .* Did you mean 'task_vector'"),
        ("lwptv_recipe", "{", "is no JSON .*expected a recipe"),
        ("lwptv_recipe", "[1]", r"is \[1\], expected a recipe"),
        ("lwptv_task_fingerprints", '{"a": 3}', "expected task names to fingerprints"),
        ("lwptv_mask", '{"a": ["stem", 1]}', "expected task names to lists of layers"),
        ("lwptv_versions", '{"torch": 2}', "expected libraries to versions"),
        ("lwptv_density", "1.5", "expected a fraction"),
        ("lwptv_density", "true", "expected a fraction"),
        ("lwptv_progress", '{"step": 0.5}', "expected epoch and step"),
        ("lwptv_metrics", '{"loss": "low"}', "expected metrics to numbers"),
    ],
)
def test_a_broken_value_is_named_with_its_file_and_key(key, text, words):
    checkpoint = Checkpoint("m.safetensors", {}, open_checkpoint({}), metadata={key: text})
    with pytest.raises(CheckpointError, match=rf"^m\.safetensors: {key} {'.*' if words[0] == 'e' else ''}{words}"):
        Provenance.of(checkpoint)
