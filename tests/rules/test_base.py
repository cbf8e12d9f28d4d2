from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch

from lwptv_lightning import MergeRecipe, TaskVectors, merge
from lwptv_lightning.registry import UnknownNameError, number
from lwptv_lightning.rules import RULES, TIES, MergeContext, MergeRule, get_rule, make_rule, merge_rule

CONTEXT = MergeContext("w", ("a", "b"))


@dataclass(frozen=True, kw_only=True)
class Weighted(MergeRule):
    """A sum over tasks with one coefficient."""

    name = "weighted"
    published_scale = 0.5
    weight: float = number(2.0, "(0, 3]", "times each part")

    def parts(self, tau, context):
        return tau * self.weight


@dataclass(frozen=True, kw_only=True)
class Surveying(MergeRule):
    """Looks at the whole model first."""

    name = "surveying"
    published_scale = 1.0

    def survey(self, stream):
        return stream.elements

    def combine(self, tau, context):
        return tau[0] * context.survey


def test_a_rule_of_parts_combines_them_to_their_sum():
    tau = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    assert Weighted().combine(tau, CONTEXT).tolist() == [22.0, 44.0]
    assert Weighted.has_parts()
    assert not Surveying.has_parts()
    with pytest.raises(NotImplementedError, match="surveying is no sum over tasks"):
        Surveying().parts(tau, CONTEXT)


def test_a_rule_says_whether_it_surveys_and_which_scale_is_its_own():
    assert Surveying.surveys_model()
    assert not Weighted.surveys_model()
    assert Weighted().survey(None) is None
    assert Weighted().default_scale == 0.5
    assert Weighted().unit == "tensor"


def test_hyper_parameters_are_checked_frozen_and_plain():
    with pytest.raises(ValueError, match=r"weight must be a number in \(0, 3\]"):
        Weighted(weight=0.0)
    with pytest.raises(FrozenInstanceError):
        Weighted().weight = 1.0
    assert Weighted(weight=1).to_dict() == {"name": "weighted", "weight": 1.0}
    assert Weighted() == Weighted(weight=2.0) != Weighted(weight=1.0)


def test_rules_are_made_of_names_mappings_and_rules():
    made = make_rule({"name": "ties", "density": 0.5})
    assert made == TIES(density=0.5) == get_rule("ties")(density=0.5)
    assert make_rule("ties") == TIES()
    assert make_rule(made) is made
    assert make_rule(made.to_dict()) == made


@pytest.mark.parametrize(
    ("description", "error", "words"),
    [
        ("tiess", UnknownNameError, "unknown merging rule 'tiess'. Did you mean 'ties'"),
        ({"name": "ties", "densty": 0.5}, UnknownNameError, "hyper-parameter of ties 'densty'. Did you mean 'density'"),
        ({"density": 0.5}, TypeError, "a mapping with a 'name'"),
        (3, TypeError, "not 3"),
    ],
)
def test_what_makes_no_rule_is_named(description, error, words):
    with pytest.raises(error, match=words):
        make_rule(description)


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="merging rule 'ties' is registered already"):
        merge_rule("ties", paper="")(type("Other", (MergeRule,), {}))
    assert RULES["ties"] is TIES


SHAPES = {"fc.weight": (3, 4), "head.weight": (2, 4), "fc.bias": (3,), "conv.weight": (3, 2, 1, 1), "gain": ()}


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    tasks = {task: {name: torch.randn(s, generator=generator) for name, s in SHAPES.items()} for task in "ab"}
    return TaskVectors.open(base, tasks)


@pytest.mark.parametrize(
    ("patterns", "matrices"),
    [
        ({}, {"fc.weight", "head.weight", "conv.weight"}),
        ({"exclude": ["head.*"]}, {"fc.weight", "conv.weight"}),
        ({"exclude": ["*"]}, set()),
    ],
)
def test_only_matrices_and_1x1_convolutions_that_are_not_excluded_are_matrices(patterns, matrices, vectors):
    # TSV-M decomposes matrices, and averages everything else.
    merged = merge(vectors, MergeRecipe({"name": "tsv_m", **patterns}, scale=1.0))
    averaged = {name for name in SHAPES if torch.allclose(merged[name], vectors.stack(name).mean(0), atol=1e-6)}
    assert set(SHAPES) - averaged == matrices
