"""What a sweep finds on its samples is what callbacks find there, to the bit."""

from itertools import chain

import pytest
import torch
from _helpers.states import assert_same_bits
from _helpers.swept import small_loaders, small_module, small_samples, validated

from lwptv_lightning import CollectDataStatistics, MergeRecipe, PruneAndMerge, RecalibrateBatchNorm
from lwptv_lightning.search import sweep
from lwptv_lightning.search.samples import Samples

RECIPES = {"sum": MergeRecipe(scale=0.6), "pruned": MergeRecipe("ties", ratio=0.5), "averages": "simple_average"}


class Chained:
    """All batches of some loaders."""

    def __init__(self, loaders):
        self.loaders = loaders

    def __iter__(self):
        return chain.from_iterable(self.loaders.values())


@pytest.mark.parametrize("at_once", [1, 16])
def test_statistics_measured_anew_are_those_of_the_callback(at_once, make_trainer):
    loaders, samples = small_loaders(), small_samples()
    found = sweep(make_trainer(), small_module(), RECIPES, loaders, samples=samples, recalibrate=True, at_once=at_once)
    plain = sweep(make_trainer(), small_module(), RECIPES, loaders)
    for name, recipe in RECIPES.items():
        trainer = make_trainer(callbacks=[PruneAndMerge(), RecalibrateBatchNorm(Chained(samples))])
        alone = validated(trainer, small_module(recipe), loaders)
        assert found.figures(name) == pytest.approx(alone, abs=1e-6)
    assert any(found.figures(name) != plain.figures(name) for name in RECIPES)


def test_they_are_the_same_to_the_bit(make_trainer):
    module, alone, loaders = small_module(), small_module("ties"), small_loaders()
    trainer = make_trainer(callbacks=[PruneAndMerge(), RecalibrateBatchNorm(Chained(small_samples()))])
    trainer.validate(alone, loaders, verbose=False)
    measured = alone.model.state_dict()
    weights = {name: value.clone() for name, value in small_module("ties").merge_().model.state_dict().items()}
    trainer = make_trainer()
    trainer.validate(small_module(), loaders, verbose=False)  # so that the trainer is ready to hand batches on
    before = {name: value.clone() for name, value in module.state_dict().items()}
    Samples(trainer, module, small_samples()).measure_norms_(trainer, [weights])
    assert_same_bits(weights, measured)
    assert_same_bits(module.state_dict(), before)
    assert not any(part.training for part in module.model.modules())


def test_weights_that_are_given_keep_their_statistics(make_trainer):
    loaders, module = small_loaders(), small_module()
    given = {"own": {name: module.vectors.expert("a", name) for name in module.vectors.names}}
    asked = [
        sweep(make_trainer(), module, given | {"sum": "ties"}, loaders, samples=small_samples(), recalibrate=each)
        for each in (False, True)
    ]
    assert all(torch.equal(asked[0].correct("own")[name], asked[1].correct("own")[name]) for name in loaders)
    assert asked[0].figures("sum") != asked[1].figures("sum")


@pytest.mark.parametrize(("rule", "kind"), [("fisher", "fisher"), ("regmean", "gram")])
def test_rules_that_need_data_get_what_the_callback_collects(rule, kind, make_trainer):
    loaders, samples = small_loaders(), small_samples()
    module = small_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    recipes = {f"{ratio}": MergeRecipe(rule, ratio=ratio) for ratio in (0.0, 0.5)}
    found = sweep(make_trainer(), module, recipes, loaders, samples=samples)
    collector = CollectDataStatistics(kind)
    make_trainer(callbacks=[collector]).validate(small_module(), samples, verbose=False)
    own = Samples(make_trainer(), module, samples).statistics(kind)
    for task in "ab":
        assert_same_bits(own[task], collector.statistics[task])
    for name, recipe in recipes.items():
        alone = validated(make_trainer(), small_module(recipe, statistics=collector.statistics), loaders)
        assert found.figures(name) == pytest.approx(alone, abs=1e-6)
    assert_same_bits(module.state_dict(), before)


def test_what_was_collected_and_given_goes_before_samples(make_trainer):
    collector, loaders = CollectDataStatistics("fisher"), small_loaders()
    make_trainer(callbacks=[collector]).validate(small_module(), small_samples(seed=5), verbose=False)
    given = {"samples": small_samples(), "statistics": collector.statistics}
    found = sweep(make_trainer(), small_module(), {"x": "fisher"}, loaders, **given)
    alone = validated(make_trainer(), small_module("fisher", statistics=collector.statistics), loaders)
    assert found.figures("x") == pytest.approx(alone, abs=1e-6)


def test_data_that_lacks_is_named_before_anything_runs(make_trainer):
    module, loaders, samples = small_module(), small_loaders(), small_samples()
    recipes = {"plain": "ties", "mine": "fisher"}
    with pytest.raises(ValueError, match=r"candidate 'mine': rule 'fisher' needs its fisher .* give samples=\.\.\."):
        sweep(make_trainer(), module, recipes, loaders)
    with pytest.raises(ValueError, match="candidate 'mine': task 'b' has no loader 'id/b'"):
        sweep(make_trainer(), module, recipes, loaders, samples={"id/a": samples["id/a"]})
    with pytest.raises(ValueError, match="samples: 'ood/far' is no ID set"):
        sweep(make_trainer(), module, recipes, loaders, samples={**samples, "ood/far": loaders["ood/far"]})
    with pytest.raises(ValueError, match=r"recalibrate=True .* none are given"):
        sweep(make_trainer(), module, {"x": "ties"}, loaders, recalibrate=True)
    assert module.installed is None


def test_samples_are_told_apart_by_content_order_and_batches(make_trainer):
    def digest(samples):
        return Samples(make_trainer(), small_module(), samples).digest

    own = digest(small_samples())
    assert digest(small_samples()) == own
    changed, larger = small_samples(), small_samples()
    changed["id/a"].dataset.tensors[0][3, 1] += 1e-6
    larger["id/b"] = torch.utils.data.DataLoader(larger["id/b"].dataset, batch_size=5)
    turned = dict(reversed(small_samples().items()))
    assert len({own, digest(changed), digest(larger), digest(turned)}) == 4
