"""Reads the stored results of reference implementations; the two indices in ``tests/data/golden`` say what each is."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lwptv_lightning import TaskVectors

FOLDER = Path(__file__).parents[1] / "data" / "golden"
INDEX = json.loads((FOLDER / "index.json").read_text())
INDEX["items"] += json.loads((FOLDER / "index2.json").read_text())["items"]


def golden_item(name: str) -> dict[str, Any]:
    """Return an item of the index: method, parameters, inputs and notes."""
    return next(item for item in INDEX["items"] if item["name"] == name)


def golden_output(name: str) -> dict[str, Tensor]:
    """Return the tensors that the reference made."""
    return load_file(FOLDER / golden_item(name)["output"])


def golden_base(inputs: str) -> dict[str, Tensor]:
    """Return the base weights in the order of the reference's tensors; the files are sorted by name."""
    return _load(inputs, INDEX["inputs"][inputs]["base"])


def golden_vectors(inputs: str, tasks: list[int] | None = None) -> TaskVectors:
    """Return the task vectors of a set of inputs; the tasks are called task0, task1, ..."""
    files = INDEX["inputs"][inputs]["tasks"]
    chosen = range(len(files)) if tasks is None else tasks
    return TaskVectors.open(golden_base(inputs), {f"task{index}": _load(inputs, files[index]) for index in chosen})


def largest_error(merged: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between two models with the same tensors."""
    assert merged.keys() == expected.keys()
    return max(float((merged[name] - expected[name]).abs().max()) for name in expected)


def golden_error(merged: dict[str, Tensor], name: str) -> float:
    """Return the largest absolute difference from a stored result, where the index says that it can be compared."""
    item, expected = golden_item(name), golden_output(name)
    assert merged.keys() >= expected.keys()
    compared = expected.keys() - set(item.get("skip", ()))
    assert compared
    return max(float((merged[each] - expected[each]).abs().max()) for each in compared)


def _load(inputs: str, file: str) -> dict[str, Tensor]:
    tensors = load_file(FOLDER / file)
    return {name: tensors[name] for name in INDEX["key_order"][inputs]}


def golden_file(name: str) -> dict[str, Tensor]:
    """Return the tensors of one of the files, such as ``"inputs_fisher"``."""
    return load_file(FOLDER / f"{name}.safetensors")


def golden_statistics(name: str) -> dict[str, dict[str, Tensor]]:
    """Return a file of tensors called ``task::name`` as task to name to tensor."""
    statistics: dict[str, dict[str, Tensor]] = {}
    for key, tensor in golden_file(name).items():
        task, _, tensor_name = key.partition("::")
        statistics.setdefault(task, {})[tensor_name] = tensor
    return statistics


def use_stored_draws(monkeypatch) -> None:
    """Let DARE keep what the reference kept."""
    stored = golden_output("dare_linear.fb_keepmasks")

    def stored_draw(count, probability, seed, tasks, name, start, like):
        return torch.stack([stored[f"{task}::{name}"].flatten()[start : start + count].float() for task in tasks])

    monkeypatch.setattr("lwptv_lightning.functional.trims.random_keep", stored_draw)
