"""Statistics collected in ``trainer.validate``, against a loop over each expert's own data."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import CollectDataStatistics, MergeModule, MergeRecipe, TaskVectors
from lwptv_lightning.evaluation import fisher_diagonal


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(3, 4)
        self.fc2 = nn.Linear(4, 2)

    def forward(self, inputs):
        return self.fc2(torch.tanh(self.fc1(inputs)))


@pytest.fixture
def experts(fine_tuned):
    torch.manual_seed(0)
    base = Net().state_dict()
    return base, {task: fine_tuned(base, seed, scale=0.5) for seed, task in enumerate("ab", start=1)}


@pytest.fixture
def sets():
    torch.manual_seed(1)
    return {task: TensorDataset(torch.randn(n, 3), torch.randint(2, (n,))) for task, n in {"a": 7, "b": 5}.items()}


def collect(make_trainer, experts, sets, kind, **options):
    base, tasks = experts
    module = MergeModule(Net(), TaskVectors.open(base, tasks))
    collector = CollectDataStatistics(kind, **options)
    loaders = {f"id/{task}": DataLoader(data, batch_size=3) for task, data in sets.items()}
    loaders["ood/other"] = DataLoader(sets["a"], batch_size=4)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    results = make_trainer(callbacks=[collector]).validate(module, loaders, verbose=False)
    assert all(torch.equal(before[name], value) for name, value in module.model.state_dict().items())
    return module, collector.statistics, results


def expert(experts, task):
    model = Net()
    model.load_state_dict(experts[1][task])
    return model


@pytest.mark.parametrize("samples", [256, 4])
def test_fisher_is_that_of_each_expert_on_its_own_data(make_trainer, experts, sets, samples):
    _, statistics, _ = collect(make_trainer, experts, sets, "fisher", samples=samples)
    for task, data in sets.items():
        model, inputs = expert(experts, task), data.tensors[0][:samples]
        expected = fisher_diagonal(
            lambda parameters, x, model=model: torch.func.functional_call(model, parameters, (x,)),
            dict(model.named_parameters()),
            inputs,
        )
        for name, value in expected.items():
            torch.testing.assert_close(statistics[task][name], value / len(inputs))


def test_gram_is_that_of_each_expert_on_its_own_data(make_trainer, experts, sets):
    _, statistics, _ = collect(make_trainer, experts, sets, "gram")
    for task, data in sets.items():
        inputs = data.tensors[0]
        hidden = torch.tanh(expert(experts, task).fc1(inputs)).detach()
        torch.testing.assert_close(statistics[task]["fc1.weight"], inputs.T @ inputs / len(inputs))
        torch.testing.assert_close(statistics[task]["fc2.weight"], hidden.T @ hidden / len(inputs))


def test_the_figures_are_those_of_the_experts_and_of_the_base(make_trainer, experts, sets):
    _, _, results = collect(make_trainer, experts, sets, "gram")
    figures = {name: value for result in results for name, value in result.items()}
    base = Net()
    base.load_state_dict(experts[0])
    for name, model, data in [
        ("id/a", expert(experts, "a"), sets["a"]),
        ("id/b", expert(experts, "b"), sets["b"]),
        ("ood/other", base, sets["a"]),
    ]:
        inputs, targets = data.tensors
        assert figures[name] == pytest.approx((model(inputs).argmax(1) == targets).float().mean().item())


@pytest.mark.parametrize(("kind", "rule"), [("fisher", "fisher"), ("gram", "regmean")])
def test_a_second_validation_merges_with_what_was_collected(make_trainer, experts, sets, kind, rule):
    first, statistics, _ = collect(make_trainer, experts, sets, kind)
    module = MergeModule(Net(), first.vectors, MergeRecipe(rule), statistics=statistics)
    loaders = {f"id/{task}": DataLoader(data, batch_size=3) for task, data in sets.items()}
    make_trainer().validate(module, loaders, verbose=False)
    assert module.installed == module.recipe
    average = module.vectors.base("fc1.weight") + module.vectors.stack("fc1.weight").mean(0)
    assert not torch.allclose(module.model.fc1.weight, average)


def test_wrong_use_is_named(make_trainer, experts, sets):
    with pytest.raises(ValueError, match="kind of statistics 'fischer'. Did you mean 'fisher'"):
        CollectDataStatistics("fischer")
    with pytest.raises(ValueError, match="samples"):
        CollectDataStatistics("gram", samples=0)
    module = MergeModule(Net(), TaskVectors.open(*experts))
    with pytest.raises(ValueError, match="'id/b'"):
        make_trainer(callbacks=[CollectDataStatistics("gram")]).validate(
            module, {"id/a": DataLoader(sets["a"])}, verbose=False
        )


def test_the_old_name_is_the_same_class():
    from lwptv_lightning import CollectStatistics, callbacks

    assert CollectStatistics is callbacks.CollectStatistics is callbacks.CollectDataStatistics is CollectDataStatistics


def test_own_weights_are_back_after_a_failure(make_trainer, experts, sets):
    module = MergeModule(Net(), TaskVectors.open(*experts))
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    broken = TensorDataset(torch.zeros(2, 99), torch.zeros(2).long())
    loaders = {"id/a": DataLoader(sets["a"], batch_size=3), "id/b": DataLoader(broken)}
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        make_trainer(callbacks=[CollectDataStatistics("gram")]).validate(module, loaders, verbose=False)
    assert all(torch.equal(before[name], value) for name, value in module.model.state_dict().items())


@pytest.mark.parametrize("kind", ["fisher", "gram"])
def test_statistics_are_written_to_a_file(make_trainer, experts, sets, kind, tmp_path):
    merging = pytest.importorskip("lwptv_lightning.merging")
    if not hasattr(merging, "read_data_statistics"):
        pytest.skip("data statistics cannot be read from files yet")
    path = tmp_path / "statistics.safetensors"
    _, statistics, _ = collect(make_trainer, experts, sets, kind, file=path)
    read = merging.read_data_statistics(path)
    assert {task: set(tensors) for task, tensors in read.items()} == {
        task: set(tensors) for task, tensors in statistics.items()
    }
    for task, tensors in statistics.items():
        assert all(torch.equal(read[task][name], value) for name, value in tensors.items())


def test_the_file_is_called_as_it_should_be():
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        CollectDataStatistics("gram", file="statistics.pt")


def test_what_is_excluded_is_the_bases_while_statistics_are_collected(make_trainer, experts, sets):
    base, tasks = experts
    module = MergeModule(Net(), TaskVectors.open(base, tasks, exclude=("fc2.*",)))
    seen = []
    module.unpack = lambda batch: seen.append(module.model.fc2.weight.clone()) or batch
    loaders = {f"id/{task}": DataLoader(data, batch_size=3) for task, data in sets.items()}
    make_trainer(callbacks=[CollectDataStatistics("gram")]).validate(module, loaders, verbose=False)
    assert seen
    assert all(torch.equal(weight, base["fc2.weight"]) for weight in seen)
