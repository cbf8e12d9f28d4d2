"""A sweep gives what validating each model on its own gives."""

from contextlib import contextmanager
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import LayerMask, MergeModule, MergeRecipe, trace_layers, zoo
from lwptv_lightning.callbacks import CollectDataStatistics, PruneAndMerge, RecalibrateBatchNorm
from lwptv_lightning.registry import UnknownNameError
from lwptv_lightning.search import SweepResult, best, one_standard_error, sweep

RECIPES = {
    "sum": MergeRecipe(),
    "sum pruned": MergeRecipe(ratio=0.5),
    "blocks": MergeRecipe(ratio=0.5, granularity="block"),
    "ties": MergeRecipe("ties", ratio=0.3, score="random", seed=3),
}


@pytest.fixture
def module(vit, vit_vectors):
    torch.manual_seed(0)
    return MergeModule(vit, vit_vectors, heads={name: nn.Linear(48, 4) for name in ("a", "b", "far")})


@pytest.fixture
def loaders():
    torch.manual_seed(1)

    def loader(size):
        return DataLoader(TensorDataset(torch.randn(size, 3, 32, 32), torch.randint(4, (size,))), batch_size=6)

    return {"id/a": loader(13), "id/b": loader(7), "ood/far": loader(9)}


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_each_candidate_gets_the_figures_of_its_own_validation(module, loaders, make_trainer, at_once):
    result = sweep(make_trainer(), module, RECIPES, loaders, at_once=at_once)
    for name, recipe in RECIPES.items():
        alone = MergeModule(module.model, module.vectors, recipe, heads={n: module.heads[n] for n in module.head_names})
        results = make_trainer().validate(alone, loaders, verbose=False)
        expected = {key: value for entry in results for key, value in entry.items()}
        assert result.figures(name) == pytest.approx(expected, abs=1e-6)


def test_weights_can_be_candidates_and_the_module_keeps_its_own(module, loaders, make_trainer):
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    vectors = module.vectors
    weights = {name: vectors.expert("a", name) for name in vectors.names}
    result = sweep(make_trainer(), module, {"expert": weights}, loaders)
    assert all(torch.equal(before[name], value) for name, value in module.model.state_dict().items())
    module.model.load_state_dict(weights)
    for loader, correct in result.correct("expert").items():
        inputs, targets = loaders[loader].dataset.tensors
        with torch.no_grad():
            logits = module.eval()(inputs, module.head_of(loader))
        assert torch.equal(correct, logits.argmax(1) == targets)


@pytest.mark.parametrize("at_once", [1, 16])
def test_each_candidate_has_its_norm_of_change(module, loaders, make_trainer, at_once):
    vectors = module.vectors
    base = {name: vectors.base(name) for name in vectors.names}
    twice = RECIPES | {"base": base, "double": MergeRecipe(scale=0.6)}
    result = sweep(make_trainer(), module, twice, loaders, at_once=at_once)
    assert list(result.changes) == list(twice)
    assert result.changes["base"] == 0
    assert result.changes["double"] == pytest.approx(2 * result.changes["sum"], rel=1e-5)
    assert 0 < result.changes["sum pruned"] < result.changes["sum"]
    near_base = one_standard_error(result)
    assert result.changes[near_base] <= result.changes[best(result)]


def test_a_module_that_knows_no_base_has_no_norms(module, loaders, make_trainer):
    loaded = MergeModule(module.model, tasks=module.tasks, heads=dict(module.heads))
    weights = {"own": dict(module.model.state_dict())}
    result = sweep(make_trainer(), loaded, weights, loaders)
    assert result.changes == {}
    assert best(result) == "own"
    with pytest.raises(ValueError, match="norm of change of candidate 'own' is not known"):
        one_standard_error(result)


def test_a_candidate_is_named_or_described_as_elsewhere(module, loaders, make_trainer):
    written = {"name": "ties", "fields": {"rule": "ties"}, "recipe": MergeRecipe("ties")}
    result = sweep(make_trainer(), module, written, loaders)
    assert result.figures("name") == result.figures("fields") == result.figures("recipe")


