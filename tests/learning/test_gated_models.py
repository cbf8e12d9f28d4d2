"""LayerGates on models unlike the zoo's: tied weights, texts, compiled ones, classifiers of their own, precisions."""

import pytest
import torch
from _helpers.gated import TASKS, Net, changed, gated_module, images, loaders, seeded
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lwptv_lightning import LayerGates, MergeModule, MergeRecipe, TaskVectors


def learn(make_trainer, module, given, steps=4, trainer=None, **options):
    gates = LayerGates(module, **{"images": 12, "batch_size": 6, **options})
    make_trainer(max_steps=steps, **(trainer or {})).fit(gates, given)
    return gates


def require_learnt(gates, module):
    """Coefficients have moved, and the recipe merges what `merged` gives, bit for bit."""
    coefficients = gates.coefficients.detach()
    assert coefficients.dtype == torch.float32
    assert coefficients.isfinite().all()
    assert len(coefficients.unique()) > len(TASKS)
    again = MergeModule(module.model, module.vectors, MergeRecipe.from_json(gates.recipe().to_json()))
    state = again.merge_().model.state_dict()
    for name, tensor in gates.merged().items():
        assert torch.equal(tensor, state[name.replace("_orig_mod.", "")]), name


class Texts(nn.Module):
    """A classifier of texts whose embedding also gives back words, as transformers' models return it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.body = nn.Linear(6, 6)
        self.words = nn.Linear(6, 9, bias=False)
        self.words.weight = self.embed.weight
        self.classifier = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask):
        hidden = torch.tanh(self.body(self.embed(input_ids)))
        pooled = (hidden * attention_mask[..., None]).sum(1) / attention_mask.sum(1, keepdim=True)
        return {"words": self.words(hidden), "logits": self.classifier(pooled)}


class Rows(list):
    """Texts of different lengths."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)
        super().__init__(torch.randint(1, 9, (3 + i % 4,), generator=generator) for i in range(14))


def padded(rows):
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return {"input_ids": ids, "attention_mask": (ids > 0).float()}


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
def test_texts_with_tied_weights_and_no_labels(make_trainer):
    model = seeded(Texts, 0)
    vectors = TaskVectors.open(model, {task: tied(changed(model, seed)) for seed, task in enumerate(TASKS, 1)})
    keys = (("input_ids", "attention_mask"), "labels")
    module = MergeModule(seeded(Texts, 1), vectors, batch_keys=keys, output_key="logits")
    given = {f"id/{task}": DataLoader(Rows(seed), 4, collate_fn=padded) for seed, task in enumerate(TASKS)}
    gates = learn(make_trainer, module, given)
    assert len(module.vectors.tied) == 1
    require_learnt(gates, module)
    other = {f"id/{task}": DataLoader(Rows(seed), 9, collate_fn=padded) for seed, task in enumerate(TASKS)}
    assert torch.equal(gates.coefficients, learn(make_trainer, module, other).coefficients)


def tied(state):
    return state | {"words.weight": state["embed.weight"]}


@pytest.mark.parametrize("classes", [(3, 5, 4), (4, 4, 4)], ids=["own sizes", "one size"])
def test_classifiers_of_the_models_own(make_trainer, classes):
    import timm

    def made(number, seed):
        return seeded(lambda: timm.create_model("test_vit", num_classes=number, img_size=16), seed)

    base = made(classes[0], 0)
    experts = {task: made(number, seed) for seed, (task, number) in enumerate(zip(TASKS, classes, strict=True))}
    for seed, expert in enumerate(experts.values(), 1):
        head = {name: tensor for name, tensor in expert.state_dict().items() if name.startswith("head.")}
        own = changed(base, seed, 0.05)
        expert.load_state_dict({**own, **head} if len(set(classes)) > 1 else own)
    model = made(classes[0], 9)
    module = MergeModule(model, TaskVectors.open(base, experts, model=model))
    assert bool(module.heads) == (len(set(classes)) > 1)
    generator = torch.Generator().manual_seed(0)
    given = {f"id/{task}": [torch.randn(12, 3, 16, 16, generator=generator)] for task in TASKS}
    require_learnt(learn(make_trainer, module, given, steps=2), module)


