import pytest
import torch
from _helpers.swept import small_loaders, small_module, small_samples

from lwptv_lightning.evaluation import Replicas, StatisticsCollector
from lwptv_lightning.registry import UnknownNameError


def test_grams_are_of_the_first_samples_of_each_expert():
    module, samples = small_module(), small_samples()
    collector = StatisticsCollector("gram", 10)
    collector.begin(module, samples, Replicas())
    for name, loader in samples.items():
        for number, batch in enumerate(loader):
            collector.add(module, name, loader, number, batch)
    found = collector.statistics(lambda total: total)
    for task in "ab":
        inputs = samples[f"id/{task}"].dataset.tensors[0][:10].double()
        torch.testing.assert_close(found[task]["0.weight"], (inputs.T @ inputs / 10).float())


def test_tasks_without_data_and_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="task 'b' has no loader 'id/b'"):
        StatisticsCollector("fisher").require_loaders(small_module(), {"id/a": small_loaders()["id/a"]})
    with pytest.raises(UnknownNameError, match="Did you mean 'gram'"):
        StatisticsCollector("grams")
    with pytest.raises(ValueError, match="samples must be at least 1"):
        StatisticsCollector("gram", 0)