def test_options_of_merging_are_the_modules_or_given(module, loaders, make_trainer):
    vectors = module.vectors
    statistics = {task: {name: torch.rand_like(vectors.base(name)) for name in vectors.names} for task in vectors.tasks}
    layers = trace_layers(module.model)
    nothing = LayerMask(vectors.tasks, layers.names, torch.zeros(2, len(layers.names), dtype=torch.bool))
    recipes = {"fisher": MergeRecipe("fisher"), "pruned": MergeRecipe("fisher", ratio=0.5)}
    own = MergeModule(module.model, vectors, heads=dict(module.heads), statistics=statistics)
    results = [
        sweep(make_trainer(), own, recipes, loaders),
        sweep(make_trainer(), module, recipes, loaders, statistics=statistics),
    ]
    masked = sweep(make_trainer(), own, recipes, loaders, mask=nothing)
    base = sweep(make_trainer(), own, {"base": {name: vectors.base(name) for name in vectors.names}}, loaders)
    for loader in loaders:
        assert torch.equal(results[0].outcomes[loader], results[1].outcomes[loader])
        assert all(torch.equal(masked.correct(name)[loader], base.correct("base")[loader]) for name in recipes)
    alone = MergeModule(module.model, vectors, "fisher", heads=dict(module.heads), statistics=statistics)
    expected = {key: v for entry in make_trainer().validate(alone, loaders, verbose=False) for key, v in entry.items()}
    assert results[0].figures("fisher") == pytest.approx(expected, abs=1e-6)
    with pytest.raises(TypeError, match="sweep has no argument 'statistic', .*Did you mean 'statistics'"):
        sweep(make_trainer(), module, recipes, loaders, statistic=statistics)


@pytest.mark.parametrize(
    "callback", [PruneAndMerge(recipe="ties"), RecalibrateBatchNorm([]), CollectDataStatistics("gram")]
)
def test_what_would_change_the_candidates_is_refused(callback, module, loaders, make_trainer):
    with pytest.raises(ValueError, match=f"and {type(callback).__name__} changes what a model holds"):
        sweep(make_trainer(callbacks=[callback]), module, RECIPES, loaders)


def test_wrong_use_is_named_before_anything_is_merged(module, loaders, make_trainer):
    with pytest.raises(ValueError, match="candidates is empty"):
        sweep(make_trainer(), module, {}, loaders)
    with pytest.raises(ValueError, match="'id/<name>'"):
        sweep(make_trainer(), module, RECIPES, {"a": loaders["id/a"]})
    with pytest.raises(UnknownNameError, match="Did you mean 'x'"):
        SweepResult(("x",), {}, {}).correct("X")


def test_on_the_zoo_a_sweep_has_the_figures_of_validations(make_trainer):
    module, sets = zoo.zoo_module(), zoo.loaders("test", size=4)
    chosen = product(("task_arithmetic", "ties", "dare", "consensus_ta", "breadcrumbs"), (0.0, 0.5), (0.2, 0.5))
    recipes = {f"{rule} {ratio} {scale}": MergeRecipe(rule, scale, ratio=ratio) for rule, ratio, scale in chosen}
    found = sweep(make_trainer(), module, recipes, sets)
    trainer = make_trainer()
    for name in list(recipes)[::3]:
        module.recipe = recipes[name]
        parts = trainer.validate(module, sets, verbose=False)
        alone = {key: value for part in parts for key, value in part.items()}
        assert found.figures(name) == pytest.approx(alone, abs=1e-6)
    # What a merge module left in the trainer merges into such modules alone.
    again = sweep(trainer, module, {name: recipes[name]}, sets)
    assert again.figures(name) == found.figures(name)


def test_progress_is_told_to_whoever_watches(module, loaders, make_trainer):
    told = []

    @contextmanager
    def watcher(what, total=None):
        told.append([what, total, 0])
        yield lambda steps=1, what=None: told[-1].__setitem__(2, told[-1][2] + steps)

    sweep(make_trainer(), module, RECIPES, loaders, at_once=3, progress=watcher)
    assert told[-1] == ["Sweeping", 4 * 7, 4 * 7]
    with pytest.raises(TypeError, match="progress must be"):
        sweep(make_trainer(), module, RECIPES, loaders, progress="yes")


def test_nothing_is_shown_where_nobody_watches(module, loaders, make_trainer, capfd):
    trainer = make_trainer(enable_progress_bar=True)
    bar = trainer.progress_bar_callback
    capfd.readouterr()
    sweep(trainer, module, RECIPES, loaders)
    out, err = capfd.readouterr()
    assert "Validation" not in out + err
    assert "Sweeping" not in out + err
    assert bar.is_enabled
