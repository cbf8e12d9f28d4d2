"""LayerGates against a plain loop, and what its fit must not depend on."""

import pytest
import torch
from _helpers.gated import TASKS, Net, gated_module, images, loaders
from torch.func import functional_call
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lwptv_lightning import (
    LayerGates,
    MergeModule,
    MergeRecipe,
    get_rule,
    merge,
    plan_pruning,
)
from lwptv_lightning.rules import MergeContext


@pytest.fixture
def fitted(make_trainer):
    """``fitted(module, loaders, steps, trainer={...}, **options)``: LayerGates after a fit."""

    def fit(module=None, given=None, steps=6, trainer=None, **options):
        gates = LayerGates(module or gated_module(), **{"images": 30, "batch_size": 8, **options})
        make_trainer(**{"max_steps": steps, **(trainer or {})}).fit(gates, given or loaders())
        return gates

    return fit


def learnt(gates):
    return gates.coefficients.detach().clone()


def coefficients_by_a_loop(module, gates, steps, rule):
    """What the docs say, with one graph for all tasks and no class of the library's but the rule."""
    vectors, layers = module.vectors, gates.layers
    stacks = {name: vectors.stack(name) for name in vectors.names}
    parts = {
        name: get_rule(rule)().parts(tau.clone(), MergeContext(name, vectors.tasks)) for name, tau in stacks.items()
    }
    norm = [sum(float(s.sum(0).square().sum()) for s in each.values()) ** 0.5 for each in (stacks, parts)]
    ratio = norm[0] / norm[1]
    start = ratio * (0.4 if rule == "tsv_m" else 0.25)
    c = torch.full((len(TASKS), len(layers)), start, requires_grad=True)
    adam = torch.optim.Adam([c], lr=0.08 * start)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    model, base = Net().eval(), {name: vectors.base(name) for name in vectors.headers}

    def run(weights, task, given):
        features = functional_call(model, weights, given)
        return module.heads[task](features), normalize(features, dim=1)

    given = {task: images(place)[:30] for place, task in enumerate(TASKS)}
    with torch.no_grad():
        experts = {t: {name: vectors.expert(t, name) for name in vectors.headers} for t in TASKS}
        soft = {task: run(experts[task], task, given[task])[0].softmax(1) for task in TASKS}
        held = {task: run(base, task, given[task])[1] for task in TASKS}
    for step in range(steps):
        weights = dict(base)
        for name in vectors.names:
            own = c[:, layers.index_of(name)]
            weights[name] = base[name] + sum(own[t] * parts[name][t] for t in range(len(TASKS)))
        for name in vectors.averaged:
            weights[name] = base[name] + vectors.stack(name).mean(0)
        generator = torch.Generator().manual_seed(step)
        loss = 0
        for task in TASKS:
            drawn = torch.randperm(30, generator=generator)[:8]
            logits, features = run(weights, task, given[task][drawn])
            entropy = -(soft[task][drawn] * logits.log_softmax(1)).sum(1).mean()
            loss = loss + (entropy + 0.5 * (1 - (features * held[task][drawn]).sum(1).mean())) / len(TASKS)
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
        c.data.clamp_(0, 1.5 * ratio)
    return c.detach()


@pytest.mark.parametrize("rule", ["tsv_m", "task_arithmetic"])
def test_every_step_is_that_of_a_plain_loop(fitted, rule):
    module = gated_module()
    gates = fitted(module, steps=7, rule=rule)
    torch.testing.assert_close(learnt(gates), coefficients_by_a_loop(module, gates, 7, rule), atol=2e-5, rtol=0)


def assert_merges_as_learnt(gates, module):
    """The merge of the recipe, after JSON, is what `merged` gives, bit for bit."""
    again = MergeModule(module.model, module.vectors, MergeRecipe.from_json(gates.recipe().to_json()))
    merged, state = gates.merged(), again.merge_().model.state_dict()
    assert merged.keys() <= state.keys()
    assert set(module.vectors.shared_names) <= merged.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, state[name]), name


