"""A rule that works on matrices takes 1x1 convolutions for such, and says how many tensors it treated so."""

import io
import warnings

import pytest
import torch
from _helpers.models import Pointwise, vectors_of_model
from _helpers.states import open_vectors, plus, random_state
from lightning.pytorch import LightningModule
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lwptv_lightning import MergeModule, MergeRecipe, merge
from lwptv_lightning.callbacks import CollectDataStatistics, MergeReport, PruneAndMerge
from lwptv_lightning.cli.main import main
from lwptv_lightning.evaluation.data_statistics import input_grams
from lwptv_lightning.merging import Merge
from lwptv_lightning.rules import RULES, rules_markdown

AVERAGING = ("actmat", "cart", "dc_merge", "iso_c", "iso_cts", "regmean", "score", "tsv_m")
AT_THE_BASE = ("knots_ties", "wudi")
MATRIX_RULES = sorted(AVERAGING + AT_THE_BASE)
EVERY_MATRIX_RULE = pytest.mark.parametrize("rule", MATRIX_RULES)


def vectors_with(shapes, tasks=2):
    base = random_state(0, shapes=shapes)
    names = "abc"[:tasks]
    return open_vectors(base, {task: plus(base, random_state(seed, 0.1, shapes)) for seed, task in enumerate(names, 1)})


def data_for(rule, vectors):
    if rule != "regmean":
        return None
    matrices = {name: head.shape[1] for name, head in vectors.headers.items() if len(head.shape) > 1}

    def gram(width, seed):
        rows = torch.randn(12, width, generator=torch.Generator().manual_seed(seed))
        return rows.T @ rows / 12

    return {task: {name: gram(width, seed) for name, width in matrices.items()} for seed, task in enumerate("abc")}


def merged(rule, vectors, **options):
    return merge(vectors, MergeRecipe(rule, scale=1.0), data=data_for(rule, vectors), **options)


def unfilled(rule, vectors):
    """What a rule makes of a tensor that is no matrix to it."""
    share = 0 if rule in AT_THE_BASE else 1 / len(vectors)
    return {name: vectors.base(name) + share * vectors.stack(name).sum(0) for name in vectors.names}


def test_these_are_the_rules_that_work_on_matrices():
    assert [name for name in sorted(RULES) if RULES[name].works_on_matrices()] == MATRIX_RULES


@EVERY_MATRIX_RULE
@pytest.mark.parametrize("kernel", [(1,), (1, 1), (1, 1, 1)])
def test_a_1x1_convolution_is_merged_as_its_matrix(rule, kernel):
    name = "mlp.fc1.weight"
    matrix, convolution = (vectors_with({name: shape}, tasks=3) for shape in ((6, 4), (6, 4, *kernel)))
    expected, found = merged(rule, matrix)[name], merged(rule, convolution)[name]
    assert torch.equal(found.reshape(6, 4), expected)
    assert not torch.allclose(expected, unfilled(rule, matrix)[name], atol=1e-4)


OTHERS = {
    "a kernel of 3x3": ("stem.weight", (4, 3, 3, 3)),
    "a patch embedding": ("patch_embed.proj.weight", (8, 3, 4, 4)),
    "a kernel of 1x3": ("mlp.weight", (4, 3, 1, 3)),
    "depthwise": ("mlp.fc1.weight", (6, 1, 1, 1)),
    "a temperature of heads": ("attn.logit_scale", (4, 1, 1)),
    "positions": ("pos_embed", (1, 5, 8)),
    "a layer's scale": ("gamma", (1, 8, 1, 1)),
}


@EVERY_MATRIX_RULE
@pytest.mark.parametrize("other", OTHERS)
def test_other_tensors_are_averaged_or_the_bases(rule, other):
    name, shape = OTHERS[other]
    vectors = vectors_with({name: shape})
    torch.testing.assert_close(merged(rule, vectors)[name], unfilled(rule, vectors)[name])


CNN = {"conv1.weight": (4, 3, 3, 3), "bn1.weight": (4,), "bn1.bias": (4,), "conv2.weight": (4, 4, 3, 3)}


@EVERY_MATRIX_RULE
def test_a_rule_without_a_matrix_warns_by_name(rule):
    vectors = vectors_with(CNN, tasks=3)
    with pytest.warns(UserWarning, match=f"rule '{rule}' treated 0 of 4 tensors as matrices") as caught:
        merged(rule, vectors)
    assert len(caught) == 1
    assert RULES[rule].tensors in str(caught[0].message)


