"""Merging on 1, 2 and 3 processes against merging alone; run as a script, this file is what each process does."""

import hashlib
import os
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from _helpers.every_rule import SHAPES, statistics_for, task_names
from _helpers.processes import launch, report
from _helpers.states import watched
from safetensors.torch import save_file

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.checkpoints import SafetensorsWriter, TensorHeader
from lwptv_lightning.engine import ALONE, Execution, RankFailedError, Ranks, Stream, divide, kth_smallest_magnitude
from lwptv_lightning.layers import layers_from_names
from lwptv_lightning.merging import Merge, plan_pruning, save_merged
from lwptv_lightning.recipe import LiNeS
from lwptv_lightning.rules import RULES
from lwptv_lightning.saliency import collect_statistics
from lwptv_lightning.task_vectors.sample import Sample

SIZES = (3, 2, 1)
RECIPES = {rule: {"rule": rule} for rule in sorted(RULES)} | {
    "layers pruned": {"rule": "ties", "ratio": 0.5},
    "everything pruned": {"rule": "ties", "ratio": 1.0},
    "random layers pruned": {"rule": "dare", "ratio": 0.5, "score": "random"},
    "blocks pruned": {"rule": "dare_ties", "ratio": 0.5, "granularity": "block"},
    "elements pruned": {"rule": "task_arithmetic", "elements": {"ratio": 0.5}},
    "parts pruned": {"rule": "magnitude", "ratio": 0.5, "prune_on": "parts"},
    "pruned in a subspace": {"rule": "dare_ties", "subspace": "knots", "ratio": 0.5},
    "lines": {"rule": "ties", "layer_scaling": LiNeS(alpha=None)},
}
RESCALED = ("tsv_m", "layers pruned", "everything pruned", "parts pruned")


# What the processes do.


def write_checkpoints(folder):
    generator = torch.Generator().manual_seed(0)
    for task in ("base", "a", "b", "c"):
        state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        state["half"] = torch.randn(7, generator=generator).to(torch.bfloat16)
        state |= {"steps": torch.tensor(3), "empty": torch.zeros(0, 2, dtype=torch.int64)}
        save_file(state, folder / f"{task}.safetensors")


def open_vectors(folder, rule="ties"):
    """Return task vectors, and the readers of the base and of the tasks, which have counted nothing yet."""
    opened = {source: watched(folder / f"{source}.safetensors") for source in ("base", *task_names(rule))}
    readers = {source: reader for source, (_, reader) in opened.items()}
    checkpoints = {source: checkpoint for source, (checkpoint, _) in opened.items()}
    vectors = TaskVectors.open(checkpoints.pop("base"), checkpoints)
    for reader in readers.values():
        reader.reads.clear()
    return vectors, readers


def counted(readers):
    return {f"{source} {name}": count for source, reader in readers.items() for name, count in reader.reads.items()}


def digest(tensors):
    hashed = hashlib.sha256()
    for name, tensor in tensors.items():
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def merge_all(folder, ranks):
    found = {}
    for label, recipe in RECIPES.items():
        rule = recipe["rule"]
        vectors, readers = open_vectors(folder, rule)
        statistics = statistics_for(rule, vectors)
        # The first process reads a model this small once more, to tell whether it is one of differences.
        with mock.patch.object(Sample, "doubts", return_value=()):
            merged = merge(vectors, MergeRecipe(**recipe), ranks=ranks, statistics=statistics)
        found[label] = {"digest": digest(merged), "reads": counted(readers)}
    return found


def rescale(folder, ranks):
    """Merge with other coefficients from what a plan holds in memory, and anew."""
    found = {}
    for label in RESCALED:
        vectors, _ = open_vectors(folder)
        recipe = MergeRecipe(**RECIPES[label])
        other = recipe.replace(scale=0.7, layer_scaling=LiNeS(beta=0.2))
        plan = Merge(vectors, recipe).plan(Execution(ranks=ranks)).holding()
        made = dict(plan.rescaled(other).tensors())
        each = {name: made[name] for name in vectors.headers}, merge(vectors, other, ranks=ranks)
        found[label] = [digest(tensors) for tensors in each]
    return found


def collect(folder, ranks):
    vectors, readers = open_vectors(folder)
    layers = layers_from_names(vectors.names, "module")
    statistics = collect_statistics(vectors, layers, execution=Execution(ranks=ranks))
    sums = {field: getattr(statistics, field) for field in ("numel", "gram", "l1", "base_squared", "agreeing")}
    plan = plan_pruning(vectors, MergeRecipe(ratio=0.5), ranks=ranks)
    return {"digest": digest(sums | {"kept": plan.mask.kept, "scores": plan.scores.values}), "reads": counted(readers)}


