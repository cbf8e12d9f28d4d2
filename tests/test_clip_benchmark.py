"""The CLIP benchmark from end to end, offline: tiny random models of the same architecture and random images."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.data import TensorDataset

from lwptv_lightning import MergeRecipe

FOLDER = Path(__file__).parents[1] / "examples" / "clip_benchmark"
SUITES = sorted(FOLDER.glob("suite_*.yaml"))


@pytest.fixture(scope="module")
def run():
    specification = importlib.util.spec_from_file_location("clip_benchmark_run", FOLDER / "run.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["clip_benchmark_run"] = module  # dataclasses look their module up
    before = list(sys.path)
    specification.loader.exec_module(module)
    yield module
    sys.path[:] = before
    for name in ("clip_benchmark_run", "heads", "corruptions"):
        sys.modules.pop(name)


class FakeImages(TensorDataset):
    classes = ("cat", "dog", "traffic_light")

    def __init__(self, task, transform):
        generator = torch.Generator().manual_seed(len(task))
        super().__init__(torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6) % 3)


def write_models(folder, tasks):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    vision = sizes | {"image_size": 32, "patch_size": 16}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 32, "max_position_embeddings": 8}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    base = transformers.CLIPModel(config)
    base.save_pretrained(folder / "base")
    for task in tasks:
        expert = transformers.CLIPVisionModel(config.vision_config)
        state = base.vision_model.state_dict()
        names = expert.state_dict().keys()
        prefix = "" if names == state.keys() else "vision_model."
        expert.load_state_dict(
            {prefix + k: v + 0.01 * torch.randn_like(v) for k, v in state.items() if v.is_floating_point()}
        )
        expert.save_pretrained(folder / task)


def tiny_text_encoder():
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text)
    return model.eval(), open_clip.get_tokenizer("ViT-B-32-quickgelu")


def test_dry_run(run, tmp_path, monkeypatch):
    pytest.importorskip("open_clip")
    suite = run.Suite.read(FOLDER / "suite_8.yaml")
    write_models(tmp_path, suite.merged)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 24}
    suite = replace(suite, base=str(tmp_path / "base"), experts=str(tmp_path / "{task}"), model_options=sizes)
    recipes = [MergeRecipe(), MergeRecipe("ties", ratio=0.5)]
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    options = {"load_images": FakeImages, "trainer_options": quiet}
    averages = run.benchmark(suite, recipes, tmp_path / "out", make_text_encoder=tiny_text_encoder, **options)
    assert [set(row) for row in averages] == [{"id/avg", "ood/avg"}] * 2
    columns = (tmp_path / "out" / "results.csv").read_text().splitlines()[0]
    assert all(f"id/{task}" in columns for task in suite.merged)
    assert all(f"ood/{name}" in columns for name in ("mnist", "eurosat", "sun397-pixelate", "sun397-motion_blur"))

    def refuse():
        raise AssertionError("the heads are cached")

    again = run.benchmark(suite, recipes[:1], tmp_path / "out", make_text_encoder=refuse, **options)
    assert again == averages[:1]


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_a_suite_names_known_tasks_once(path, run):
    suite = run.Suite.read(path)
    tasks = suite.merged + suite.held_out
    assert len(tasks) == len(set(tasks)) == int(path.stem.rpartition("_")[2])
    assert set(tasks) <= yaml.safe_load((FOLDER / "tasks.yaml").read_text()).keys()
    assert set(suite.corruptions) <= sys.modules["corruptions"].CORRUPTIONS.keys()


def test_a_corruption_is_the_same_each_time_and_changes_the_image(run):
    images = FakeImages("a", None)
    for name in sys.modules["corruptions"].CORRUPTIONS:
        corrupted = run.Corrupted(images, name)
        first, label = corrupted[1]
        assert first.shape == (3, 32, 32)
        assert torch.equal(first, corrupted[1][0])
        assert not torch.equal(first, images[1][0])
        assert label == images[1][1]


def test_a_stored_head_of_other_classes_is_refused(run, tmp_path):
    pytest.importorskip("open_clip")
    run.cached_heads(tmp_path, {"a": ["cat", "dog"]}, tiny_text_encoder)
    with pytest.raises(ValueError, match="is a head of 2 classes, expected 3; delete it"):
        run.cached_heads(tmp_path, {"a": ["cat", "dog", "bird"]}, tiny_text_encoder)