def test_compiled_models(make_trainer):
    plain = learn(make_trainer, gated_module(), loaders())
    module = gated_module()
    compiled = MergeModule(
        torch.compile(module.model, backend="eager"), module.vectors, heads=dict(module.heads.items())
    )
    gates = learn(make_trainer, compiled, loaders())
    assert torch.equal(gates.coefficients, plain.coefficients)


def scaling():
    """Mixed float16 with a gradient scaler, which a trainer has on other devices alone."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


PRECISIONS = {
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "bf16-true": lambda: {"precision": "bf16-true"},
    "64-true": lambda: {"precision": "64-true"},
    "16-mixed": lambda: {"plugins": [scaling()]},
}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(make_trainer, precision):
    exact = learn(make_trainer, gated_module(), loaders(), steps=2)
    module = gated_module()
    gates = learn(make_trainer, module, loaders(), steps=2, trainer=PRECISIONS[precision]())
    require_learnt(gates, module)
    agree = (gates.scores().values > 1) == (exact.scores().values > 1)
    assert agree.double().mean() > 0.8
    assert {tensor.dtype for tensor in module.model.parameters()} == {torch.float32}


def test_a_base_in_half_precision(make_trainer):
    module = gated_module(dtype=torch.bfloat16)
    gates = learn(make_trainer, module, loaders(), trainer={"precision": "bf16-true"})
    require_learnt(gates, module)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_samples_in_another_precision_than_the_trainers(make_trainer, dtype, precision):
    module = gated_module(dtype=dtype)
    given = {f"id/{task}": [images(place).to(dtype)] for place, task in enumerate(TASKS)}
    plain = {f"id/{task}": [images(place).to(dtype).float()] for place, task in enumerate(TASKS)}
    gates = learn(make_trainer, module, given, steps=2, trainer={"precision": precision})
    require_learnt(gates, module)
    other = learn(make_trainer, module, plain, steps=2, trainer={"precision": precision})
    torch.testing.assert_close(gates.coefficients, other.coefficients, rtol=0, atol=1e-6)


def test_an_unpack_of_ones_own(make_trainer):
    class Reversed(MergeModule):
        def unpack(self, batch):
            return batch["inner"][1], batch["inner"][0]

    module = gated_module()
    own = Reversed(module.model, module.vectors, heads=dict(module.heads.items()))
    given = {f"id/{task}": [{"inner": (torch.zeros(12), images(place, 12))}] for place, task in enumerate(TASKS)}
    plain = {f"id/{task}": [images(place, 12)] for place, task in enumerate(TASKS)}
    found = learn(make_trainer, own, given).coefficients
    assert torch.equal(found, learn(make_trainer, module, plain).coefficients)


def test_a_scaler_passes_over_steps_that_overflow_and_scales_less(make_trainer):
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**30))
    module = gated_module()
    gates = learn(make_trainer, module, loaders(), steps=25, trainer={"plugins": [plugin]})
    assert plugin.scaler.get_scale() < 2.0**30
    require_learnt(gates, module)


def test_a_loss_that_is_not_finite_is_no_step(make_trainer, monkeypatch):
    from lwptv_lightning.learning.teachers import Lesson

    losses = Lesson.losses
    monkeypatch.setattr(Lesson, "losses", lambda *arguments: losses(*arguments) * torch.inf)
    with pytest.raises(ValueError, match="step 0: loss or gradient is not finite.*'32-true'"):
        learn(make_trainer, gated_module(), loaders())


def test_other_callbacks_see_the_fit(make_trainer):
    from lightning.pytorch import Callback

    class Counting(Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses.append(float(trainer.callback_metrics["loss"]))

    counting = Counting()
    learn(make_trainer, gated_module(), loaders(), steps=30, trainer={"callbacks": [counting]}, lr=0.3)
    assert len(counting.losses) == 30
    assert sum(counting.losses[-5:]) < sum(counting.losses[:5])


def test_a_net_that_is_frozen_learns_all_the_same(make_trainer):
    module = gated_module()
    module.model.requires_grad_(False)
    plain = learn(make_trainer, gated_module(), loaders()).coefficients
    assert torch.equal(learn(make_trainer, module, loaders()).coefficients, plain)
    assert isinstance(module.model, Net)
    assert not any(parameter.requires_grad for parameter in module.model.parameters())