def fail_in_turn(folder, ranks):
    """Let something go wrong on one process, or in one tensor, and note what every process is told."""
    last = ranks.size - 1
    heard = {}

    def note(case, act):
        try:
            act()
            heard[case] = "nothing"
        except Exception as error:
            cause = error.__cause__ if isinstance(error.__cause__, RankFailedError) else None
            heard[case] = [type(error).__name__, str(error), str(cause)]

    def merging(recipe, **faults):
        vectors, readers = open_vectors(folder)
        for fault, name in faults.items():
            setattr(readers["b"], fault, name)
        return lambda: merge(vectors, recipe, ranks=ranks)

    def saving(path, write=SafetensorsWriter.write):
        with mock.patch.object(SafetensorsWriter, "write", write):
            save_merged(open_vectors(folder)[0], "ties", path, ranks=ranks)

    def full_disk(*arguments):
        raise OSError("disk is full")

    on_last = {"fail": "blocks.0.attn.qkv.weight"} if ranks.rank == last else {}
    note("NaN while merging", merging(MergeRecipe("simple_average"), spoil="blocks.0.attn.qkv.weight"))
    note("NaN in a survey", merging(MergeRecipe("ties"), spoil="stem.conv.bias"))
    note("NaN in statistics", merging(MergeRecipe("ties", ratio=0.5), spoil="scale"))
    note("a bad file on every process", merging(MergeRecipe("emr"), fail="scale"))
    note("a bad file on one process", merging(MergeRecipe("dare"), **on_last))

    note("no folder to write to", lambda: saving(folder / "base.safetensors" / "merged.safetensors"))
    note("no room to write to", lambda: saving(folder / "merged.safetensors", full_disk))

    def fail_nested():
        with ranks.sharing_errors(), ranks.sharing_errors():
            ranks.exchange(1)
            if ranks.rank == last:
                raise Unpicklable(lambda: None)

    note("an error that cannot travel", fail_nested)
    assert ranks.exchange(ranks.rank) == list(range(ranks.size))  # still in step
    return heard


class Unpicklable(Exception):
    def __str__(self):
        return "stuck here"


def work(folder):
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    alone = {"merged": merge_all(folder, ALONE), "rescaled": rescale(folder, ALONE)}
    found = {"alone": alone | {"statistics": collect(folder, ALONE)}}
    for size in SIZES:
        if rank < size:
            dist.init_process_group("gloo", init_method=f"file://{folder}/{size}.store", rank=rank, world_size=size)
            ranks = Ranks.current()
            assert (ranks.rank, ranks.size) == (rank, size)
            found[str(size)] = {
                "merged": merge_all(folder, ranks),
                "rescaled": rescale(folder, ranks),
                "statistics": collect(folder, ranks),
                "heard": fail_in_turn(folder, ranks),
            }
            dist.destroy_process_group()
    report(folder, rank, found)


if __name__ == "__main__":
    work(Path(sys.argv[1]))


# What is expected of them.


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_checkpoints(folder)
    return launch(__file__, folder, ranks=3)