RULES = ["tsv_m", "task_arithmetic", "ties", "consensus_ta", "iso_c", "score", "dc_merge"]
RULES = [*RULES, {"name": "dare", "density": 0.5}]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_recipe_merges_what_was_learnt(fitted, rule):
    module = gated_module(max_memory="1GB")
    gates = fitted(module, rule=rule, steps=30, lr=0.3)
    recipe = gates.recipe()
    assert (recipe.scale, recipe.prune_on, list(recipe.coefficients)) == (1.0, "parts", list(TASKS))
    assert (learnt(gates) == 0).any()
    assert_merges_as_learnt(gates, module)


def test_what_the_last_step_ran_is_what_is_merged(make_trainer, monkeypatch):
    module, ran = gated_module(), []
    gates = LayerGates(module, images=30, lr=0.5)
    on_fit_end = LayerGates.on_fit_end
    monkeypatch.setattr(
        LayerGates,
        "on_fit_end",
        lambda self: (ran.append(self._parts[0].model(self.coefficients.detach())), on_fit_end(self)),
    )
    make_trainer(max_steps=30).fit(gates, loaders())
    zeros = (learnt(gates) == 0)[:, gates.layers.index_of("norm.weight")]
    assert zeros.any()  # so that running statistics are those of fewer tasks
    for name, tensor in gates.merged().items():
        torch.testing.assert_close(ran[0][name].detach(), tensor, atol=1e-6, rtol=1e-5)


