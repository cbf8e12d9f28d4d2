"""LayerGates on the shipped zoo, for as long as a test may take: a third of the steps, few images, a coarse front."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import LayerGates, MergeRecipe, sweep, zoo
from lwptv_lightning.zoo import data

UNPRUNED = {f"arithmetic {scale}": MergeRecipe("task_arithmetic", scale) for scale in (0.1, 0.15, 0.2)}


def relabelled(loader):
    """The same images with labels at random."""
    generator, shown = torch.Generator().manual_seed(1), loader.dataset.images
    return DataLoader(TensorDataset(shown, torch.randint(0, 9, (len(shown),), generator=generator)), 17)


def learn(make_trainer, steps, change=lambda loader: loader):
    """Learn on 64 images a task."""
    gates = LayerGates(zoo.zoo_module())
    given = zoo.loaders("validation", size=64, sets=zoo.ID_SETS)
    make_trainer(max_steps=steps).fit(gates, {name: change(loader) for name, loader in given.items()})
    return gates


def mean(figures):
    return 50 * (figures["id/avg"] + figures["ood/avg"])


def test_gates_beat_the_front_of_task_arithmetic(make_trainer):
    learnt = learn(make_trainer, 30).recipe()
    gated = {f"gates {scale}": learnt.replace(scale=scale) for scale in (0.8, 1.0)}
    found = sweep(make_trainer(), zoo.zoo_module(), UNPRUNED | gated, zoo.loaders("test", size=90))
    fronts = [max(mean(found.figures(name)) for name in each) for each in (gated, UNPRUNED)]
    assert fronts[0] > fronts[1] + 1


def test_neither_labels_nor_ood_data_change_what_is_learnt(make_trainer, monkeypatch):
    own = learn(make_trainer, 2).recipe()
    drawn, draw = set(), data.draw

    def noted(name, *place, **options):
        drawn.add(name)
        return draw(name, *place, **options)

    data._load.cache_clear()
    monkeypatch.setattr(data, "draw", noted)
    assert learn(make_trainer, 2, relabelled).recipe().to_json() == own.to_json()
    assert drawn == set(zoo.ID_SETS)
