import pytest
import torch
from torch import nn

from lwptv_lightning import CheckpointError, MergeModule, TaskVectors, ZeroShotHead
from lwptv_lightning.evaluation.given_heads import resolve
from lwptv_lightning.evaluation.heads_file import write_heads
from lwptv_lightning.registry import UnknownNameError


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.stem, self.fc = nn.Linear(3, 4), nn.Linear(4, classes)

    def forward(self, inputs):
        return self.fc(self.stem(inputs).relu())


CLASSES = {"a": 2, "b": 5}
INPUTS = torch.randn(6, 3)


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def experts():
    torch.manual_seed(1)
    return {task: Net(classes) for task, classes in CLASSES.items()}


@pytest.fixture
def vectors(base, experts):
    return TaskVectors.open(base, experts, model=base)


def features(module):
    return module.model.stem(INPUTS).relu()


def test_sets_have_heads_of_every_form(base, experts, vectors, tmp_path):
    third = Net(7)
    torch.save(third.state_dict(), tmp_path / "third.pt")
    given = {
        "alias": "a",
        "chain": "alias",
        "b": "b",
        "file": tmp_path / "third.pt",
        "text": str(tmp_path / "third.pt"),
        "state": third.state_dict(),
        "module": nn.Linear(4, 6),
        "zero shot": ZeroShotHead(torch.eye(4)),
    }
    module = MergeModule(base, vectors, "simple_average", heads=given).merge_()
    with torch.no_grad():
        for name, layer in {"a": experts["a"].fc, "alias": experts["a"].fc, "chain": experts["a"].fc}.items():
            assert torch.equal(module(INPUTS, name), layer(features(module))), name
        assert torch.equal(module(INPUTS, "b"), experts["b"].fc(features(module)))
        for name in ("file", "text", "state"):
            assert torch.equal(module(INPUTS, name), third.fc(features(module))), name
        assert torch.equal(module(INPUTS, "module"), given["module"](features(module)))
        assert module(INPUTS, "zero shot").shape == (6, 4)
    assert module.head("chain") is module.head("a")
    assert set(module.head_names) == {"a", *given}
    assert not any("alias" in name for name in module.state_dict())


def test_a_head_of_a_checkpoint_acts_in_the_classifiers_place_though_that_is_merged(base, tmp_path):
    tuned = {task: Net() for task in "ab"}
    vectors = TaskVectors.open(base, tuned, model=base)
    assert not vectors.classifiers
    module = MergeModule(base, vectors, "simple_average", heads={"a": tuned["a"].state_dict(), "x": "a"}).merge_()
    assert torch.equal(module(INPUTS, "x"), tuned["a"].fc(features(module)))
    assert torch.equal(module(INPUTS), module.model(INPUTS))  # the merged classifier


def test_a_set_goes_before_a_file_of_its_name(base, vectors, experts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Net(7).state_dict(), "a")
    module = MergeModule(base, vectors, heads={"x": "a", "y": "./a"}).merge_()
    assert module(INPUTS, "x").shape == (6, 2)
    assert module(INPUTS, "y").shape == (6, 7)
    modules, aliases = resolve({"a": "a"}, (), base)  # no such set but itself: the file
    assert modules["a"].out_features == 7
    assert not aliases


def test_files_of_heads(base, vectors, tmp_path):
    file = write_heads({"a": nn.Linear(3, 9), "z": nn.Linear(3, 8)}, tmp_path / "m.heads.safetensors")
    assert set(resolve(file, (), base)[0]) == {"a", "z"}
    assert resolve({"a": file}, (), base)[0]["a"].out_features == 9
    with pytest.raises(UnknownNameError, match=r"unknown head in .*m\.heads\.safetensors: 'y'"):
        resolve({"y": file}, (), base)


REFUSED = {
    "circle": ({"x": "y", "y": "x"}, "heads name each other in a circle: 'x' -> 'y' -> 'x'"),
    "longer circle": ({"a": "x", "x": "y", "y": "a"}, "in a circle"),
    "itself": ({"x": "x"}, "the head of 'x' is 'x', which is neither another set with a head nor a checkpoint"),
    "nothing": ({"mnist_m": "alpha"}, "is 'alpha', which is neither another set.*Did you mean 'alpha_task'"),
    "number": ({"x": 3}, "the head of 'x' must be a module, a checkpoint or the name of another set, not a int"),
    "of a number": ({3: nn.Linear(2, 2)}, "a head's name must be a text"),
    "list": ([nn.Linear(2, 2)], "heads must be a mapping of set names to heads, or a file of heads"),
    "other model": ({"x": {"fc.weight": torch.zeros(2, 9)}}, "the model's features are 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_head_is_refused_before_anything_is_merged(case, base, experts):
    given, message = REFUSED[case]
    vectors = TaskVectors.open(base, {"a": experts["a"], "alpha_task": experts["b"]}, model=base)
    with pytest.raises((ValueError, TypeError, CheckpointError), match=message):
        MergeModule(base, vectors, heads=given)


def test_a_checkpoint_that_holds_no_weights_is_told_with_its_head(base, vectors):
    with pytest.raises(CheckpointError, match=r"the head of 'far': .*these are none: deep"):
        MergeModule(base, vectors, "simple_average", heads={"far": {"deep": {"w": torch.ones(2)}}})


def test_names_to_come_are_left_to_a_checkpoint_of_the_trainers(base):
    modules, aliases = resolve({"x": "a", "y": "missing.pt"}, (), base, are_all=False)
    assert not modules
    assert aliases == {"x": "a", "y": "missing.pt"}


def test_a_place_that_the_model_has_not_is_told_at_once(base, vectors):
    head = nn.Linear(4, 2)
    head.in_place_of = "fcc"
    for given in (vectors, None):
        with pytest.raises(UnknownNameError, match=r"in whose place the head of 'x' acts: 'fcc'\. Did you mean 'fc'"):
            MergeModule(base, given, heads={"x": head})
    head.in_place_of = "fc"
    module = MergeModule(base, vectors, heads={"x": head}).merge_()
    assert torch.equal(module(INPUTS, "x"), head(features(module)))
