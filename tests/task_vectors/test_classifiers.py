import copy
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors
from lwptv_lightning.checkpoints import TensorHeader
from lwptv_lightning.task_vectors import classifier_paths, output_paths, own_classifiers


class Net(nn.Module):
    """A network whose classifier is any module of that name."""

    def __init__(self, **classifier):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        for name, module in classifier.items():
            self.add_module(name, module)


def headers(state):
    return TensorHeader.of_all(state)


def sized(classes, name="fc"):
    return Net(**{name: nn.Linear(4, classes)})


def test_paths_of_models():
    assert classifier_paths(sized(2)) == classifier_paths(None) == output_paths(None) == ()
    assert output_paths(sized(2)) == ("fc",)
    assert output_paths(sized(2, "output")) == ()
    assert output_paths(Net(fc=nn.Linear(4, 2), head=nn.Linear(4, 2))) == ()  # which of the two cannot be known


@pytest.mark.parametrize(
    ("kind", "paths"), [("ViTForImageClassification", ("classifier",)), ("GPT2LMHeadModel", ()), ("CLIPModel", ())]
)
def test_paths_of_transformers(kind, paths):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, kind).config_class()
    with torch.device("meta"):
        assert output_paths(getattr(transformers, kind)(config)) == paths


def test_timm_says_its_own(make_vit):
    vit = make_vit(num_classes=3)
    assert output_paths(vit) == classifier_paths(vit) == ("head",)


@pytest.mark.parametrize("name", ["fc", "output", "a.b"])
def test_a_layer_with_another_number_of_outputs_is_each_tasks_own(name):
    def make(classes):
        return Net(a=nn.ModuleDict({"b": nn.Linear(4, classes)})) if name == "a.b" else sized(classes, name)

    base, others = make(3), {task: make(classes) for task, classes in (("x", 2), ("y", 5))}
    for other in others.values():
        with torch.no_grad():
            other.stem.weight.add_(1.0)
    vectors = TaskVectors.open(base, others, model=base)
    assert vectors.classifiers == (name,)
    assert vectors.classifier_state("y")[f"{name}.weight"].shape == (5, 4)
    assert vectors.names == ("stem.weight", "stem.bias")
    assert TaskVectors.open(base, others, model=make(7)).classifiers == (name,)


def test_a_classifier_of_a_usual_name_may_be_missing_in_the_base():
    base, model = Net(), sized(4)
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        tuned.stem.weight.add_(1.0)
    assert TaskVectors.open(base, {"a": tuned}, model=model).classifiers == ("fc",)
    with pytest.raises(CheckpointError, match=r"tensors that the base has not: output\.bias, output\.weight"):
        TaskVectors.open(base, {"a": sized(4, "output")}, model=sized(4, "output"))


DIFFERING = {
    "features": (nn.Linear(4, 2), nn.Linear(5, 2)),
    "words": (nn.Embedding(3, 4), nn.Embedding(5, 4)),
    "kind": (nn.Linear(4, 2), nn.Conv2d(4, 3, 1)),
}


@pytest.mark.parametrize("case", DIFFERING)
def test_what_is_no_classifier_is_refused_as_ever(case):
    first, second = (Net(layer=module) for module in DIFFERING[case])
    assert own_classifiers(first, headers(first.state_dict()), [(headers(second.state_dict()), ())]) == ()
    with pytest.raises(CheckpointError, match="has shape"):
        TaskVectors.open(first, {"a": second}, model=first)


def test_where_something_else_is_amiss_too_nothing_is_explained_away():
    first, second = sized(2), sized(3)
    second.stem = nn.Conv2d(3, 5, 5)
    assert own_classifiers(first, headers(first.state_dict()), [(headers(second.state_dict()), ())]) == ()
    assert own_classifiers(None, {}, [({}, ())]) == ()


def test_excluded_ones_are_none_of_the_tasks():
    base = sized(3)
    assert TaskVectors.open(base, {"a": _moved(sized(2))}, model=base, exclude=["fc.*"]).classifiers == ()


def _moved(model):
    with torch.no_grad():
        model.stem.weight.add_(1.0)
    return model


def _in_folder(tmp_path, config, state):
    tmp_path.mkdir(exist_ok=True)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def _state(classes, hidden=4):
    return {
        "encoder.weight": torch.ones(hidden, hidden),
        "out.weight": torch.ones(classes, hidden),
        "out.bias": torch.ones(classes),
    }


TIMMS = {"architecture": "own", "pretrained_cfg": {"classifier": "out"}}
TRANSFORMERS = {"architectures": ["OwnForImageClassification"], "id2label": {"0": "a", "1": "b", "2": "c"}}


@pytest.mark.parametrize("config", [TIMMS, TRANSFORMERS])
def test_the_configuration_beside_the_base_tells_the_classifier_without_a_model(config, tmp_path):
    base, other = _state(3), _state(5)
    like_it = {**base, "out.bias": torch.zeros(3)}
    other["encoder.weight"] = like_it["encoder.weight"] = torch.zeros(4, 4)
    vectors = TaskVectors.open(_in_folder(tmp_path / "base", config, base), {"a": other, "b": like_it})
    assert vectors.classifiers == ("out",)
    assert vectors.names == ("encoder.weight",)
    assert vectors.classifier_state("a")["out.weight"].shape == (5, 4)
    same = TaskVectors.open(tmp_path / "base", {"b": like_it})
    assert not same.classifiers


@pytest.mark.parametrize(
    ("config", "state"),
    [
        ({"architectures": ["OwnModel"], "id2label": TRANSFORMERS["id2label"]}, _state(5)),  # no classifier at all
        (TRANSFORMERS | {"id2label": {"0": "a"}}, _state(5)),  # another number of classes than the tensors
        (TRANSFORMERS, _state(5, hidden=6)),  # another model
        (TRANSFORMERS, {**_state(5), "encoder.weight": torch.ones(5, 4)}),
        ({}, _state(5)),
    ],
)
def test_what_the_configuration_does_not_tell_is_refused_as_before(config, state, tmp_path):
    with pytest.raises(CheckpointError, match=r"has shape .*expected .* as in the base"):
        TaskVectors.open(_in_folder(tmp_path / "base", config, _state(3)), {"a": state})
