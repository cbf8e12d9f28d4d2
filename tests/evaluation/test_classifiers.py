import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lwptv_lightning import CheckpointError, Heads, TaskVectors, heads_from
from lwptv_lightning.evaluation.classifiers import Classifiers, classifier_of, place_of

FAMILIES = {
    "resnet18": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]},
    "resnetv2_50": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "stem_chs": 8},  # a 1x1 convolution
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "drop_rate": 0.5},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2},  # two of them
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2, "fc_norm": True},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "depths": [1, 1], "embed_dim": 12},
    "mobilenetv3_small_050": {},
    "mixer_s32_224": {"img_size": 32},
    "levit_128s": {"img_size": 64, "embed_dim": [16, 16, 16], "depth": [1, 1, 1], "num_heads": [1, 1, 1]},  # with norms
}
FEATURES_HAVE_NO_PLACE = {"levit_128s"}


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_the_expert_itself(name):
    import timm

    def make(classes, seed=0):
        torch.manual_seed(seed)
        return timm.create_model(name, num_classes=classes, **FAMILIES[name]).eval()

    expert = make(5, seed=1)
    images = torch.randn(2, 3, 64 if name == "levit_128s" else 32, 64 if name == "levit_128s" else 32)
    for classes in (3, 0):
        model = make(classes)
        fitting = {key: value for key, value in expert.state_dict().items() if key in model.state_dict()}
        paths = model.pretrained_cfg["classifier"]
        paths = (paths,) if isinstance(paths, str) else tuple(paths)
        starts = tuple(f"{path}." for path in paths)
        model.load_state_dict({key: fitting[key] for key in fitting if not key.startswith(starts)}, strict=False)
        if not classes and name in FEATURES_HAVE_NO_PLACE:
            with pytest.raises(CheckpointError, match=r"has no module 'head\.linear'; build it with any number"):
                heads_from({"a": expert}, model)
            continue
        (head,) = heads_from({"a": expert}, model).values()
        assert place_of(head) == paths
        with torch.no_grad():
            assert torch.equal(Heads({"a": head}).logits(model, images, "a"), expert(images))
            if len(paths) == 1:  # by itself, too
                features = model.forward_head(model.forward_features(images), pre_logits=True)
                torch.testing.assert_close(head(features), expert(images))


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11", "mobilenet_v3_small", "convnext_tiny", "vit_b_32", "squeezenet1_1"]
)
def test_models_of_torchvision(name):
    import torchvision

    with torch.device("meta"):
        model = getattr(torchvision.models, name)(num_classes=3)
        expert = getattr(torchvision.models, name)(num_classes=5)
    state = {key: torch.zeros(value.shape).normal_() for key, value in expert.state_dict().items()}
    head = heads_from({"a": state}, model)["a"]
    (place,) = place_of(head)
    assert head.state_dict().keys() == {key.removeprefix(f"{place}.") for key in state if key.startswith(f"{place}.")}
    assert all(torch.equal(value, state[f"{place}.{key}"]) for key, value in head.state_dict().items())
    assert [layer for layer in head.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1].weight.shape[0] == 5


@pytest.mark.parametrize(
    ("kind", "last"),
    [("BertForSequenceClassification", "weight"), ("RobertaForSequenceClassification", "out_proj.weight")],
)
def test_models_of_transformers(kind, last):
    transformers = pytest.importorskip("transformers")
    make = getattr(transformers, kind)
    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 11,
    }
    torch.manual_seed(0)
    model, expert = (make(make.config_class(**small, num_labels=labels)).eval() for labels in (3, 5))
    backbone = {key: value for key, value in expert.state_dict().items() if not key.startswith("classifier.")}
    model.load_state_dict(backbone, strict=False)
    words = torch.randint(2, 11, (4, 6))
    head = heads_from({"a": expert}, model)["a"]
    assert head.state_dict()[last].shape == (5, 8)
    assert place_of(head) == ("classifier",)
    with torch.no_grad():
        assert torch.equal(Heads({"a": head}).logits(model, words, "a").logits, expert(words).logits)


class Net(nn.Module):
    def __init__(self, classifier, name="fc"):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.add_module(name, classifier)


class Cosine(nn.Module):
    """Normalised weights, a scale, and how many classes there are as a tensor's first dimension alone."""

    def __init__(self, classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 4))
        self.register_buffer("scale", torch.tensor(3.0))

    def forward(self, features):
        unit = nn.functional.normalize
        return self.scale * unit(features, dim=-1) @ unit(self.weight, dim=-1).T