def test_the_merge_module_stays_as_it_was(fitted):
    module = gated_module()
    module.model.train()
    module.model.norm.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    fitted(module)
    assert modes == [part.training for part in module.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.installed is None


def test_scores_are_coefficients_over_their_start(fitted):
    module = gated_module()
    gates = fitted(module, steps=8)
    table = gates.scores()
    assert table.tasks == TASKS
    ratio = table.values / learnt(gates).double()
    assert ratio.max() / ratio.min() == pytest.approx(1, abs=1e-6)
    mask = plan_pruning(module.vectors, MergeRecipe("ties", ratio=0.5), gates.layers, scores=table).mask
    assert not torch.equal(
        mask.kept, plan_pruning(module.vectors, MergeRecipe("ties", ratio=0.5), gates.layers).mask.kept
    )
    assert merge(module.vectors, MergeRecipe("ties", ratio=0.5), gates.layers, scores=table).keys() == set(
        module.vectors.headers
    )


class Shuffled(Dataset):
    """Images that are drawn anew whenever they are read."""

    def __init__(self):
        self.read = 0

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.read += 1
        return torch.randn(1, 4, 4)


def test_images_are_read_once(fitted):
    given = {f"id/{task}": DataLoader(Shuffled(), 4) for task in TASKS}
    fitted(given=given, steps=9)
    assert [loader.dataset.read for loader in given.values()] == [30] * 3


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(1, 4, 4), "no label"


def test_an_endless_stream_is_read_as_far_as_needed(fitted):
    fitted(given={f"id/{task}": DataLoader(Endless(), 7) for task in TASKS})


def test_neither_labels_nor_the_size_of_batches_nor_shuffling_matter(fitted):
    first = learnt(fitted())
    assert torch.equal(first, learnt(fitted(given=loaders(labels=lambda n: torch.randint(-9, 9, (n,))))))
    assert torch.equal(first, learnt(fitted(given=loaders(labels=lambda n: torch.full((n,), torch.nan), batch_size=7))))
    assert torch.equal(first, learnt(fitted(given=loaders(batch_size=64, drop_last=True) | loaders(batch_size=40))))
    plain = {name: [(batch[0],) for batch in loader] for name, loader in loaders(batch_size=3).items()}
    assert torch.equal(first, learnt(fitted(given=plain)))
    bare = {name: [batch[0] for batch in loader] for name, loader in loaders().items()}
    assert torch.equal(first, learnt(fitted(given=bare)))
    shuffled = learnt(fitted(given=loaders(shuffle=True)))
    assert not torch.equal(first, shuffled)
    assert torch.equal(shuffled, learnt(fitted(given=loaders(shuffle=True, batch_size=3))))


def test_fewer_images_are_taken_and_said(fitted, caplog):
    with caplog.at_level("INFO"):
        fitted(given=loaders(size=5), batch_size=8)
    assert "on the 5 samples of loader 'id/a', not on 30" in caplog.text


def test_epochs_are_passes_over_the_samples(fitted):
    by_epochs = fitted(steps=-1, trainer={"max_epochs": 3})  # of 30 samples, 8 at a time: four steps each
    assert torch.equal(learnt(by_epochs), learnt(fitted(steps=12)))
    assert torch.equal(learnt(fitted(steps=6, trainer={"max_epochs": 3})), learnt(fitted(steps=6)))


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_fit_that_was_stored_midway_ends_the_same(fitted, make_trainer, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def storing(folder="again"):
        callback = ModelCheckpoint(tmp_path / folder, every_n_train_steps=5, save_top_k=-1, filename="{step}")
        return {"callbacks": [callback], "enable_checkpointing": True, "max_steps": 14}

    whole = fitted(trainer=storing("whole"), steps=14)
    for step in (5, 10):  # five steps are an epoch and one step
        again = LayerGates(gated_module(), images=30, batch_size=8)
        make_trainer(**storing(str(step))).fit(again, loaders(), ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert torch.equal(learnt(whole), learnt(again))
    loaded = LayerGates.load_from_checkpoint(tmp_path / "whole" / "step=5.ckpt", module=gated_module())
    assert loaded.recipe().coefficients
    other = LayerGates(gated_module(), "task_arithmetic")
    with pytest.raises(ValueError, match="the checkpoint is of the rule .*tsv_m.*task_arithmetic"):
        make_trainer(**storing()).fit(other, loaders(), ckpt_path=tmp_path / "whole" / "step=5.ckpt")


def test_a_rule_in_a_subspace_is_learnt_as_knots_ties_is(fitted):
    inside = fitted(rule="ties", modifiers={"subspace": "knots"}, steps=2)
    assert torch.equal(learnt(inside), learnt(fitted(rule="knots_ties", steps=2)))
    assert inside.recipe().subspace == MergeRecipe("ties", subspace="knots").subspace


def test_batches_may_be_accumulated(fitted):
    one = fitted(steps=1, batch_size=30)  # all samples, whose order makes no difference
    two = fitted(steps=1, batch_size=30, trainer={"accumulate_grad_batches": 2})
    torch.testing.assert_close(learnt(one), learnt(two))


def test_parts_may_be_held_apart(fitted):
    assert torch.equal(learnt(fitted()), learnt(fitted(parts_on="cpu")))


REFUSED = {
    "missing": (lambda given: {k: v for k, v in given.items() if k != "id/b"}, "task 'b' has no loader 'id/b'"),
    "unknown": (lambda given: {**given, "id/d": []}, "unknown loader of a task 'id/d'.*id/a, id/b, id/c"),
    "ood": (lambda given: {**given, "ood/far/x": []}, "'ood/far/x' is of another domain"),
    "no dict": (lambda given: given["id/a"], "on a dict of loaders, one a task such as .*'id/a'.*not a DataLoader"),
    "empty": (lambda given: {**given, "id/c": []}, "'id/c' gives no sample"),
    "uneven": (
        lambda given: {**given, "id/c": [torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 5)]},
        "'id/c' gives batches of shapes .*4, 4.*4, 5",
    ),
    "not finite": (lambda given: {**given, "id/b": [torch.full((30, 1, 4, 4), torch.nan)]}, "'id/b'.*not finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learnt_on_is_refused(fitted, case):
    change, message = REFUSED[case]
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        fitted(given=change(loaders()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "breadcrumb"}, "unknown merging rule"),
        ({"rule": "wudi"}, "needs a rule that is a sum over tasks; 'wudi' is none"),
        ({"images": 0}, "images must be at least 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"start": 0}, "start must be above 0"),
        ({"most": 0.1}, "most must be at least the start 0.4"),
        ({"anchor": -1}, "anchor must be at least 0"),
        ({"parts_on": "nowhere"}, "parts_on"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LayerGates(gated_module(), **options)


def test_nothing_is_told_before_it_is_learnt():
    gates = LayerGates(gated_module())
    for ask in (gates.recipe, gates.scores, gates.merged):
        with pytest.raises(ValueError, match="learnt nothing yet"):
            ask()
