"""What is written loads in timm, transformers and open_clip where this library is not, and computes what it computed.

One process, which cannot import the library, loads all folders, as each takes seconds to import the others.
"""

import json
import subprocess
import sys
import textwrap

import pytest
import timm
import torch
from _helpers.library_folders import OPEN_CLIP, make_open_clip, make_transformers, tuned, vectors_of

from lwptv_lightning import MergeModule, TaskVectors
from lwptv_lightning.inspection import verify

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[3, 4, 5, 6, 7, 2]])
TIMM = {
    "ResNet": ("resnet10t", {}),
    "ViT": ("vit_tiny_patch16_224", {"img_size": 32}),
}
TRANSFORMERS = {"clip": None, "gpt2": "60KB", "bert": "60KB"}
"""Models, and at which size their files are divided."""
LOADS = f"""
    import sys

    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "lwptv_lightning":
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Absent())
    try:
        import lwptv_lightning
        raise SystemExit("it can be imported")
    except ModuleNotFoundError:
        pass
    import open_clip, timm, torch, transformers
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder = sys.argv[1]
    given = torch.load(f"{{folder}}/given.pt")
    images, tokens, found = given["images"], given["tokens"], {{}}
    for name in {list(TIMM)}:
        model = timm.create_model(f"local-dir:{{folder}}/{{name}}", pretrained=True).eval()
        found[name] = model(images)
    kinds = {{"clip": transformers.CLIPModel, "gpt2": transformers.AutoModelForCausalLM,
              "bert": transformers.AutoModelForMaskedLM}}
    for name, kind in kinds.items():
        model, said = kind.from_pretrained(f"{{folder}}/{{name}}", output_loading_info=True)
        assert not any(said.values()), (name, said)
        model.eval()
        if name == "clip":
            both = model(input_ids=tokens, pixel_values=images)
            found[name] = torch.cat([both.image_embeds, both.text_embeds])
        else:
            found[name] = model(tokens).logits
    open_clip.add_model_config(f"{{folder}}/lwptv-elsewhere.json")
    if hasattr(open_clip.factory, "LOCAL_DIR_PREFIX"):  # since 3.0
        model = open_clip.create_model(f"local-dir:{{folder}}/open_clip").eval()
    else:
        weights = f"{{folder}}/open_clip/open_clip_model.safetensors"
        model = open_clip.create_model("lwptv-elsewhere", pretrained=weights).eval()
    found["open_clip"] = model.encode_image(images)
    model = open_clip.create_model("lwptv-elsewhere", pretrained=f"{{folder}}/file.safetensors").eval()
    found["open_clip file"] = model.encode_image(images)
    torch.save(found, f"{{folder}}/found.pt")
"""


def timm_module(name):
    """A module whose experts have classifiers of 2 and 5 classes, and its base of 3."""
    architecture, options = TIMM[name]
    base = timm.create_model(architecture, num_classes=3, **options)
    tasks = {}
    for task, classes in {"a": 2, "b": 5}.items():
        expert = timm.create_model(architecture, num_classes=classes, **options)
        own = expert.state_dict()
        same = {key: value for key, value in tuned(base, classes).items() if value.shape == own[key].shape}
        tasks[task] = {**own, **same}
    vectors = TaskVectors.open(base.state_dict(), tasks, model=base)
    return MergeModule(base, vectors, "ties"), lambda model: model.forward_head(
        model.forward_features(IMAGES), pre_logits=True
    )


def embeddings(model):
    both = model(input_ids=TOKENS, pixel_values=IMAGES)
    return torch.cat([both.image_embeds, both.text_embeds])


def transformers_module(name, folder):
    base = make_transformers(name)
    module = MergeModule(make_transformers(name), vectors_of(base, folder), "ties")
    if name == "clip":
        return module, embeddings
    return module, lambda model: model(TOKENS).logits


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Name of what was written to what its `MergeModule` computed, and what was computed elsewhere."""
    folder = tmp_path_factory.mktemp("elsewhere")
    modules = {name: timm_module(name) for name in TIMM}
    modules |= {name: transformers_module(name, folder / "bases" / name) for name in TRANSFORMERS}
    clip = make_open_clip(folder / "bases" / "open_clip")
    clips = MergeModule(clip, vectors_of(clip, folder / "bases" / "open_clip"), "ties")
    modules["open_clip"] = clips, lambda model: model.encode_image(IMAGES)
    expected = {}
    for name, (module, run) in modules.items():
        module.save_merged(folder / name, max_shard_size=TRANSFORMERS.get(name))
        with torch.no_grad():
            expected[name] = run(module.eval().model)
    clips.save_merged(folder / "file.safetensors")
    expected["open_clip file"] = expected["open_clip"]
    (folder / "lwptv-elsewhere.json").write_text(json.dumps(OPEN_CLIP))
    torch.save({"images": IMAGES, "tokens": TOKENS}, folder / "given.pt")
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(LOADS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return expected, torch.load(folder / "found.pt"), folder


@pytest.mark.parametrize("name", [*TIMM, *TRANSFORMERS, "open_clip", "open_clip file"])
def test_outputs_are_equal_where_the_library_is_not(name, outputs):
    expected, found, _ = outputs
    assert expected[name].abs().max() > 1e-3
    torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [*TIMM, *TRANSFORMERS, "open_clip", "file.safetensors"])
def test_what_was_written_is_verified(name, outputs):
    assert verify(outputs[2] / name).passed
