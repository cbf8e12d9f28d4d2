import gc
import signal

import pytest
import torch
from _helpers.interrupts import Moments, Thrown, copies
from _helpers.library_folders import make_transformers, save_base, tuned
from _helpers.states import assert_same_bits
from torch import nn

from lwptv_lightning import MergeModule, MergeRecipe, TaskVectors
from lwptv_lightning.merging import Merge, gather_state, install_, install_plan_, materialize_, snapshot


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.outer = nn.Linear(3, 3)
        self.outer.weight = self.inner.weight
        self.norm = nn.BatchNorm1d(3)

    def forward(self, inputs):
        return self.norm(self.outer(self.inner(inputs)))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Tied()


def shifted(module):
    return {name: tensor + 1 for name, tensor in module.state_dict().items()}


def test_parameters_stay_the_objects_they_are(module):
    before = dict(module.named_parameters())
    new = shifted(module)
    install_(module, new)
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    assert module.outer.weight is module.inner.weight
    assert all(torch.equal(tensor, new[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("inference", [False, True])
def test_training_goes_on_after_an_installation(inference, module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.randn(4, 3)).square().sum().backward()
    new = shifted(module)
    with torch.inference_mode(inference):
        install_(module, {name: tensor.clone() for name, tensor in new.items()})
    optimizer.step()
    assert not torch.equal(module.inner.weight, new["inner.weight"])
    module(torch.randn(4, 3)).sum().backward()


@pytest.mark.parametrize("inference", [False, True])
def test_snapshot_restores_every_bit(inference, module):
    with torch.no_grad():
        module.inner.bias.copy_(torch.tensor([-0.0, 1e-42, 1 / 3]))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.inference_mode(inference):
        copies = snapshot(module, module.state_dict())
        install_(module, shifted(module))
        assert torch.equal(module.norm.num_batches_tracked, before["norm.num_batches_tracked"] + 1)
        install_(module, copies)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), before[name].reshape(-1).view(torch.uint8))
    assert not any(tensor.is_inference() for tensor in copies.values())


def test_snapshot_leaves_out_what_the_module_has_not(module):
    assert snapshot(module, ["inner.bias", "head.weight"]).keys() == {"inner.bias"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"outer.bais": torch.ones(3)}, r"Tied has no tensor outer\.bais\. Did you mean 'outer\.bias'\?"),
        ({"outer.bias": torch.ones(4)}, r"Tied: 'outer\.bias' has shape \(3,\), the weights to install have \(4,\)"),
    ],
)
def test_nothing_is_written_where_something_does_not_fit(wrong, message, module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        install_(module, {"inner.weight": torch.zeros(3, 3), **wrong})
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_values_are_converted_to_the_modules_dtype(module):
    module.half()
    install_(module, {"inner.bias": torch.tensor([0.1, 0.2, 0.3])})
    assert torch.equal(module.inner.bias, torch.tensor([0.1, 0.2, 0.3]).half())


def test_modes_of_the_submodules_stay(module):
    module.eval()
    module.norm.train()
    install_(module, shifted(module))
    assert [submodule.training for submodule in module.modules()] == [False, False, False, True]


def test_an_error_midway_leaves_the_module_as_it_was(module, fine_tuned):
    state = module.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    broken = fine_tuned(state, 1)
    broken["outer.bias"][1] = torch.nan
    with pytest.raises(ValueError, match="1 NaN or infinite values in 'outer.bias'"):
        install_plan_(module, Merge(TaskVectors.open(state, {"a": broken}), MergeRecipe()).plan())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def require_ctrl_c(moments):
    """Ctrl-C interrupts, also where what was raised kept its handler from being put back."""
    moments.error = None
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        gc.collect()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def is_all_of(module, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("error", [Thrown, KeyboardInterrupt, MemoryError, torch.OutOfMemoryError, SystemExit])
@pytest.mark.parametrize("at", [0, 3, 7])
def test_whatever_is_raised_at_a_copy_the_module_is_as_it_was(error, at, module):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    new, modes = shifted(module), [part.training for part in module.modules()]

    def stop(own):
        raise error

    with pytest.raises(error), copies(stop, at):
        install_(module, new)
    assert is_all_of(module, before)
    assert [part.training for part in module.modules()] == modes


def test_a_tensor_that_can_never_be_written_leaves_the_others_as_they_were(module, monkeypatch):
    monkeypatch.setattr("lwptv_lightning.merging.install.plain_tensors", lambda *_: None)  # which refuses it before
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.state_dict()["outer.bias"].copy_(before["outer.bias"].zero_())
    new = shifted(module)
    new["outer.bias"] = torch.zeros(3, device="meta")  # copying from it fails each time
    with pytest.raises(NotImplementedError):
        install_(module, new)
    assert is_all_of(module, before)


@pytest.mark.usefixtures("handlers")
def test_ctrl_c_waits_until_all_is_installed(module):
    new = shifted(module)
    with pytest.raises(KeyboardInterrupt), copies(lambda own: signal.raise_signal(signal.SIGINT), at=3):
        install_(module, new)
    assert is_all_of(module, new)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("handlers")
def test_whatever_is_raised_at_any_line_the_module_holds_all_of_one_model(module, fine_tuned):
    old = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    plan = Merge(TaskVectors.open(module, {"a": fine_tuned(old, 1)}), MergeRecipe(scale=1.0)).plan()
    install_plan_(module, plan)
    new = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    moments, ends = Moments("merging/install.py", "merging/undo.py"), []
    install_(module, old)
    with moments.watching():
        install_plan_(module, plan)
    for moment in range(0, moments.seen, 7):
        install_(module, old)
        # What is raised between a `with` line and its block would leave torch's mode changed for the tests that follow.
        with torch.enable_grad(), pytest.raises(Thrown), moments.watching(moment, Thrown()):
            install_plan_(module, plan)
        assert is_all_of(module, old) != is_all_of(module, new)
        ends.append(is_all_of(module, new))
        require_ctrl_c(moments)
    assert ends == sorted(ends)  # from some moment on it is the new one
    assert len(set(ends)) == 2


def test_merging_into_a_module_installs_the_named_tensors_alone(module, fine_tuned):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    vectors = TaskVectors.open(module, {"a": fine_tuned(before, 1)})
    plan = Merge(vectors, MergeRecipe(scale=1.0)).plan()
    install_plan_(module, plan, names=["norm.weight"])
    changed = {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"norm.weight"}
    install_plan_(module, plan)
    assert torch.allclose(module.inner.bias, vectors.expert("a", "inner.bias"))


def test_only_what_is_on_the_meta_device_is_given_memory():
    kept = nn.Linear(2, 2)
    weight = kept.weight.detach().clone()
    with torch.device("meta"):
        module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    module.append(kept)
    materialize_(module, "cpu")
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
    assert torch.equal(kept.weight, weight)


def test_a_buffer_that_nothing_would_fill_is_refused():
    with torch.device("meta"):
        module = nn.Linear(2, 2)
        module.register_buffer("positions", torch.arange(2), persistent=False)
    with pytest.raises(ValueError, match=r"buffers that no checkpoint holds: positions\. Build these"):
        materialize_(module, "cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
            "encoder_of_another": nn.Linear(1, 1),
        }
    )


@pytest.mark.parametrize("on_rank_zero", [False, True])
def test_a_submodule_has_its_own_names(model, on_rank_zero):
    assert_same_bits(gather_state(model, "encoder", on_rank_zero=on_rank_zero), model["encoder"].state_dict())
    assert_same_bits(gather_state(model, "encoder.0", on_rank_zero=on_rank_zero), model["encoder"][0].state_dict())


def test_the_root_is_the_empty_path(model):
    assert_same_bits(gather_state(model), model.state_dict())


def test_a_path_without_tensors_gives_none(model):
    assert gather_state(model, "decoder") == {}
    assert gather_state(model, "enc") == {}


def test_wrappers_of_torch_compile_are_not_in_the_names(model):
    expected = model.state_dict()
    model["encoder"] = torch.compile(model["encoder"])
    assert_same_bits(
        gather_state(torch.compile(model), "encoder"),
        {name.removeprefix("encoder."): tensor for name, tensor in expected.items() if name.startswith("encoder.")},
    )


def test_what_is_no_tensor_is_left_out(model):
    class WithState(nn.Linear):
        def get_extra_state(self):
            return {"steps": 3}

        def set_extra_state(self, state):
            pass

    assert gather_state(WithState(1, 1)).keys() == {"weight", "bias"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [lambda tensor: tensor.to("meta"), lambda tensor: tensor.to_sparse()])
def test_tensors_without_readable_values_are_not_installed(change):
    layer = nn.Linear(3, 3)
    before = layer.bias.detach().clone()
    with pytest.raises(ValueError, match="tensors: these tensors are .*: weight"):
        install_(layer, {"bias": torch.ones(3), "weight": change(torch.ones(3, 3))})
    assert torch.equal(layer.bias, before)


def test_a_module_that_is_not_initialised_is_named():
    with pytest.raises(ValueError, match="LazyLinear is not initialised: 'weight' has no shape"):
        install_(nn.LazyLinear(3), {"weight": torch.ones(3, 3)})


def test_names_of_transformers_files_are_told_from_another_architecture(tmp_path):
    model = make_transformers("vit")
    base = save_base(model, tmp_path / "base")
    model.load_state_dict(tuned(model, 1))
    vectors = TaskVectors.open(base, {"a": save_base(model, tmp_path / "a")})
    with pytest.raises(ValueError, match=r"names of transformers' files; TaskVectors.open\(..., model=model\)"):
        MergeModule(model, vectors, MergeRecipe())
    with pytest.raises(ValueError, match="has no tensor") as caught:
        MergeModule(nn.Linear(2, 2), vectors, MergeRecipe())
    assert "transformers" not in str(caught.value)
