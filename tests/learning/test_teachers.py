import pytest
import torch
from _helpers.gated import TASKS, Net, gated_module, images, seeded
from torch import nn
from torch.nn.functional import normalize

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.learning.substituted import Substituted, evaluating
from lwptv_lightning.learning.teachers import predict, teach


def predicted(module, model, given, loader):
    substituted = Substituted(module, torch.float32)
    with evaluating(module):
        return predict(substituted, substituted.tensors(model), given, loader)


class Classifying(nn.Module):
    """A backbone whose features go through an activation on their way to its classifier."""

    def __init__(self, name="fc", classes=4):
        super().__init__()
        self.body = nn.Linear(16, 6)
        self.name = name
        setattr(self, name, nn.Linear(6, classes))

    def forward(self, given):
        return getattr(self, self.name)(torch.tanh(self.body(given.flatten(1))))


def test_features_are_what_a_head_acts_on():
    module = gated_module()
    logits, features = predicted(module, {}, images(0, 3), "id/b")
    with evaluating(module), torch.no_grad():
        wanted = module.model(images(0, 3))
    torch.testing.assert_close(features, normalize(wanted, dim=1))
    torch.testing.assert_close(logits, module.heads["b"](wanted))


@pytest.mark.parametrize(("name", "is_known"), [("fc", True), ("out", False)])
def test_without_heads_features_are_what_the_models_classifier_acts_on_or_its_logits(name, is_known):
    model = seeded(lambda: Classifying(name), 0)
    vectors = TaskVectors.open(model, {"a": seeded(lambda: Classifying(name), 1)})
    module = MergeModule(model, vectors)
    logits, features = predicted(module, {}, images(0, 3), "id/a")
    wanted = torch.tanh(model.body(images(0, 3).flatten(1))) if is_known else logits
    torch.testing.assert_close(features, normalize(wanted, dim=1))


def test_classifiers_in_place_are_captured():
    model = seeded(Classifying, 0)
    tuned = {"a": seeded(lambda: Classifying(classes=3), 1), "b": seeded(lambda: Classifying(classes=5), 2)}
    with torch.no_grad():
        for expert in tuned.values():
            expert.body.weight.copy_(model.body.weight + 0.1)
    vectors = TaskVectors.open(model, tuned, exclude=("fc.*",))
    heads = {task: expert.fc for task, expert in tuned.items()}
    for head in heads.values():
        head.in_place_of = ("fc",)
    module = MergeModule(model, vectors, heads=heads)
    logits, features = predicted(module, {}, images(0, 3), "id/b")
    torch.testing.assert_close(features, normalize(torch.tanh(model.body(images(0, 3).flatten(1))), dim=1))
    assert logits.shape == (3, 5)


def test_experts_and_base_teach_on_each_tasks_own_samples():
    module = gated_module()
    base = {name: module.vectors.base(name) for name in module.vectors.headers}
    inputs = {f"id/{task}": images(place, 5) for place, task in enumerate(TASKS)}
    with evaluating(module):
        lessons = teach(Substituted(module, torch.float32), base, inputs, batch_size=2)
    for place, (task, lesson) in enumerate(zip(TASKS, lessons, strict=True)):
        expert = Net().eval()
        expert.load_state_dict({name: module.vectors.expert(task, name) for name in module.vectors.headers})
        torch.testing.assert_close(lesson.probabilities, module.heads[task](expert(images(place, 5))).softmax(1))
        expert.load_state_dict(base)
        torch.testing.assert_close(lesson.features, normalize(expert(images(place, 5)), dim=1))


def test_an_experts_own_tensors_teach_also_where_they_are_not_merged():
    module = gated_module(exclude=("conv.*",))
    base = {name: module.vectors.base(name) for name in module.vectors.headers}
    with evaluating(module):
        (lesson, *_) = teach(Substituted(module, torch.float32), base, {"id/a": images(0, 4)}, batch_size=4)
    expert = Net().eval()
    expert.load_state_dict({name: gated_module().vectors.expert("a", name) for name in base})
    torch.testing.assert_close(lesson.probabilities, module.heads["a"](expert(images(0, 4))).softmax(1))
