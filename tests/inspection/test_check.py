"""``lwptv check`` and ``lwptv merge`` on files that the real libraries write."""

import io
import re

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file

from lwptv_lightning import open_checkpoint, zoo
from lwptv_lightning.checkpoints import Checkpoint, fingerprint
from lwptv_lightning.cli import main
from lwptv_lightning.inspection import SAME_BASE, check, check_tables, diff, diff_table
from lwptv_lightning.report import print_table

TIMM = ["--model", "vit_base_patch32_clip_quickgelu_224"]
SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 24}


def tiny_options():
    return TIMM + [text for name, value in SIZES.items() for text in ("--model-option", f"{name}={value}")]


def write_timm(folder, base, tuned):
    save_file(tuned, folder / "tuned.safetensors")
    return folder / "tuned.safetensors"


def write_sharded(folder, base, tuned):
    from huggingface_hub import save_torch_state_dict

    (folder / "sharded").mkdir()
    save_torch_state_dict(tuned, folder / "sharded", max_shard_size="100KB")
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 1
    return folder / "sharded"


def write_torch(folder, base, tuned):
    torch.save({"model": {f"module._orig_mod.{name}": tensor for name, tensor in tuned.items()}}, folder / "tuned.pt")
    return folder / "tuned.pt"


def write_lightning(folder, base, tuned):
    from lightning.pytorch import LightningModule, Trainer

    module = LightningModule()
    module.backbone = make_timm()
    module.backbone.load_state_dict(tuned)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "tuned.ckpt")
    return folder / "tuned.ckpt"


def write_open_clip(folder, base, tuned):
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    mapped = {"attn.qkv.": "attn.in_proj_", "attn.proj.": "attn.out_proj.", "fc1": "c_fc", "fc2": "c_proj"}
    visual = {}
    for name, tensor in tuned.items():
        for new, old in mapped.items():
            name = name.replace(new, old)
        name = name.replace("norm_pre", "ln_pre").replace("norm1", "ln_1").replace("norm2", "ln_2")
        name = name.replace("patch_embed.proj", "conv1").replace("blocks.", "transformer.resblocks.")
        visual[f"visual.{name}".replace("visual.norm.", "visual.ln_post.")] = tensor
    visual["visual.class_embedding"] = visual.pop("visual.cls_token").flatten()
    visual["visual.positional_embedding"] = visual.pop("visual.pos_embed")[0]
    visual["visual.proj"] = visual.pop("visual.head.weight").T.contiguous()
    del visual["visual.head.bias"]
    model.load_state_dict(model.state_dict() | visual)
    torch.save(model.state_dict(), folder / "tuned.pt")
    return folder / "tuned.pt"


def write_transformers(folder, base, tuned):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 3}
    config = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=24)
    model = transformers.CLIPVisionModelWithProjection(config)
    state = {}
    for name, tensor in tuned.items():
        if ".qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"self_attn.{part}_proj")] = rows
        else:
            state[name.replace("attn.proj", "self_attn.out_proj")] = tensor
    swaps = {"patch_embed.proj": "embeddings.patch_embedding", "blocks.": "encoder.layers.", "norm1": "layer_norm1"}
    swaps |= {"norm2": "layer_norm2", "norm_pre": "pre_layrnorm"}
    named = {}
    for name, tensor in state.items():
        for new, old in swaps.items():
            name = name.replace(new, old)
        named["vision_model." + ("post_layer" + name if name.startswith("norm.") else name)] = tensor
    named["vision_model.embeddings.class_embedding"] = named.pop("vision_model.cls_token").flatten()
    named["vision_model.embeddings.position_embedding.weight"] = named.pop("vision_model.pos_embed")[0]
    named["visual_projection.weight"] = named.pop("vision_model.head.weight")
    del named["vision_model.head.bias"]
    model.load_state_dict(named)
    model.save_pretrained(folder / "transformers")
    return folder / "transformers"


def write_peft(folder, base, tuned):
    peft = pytest.importorskip("peft")
    model = make_timm()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False))
    adapted.save_pretrained(folder / "adapter")
    return folder / "adapter"


