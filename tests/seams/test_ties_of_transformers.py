"""Weights that a model ties and its files hold once: whatever merges them takes files of either kind, and writes them.

transformers' ``save_pretrained`` leaves further names of a tied weight out, ``torch.save`` of a state dict does not.
"""

import shutil

import pytest
import torch
from _helpers.states import assert_same_bits
from lightning.pytorch import LightningModule
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import (
    CheckpointError,
    MergeModule,
    MergeRecipe,
    TaskVectors,
    install_,
    merge,
    merge_transform,
    open_checkpoint,
    save_merged,
)
from lwptv_lightning.callbacks import TaskVectorCheckpoint
from lwptv_lightning.checkpoints import Provenance
from lwptv_lightning.inspection import check, verify
from lwptv_lightning.search import sweep

transformers = pytest.importorskip("transformers")
SUM = {"rule": "task_arithmetic", "scale": 1.0}
SMALL = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LAYERS = {f"{half}_{what}": 1 for half in ("encoder", "decoder") for what in ("layers", "attention_heads")}
LAYERS |= {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "decoder_start_token_id": 1}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, **SMALL))


def t5():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**sizes, vocab_size=40, decoder_start_token_id=0)
    return transformers.T5ForConditionalGeneration(config)


def bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**BERT, vocab_size=40))


def whisper():
    sound = {"max_source_positions": 8, "max_target_positions": 8, "num_mel_bins": 4}
    config = transformers.WhisperConfig(d_model=16, **LAYERS, **sound, **SMALL)
    return transformers.WhisperForConditionalGeneration(config)


FAMILIES = pytest.mark.parametrize("make", [gpt2, t5, bert, whisper])