def of_size(processes, size):
    return [process[str(size)] for process in processes[:size]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("label", RECIPES)
def test_every_process_has_the_bits_of_one_alone(label, size, processes):
    expected = processes[0]["alone"]["merged"][label]["digest"]
    assert [each["merged"][label]["digest"] for each in of_size(processes, size)] == [expected] * size


@pytest.mark.parametrize("size", SIZES)
def test_what_processes_hold_serves_other_coefficients(size, processes):
    alone = {label: digests[1] for label, digests in processes[0]["alone"]["rescaled"].items()}
    for each in [processes[0]["alone"], *of_size(processes, size)]:
        assert each["rescaled"] == {label: [digest] * 2 for label, digest in alone.items()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("label", RECIPES)
def test_each_tensor_is_read_as_often_as_by_one_alone_in_total(label, size, processes):
    alone = Counter(processes[0]["alone"]["merged"][label]["reads"])
    assert sum((Counter(each["merged"][label]["reads"]) for each in of_size(processes, size)), Counter()) == alone


def readers_of(processes, size, label):
    """Which processes read a tensor of a checkpoint."""
    readers = {}
    for rank, each in enumerate(of_size(processes, size)):
        for tensor in each["merged"][label]["reads"]:
            readers.setdefault(tensor, []).append(rank)
    return readers


@pytest.mark.parametrize("label", [label for label in RECIPES if "pruned" not in label])
def test_each_tensor_is_read_by_one_process(label, processes):
    for size in SIZES:
        readers = readers_of(processes, size, label)
        assert all(len(ranks) == 1 for ranks in readers.values())
        assert {rank for ranks in readers.values() for rank in ranks} == set(range(size))
    rule = RULES[RECIPES[label]["rule"]]
    if not rule.surveys_model() and label != "lines":
        reads = sum((Counter(each["merged"][label]["reads"]) for each in of_size(processes, 2)), Counter())
        assert {count for tensor, count in reads.items() if not tensor.startswith("base ")} == {1}


@pytest.mark.parametrize("size", SIZES)
def test_statistics_are_those_of_one_alone_and_their_reading_is_divided(size, processes):
    alone = processes[0]["alone"]["statistics"]
    each = [process["statistics"] for process in of_size(processes, size)]
    assert [statistics["digest"] for statistics in each] == [alone["digest"]] * size
    assert sum((Counter(statistics["reads"]) for statistics in each), Counter()) == Counter(alone["reads"])
    assert all(statistics["reads"] for statistics in each)


@pytest.mark.parametrize(
    ("case", "error", "text"),
    [
        ("NaN while merging", "CheckpointError", "36 NaN or infinite values in 'blocks.0.attn.qkv.weight'"),
        ("NaN in a survey", "CheckpointError", "3 NaN or infinite values in 'stem.conv.bias'"),
        ("NaN in statistics", "CheckpointError", "1 NaN or infinite values in 'scale'"),
        ("a bad file on every process", "OSError", "disk failed at scale"),
        ("no folder to write to", "FileExistsError", "base.safetensors"),
        ("no room to write to", "OSError", "disk is full"),
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_all_processes_stop_with_the_error_of_the_one_that_met_it(case, error, text, size, processes):
    heard = [process["heard"][case] for process in of_size(processes, size)]
    assert {kind for kind, _, _ in heard} == {error}
    assert all(text in message for _, message, _ in heard)
    culprits = [rank for rank, (_, _, cause) in enumerate(heard) if cause == "None"]
    assert len(culprits) == 1
    assert {cause for _, _, cause in heard} - {"None"} <= {f"process {culprits[0]} of {size} failed."}


def test_a_file_that_only_one_process_cannot_read_stops_all_if_it_is_asked_to(processes):
    for size in (2, 3):
        heard = [process["heard"]["a bad file on one process"] for process in of_size(processes, size)]
        assert len({str(words[:2]) for words in heard}) == 1


def test_an_error_that_cannot_travel_is_told_in_words(processes):
    first, last = (process["heard"]["an error that cannot travel"] for process in of_size(processes, 2))
    assert first == ["RuntimeError", "Unpicklable: stuck here", "process 1 of 2 failed."]
    assert last == ["Unpicklable", "stuck here", "None"]


def headers(**sizes):
    return {name: TensorHeader((size,), torch.float32) for name, size in sizes.items()}


def test_bytes_are_divided_evenly_and_groups_stay_together():
    owner = divide([["a", "b"], ["c"], ["d"], ["e"]], headers(a=4, b=4, c=7, d=2, e=1), ranks=2)
    assert owner == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 0}
    assert list(owner) == ["a", "b", "c", "d", "e"]
    assert divide([["a"], ["b"]], headers(a=0, b=0), ranks=3) == {"a": 0, "b": 0}
    mixed = headers(a=3) | {"b": TensorHeader((4,), torch.bfloat16), "c": TensorHeader((), torch.int64)}
    assert divide([["a"], ["b"], ["c"]], mixed, ranks=2) == {"a": 0, "b": 1, "c": 1}


def test_one_process_alone_has_everything():
    vectors = Stream.of(TaskVectors.open({"w": torch.zeros(3)}, {"a": {"w": torch.tensor([1.0, -3.0, 2.0])}}))
    assert vectors.own_names == ("w",)
    assert kth_smallest_magnitude(vectors, 2).tolist() == [2.0]
    assert Ranks.current() == ALONE
    assert ALONE.exchange("x") == ["x"]
    tensor = torch.ones(2)
    assert ALONE.broadcast(tensor, 0) is tensor
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised, ALONE.sharing_errors():
        raise error
    assert raised.value is error
