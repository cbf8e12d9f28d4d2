import pytest
import torch
from _helpers.swept import small_loaders, small_module
from torch.utils.data import DataLoader, Dataset

from lwptv_lightning import MergeModule
from lwptv_lightning.search import sweep
from lwptv_lightning.search.passes import CandidatesModule, Passes


def test_without_candidates_a_pass_reads_the_samples_alone(make_trainer):
    loaders, module = small_loaders(), small_module()
    first, second = Passes(loaders), Passes(loaders)
    step = CandidatesModule(module, first, [])
    first.run(make_trainer(), step)
    second.run(make_trainer(), CandidatesModule(module, second, [dict(module.model.state_dict())]))
    assert first.digests == second.digests
    assert {name: tuple(each.shape) for name, each in step.outcomes.items()} == {
        "id/a": (0, 21), "id/b": (0, 13), "ood/far": (0, 17)
    }  # fmt: skip


class Moves(MergeModule):
    """Prepares its batches in hooks of transfer."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch["packed"]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        inputs, targets = batch
        return -inputs, targets


def test_batches_go_through_the_modules_hooks(make_trainer):
    plain, loaders = small_module(), small_loaders()
    moved = Moves(plain.model, plain.vectors, heads=dict(plain.heads))
    packed = {name: [{"packed": [-x, y]} for x, y in loader] for name, loader in loaders.items()}
    found = sweep(make_trainer(), moved, {"x": "ties"}, packed)
    assert found.figures("x") == sweep(make_trainer(), plain, {"x": "ties"}, loaders).figures("x")


class Texts(Dataset):
    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, index):
        return {"text": self.texts[index], "label": index % 3, "of": {"size": torch.tensor(len(self.texts[index]))}}


class Reads(MergeModule):
    def unpack(self, batch):
        return batch["text"], batch["label"]


def test_texts_are_told_apart_where_a_store_must_know(make_trainer):
    plain = small_module()
    module = Reads(plain.model, plain.vectors, heads=dict(plain.heads))

    def digest(*texts, exact=True, size=2):
        passes = Passes({"id/a": DataLoader(Texts(texts), batch_size=size)}, exact=exact)
        passes.run(make_trainer(), CandidatesModule(module, passes, []))
        return passes.digests

    assert digest("a", "b", "c") == digest("a", "b", "c") == digest("a", "b", "c", size=3)
    assert digest("a", "b", "c") != digest("a", "b", "d")
    assert digest("a", "b", "c") != digest("b", "a", "c")


def test_what_cannot_be_told_apart_is_no_matter_without_a_store(make_trainer):
    plain, strange = small_module(), object()
    module = Reads(plain.model, plain.vectors, heads=dict(plain.heads))
    batches = {"id/a": [{"text": strange, "label": torch.tensor([0, 1])}]}
    for exact in (False, True):
        passes = Passes(batches, exact=exact)
        step = CandidatesModule(module, passes, [])
        if exact:
            with pytest.raises(TypeError, match="loader 'id/a'.*object whether another one is the same"):
                passes.run(make_trainer(), step)
        else:
            passes.run(make_trainer(), step)
