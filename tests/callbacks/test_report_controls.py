import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors
from lwptv_lightning.callbacks.report_controls import Controls, require_controls


@pytest.fixture
def measured(fine_tuned, make_trainer):
    """``measured(recipe)``: the controls of a merge of two tasks, and the module that holds it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    vectors = TaskVectors.open(model, {task: fine_tuned(model.state_dict(), seed) for seed, task in enumerate("ab")})
    data = TensorDataset(torch.randn(24, 6), torch.randint(0, 4, (24,)))
    loaders = {name: DataLoader(data, batch_size=8) for name in ("id/a", "id/b", "ood/near/c", "ood/far/d")}

    def run(**fields):
        module = MergeModule(model, vectors, fields)
        trainer = make_trainer()
        figures = trainer.validate(module, loaders, verbose=False)
        name = module.recipe.describe()
        return Controls.measured(trainer, module, name, loaders), module, {k: v for d in figures for k, v in d.items()}

    return run


def test_a_pruned_merge_has_all_controls(measured):
    controls, module, figures = measured(ratio=0.5)
    name = "task_arithmetic x 0.3, mean_abs 0.5"
    rows = {row.name: row for row in controls.rows}
    assert list(rows) == ["base", "expert a", "expert b", "task_arithmetic x 0.3", "mean of 10 random masks"]
    assert controls.result.figures(name) == pytest.approx(figures)
    assert rows["base"].seconds is None
    assert rows["task_arithmetic x 0.3"].seconds > 0
    assert "OOD" in rows["mean of 10 random masks"].note
    assert [each.other for each in controls.differences] == ["task_arithmetic x 0.3", "base"]
    assert [*controls.differences[0].over] == ["id", "ood", "ood/near", "ood/far"]
    families = [point.family for point in controls.points]
    assert families.count("random") == 10
    assert sorted({*families}) == ["base", "expert", "random", "unpruned"]
    assert controls.experts == {task: rows[f"expert {task}"].figures[f"id/{task}"] for task in "ab"}
    assert "of 10 random masks" in controls.conclusion[-1]
    assert module.metrics.loaders == ("id/a", "id/b", "ood/near/c", "ood/far/d")


@pytest.mark.parametrize(("limit", "samples"), [(1, 4), (1.0, 12), (0.5, 4)])
def test_controls_take_as_many_batches_as_the_run(limit, samples, make_trainer, fine_tuned):
    model = nn.Linear(6, 4)
    module = MergeModule(model, TaskVectors.open(model, {"a": fine_tuned(model.state_dict(), 0)}))
    loaders = {"id/a": DataLoader(TensorDataset(torch.randn(12, 6), torch.zeros(12).long()), batch_size=4)}
    found = []

    class Look(Callback):
        def on_validation_end(self, trainer, pl_module):
            found.append(Controls.measured(trainer, pl_module, "merge", loaders).result.outcomes["id/a"])

    make_trainer(callbacks=[Look()], limit_val_batches=limit).validate(module, loaders, verbose=False)
    assert found[0].shape[-1] == samples


def test_what_is_not_pruned_has_base_and_experts(measured):
    controls, _, _ = measured(rule="ties")
    assert [row.name for row in controls.rows] == ["base", "expert a", "expert b"]
    assert [each.other for each in controls.differences] == ["base"]
    assert len(controls.conclusion) == 1


def test_the_module_is_left_as_it_was(measured, make_trainer):
    torch.manual_seed(3)
    drawn = torch.rand(2)
    controls, module, _ = measured(ratio=0.5)
    merged = {name: value.clone() for name, value in module.model.state_dict().items()}
    state, mode, metrics, vectors = torch.get_rng_state(), module.training, module.metrics, module.vectors
    loader = DataLoader(TensorDataset(torch.randn(4, 6), torch.zeros(4).long()), shuffle=True)
    state = torch.get_rng_state()
    again = Controls.measured(make_trainer(), module, controls.name, {"id/a": loader})
    assert torch.equal(torch.get_rng_state(), state)
    assert (module.training, module.metrics, module.vectors) == (mode, metrics, vectors)
    assert all(torch.equal(value, merged[name]) for name, value in module.model.state_dict().items())
    assert "ID average is above" in again.conclusion[-1]
    assert len(drawn) == 2


def test_several_processes_are_refused(make_trainer, monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(type(trainer), "world_size", 2)
    with pytest.raises(ValueError, match="one process, and there are 2"):
        require_controls(trainer, None, {})


def test_recipes_that_prune_by_name_alone_have_no_random_masks(measured):
    controls, _, _ = measured(prune=["0"])
    assert controls.recipe == MergeRecipe(prune=["0"])
    assert [row.name for row in controls.rows][-1] == "task_arithmetic x 0.3"