KINDS = {
    "linear": lambda classes: nn.Linear(4, classes),
    "without bias": lambda classes: nn.Linear(4, classes, bias=False),
    "cosine": Cosine,
    "weight norm": lambda classes: weight_norm(nn.Linear(4, classes)),
    "with norm": lambda classes: nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, classes)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_is_made_of_the_models_own_kind(kind):
    model, expert, features = Net(KINDS[kind](3)), Net(KINDS[kind](7)).eval(), torch.randn(2, 4)
    before = copy.deepcopy(model.state_dict())
    head = heads_from({"a": expert}, model)["a"].eval()
    assert type(head) is type(model.fc)
    assert torch.equal(head(features), expert.fc(features))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert {name for name, _ in head.named_parameters()} == {name for name, _ in expert.fc.named_parameters()}


def test_forms_of_checkpoints(tmp_path):
    model, expert = Net(nn.Linear(4, 3)), Net(nn.Linear(4, 5))
    lightning = {"state_dict": {f"net.{name}": value for name, value in expert.state_dict().items()}}
    lightning |= {"pytorch-lightning_version": "2.6.6"}
    torch.save(lightning, tmp_path / "last.ckpt")
    sources = {
        "module": expert,
        "state": expert.state_dict(),
        "file": tmp_path / "last.ckpt",
        "alone": expert.fc.state_dict(),
        "of the model, alone": {f"fc.{name}": value for name, value in expert.fc.state_dict().items()},
        "half": {name: value.half() for name, value in expert.state_dict().items()},
    }
    heads = heads_from(sources, model)
    for name, head in heads.items():
        assert head.weight.dtype == torch.float32, name
        torch.testing.assert_close(head.weight, expert.fc.weight, atol=1e-3 * (name == "half"), rtol=0)
    assert heads_from({"a": expert}, Net(nn.Linear(4, 3)).bfloat16())["a"].weight.dtype == torch.bfloat16


REFUSED = {
    "no classifier": (lambda: Net(nn.Identity()), r"the head of 'x' .* has no classifier 'fc', as Net has it"),
    "other features": (
        lambda: {**Net(nn.Linear(4, 3)).state_dict(), "fc.weight": torch.zeros(5, 9)},
        r"fc\.weight has shape \(5, 9\), and the model's features are 4",
    ),
    "another architecture": (
        lambda: {**Net(nn.Linear(4, 3)).state_dict(), "stem.weight": torch.zeros(4, 8)},
        r"of another architecture than Net: it has \(4, 8\) as the shape of 'stem\.weight', expected \(4, 3\)",
    ),
    "incomplete": (
        lambda: {"stem.weight": torch.zeros(4, 3), "fc.weight": torch.zeros(5, 4)},
        r"of another architecture than Net: it has no 'stem\.bias'",
    ),
    "a matrix too much": (
        lambda: {**Net(nn.Linear(4, 3)).state_dict(), "fc.weight": torch.zeros(5, 4, 2)},
        r"Expected a weight \(classes, features\)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(case):
    make, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        heads_from({"x": make()}, Net(nn.Linear(4, 3)))


def test_a_classifier_of_no_known_name_is_named():
    model, expert = (Net(nn.Linear(4, classes), "output") for classes in (3, 5))
    with pytest.raises(ValueError, match=r"which part of Net is its classifier: name it.*one of stem, output"):
        heads_from({"a": expert}, model)
    assert place_of(heads_from({"a": expert}, model, classifier="output")["a"]) == ("output",)
    with pytest.raises(CheckpointError, match="has no classifier 'outputs'.*Did you mean"):
        heads_from({"a": expert}, model, classifier="outputs")


def test_adapters_and_task_vectors_have_no_classifier_by_themselves(tmp_path):
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.zeros(3, 4)}, tmp_path / "v.safetensors", {"lwptv_kind": "task_vector"})
    with pytest.raises(CheckpointError, match=r"this is a task vector.*TaskVectors\.open"):
        heads_from({"a": tmp_path / "v.safetensors"}, Net(nn.Linear(4, 3)))


def test_several_classifiers_act_in_the_model_alone():
    parts = {f"head.{number}": nn.Linear(4, 3) for number in range(2)}
    state = {f"{path}.{name}": value for path, part in parts.items() for name, value in part.state_dict().items()}
    head = classifier_of(None, tuple(parts), state, "it")
    assert isinstance(head, Classifiers)
    assert list(head.parts) == list(parts)
    assert all(torch.equal(head.parts[path].weight, parts[path].weight) for path in parts)
    with pytest.raises(TypeError, match=r"several classifiers act in the model alone, at head\.0, head\.1"):
        head(torch.zeros(1, 4))


def test_a_task_without_a_classifier_is_told_to_be_given_a_head(make_vit):
    base, state = make_vit(num_classes=3), make_vit(num_classes=0).state_dict()
    vectors = TaskVectors.open(base, {"a": make_vit(num_classes=2), "b": state}, model=base)
    with pytest.raises(CheckpointError, match=r"'b': its checkpoint has none, expected head.weight, .* heads=\{"):
        Heads.of(base, vectors, {})
    assert list(Heads.of(base, vectors, {"b": "a"})) == ["a", "b"]
