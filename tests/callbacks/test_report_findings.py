import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, OnlineMerge, PruneAndMerge, TaskVectors
from lwptv_lightning.callbacks.report_controls import Controls
from lwptv_lightning.callbacks.report_findings import Gathered, is_figure, sets_of
from lwptv_lightning.search import SweepResult


@pytest.fixture
def module(fine_tuned):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    vectors = TaskVectors.open(model, {task: fine_tuned(model.state_dict(), seed) for seed, task in enumerate("ab")})
    return MergeModule(model, vectors, MergeRecipe(ratio=0.5))


def test_runs_differ_by_what_they_merge(module, make_trainer, fine_tuned):
    trainer = make_trainer()
    known = Gathered.of(trainer, module)
    assert list(known.fingerprints) == ["base", "a", "b"]
    assert Gathered.of(trainer, module).run == known.run
    runs = {known.run}
    runs.add(Gathered.of(trainer, MergeModule(module.model, module.vectors, "ties")).run)
    state = {name: value + 1 for name, value in module.model.state_dict().items()}
    others = TaskVectors.open(module.model, {"a": state, "b": state})
    runs.add(Gathered.of(trainer, MergeModule(module.model, others, module.recipe)).run)
    runs.add(Gathered.of(make_trainer(callbacks=[PruneAndMerge(recipe="dare")]), module).run)
    assert len(runs) == 4


def test_a_merge_in_a_fit_is_known_by_its_experts(module, make_trainer):
    data = DataLoader(TensorDataset(torch.zeros(4, 6), torch.zeros(4).long()))
    trainer = make_trainer(callbacks=[OnlineMerge(module, {"id/a": data}, task="c")])
    from lightning.pytorch import LightningModule

    assert list(Gathered.of(trainer, LightningModule()).fingerprints) == ["base", "a", "b"]
    assert Gathered.of(make_trainer(), LightningModule()).fingerprints == {}


def test_rows_become_points_where_they_have_both_averages(module):
    gathered = Gathered("run", {})
    module.merge_()
    gathered.add("both", {"id/avg": 0.5, "ood/avg": 0.25}, set(), module)
    gathered.add("one", {"id/avg": 0.5}, set(), None)
    gathered.add("errors", {"id/avg": 3.5, "ood/avg": 0.25}, {"id/avg"}, None)
    assert [row.name for row in gathered.table] == ["both", "one", "errors"]
    assert [(point.name, point.family) for point in gathered.points] == [("both", "pruned")]
    assert gathered.findings().conclusion == ("errors: ID average 3.5, OOD average 25.0 %.",)


def test_controls_on_other_samples_are_told(module):
    right = torch.tensor([[True, False], [False, False]])
    result = SweepResult(("merge", "base"), {"id/a": right, "ood/b": right}, {})
    controls = Controls("merge", MergeRecipe(), (), result)
    for accuracy, notes in ((0.5, 0), (0.25, 1)):
        gathered = Gathered("run", {}, controls=controls)
        gathered.add("merge", {"id/avg": accuracy}, set(), None)
        found = gathered.findings().notes
        assert len(found) == notes
    assert "other samples each time" in found[0]


def test_sets_are_counted_where_all_of_them_is_seen(module, make_trainer):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([(torch.zeros(6), 0)] * 3)

    counts = {}

    def look(trainer, *_):
        counts.update({each.name: each.images for each in sets_of(trainer)})

    data = TensorDataset(torch.zeros(5, 6), torch.zeros(5).long())
    loaders = {"id/a": DataLoader(data), "ood/b": DataLoader(Stream())}
    loaders["ood/some"] = DataLoader(data, sampler=SubsetRandomSampler([0, 3, 4]))
    everything, nothing = {"id/a": 5, "ood/b": None, "ood/some": 3}, dict.fromkeys(loaders)
    for limit, wanted in ((1.0, everything), (2, nothing), (1, nothing)):
        trainer = make_trainer(limit_val_batches=limit)
        module.on_validation_end = lambda trainer=trainer: look(trainer)
        trainer.validate(module, loaders, verbose=False)
        assert counts == wanted


def test_what_is_logged_of_a_loader_is_a_figure():
    assert [name for name in ("id/a", "ood/avg", "id", "loss", "val/id") if is_figure(name)] == ["id/a", "ood/avg"]
