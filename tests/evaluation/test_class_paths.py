import pytest
from torch import nn
from torch.utils.data import Dataset

from lwptv_lightning.evaluation import EvaluationSuite, MergeModule, made_of, named_object
from lwptv_lightning.evaluation.class_paths import accepted, is_class_path, returns, subclasses
from lwptv_lightning.registry import ConfigurationError
from lwptv_lightning.zoo import zoo_module, zoo_suite


def test_arguments_are_brought_to_their_types():
    made = made_of(
        "m", {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 3}}, nn.Module
    )
    assert made.weight.shape == (3, 2)
    inner = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}}
    layer = made_of("m", {"class_path": "torch.nn.utils.parametrizations.weight_norm", "module": inner}, nn.Module)
    assert isinstance(layer, nn.Linear)


def test_what_a_function_hands_on_is_taken():
    model = {"class_path": "torchvision.models.squeezenet1_1", "init_args": {"num_classes": 3}}
    assert made_of("m", model).num_classes == 3


WRONG = {
    "no path": ({"class_path": "Linear"}, "m.class_path: expected the path of a class or function"),
    "no module": ({"class_path": "tooorch.nn.Linear"}, "m.class_path: there is no module 'tooorch'"),
    "no name": ({"class_path": "torch.nn.Linaer"}, "m.class_path: the module 'torch.nn' has no 'Linaer'.*'Linear'"),
    "a constant": ({"class_path": "torch.pi"}, "m.class_path: 'torch.pi' is neither a class nor a function"),
    "arguments": ({"class_path": "torch.nn.ReLU", "init_args": [1]}, "m.init_args: expected a mapping"),
    "another": ({"class_path": "torch.nn.ReLU", "inplce": 1}, "m.init_args.inplce: .* Did you mean 'inplace'"),
    "a type": ({"class_path": "torch.nn.ReLU", "inplace": 7}, "m.init_args.inplace: expected true or false, not '?7"),
    "none": ({"class_path": "torch.nn.Linear"}, "m.init_args: Linear needs 'in_features', 'out_features'"),
    "kind": ({"class_path": "fractions.Fraction"}, "m: fractions.Fraction makes a Fraction, expected a module"),
    "handed on": (
        {"class_path": "torchvision.models.resnet18", "num_clases": 3},
        "m.init_args.num_clases: resnet18 takes no such argument. Did you mean 'num_classes'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_made_is_told_with_its_key(case):
    value, message = WRONG[case]
    with pytest.raises(ConfigurationError, match=message):
        made_of("m", value, nn.Module, "a module")


def test_an_error_in_a_module_is_told(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("import no_such_thing_here")
    (tmp_path / "broken_two.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for name, reason in {
        "broken_one": "No module named 'no_such_thing_here'",
        "broken_two": "ZeroDivisionError",
    }.items():
        with pytest.raises(ConfigurationError, match=f"m: importing '{name}' failed: .*{reason}"):
            named_object("m", f"{name}.Thing")


def test_attributes_of_classes_are_found():
    assert named_object("m", "lwptv_lightning.evaluation.EvaluationSuite.of") == EvaluationSuite.of


def test_what_a_function_returns_is_known_before_it_is_called():
    assert returns(zoo_module, MergeModule)
    assert returns(MergeModule, nn.Module)
    assert not returns(zoo_suite, MergeModule)
    assert not returns(lambda: None, Dataset)
    assert is_class_path({"class_path": "x"})
    assert not is_class_path("x")
    assert accepted("torch.nn.ReLU") == ["inplace"]
    assert accepted("no.such") == []
    assert "EarlyStopping" in subclasses("Callback")
