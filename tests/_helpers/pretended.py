"""A search whose candidates are right as often as a number says, without any model."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning.recipe import MergeRecipe
from lwptv_lightning.search import SweepResult
from lwptv_lightning.search.budget import Budget
from lwptv_lightning.search.portions import Shares
from lwptv_lightning.search.space import REFERENCE
from lwptv_lightning.search.trials import Entry, Trials


def pool_of(count, rules=("ties", "dare")):
    """The reference, unpruned candidates and as many that prune, of some rules; later ones are better."""
    found = {REFERENCE: Entry(MergeRecipe(), "ta", "", 0.3)}
    for rule in rules:
        for number in range(count):
            found[f"{rule} {number}"] = Entry(MergeRecipe(), rule, "", float(number))
    for rule in rules:
        for number in range(count):
            found[f"{rule} {number} pruned"] = Entry(MergeRecipe(), rule, "p", float(number), f"{rule} {number}")
    return found


class Pretended:
    """Evaluates names without models: the place in the pool says how good a candidate is."""

    def __init__(self, pool, budget, size=90, second=1.0, **options):
        self.pool, self.now, self.second = pool, 0.0, second
        self.calls = []
        self.size = size
        loaders = {name: DataLoader(TensorDataset(torch.arange(size)), batch_size=32) for name in ("id/a", "id/b")}
        self.trials = Trials(
            pool, self.evaluate, Shares(loaders), Budget.of(budget), at_once=4, clock=lambda: self.now, **options
        )

    def evaluate(self, candidates, loaders):
        names = list(pool_names(self.pool, candidates))
        part = sum(len(loader.dataset) for loader in loaders.values()) / (2 * self.size)
        self.calls.append((names, part))
        self.now += self.second * len(names) * part
        places = {name: place for place, name in enumerate(self.pool)}
        outcomes = {}
        for loader, own in loaders.items():
            samples = torch.cat([batch for (batch,) in own])
            good = torch.tensor([(places[name] + 1) / (len(self.pool) + 1) for name in names])
            outcomes[loader] = (samples % 31)[None] < 31 * good[:, None]
        return SweepResult(tuple(names), outcomes, dict.fromkeys(names, 0.1), {name: places[name] for name in names})

    @property
    def evaluated(self):
        """Names on all samples, in order."""
        return [name for names, part in self.calls if part == 1 for name in names]


def pool_names(pool, candidates):
    """The names of what is evaluated; the helper's recipes are all alike."""
    for name in candidates:
        assert name in pool
        yield name
