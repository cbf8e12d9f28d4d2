"""The study's zoos, trained for a step: what is there is kept; models, heads and sets fit one another."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from _helpers.example_scripts import example_scripts
from safetensors.torch import load_file

from lwptv_lightning import zoo as package
from lwptv_lightning.registry import UnknownNameError

LAST_TWO = ["expert_lower_rotated.safetensors", "expert_maths_dots.safetensors"]


@pytest.fixture(scope="module")
def zoos():
    with example_scripts("study") as script:
        module = script("zoos")
        module.TRAININGS = {name: replace(how, steps=1, expert_steps=1) for name, how in module.TRAININGS.items()}
        yield module


@pytest.fixture(scope="module")
def cache(zoos, tmp_path_factory):
    cache = tmp_path_factory.mktemp("zoos")
    zoos.main(["--cache", str(cache), "vit", "styles"])
    return cache


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def head_of(place, heads):
    return heads[place.rpartition("/")[2]]


@pytest.mark.parametrize("name", ["shipped", "vit", "styles"])
def test_models_heads_and_sets_fit(name, zoos, cache):
    built = zoos.zoo(name, cache)
    names = built.create_model().state_dict().keys()
    assert all(load_file(path).keys() == names for path in (built.base, *built.experts.values()))
    module = built.module("task_arithmetic")
    features = module.model(torch.zeros(1, 1, 32, 32))
    for split in ("train", "validation", "test"):
        loaders = built.loaders(split, 40)
        assert [place[3:] for place in loaders if place.startswith("id/")] == list(built.experts)
        module.heads.require_for(loaders)
        for place, loader in loaders.items():
            assert loader.dataset.labels.max() < head_of(place, built.heads)(features).shape[1]
    assert len({id(head_of(place, built.heads)) for place in loaders}) == len(loaders) == len(built.heads)


def test_styles_have_one_set_of_classes_and_draws_of_their_own(zoos, cache):
    styles = zoos.zoo("styles", cache)
    loaders = styles.loaders("test", 30)
    assert list(loaders)[4:7] == ["id/dots", "ood/unseen/pixelated", "ood/unseen/outline"]
    labels = [loader.dataset.labels for loader in loaders.values()]
    assert all(torch.equal(other, torch.arange(30) % 26) for other in labels)
    draws = [*loaders.values(), *styles.loaders("train", 30).values(), *styles.loaders("validation", 30).values()]
    assert len({loader.dataset.images.numpy().tobytes() for loader in draws}) == 30
    first, *others = (head.state_dict() for head in styles.heads.values())
    assert all(torch.equal(other["prototypes"], first["prototypes"]) for other in others)
    assert first["prototypes"].shape[0] == 26
    with pytest.raises(UnknownNameError, match="Did you mean 'test'"):
        styles.loaders("tset", 30)
    with pytest.raises(ValueError, match="size"):
        styles.loaders("test", 0)


def test_a_killed_build_goes_on(zoos, cache, tmp_path, monkeypatch):
    whole, folder = contents(cache / "vit"), tmp_path / "vit"
    shutil.copytree(cache / "vit", folder)
    for name in LAST_TWO:
        (folder / name).unlink()
    train, trained = zoos.train_expert, []

    def train_one(path, *arguments, **options):
        if trained:
            raise KeyboardInterrupt
        train(path, *arguments, **options)
        trained.append(path.name)

    monkeypatch.setattr(zoos, "train_base", None)
    monkeypatch.setattr(zoos, "train_expert", train_one)
    with pytest.raises(KeyboardInterrupt):
        zoos.zoo("vit", tmp_path)
    assert trained == LAST_TWO[:1]
    assert contents(folder).keys() == whole.keys() - {LAST_TWO[1]}
    trained.clear()
    zoos.zoo("vit", tmp_path)
    assert trained == LAST_TWO[1:]
    assert contents(folder) == whole
    zoos.zoo("vit", tmp_path)  # trains nothing
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_a_seed_is_what_the_package_builds(zoos, tmp_path):
    package.build(tmp_path / "theirs" / "seed1", seed=1, steps=1, expert_steps=1, progress=False)
    theirs = contents(tmp_path / "theirs" / "seed1")
    zoos.zoo("seed1", tmp_path / "ours")
    ours = contents(tmp_path / "ours" / "seed1")
    ours.pop("training.json")
    assert len(ours) == 7
    assert ours.items() <= theirs.items()
    taken = zoos.zoo("seed1", tmp_path / "theirs")
    assert taken.base.parent == tmp_path / "theirs" / "seed1"
    assert contents(taken.base.parent) == theirs


def test_what_was_trained_otherwise_is_refused(zoos, cache, monkeypatch):
    before = contents(cache / "vit")
    monkeypatch.setitem(zoos.TRAININGS, "vit", replace(zoos.TRAININGS["vit"], steps=2))
    with pytest.raises(ValueError, match='training.json tells .*"steps": 1, .*"steps": 2, '):
        zoos.zoo("vit", cache)
    assert contents(cache / "vit") == before


def test_the_table_has_each_model_and_each_set(zoos, cache, capsys):
    zoos.main(["--cache", str(cache), "styles", "--table", "--size", "4"])
    lines = capsys.readouterr().out.strip().splitlines()
    heading, _rule, *rows = lines[lines.index("styles, accuracy in %") + 2 :]
    assert "id/avg" in heading
    assert "ood/unseen/stripes" in heading
    assert [row.split("|")[1].strip() for row in rows] == [
        "base",
        *(f"expert {style}" for style in ("photo", "noise", "elastic", "rotated", "dots")),
        "task_arithmetic x 0.15",
        "task_arithmetic x 0.3",
    ]


def test_an_unknown_zoo_is_refused_before_any_is_trained(zoos, tmp_path):
    with pytest.raises(UnknownNameError, match="Did you mean 'styles'"):
        zoos.main(["--cache", str(tmp_path / "new"), "vit", "style"])
    assert not (tmp_path / "new").exists()


def test_two_that_build_at_once_train_each_expert_once(zoos, tmp_path, monkeypatch):
    trained = []

    def train_one(path, *_arguments, **_options):
        trained.append(path.name)
        time.sleep(0.02)
        path.touch()

    monkeypatch.setattr(zoos, "train_expert", train_one)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: zoos.zoo("styles", tmp_path), range(2))
    assert first.experts == second.experts
    assert trained == [path.name for path in first.experts.values()]