def write_task_vector(folder, base, tuned):
    about = {"lwptv_kind": "task_vector", "lwptv_base_fingerprint": fingerprint(open_checkpoint(base))}
    (folder / "vector").mkdir()
    tau = {name: tensor - base[name] for name, tensor in tuned.items()}
    save_file(tau, folder / "vector" / "task_vector.safetensors", metadata=about)
    return folder / "vector"


def make_timm():
    import timm

    return timm.create_model(TIMM[1], pretrained=False, **SIZES)


FORMATS = {
    "safetensors": write_timm,
    "sharded": write_sharded,
    "torch": write_torch,
    "Lightning": write_lightning,
    "open_clip": write_open_clip,
    "transformers": write_transformers,
    "LoRA adapter": write_peft,
    "task vector": write_task_vector,
}


@pytest.mark.parametrize("written", FORMATS)
def test_check_and_merge_each_format(written, fine_tuned, tmp_path, capsys):
    base = make_timm().state_dict()
    tuned = {name: tensor.clone() for name, tensor in fine_tuned(base, 1, 0.01).items()}
    tuned["head.bias"].zero_()  # which CLIP does not have
    save_file(base, tmp_path / "base.safetensors")
    save_file(fine_tuned(base, 2, 0.01), tmp_path / "other.safetensors")
    source = FORMATS[written](tmp_path, base, tuned)
    arguments = [str(tmp_path / "base.safetensors"), f"a={source}", f"b={tmp_path / 'other.safetensors'}"]
    main(["check", *arguments, *tiny_options()])
    output = capsys.readouterr().out
    assert output.count(SAME_BASE) == 2
    named = {"open_clip": "torch", "transformers": "safetensors", "sharded": "sharded safetensors"}.get(
        written, written
    )
    assert f"a    │ {named}" in output
    main(["merge", *arguments, *tiny_options(), "--out", str(tmp_path / "merged.safetensors"), "--scale", "1"])
    with safe_open(tmp_path / "merged.safetensors", "pt") as handle:
        assert set(handle.keys()) == set(base)
        merged = handle.get_tensor("blocks.1.attn.qkv.weight")
    if written != "LoRA adapter":
        name = "blocks.1.attn.qkv.weight"
        expected = tuned[name] + fine_tuned(base, 2, 0.01)[name] - base[name]
        torch.testing.assert_close(merged, expected, atol=1e-5, rtol=0)


# Findings


def test_figures_equal_those_of_whole_vectors(base_state, task_states):
    def flat(state):
        return torch.cat([state[name].double().flatten() for name in base_state])

    base = flat(base_state)
    tau = {task: flat(state) - base for task, state in task_states.items()}
    for found in check(base_state, task_states):
        assert found.norm == pytest.approx(float(tau[found.task].norm() / base.norm()), rel=1e-5)
        for other, cosine in found.cosines.items():
            expected = torch.cosine_similarity(tau[found.task], tau[other], dim=0)
            assert cosine == pytest.approx(float(expected), abs=1e-5)
        assert (found.matched, found.unchanged, found.verdict) == (5, 0, SAME_BASE)


def test_headers_alone_read_no_tensor(counting_checkpoint, base_state):
    checkpoint, reads = counting_checkpoint(base_state)
    (found,) = check(checkpoint, {"a": checkpoint}, read=False)
    assert not reads
    assert (found.matched, found.norm, found.verdict) == (5, None, SAME_BASE)


def test_every_problem_is_a_verdict(base_state, task_states, tmp_path):
    a = task_states["a"]
    without = {name: tensor for name, tensor in a.items() if name != "gain"}
    generator = torch.Generator().manual_seed(9)
    found = check(
        base_state,
        {
            "missing": without,
            "extra": a | {"more": torch.ones(1)},
            "reshaped": a | {"fc.weight": torch.ones(3, 5)},
            "equal": dict(base_state),
            "stranger": {name: torch.randn(tensor.shape, generator=generator) for name, tensor in base_state.items()},
            "nan": a | {"gain": torch.tensor(float("nan"))},
            "absent": tmp_path / "absent.pt",
            "integer": a | {"gain": torch.tensor(3)},
            "half": {name: tensor.half() for name, tensor in a.items()},
        },
    )
    verdicts = {task.task: task.verdict for task in found}
    assert verdicts["missing"] == "misses gain."
    assert verdicts["extra"] == "has beyond the base more."
    assert verdicts["reshaped"] == "other shapes: fc.weight (3, 5) for (5, 3)."
    assert verdicts["equal"] == "equals the base."
    assert verdicts["stranger"].startswith("another base: cosine ")
    assert verdicts["nan"] == "NaN or infinite weights."
    assert "no checkpoint at" in verdicts["absent"]
    assert verdicts["integer"] == "other kinds: gain torch.int64 for torch.float32."
    assert verdicts["half"] == SAME_BASE
    assert found[-1].dtypes == ("float16",)


