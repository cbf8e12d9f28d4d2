"""Which names are one tensor: told by a model, or by the values in files."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors, open_checkpoint
from lwptv_lightning.task_vectors import tied_in
from lwptv_lightning.task_vectors.ties import complete, find_ties


def random_state(seed, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def tied(state, name="embed", other="head"):
    return {**state, other: state[name].clone()}


SHAPES = {"embed": (6, 4), "fc": (6, 4), "bias": (4,)}
BASE = tied(random_state(0, **SHAPES))
TUNED = {task: tied(random_state(seed, **SHAPES)) for seed, task in enumerate("ab", start=1)}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Parameter(torch.randn(6, 4))
        self.head = self.embed
        self.fc = nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(4))


def test_values_tell_a_tie_in_files(tmp_path):
    for name, state in {"base": BASE, **TUNED}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    paths = {task: tmp_path / f"{task}.safetensors" for task in TUNED}
    vectors = TaskVectors.open(tmp_path / "base.safetensors", paths)
    assert vectors.tied == {"head": "embed"}
    assert vectors.names_of("embed") == ("embed", "head")
    assert set(vectors.names) == {"embed", "fc", "bias"}
    assert set(vectors.shared_names) == set(BASE)


@pytest.mark.parametrize("order", [list(BASE), list(reversed(BASE))], ids=["in order", "reversed"])
def test_the_first_name_in_the_alphabet_counts_whatever_the_order(order):
    states = [{name: state[name] for name in order} for state in (BASE, *TUNED.values())]
    assert TaskVectors.open(states[0], dict(zip("ab", states[1:], strict=True))).tied == {"head": "embed"}


@pytest.mark.parametrize(
    "values",
    [torch.zeros(6, 4), torch.ones(6, 4), torch.eye(6)[:, :4].contiguous()],
    ids=["zeros", "ones", "identity"],
)
def test_what_initialisation_leaves_equal_is_no_tie(values):
    base = {**BASE, "embed": values, "head": values.clone()}
    assert TaskVectors.open(base, TUNED).tied == {}


def test_what_no_expert_changed_or_one_holds_apart_is_no_tie():
    frozen = {task: {**state, "embed": BASE["embed"], "head": BASE["head"]} for task, state in TUNED.items()}
    assert TaskVectors.open(BASE, frozen).tied == {}
    apart = {**TUNED, "b": {**TUNED["b"], "head": TUNED["b"]["head"] + 1e-7}}
    assert TaskVectors.open(BASE, apart).tied == {}
    assert TaskVectors.open(BASE, {"a": TUNED["a"]}).with_task("b", apart["b"]).tied == {}


def test_vectors_and_small_matrices_are_no_ties_unless_a_model_says_so():
    base, tuned = ({"a": values, "b": values.clone()} for values in (torch.randn(64), torch.randn(64)))
    assert TaskVectors.open(base, {"task": tuned}).tied == {}
    model = nn.Module()
    model.a = nn.Parameter(torch.randn(64))
    model.b = model.a
    assert TaskVectors.open(base, {"task": tuned}, model=model).tied == {"b": "a"}


def test_a_model_whose_ties_a_checkpoint_breaks_is_refused_by_name():
    apart = {**TUNED, "b": {**TUNED["b"], "head": TUNED["b"]["head"] + 1}}
    with pytest.raises(CheckpointError, match=r"'embed' and 'head' hold different values.*exclude="):
        TaskVectors.open(BASE, apart, model=Model())
    with pytest.raises(CheckpointError, match=r"'embed' and 'head' hold different values"):
        TaskVectors.open(BASE, apart).knowing(Model())


def test_a_compiled_models_ties_are_known():
    assert tied_in(torch.compile(Model()), BASE) == [["embed", "head"]]


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize("left_out", ["embed", "head"])
def test_a_file_that_holds_a_tied_weight_once_fits_one_that_holds_it_twice(left_out):
    expert = complete(open_checkpoint(BASE), open_checkpoint(without(TUNED["a"], left_out)))
    assert all(torch.equal(expert.read(name), value) for name, value in TUNED["a"].items())
    vectors = TaskVectors.open(BASE, {"a": without(TUNED["a"], left_out), "b": TUNED["b"]})
    assert vectors.tied == {"head": "embed"}
    fewer = TaskVectors.open(without(BASE, left_out), TUNED)
    assert set(fewer.shared_names) == set(BASE) - {left_out}


def test_what_is_missing_and_no_tie_stays_missing():
    with pytest.raises(CheckpointError, match="misses tensors that the base has: fc"):
        TaskVectors.open(BASE, {"a": without(TUNED["a"], "fc")})
    constant = {"one": torch.zeros(6, 4), "two": torch.zeros(6, 4), "short": torch.zeros(3), "bias": torch.zeros(3)}
    for name in ("two", "bias"):
        with pytest.raises(CheckpointError, match=f"misses tensors that the base has: {name}"):
            TaskVectors.open(constant, {"a": without(constant, name)})


def test_three_names_of_one_tensor():
    model = nn.Module()
    model.c = nn.Parameter(torch.randn(2))
    model.a = model.b = model.c
    state = dict.fromkeys("abc", torch.zeros(2))
    assert find_ties(open_checkpoint(state), {}, "abc", model) == {"b": "a", "c": "a"}