def tune_(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def written(model, folder, whole=False):
    """Write a model in either way, and return what to open."""
    folder.mkdir()
    if whole:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    return folder


@pytest.fixture
def family(make, tmp_path):
    torch.manual_seed(0)
    base = tune_(make(), 1)
    tuned = make()
    tuned.load_state_dict(base.state_dict())
    return base, tune_(tuned, 2)


def left_out(folder, model):
    return set(model.state_dict()) - set(load_file(folder / "model.safetensors"))


@FAMILIES
@pytest.mark.parametrize("whole", [(True, False), (False, True), (False, False)])
def test_files_of_either_kind_are_merged_into_the_model(make, whole, family, tmp_path):
    sources = [written(*each) for each in zip(family, (tmp_path / "base", tmp_path / "tuned"), whole, strict=True)]
    for model in (None, make()):
        vectors = TaskVectors.open(sources[0], {"a": sources[1]}, model=model)
        module = MergeModule(make(), vectors, SUM).merge_()
        state = module.model.state_dict()
        for name, tensor in family[1].state_dict().items():
            assert torch.allclose(state[name], tensor, atol=1e-6), name
    (found,) = check(sources[0], {"a": sources[1]})
    assert found.passed, found.verdict


@FAMILIES
def test_what_is_written_loads_in_transformers_and_is_made_again(make, family, tmp_path):
    base, tuned = (written(model, tmp_path / name) for name, model in zip("bt", family, strict=True))
    assert left_out(base, family[0])
    vectors = TaskVectors.open(base, {"a": tuned})
    save_merged(vectors, MergeRecipe(**SUM), tmp_path / "file.safetensors")
    module = MergeModule(make(), vectors, SUM).merge_()
    module.save_merged(tmp_path / "module.safetensors")
    for name, expected in (("file", set()), ("module", left_out(base, family[0]))):
        path = tmp_path / f"{name}.safetensors"
        assert set(Provenance.of(open_checkpoint(path)).twins) == expected
        assert verify(path, base, {"a": tuned}).passed
        shutil.copy(path, base / "model.safetensors") if name == "module" else None
    loaded = type(family[0]).from_pretrained(base)
    assert_same_bits(loaded.state_dict(), module.model.state_dict())


@pytest.mark.parametrize("make", [bert])
def test_a_bias_that_only_the_model_ties(make, family):
    base, tuned = (model.state_dict() for model in family)
    for state in (base, tuned):  # as it is initialised: no values by which to tell
        for name in ("cls.predictions.bias", "cls.predictions.decoder.bias"):
            state[name] = torch.zeros_like(state[name])
    partial = {name: tensor for name, tensor in tuned.items() if name != "cls.predictions.decoder.bias"}
    with pytest.raises(CheckpointError, match=r"misses tensors that the base has: cls\.predictions\.decoder\.bias"):
        TaskVectors.open(base, {"a": partial})
    for known in ({"model": make()}, {}):
        vectors = TaskVectors.open(family[0] if not known else base, {"a": partial}, **known)
        assert vectors.tied["cls.predictions.decoder.bias"] == "cls.predictions.bias"
    less = {name: tensor for name, tensor in base.items() if name != "cls.predictions.decoder.bias"}
    alone = TaskVectors.open(less, {"a": tuned}, model=make())
    assert "cls.predictions.decoder.bias" not in alone.shared_names


def test_another_value_is_no_tie():
    torch.manual_seed(0)
    model = gpt2()
    state = model.state_dict()
    base = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    untied = {name: tensor + 0.01 for name, tensor in state.items()}
    untied["lm_head.weight"] = untied["lm_head.weight"] + 1
    with pytest.raises(CheckpointError, match=r"has tensors that the base has not: lm_head\.weight"):
        TaskVectors.open(base, {"a": untied}, model=model)


def test_the_files_of_two_libraries_may_hold_it_under_different_names():
    torch.manual_seed(0)
    model = t5()
    state = model.state_dict()
    tied = [name for name in state if torch.equal(state[name], state["shared.weight"])]
    assert len(tied) == 4
    base = {name: tensor for name, tensor in state.items() if name not in tied[1:]}
    tuned = {name: tensor + 0.01 for name, tensor in state.items() if name not in tied or name == tied[2]}
    vectors = TaskVectors.open(base, {"a": tuned}, model=model)
    assert torch.allclose(vectors.stack(tied[0]), torch.full_like(state[tied[0]], 0.01), atol=1e-6)
    with pytest.raises(CheckpointError, match="misses tensors that the base has"):
        TaskVectors.open(base, {"a": tuned})


class Tied(nn.Module):
    """A small model that can be traced and sharded."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.fc = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 8, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x):
        return self.decode(self.fc(self.embed(x)))


@pytest.fixture
def held_once():
    torch.manual_seed(0)
    states = []
    for seed in (1, 2, 3):
        states.append({name: tensor.clone() for name, tensor in tune_(Tied(), seed).state_dict().items()})
        del states[-1]["decode.weight"]
    base, *tuned = states
    return TaskVectors.open(base, dict(zip("ab", tuned, strict=True)))


@pytest.mark.filterwarnings("ignore:.*another base")
def test_all_that_merges_into_a_model_keeps_it_tied(held_once, make_trainer):
    expected = merge(held_once, SUM)

    def require_merged(model):
        state = model.state_dict()
        assert_same_bits({name: state[name] for name in expected}, expected)
        assert torch.equal(state["decode.weight"], expected["embed.weight"])

    require_merged(MergeModule(Tied(), held_once, SUM).merge_().model)
    require_merged(merge_transform(Tied(), held_once, SUM))
    model = Tied()
    install_(model, expected)
    require_merged(model)
    assert model.decode.weight is model.embed.weight
    module = MergeModule(Tied(), held_once, SUM)
    loaders = {"id/a": torch.utils.data.DataLoader([(torch.tensor(1), torch.tensor(2))] * 4, batch_size=2)}
    found = sweep(make_trainer(), module, {"sum": SUM, "ties": "ties"}, loaders)
    assert found.names == ("sum", "ties")


@pytest.mark.filterwarnings("ignore:.*another base")
def test_a_model_that_is_built_without_memory_stays_tied(held_once):
    def build(mesh):
        with torch.device("meta"):
            return Tied()

    module = MergeModule(build, held_once, SUM).merge_()
    assert module.model.decode.weight is module.model.embed.weight
    assert torch.equal(module.model.embed.weight, merge(held_once, SUM)["embed.weight"])


@pytest.mark.filterwarnings("ignore:.*another base")
def test_a_run_that_knew_all_names_fits_files_that_hold_one(held_once, make_trainer, tmp_path):
    class Run(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Tied()
            install_(self.net, {name: held_once.base(name) for name in held_once.names})

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    run = Run()
    data = torch.utils.data.DataLoader([(torch.tensor(i), torch.tensor(7 - i)) for i in range(8)], batch_size=4)
    recorder = TaskVectorCheckpoint(tmp_path, "a", backbone="net")
    make_trainer(max_epochs=1, callbacks=[recorder]).fit(run, data)
    assert "decode.weight" in open_checkpoint(tmp_path).names
    base = {name: held_once.base(name) for name in held_once.names}
    vectors = TaskVectors.open(base, {"a": tmp_path})
    tuned = run.net.state_dict()
    assert vectors.names == tuple(base)
    assert torch.equal(vectors.stack("embed.weight")[0], tuned["embed.weight"] - base["embed.weight"])
    other = {name: tensor.clone() for name, tensor in load_file(tmp_path / "task_vector.safetensors").items()}
    other["decode.weight"] += 1
    about = open_checkpoint(tmp_path).metadata
    save_file(other, tmp_path / "task_vector.safetensors", metadata=about)
    with pytest.raises(CheckpointError, match=r"the base has no tensor decode\.weight"):
        TaskVectors.open(base, {"a": tmp_path})


def test_ties_that_were_undone_are_named():
    torch.manual_seed(0)
    model = gpt2()
    base = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    vectors = TaskVectors.open(base, {"a": {name: tensor + 0.01 for name, tensor in base.items()}})
    undone = gpt2()
    undone.lm_head.weight = nn.Parameter(undone.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match=r"lm_head\.weight\. GPT2LMHeadModel ties them .* tie_weights\(\)"):
        MergeModule(undone, vectors, SUM)
    undone.tie_weights()
    MergeModule(undone, vectors, SUM).merge_()


def test_a_copy_with_other_values_is_not_what_was_written(held_once, tmp_path):
    base, tasks = ({name: held_once.base(name) for name in held_once.names}, {})
    for task in held_once.tasks:
        tasks[task] = {name: held_once.expert(task, name) for name in held_once.names}
    module = MergeModule(Tied(), held_once, SUM).merge_()
    path = module.save_merged(tmp_path / "m.safetensors")
    about = open_checkpoint(path).metadata
    assert verify(path, base, tasks).passed
    state = load_file(path)
    state["decode.weight"] = state["decode.weight"] + 1
    save_file(state, path, metadata={key: value for key, value in about.items() if "sha256" not in key})
    found = verify(path, base, tasks)
    assert {name: str(each) for name, each in found.differing.items()} == {
        "decode.weight": "is not embed.weight, which it is tied to"
    }


def test_a_tied_name_has_the_dtype_of_the_bases(tmp_path):
    torch.manual_seed(0)
    half = {name: tensor.bfloat16() for name, tensor in Tied().state_dict().items() if name != "decode.weight"}
    vectors = TaskVectors.open(half, {"a": {name: tensor + 0.5 for name, tensor in half.items()}})
    path = MergeModule(Tied(), vectors, SUM).save_merged(tmp_path / "m.safetensors")
    state = load_file(path)
    assert state["decode.weight"].dtype == state["embed.weight"].dtype == torch.bfloat16
