import pytest
import torch
from huggingface_hub import ModelCard
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassF1Score

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.callbacks import CollectDataStatistics, PruneAndMerge
from lwptv_lightning.merging.card_metadata import heading


def module_of(**options):
    model = nn.Linear(2, 2)
    base = {"weight": torch.eye(2), "bias": torch.zeros(2)}
    tasks = {task: {"weight": torch.eye(2) * scale, "bias": torch.ones(2)} for task, scale in {"a": 2, "b": 3}.items()}
    return MergeModule(model, TaskVectors.open(base, tasks), "ties", **options)


def loaders():
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(6, 2, generator=generator), torch.arange(6) % 2)
    return {name: DataLoader(data, batch_size=3) for name in ("id/a", "id/b", "ood/c")}


def trainer(*callbacks, **options):
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **options,
    )


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_figures_are_those_that_are_logged(stage):
    module = module_of(expert_accuracy={"a": 0.75})
    assert module.measured is None
    results = getattr(trainer(), stage)(module, loaders(), verbose=False)
    logged = {name: value for result in results for name, value in result.items()}
    assert module.measured.figures == pytest.approx(logged)
    assert module.measured.metric == "accuracy"
    assert module.measured.controls == {"experts": {"id/a": 0.75}}
    assert module.measured.still_of(module)


def test_another_metric_has_its_name():
    module = module_of(metric=MulticlassF1Score(num_classes=2))
    trainer().validate(module, loaders(), verbose=False)
    assert module.measured.metric == "MulticlassF1Score"
    assert module.measured.controls == {}


def test_they_are_of_what_was_evaluated_alone():
    module = module_of(heads={"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    trainer().validate(module, loaders(), verbose=False)
    module.merge_()
    assert module.measured.still_of(module)  # the same merge
    module.merge_(recipe={"rule": "ties", "scale": 0.5})
    assert not module.measured.still_of(module)
    module.merge_(recipe="ties")
    assert module.measured.still_of(module)
    nn.init.zeros_(module.head("c").weight)
    assert not module.measured.still_of(module)
    trainer().validate(module, loaders(), verbose=False)
    assert module.measured.still_of(module)


@pytest.mark.parametrize("limits", [{"limit_val_batches": 1}, {"limit_val_batches": 0.5}, {"fast_dev_run": True}])
def test_figures_of_a_part_of_the_data_are_none(limits):
    module = module_of()
    trainer().validate(module, loaders(), verbose=False)
    trainer(**limits).validate(module, loaders(), verbose=False)
    assert module.measured is None


def test_figures_of_others_models_are_none():
    for callback in (CollectDataStatistics("gram"), PruneAndMerge(module_of().vectors, "task_arithmetic")):
        module = module_of()
        trainer(callback).validate(module, loaders(), verbose=False)
        assert module.measured is None


def test_a_saved_folder_has_the_figures_of_what_is_saved(tmp_path):
    module = module_of(expert_accuracy={"a": 0.75})
    trainer().validate(module, loaders(), verbose=False)
    figures = {
        each.dataset_name: each.metric_value for each in card_in(module.save_merged(tmp_path / "out")).eval_results
    }
    assert figures == pytest.approx({heading(name): value for name, value in module.measured.figures.items()})
    assert "| experts | 0.7500 |" in (tmp_path / "out" / "README.md").read_text()
    module.merge_(recipe={"rule": "ties", "scale": 0.5})
    assert card_in(module.save_merged(tmp_path / "other")).eval_results is None
    assert "None: no evaluation was at hand" in (tmp_path / "other" / "README.md").read_text()


def card_in(folder):
    return ModelCard((folder / "README.md").read_text()).data