def test_the_format_is_the_openers_word_and_not_the_names(base_state, task_states, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(task_states["a"], "no_suffix")
    opened = open_checkpoint(task_states["b"])
    named = Checkpoint("v1.2", opened.headers, opened)
    found = check(base_state, {"a": "no_suffix", "b": named})
    assert [task.format for task in found] == ["torch", "in memory"]


def test_share_of_unchanged_tensors(base_state):
    (found,) = check(base_state, {"a": base_state | {"gain": base_state["gain"] + 1}})
    assert found.unchanged == pytest.approx(0.8)


def test_the_zoos_experts_are_of_one_base():
    assert all(found.passed for found in check(zoo.base_path(), zoo.expert_paths()))


def test_heads_of_other_sizes_are_no_problem_with_the_model(make_vit, fine_tuned):
    base = make_vit(num_classes=10)
    other = fine_tuned(base.state_dict(), 1)
    other |= {"head.weight": torch.ones(3, 48), "head.bias": torch.ones(3)}
    assert check(base, {"a": other}, model=base)[0].passed
    assert "other shapes" in check(base, {"a": other})[0].verdict
    assert check(base, {"a": other}, exclude=["head.*"])[0].passed


def test_the_command_exits_with_1_and_shows_the_problem(base_state, tmp_path, capsys):
    save_file(base_state, tmp_path / "base.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["check", str(tmp_path / "base.safetensors"), f"a={tmp_path / 'base.safetensors'}"])
    assert stop.value.code == 1
    assert "equals the base." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "no_such_model"], "--model: Unknown model"),
        (["--model-option", "num_classes=0"], "--model-option needs --model"),
        (["--ema"], r"no averaged \(EMA\) weights"),
    ],
)
def test_bad_options(options, words, base_state, tmp_path, capsys):
    save_file(base_state, tmp_path / "base.safetensors")
    with pytest.raises(SystemExit) as stop:
        main(["check", str(tmp_path / "base.safetensors"), f"a={tmp_path / 'base.safetensors'}", *options, "--wide"])
    assert re.search(words, f"{stop.value} {' '.join(capsys.readouterr().out.split())}")


def shown(*tables):
    console = Console(file=io.StringIO(), width=60)
    for table in tables:
        print_table(table, console)
    return console.file.getvalue()


def test_one_task_is_a_row_and_has_no_cosines(base_state, task_states):
    (table,) = check_tables(check(base_state, {"a": task_states["a"]}))
    assert table.row_count == 1
    assert "Cosines" not in shown(table)


def test_cosines_have_a_row_and_a_column_for_each_task_that_was_read(base_state, task_states):
    findings = check(base_state, task_states)
    table, cosines = check_tables(findings)
    assert table.row_count == cosines.row_count == 3
    assert len(cosines.columns) == 4
    text = shown(table, cosines)
    assert all(f"{value:.2f}" in text for found in findings for value in found.cosines.values())
    assert all(f"{found.norm:.3g}" in text for found in findings)


def test_headers_alone_leave_figures_out(base_state, task_states):
    (table,) = check_tables(check(base_state, task_states, read=False))
    norms = next(column for column in table.columns if column.header == "norm")
    assert list(norms.cells) == ["", "", ""]


def test_a_line_for_each_layer_that_differs_and_a_count_of_the_rest(base_state):
    changed = base_state | {"fc.weight": base_state["fc.weight"] + 1, "gain": base_state["gain"] + 2}
    table = diff_table(diff(base_state, changed))
    assert list(table.columns[0].cells) == ["fc", "gain"]
    assert table.caption == "2 of 4 layers are equal."
    assert "1 of 1" in shown(table)