@pytest.mark.parametrize("rule", sorted(set(RULES) - set(MATRIX_RULES)))
def test_a_rule_that_treats_all_tensors_alike_says_nothing(rule):
    data = {task: {"conv1.weight": torch.ones(4, 3, 3, 3)} for task in "ab"} if rule == "fisher" else None
    expected = "rule 'fisher' treated 1 of 4 tensors by their Fisher information" if rule == "fisher" else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Merge(vectors_with(CNN), MergeRecipe(rule), data=data).plan().treatment == expected


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("fisher", "rule 'fisher' treated 0 of 4 tensors by their Fisher information"),
        (
            {"name": "adamerging", "coefficients": {"blocks.*": [1, 1]}},
            "rule 'adamerging' treated 0 of 4 tensors by their c",
        ),
    ],
)
def test_other_rules_without_anything_of_theirs_warn_too(rule, words):
    other = {"model.conv1.weight": torch.ones(4, 3, 3, 3)}
    with pytest.warns(UserWarning, match=words):
        merge(vectors_with(CNN), MergeRecipe(rule), data={"a": other, "b": other})


@EVERY_MATRIX_RULE
def test_one_matrix_is_no_reason_to_warn(rule):
    vectors = vectors_with(CNN | {"conv3.weight": (8, 4, 1, 1)}, tasks=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = Merge(vectors, MergeRecipe(rule), data=data_for(rule, vectors)).plan()
    assert plan.treatment == f"rule '{rule}' treated 1 of 5 tensors as matrices"


def test_what_is_left_out_or_too_small_or_without_data_is_not_counted():
    vectors = vectors_with({"a.weight": (4, 4), "b.weight": (2, 4, 1, 1), "c.bias": (4,)}, tasks=3)

    def said(rule, data=None):
        return Merge(vectors, MergeRecipe(rule), data=data).plan().treatment

    assert said("iso_c") == "rule 'iso_c' treated 2 of 3 tensors as matrices"
    assert said({"name": "iso_cts", "exclude": ["a.*"]}) == "rule 'iso_cts' treated 1 of 3 tensors as matrices"
    assert said("tsv_m") == "rule 'tsv_m' treated 1 of 3 tensors as matrices"  # 2 triplets for 3 tasks
    assert said({"name": "wudi", "include": ["a.*"]}) == "rule 'wudi' treated 1 of 3 tensors as matrices"
    grams = {task: {"b": torch.eye(4)} for task in vectors.tasks}  # by the module's name
    assert said("regmean", grams) == "rule 'regmean' treated 1 of 3 tensors as matrices"


@EVERY_MATRIX_RULE
def test_several_tensors_are_counted_whatever_is_pruned(rule):
    vectors = vectors_of_model(Pointwise())
    names = {"expand.weight", "project.weight"}
    data = (
        {t: {"expand.weight": torch.eye(3), "project.weight": torch.eye(8)} for t in "ab"}
        if rule == "regmean"
        else None
    )
    plan = Merge(vectors, MergeRecipe(rule, ratio=0.5), data=data).plan()
    assert plan.treatment == f"rule '{rule}' treated 2 of 5 tensors as matrices"
    result = merge(vectors, MergeRecipe(rule, scale=1.0), data=data)
    other = unfilled(rule, vectors)
    differing = {name for name in vectors.names if not torch.allclose(result[name], other[name], atol=1e-5)}
    assert differing <= names
    if rule not in ("regmean", "cart"):  # averages, by equal Gram matrices and as of any two tasks
        assert differing == names


LAYERS = {
    "plain": lambda: nn.Conv2d(3, 5, 1),
    "strided": lambda: nn.Conv2d(3, 5, 1, stride=2, bias=False),
    "padded": lambda: nn.Conv2d(3, 5, 1, stride=(2, 1), padding=(1, 2)),
    "mirrored": lambda: nn.Conv2d(3, 5, 1, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(3, 5, 1, padding="same"),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("batched", [True, False])
def test_gram_matrices_are_of_what_the_convolution_looks_at(kind, batched):
    layer = LAYERS[kind]().double()
    images = torch.randn(2, 3, 5, 6, dtype=torch.float64)[slice(None) if batched else 0]
    with torch.no_grad(), input_grams(nn.Sequential(layer)) as grams:
        outputs = layer(images)
    # The inputs that give the outputs are the only ones that reproduce W G W^T.
    bias = 0 if layer.bias is None else layer.bias.detach()[:, None, None]
    rows = (outputs - bias).movedim(-3, -1).reshape(-1, 5)
    weight = layer.weight.detach().reshape(5, 3)
    torch.testing.assert_close(weight @ grams["0.weight"] @ weight.T, rows.T @ rows)
    assert float(grams["0.weight.rows"]) == len(rows)


def test_larger_kernels_and_grouped_ones_have_no_gram_matrix():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=4), nn.Conv1d(4, 4, 1))
    with torch.no_grad(), input_grams(model) as grams:
        model[1](model[0](torch.ones(1, 4, 3, 3)))
        model[2](torch.ones(1, 4, 7))
    assert set(grams) == {"2.weight", "2.weight.rows"}


def test_regmean_from_collected_data_fits_the_outputs_of_convolutions(make_trainer):
    model = Pointwise()
    vectors = vectors_of_model(model)
    images = {
        task: torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed, task in enumerate("ab")
    }
    loaders = {f"id/{t}": DataLoader(TensorDataset(x, torch.zeros(8).long()), batch_size=4) for t, x in images.items()}
    collect = CollectDataStatistics("gram")
    make_trainer(callbacks=[collect]).validate(MergeModule(model, vectors), loaders, verbose=False)
    recipe = MergeRecipe({"name": "regmean", "off_diagonal": 1.0}, scale=1.0)
    found = merge(vectors, recipe, data=collect.statistics)["expand.weight"].reshape(8, 3).double()
    # The least squares over both tasks' positions, from the inputs themselves.
    inputs = {task: x.movedim(1, -1).reshape(-1, 3).double() for task, x in images.items()}
    weights = {task: vectors.expert(task, "expand.weight").reshape(8, 3).double() for task in images}
    targets = torch.cat([inputs[task] @ weights[task].T for task in images])
    expected = torch.linalg.lstsq(torch.cat(list(inputs.values())), targets).solution.T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected, (weights["a"] + weights["b"]) / 2, atol=1e-3)


