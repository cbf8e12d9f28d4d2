import pytest
import torch
from torch import nn

from lwptv_lightning.evaluation.in_place import in_place
from lwptv_lightning.registry import UnknownNameError


class Net(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.stem, self.neck = nn.Linear(3, 4), nn.Sequential(nn.LayerNorm(4), classifier)

    def forward(self, inputs):
        return self.neck(self.stem(inputs)) * 2


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net(nn.Linear(4, 2)).eval()


def expected(net, head, inputs):
    return head(net.neck[0](net.stem(inputs))) * 2


INPUTS = torch.randn(5, 3)


def test_what_stands_before_and_behind_the_classifier_runs(net):
    own, head = net.neck[1], nn.Linear(4, 7)
    with in_place(net, {"neck.1": head}) as running:
        assert running is net
        assert torch.equal(running(INPUTS), expected(net, head, INPUTS))
        assert running.neck[1] is own
        assert net.state_dict()["neck.1.weight"] is not head.weight
    assert net(INPUTS).shape == (5, 2)


def test_it_is_taken_out_whatever_is_raised(net):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), in_place(net, {"neck.1": nn.Linear(9, 7)}):
        net(INPUTS)
    assert net(INPUTS).shape == (5, 2)
    with pytest.raises(UnknownNameError, match=r"unknown module of Net 'neck\.2'"), in_place(net, {"neck.2": net.neck}):
        pass


def test_a_head_that_is_passed_over_is_told(net):
    net.spare = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="Net does not call its module 'spare'"):  # noqa: SIM117
        with in_place(net, {"spare": nn.Linear(4, 7)}):
            net(INPUTS)


@pytest.mark.parametrize("where", ["whole", "whole, itself", "part", "part, itself", "classifier"])
@torch.no_grad()
def test_compiled_models_run_each_head(net, where):
    torch.compiler.reset()
    part = net if where.startswith("whole") else net.neck if where.startswith("part") else net.neck[1]
    own = net
    if where.endswith("itself"):
        part.compile(backend="eager")
    elif where == "whole":
        own = torch.compile(net, backend="eager")
    elif where == "part":
        net.neck = torch.compile(part, backend="eager")
    else:
        net.neck[1] = torch.compile(part, backend="eager")
    plain = Net(nn.Linear(4, 2)).eval()
    names = (name.replace("_orig_mod.", "") for name in net.state_dict())
    plain.load_state_dict(dict(zip(names, net.state_dict().values(), strict=True)))
    heads = [nn.Linear(4, classes) for classes in (7, 7, 3)]
    for head in (*heads, *heads):
        own(INPUTS)  # compiled with the classifier of its own
        with in_place(own, {"neck.1": head}) as running:
            assert torch.equal(running(INPUTS), expected(plain, head, INPUTS))
    assert torch.equal(own(INPUTS), plain(INPUTS))
    torch.compiler.reset()


def test_rows_are_made_for_a_head_in_the_place_of_a_pointwise_convolution():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 2, 1), nn.Flatten())
    images = torch.randn(4, 3, 8, 8)
    head, pointwise = nn.Linear(3, 5), nn.Conv2d(3, 5, 1)
    with torch.no_grad():
        pointwise.weight.copy_(head.weight[..., None, None])
        pointwise.bias.copy_(head.bias)
    for each in (head, pointwise):
        with in_place(model, {"1": each}) as running:
            torch.testing.assert_close(running(images), head(images.mean((2, 3))))


def test_gradients_and_functional_calls_reach_the_head_alone(net):
    head = nn.Linear(4, 7)
    weights = {"stem.weight": torch.zeros(4, 3, requires_grad=True)}
    with in_place(net, {"neck.1": head}) as running:
        torch.func.functional_call(running, weights, (INPUTS,)).sum().backward()
    assert weights["stem.weight"].grad is not None
    assert head.weight.grad is not None
    assert net.neck[0].weight.grad is not None
    assert net.stem.weight.grad is None