def test_a_validation_reports_it(make_trainer, tmp_path):
    model = Pointwise()
    module = MergeModule(model, vectors_of_model(model), "iso_c")
    loader = DataLoader(TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4).long()), batch_size=4)
    text = io.StringIO()
    report = MergeReport(tmp_path, Console(file=text, width=200))
    make_trainer(callbacks=[report]).validate(module, {"id/a": loader}, verbose=False)
    words = "rule 'iso_c' treated 2 of 5 tensors as matrices"
    assert module.treatment == words
    assert words in text.getvalue()
    assert words in (tmp_path / "report.md").read_text()


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = Pointwise()

    def validation_step(self, batch, batch_idx):
        self.log("id/a", self.net(batch[0]).mean())


def test_a_validation_of_a_foreign_module_reports_it(make_trainer, tmp_path):
    callbacks = [
        PruneAndMerge(vectors_of_model(Pointwise()), "tsv_m"),
        MergeReport(tmp_path, Console(file=io.StringIO())),
    ]
    loader = DataLoader(TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4).long()), batch_size=4)
    make_trainer(callbacks=callbacks).validate(Foreign(), loader, verbose=False)
    assert "rule 'tsv_m' treated 2 of 5 tensors as matrices" in (tmp_path / "report.md").read_text()


def test_the_command_line_reports_it(tmp_path, capsys):
    vectors = vectors_with({"fc.weight": (4, 4), "fc.bias": (4,)})
    paths = {name: tmp_path / f"{name}.pt" for name in ("base", "a")}
    torch.save({name: vectors.base(name) for name in vectors.names}, paths["base"])
    torch.save({name: vectors.expert("a", name) for name in vectors.names}, paths["a"])
    main(
        ["merge", str(paths["base"]), f"a={paths['a']}", "--rule", "tsv_m", "--out", str(tmp_path / "out.safetensors")]
    )
    assert "rule 'tsv_m' treated 1 of 2 tensors as matrices" in capsys.readouterr().out


def test_docs_say_what_each_rule_treats_how():
    page = rules_markdown()
    for name in RULES:
        assert RULES[name].tensors in next(line for line in page.splitlines() if line.startswith(f"| [`{name}`]"))
    for name in MATRIX_RULES:
        assert "1x1" in RULES[name].__doc__
        assert "1x1" in RULES[name].tensors
