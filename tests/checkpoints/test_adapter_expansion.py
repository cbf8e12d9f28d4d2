"""Every option of PEFT's LoRA that is a linear change of weights, on adapters that PEFT wrote and merged."""

import copy
import dataclasses
import re

import pytest
import timm
import torch
from _helpers.adapters import adapted, change_config, require_equal, save, write_lora
from safetensors.torch import load_file, save_file
from torch import nn

from lwptv_lightning import CheckpointError, TaskVectors
from lwptv_lightning.cli import main

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::UserWarning:torch")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


class Every(nn.Module):
    """Has each kind of layer that PEFT adapts."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv1d(3, 4, 3)
        self.points = nn.Conv1d(4, 5, 1)
        self.image = nn.Conv2d(3, 8, (3, 2))
        self.volume = nn.Conv3d(2, 3, (1, 2, 3))
        self.words = nn.Embedding(9, 6)
        self.square = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 3)
        self.bare = nn.Linear(6, 4, bias=False)
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(3, 2)


LAYERS = ["line", "points", "image", "volume", "words", "square", "fc", "bare"]
OF_DORA = LAYERS if hasattr(peft.tuners.lora.dora, "DoraConv1dLayer") else LAYERS[2:]
WITH_BIAS = ["line", "image", "volume", "square", "fc"]


def gpt2(**options):
    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 11, "n_positions": 6}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1, **options))


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, vocab_size=30))


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, image_size=32, patch_size=16))


def timms():
    sizes = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **sizes)


def t5():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 11}
    tokens = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **tokens))


def masked_bert():
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZES, vocab_size=30))


def mixtral():
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, vocab_size=20, num_local_experts=3)
    return transformers.MixtralForCausalLM(config)


def blocks(which_a, which_b):
    config = peft.tuners.lora.config.BdLoraConfig
    return config(target_modules_bd_a=which_a, target_modules_bd_b=which_b, nblocks=2)


CASES = {
    "plain": (Every, {"target_modules": LAYERS}),
    "rslora": (Every, {"target_modules": LAYERS, "use_rslora": True}),
    "patterns": (Every, {"target_modules": LAYERS, "rank_pattern": {"fc": 2}, "alpha_pattern": {"fc|bare": 9}}),
    "excluded": (Every, {"target_modules": LAYERS, "exclude_modules": ["fc"]}),
    "bias": (Every, {"target_modules": LAYERS, "bias": "all"}),
    "bias of the adapted": (Every, {"target_modules": LAYERS, "bias": "lora_only"}),
    "bias of the factors": (Every, {"target_modules": WITH_BIAS, "lora_bias": True}),
    "both biases": (Every, {"target_modules": WITH_BIAS, "lora_bias": True, "bias": "all"}),
    "saved whole": (Every, {"target_modules": LAYERS, "modules_to_save": ["head", "norm"], "bias": "all"}),
    "DoRA": (Every, {"target_modules": OF_DORA, "use_dora": True, "bias": "all"}),
    "DoRA of Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "fused attention": (Every, {"target_modules": ["attention", "fc"], "alpha_pattern": {"attention": 3}}),
    "biases of a fused attention": (Every, {"target_modules": ["attention"], "lora_bias": True, "bias": "all"}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj", "c_fc"], "bias": "all"}),
    "square Conv1D alone": (gpt2, {"target_modules": ["attn.c_proj"]}),
    "Conv1D and Linear": (gpt2, {"target_modules": ["c_attn", "c_proj", "lm_head"]}),
    "tied head": (gpt2, {"target_modules": ["lm_head"]}),
    "tied head and embedding": (gpt2, {"target_modules": ["lm_head", "wte", "wpe"]}),
    "tied embedding, saved": (gpt2, {"target_modules": ["wte"], "saving": {"save_embedding_layers": True}}),
    "tokens": (gpt2, {"target_modules": ["c_attn"], "trainable_token_indices": [1, 4]}),
    "tokens by name": (gpt2, {"target_modules": ["c_attn"], "trainable_token_indices": {"wte": [4, 1]}}),
    "tied head that is not saved": (masked_bert, {"target_modules": ["decoder", "query"]}),
    "four names of one tensor": (t5, {"target_modules": ["embed_tokens", "lm_head", "q"]}),
    "BERT": (bert, {"target_modules": ["query", "dense", "word_embeddings"], "task_type": "SEQ_CLS"}),
    "ViT": (vit, {"target_modules": ["q_proj", "fc1", "projection"], "modules_to_save": ["classifier"]}),
    "timm": (timms, {"target_modules": ["qkv", "proj", "fc1"], "modules_to_save": ["head"]}),
}
NEWER = {  # options that earlier versions of PEFT do not have
    "target_parameters": lambda: (
        mixtral,
        {"target_modules": ["q_proj"], "target_parameters": ["gate_up_proj", "experts.down_proj"]},
    ),
    "orthogonal": lambda: (Every, {"target_modules": ["fc"], "init_lora_weights": "orthogonal"}),
    "mica": lambda: (Every, {"target_modules": ["square", "words"], "init_lora_weights": "mica", "r": 3}),
    "use_bdlora": lambda: (Every, {"target_modules": ["square", "bare"], "use_bdlora": blocks(["square"], ["bare"])}),
    "velora_config": lambda: (Every, {"target_modules": ["fc"], "velora_config": {"num_groups": 2}}),
    "monteclora_config": lambda: (
        Every,
        {"target_modules": ["fc"], "monteclora_config": peft.tuners.lora.config.MontecloraConfig()},
    ),
}


FIELDS = dataclasses.fields(peft.LoraConfig)
VARIANTS = {field.name for field in FIELDS if field.metadata.get("is_lora_variant")}
VARIANTS |= {name for field in FIELDS for name in field.metadata.get("lora_variants", ())}
"""The options and initialisations that this version of PEFT calls variants of LoRA."""
KNOWN = VARIANTS | {field.name for field in FIELDS}
KNOWN |= set(re.findall(r"'(\w+)'", next(str(field.type) for field in FIELDS if field.name == "init_lora_weights")))


def factors(path):
    return [f"base_model.model.{path}.lora_{factor}.weight" for factor in "AB"]


def case(name):
    make, options = CASES[name] if name in CASES else NEWER[name]()
    torch.manual_seed(1)
    return make().eval(), options


@pytest.mark.parametrize("name", [*CASES, *NEWER])
def test_what_is_read_is_what_peft_merges(name, tmp_path):
    if name in NEWER and name not in KNOWN:
        pytest.skip("this version of PEFT has it not")
    model, options = case(name)
    state = model.state_dict()
    expected = write_lora(model, tmp_path, **options)
    assert any(not torch.equal(expected[each], tensor) for each, tensor in state.items())
    copied = {each: tensor.clone() for each, tensor in state.items()}
    for base in (model, copied):
        require_equal(TaskVectors.open(base, {"a": tmp_path}), state, expected)
    require_equal(TaskVectors.open(copied, {"a": tmp_path}, model=model), state, expected)


def test_every_variant_of_lora_is_tried_or_refused():
    # A variant that is new here: add it to the cases above, or to what `adapter_config` refuses.
    refused = {"alora_invocation_tokens", "arrow_config", "kasa_config"}
    assert VARIANTS - refused - {"use_dora"} <= set(NEWER)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("tied", "tokens", "four", "BERT"))])
def test_the_base_is_the_folder_of_a_transformers_model(name, tmp_path):
    model, options = case(name)
    model.save_pretrained(tmp_path / "base")  # without the tied head
    expected = write_lora(model, tmp_path / "a", **options)
    for given in (None, model):
        vectors = TaskVectors.open(tmp_path / "base", {"a": tmp_path / "a"}, model=given)
        for each in (*vectors.names, *vectors.tied):
            torch.testing.assert_close(vectors.expert("a", each), expected[each], atol=1e-5, rtol=0)
            assert bool(vectors.stack(each).any()) == (not torch.equal(expected[each], model.state_dict()[each]))


def test_the_configuration_of_the_base_tells_what_its_head_is_tied_to(tmp_path):
    model, options = case("tied head")
    model.save_pretrained(tmp_path / "base")
    expected = write_lora(model, tmp_path / "a", **options, saving={"save_embedding_layers": False})
    vectors = TaskVectors.open(tmp_path / "base", {"a": tmp_path / "a"})
    name = "transformer.wte.weight"
    torch.testing.assert_close(vectors.expert("a", name), expected[name], atol=1e-5, rtol=0)
    (tmp_path / "base" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the base has no tensor lm_head\.weight"):
        TaskVectors.open(tmp_path / "base", {"a": tmp_path / "a"})


def test_a_head_that_was_untied_is_changed_alone(tmp_path):
    model = gpt2(tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight.copy_(model.transformer.wte.weight)  # as PEFT advises
    model.save_pretrained(tmp_path / "base")
    expected = write_lora(model, tmp_path / "a", target_modules=["lm_head"])
    for base in (tmp_path / "base", model):
        vectors = TaskVectors.open(base, {"a": tmp_path / "a"})
        require_equal(vectors, model.state_dict(), expected)
        assert not vectors.stack("transformer.wte.weight").any()


def test_a_module_within_one_whose_parameter_is_adapted(tmp_path):
    if "target_parameters" not in KNOWN:
        pytest.skip("this version of PEFT has it not")

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(4, 4))
            self.out_proj = nn.Linear(4, 4)

    torch.manual_seed(1)
    model = nn.Sequential(Inner())
    expected = write_lora(model, tmp_path, target_modules=["out_proj"], target_parameters=["0.scale"])
    vectors = TaskVectors.open(model, {"a": tmp_path})
    torch.testing.assert_close(vectors.expert("a", "0.scale"), expected["0.scale"], atol=1e-5, rtol=0)
    # PEFT's merge forgets the inner one, which is no output of a fused attention.
    a, b = (load_file(tmp_path / "adapter_model.safetensors")[name] for name in factors("0.base_layer.out_proj"))
    torch.testing.assert_close(vectors.stack("0.out_proj.weight")[0], 1.5 * b @ a, atol=1e-5, rtol=0)


def test_a_copy_of_the_embedding_is_no_change(tmp_path):
    model, options = case("tied head")
    write_lora(model, tmp_path, **options)
    head = "base_model.model.lm_head.lora_{}.weight"
    file = load_file(tmp_path / "adapter_model.safetensors")
    exact = file[head.format("B")].double() @ file[head.format("A")].double() * 1.5
    # Not the sum of copy and product minus the base, which is rounded.
    assert torch.equal(TaskVectors.open(model, {"a": tmp_path}).stack("lm_head.weight")[0], exact.float())


def test_an_adapter_with_a_name_of_its_own(tmp_path):
    torch.manual_seed(1)
    model = Every()
    config = peft.LoraConfig(target_modules=["fc", "bare"], init_lora_weights=False, modules_to_save=["head"])
    expected = save(peft.get_peft_model(copy.deepcopy(model), config, adapter_name="fc"), tmp_path)
    require_equal(TaskVectors.open(model, {"a": tmp_path / "fc"}), model.state_dict(), expected)
    with pytest.raises(CheckpointError, match="name the file, or the adapter's own folder, such as 'fc'"):
        TaskVectors.open(model, {"a": tmp_path})


def test_adalora(tmp_path):
    torch.manual_seed(1)
    model = Every()
    layers = ["square", "fc", *(["image"] if hasattr(peft.tuners.adalora.layer, "SVDConv2d") else [])]
    options = {"target_modules": layers, "total_step": 10, "init_r": 5, "lora_alpha": 6}
    expected = save(adapted(model, peft.AdaLoraConfig(**options)), tmp_path)
    require_equal(TaskVectors.open(model, {"a": tmp_path}), model.state_dict(), expected)


def test_ranks_that_adalora_cut(tmp_path):
    torch.manual_seed(1)
    model = Every()
    tuned = adapted(model, peft.AdaLoraConfig(target_modules=["fc", "bare"], total_step=10, init_r=4, lora_alpha=6))
    kept = {"fc": [True, False, True, False], "bare": [False] * 4}
    tuned.peft_config["default"].rank_pattern = {f"{name}.lora_E.default": rank for name, rank in kept.items()}
    with torch.no_grad():
        for name, rank in kept.items():  # as its allocator does
            tuned.get_submodule(f"base_model.model.{name}").lora_E["default"][~torch.tensor(rank)] = 0
    expected = save(tuned, tmp_path)
    require_equal(TaskVectors.open(model, {"a": tmp_path}), model.state_dict(), expected)


def test_tokens_alone(tmp_path):
    torch.manual_seed(1)
    model = gpt2()
    config = peft.TrainableTokensConfig(target_modules=["wte"], token_indices=[2, 0])
    expected = save(adapted(model, config), tmp_path)
    require_equal(TaskVectors.open(model, {"a": tmp_path}), model.state_dict(), expected)
    change_config(tmp_path, token_indices=[2, 11])
    with pytest.raises(CheckpointError, match=r"does not hold the 2 rows that adapter_config\.json names"):
        TaskVectors.open(model, {"a": tmp_path})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, tmp_path):
    torch.manual_seed(1)
    model = Every()
    config = peft.LoraConfig(target_modules=LAYERS, r=4, lora_alpha=6, init_lora_weights=False)
    tuned = adapted(model, config)
    for name, parameter in tuned.named_parameters():
        parameter.data = parameter.data.to(dtype).float() if "lora_" not in name else parameter.data.to(dtype)
    base = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    rounded = {name: tensor.float() for name, tensor in base.items()}
    exact = adapted(model, config)
    exact.load_state_dict({name: tensor.float() for name, tensor in tuned.state_dict().items()})
    save(tuned, tmp_path)
    expected = save(exact, tmp_path / "exact")
    require_equal(TaskVectors.open(base, {"a": tmp_path}), rounded, expected)


def test_open_clips_fused_attention(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(1)
    vision = {"layers": 2, "width": 32, "patch_size": 16, "image_size": 32, "head_width": 16}
    text = {"layers": 1, "width": 32, "heads": 2, "vocab_size": 30, "context_length": 8}
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()
    expected = write_lora(clip, tmp_path, target_modules=["attn", "c_fc", "c_proj"])
    require_equal(TaskVectors.open(clip, {"a": tmp_path}), clip.state_dict(), expected)
    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 16}
    vit = timm.create_model("vit_base_patch32_clip_224", pretrained=False, **sizes)
    tau = TaskVectors.open(clip, {"a": tmp_path}, model=vit)
    theirs = "visual.transformer.resblocks.1.attn."
    for ours, name in (("qkv.weight", "in_proj_weight"), ("proj.weight", "out_proj.weight")):
        difference = expected[theirs + name] - clip.state_dict()[theirs + name]
        torch.testing.assert_close(tau.stack(f"blocks.1.attn.{ours}")[0], difference, atol=1e-5, rtol=0)


def test_parts_of_a_tensor_that_are_saved_whole(tmp_path):
    torch.manual_seed(1)
    sizes = SIZES | {"image_size": 32, "patch_size": 16, "hidden_act": "gelu"}
    clip = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes))
    expected = write_lora(clip, tmp_path, target_modules=["q_proj", "v_proj"], bias="lora_only")
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    vit = timm.create_model("vit_base_patch32_clip_224", pretrained=False, num_classes=0, **options)
    tau = TaskVectors.open(clip, {"a": tmp_path}, model=vit).stack("blocks.1.attn.qkv.bias")[0]
    names = [next(name for name in expected if name.endswith(f"layers.1.self_attn.{part}_proj.bias")) for part in "qkv"]
    wanted = torch.cat([expected[name] - clip.state_dict()[name] for name in names])
    torch.testing.assert_close(tau, wanted, atol=1e-6, rtol=0)


def test_a_grouped_convolution_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    config = peft.LoraConfig(target_modules=["0"], r=4)
    adapted(model, config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"'0' is a convolution with 2 groups.* PEFT merges none either"):
        TaskVectors.open(model, {"a": tmp_path})


def test_factors_that_peft_adds_twice_to_a_tied_weight_are_refused(tmp_path):
    if "ensure_weight_tying" not in KNOWN:
        pytest.skip("this version of PEFT has it not")
    model = gpt2()
    write_lora(model, tmp_path, target_modules=["wte", "lm_head"], ensure_weight_tying=True)
    with pytest.raises(
        CheckpointError, match=r"several tensors change 'lm_head\.weight' and 'transformer\.wte\.weight'"
    ):
        TaskVectors.open(model, {"a": tmp_path})


def test_what_needs_a_base_that_has_it_says_what_that_lacks(tmp_path):
    write_lora(Every(), tmp_path, target_modules=["square"], use_dora=True)
    with pytest.raises(
        CheckpointError, match=r"the base has no tensor square\.weight.* to be the model that was fine-"
    ):
        TaskVectors.open(nn.Sequential(nn.Linear(6, 6)), {"a": tmp_path})


def test_magnitudes_of_another_layer(tmp_path):
    model = Every()
    write_lora(model, tmp_path, target_modules=["fc"], use_dora=True)
    file = load_file(tmp_path / "adapter_model.safetensors")
    file["base_model.model.fc.lora_magnitude_vector"] = torch.ones(6)
    save_file(file, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_magnitude_vector' has shape \(6,\), expected 3 magnitudes"):
        TaskVectors.open(model, {"a": tmp_path})


def test_a_matrix_may_be_named_by_its_parameter(tmp_path):
    if "target_parameters" not in KNOWN:
        pytest.skip("this version of PEFT has it not")
    model = mixtral()
    expected = write_lora(model, tmp_path, target_modules=[], target_parameters=["mlp.gate.weight"])
    require_equal(TaskVectors.open(model, {"a": tmp_path}), model.state_dict(), expected)


def test_parameters_of_which_nothing_tells_are_named(tmp_path):
    if "target_parameters" not in KNOWN:
        pytest.skip("this version of PEFT has it not")
    sizes = SIZES | {"intermediate_size": 8}  # so that both parameters are square
    config = transformers.MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=20, num_local_experts=3)
    model = transformers.MixtralForCausalLM(config)
    write_lora(model, tmp_path, target_modules=["q_proj"], target_parameters=["gate_up_proj"])
    TaskVectors.open(model, {"a": tmp_path})
    words = r"nothing tells which factors of 'model\.layers\.0\.mlp\.experts' belong .* gate_up_proj \(3, 16, 16\)"
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open({name: tensor.clone() for name, tensor in model.state_dict().items()}, {"a": tmp_path})


def test_the_configuration_of_the_base_tells_which_way_square_parameters_stand(tmp_path):
    if "target_parameters" not in KNOWN or not hasattr(transformers, "GptOssConfig"):
        pytest.skip("these versions have it not")
    sizes = SIZES | {"intermediate_size": 16, "num_hidden_layers": 1, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.GptOssConfig(**sizes, vocab_size=20, num_local_experts=3, pad_token_id=0, eos_token_id=1)
    model = transformers.GptOssForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "experts" in name:  # transformers leaves them as they are
                parameter.normal_()
    model.save_pretrained(tmp_path / "base")
    options = {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}
    expected = write_lora(model, tmp_path / "a", **options)
    for base in (tmp_path / "base", model):  # (experts, in, out)
        require_equal(TaskVectors.open(base, {"a": tmp_path / "a"}), model.state_dict(), expected)


def test_a_mixture_whose_files_hold_each_expert_by_itself(tmp_path):
    if "target_parameters" not in KNOWN:
        pytest.skip("this version of PEFT has it not")
    model = mixtral()
    model.save_pretrained(tmp_path / "base")
    write_lora(model, tmp_path / "a", target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    names = load_file(tmp_path / "base" / "model.safetensors")
    if "model.layers.0.mlp.experts.down_proj" in names:
        pytest.skip("this version of transformers writes them as one")
    with pytest.raises(CheckpointError, match=r"the base has no tensor model\.layers\.0\.mlp\.experts\.down_proj"):
        TaskVectors.open(tmp_path / "base", {"a": tmp_path / "a"})


def test_a_copy_of_another_shape_than_its_factors(tmp_path):
    model, options = case("tied head")
    write_lora(model, tmp_path, **options)
    file = load_file(tmp_path / "adapter_model.safetensors")
    file["base_model.model.lm_head.base_layer.weight"] = torch.ones(12, 8)
    save_file(file, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"weight' has several shapes, \(11, 8\), \(12, 8\)"):
        TaskVectors.open(model, {"a": tmp_path})


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (
            {"use_dora": True},
            {"use_dora": False},
            "'fc' has a lora_magnitude_vector, while use_dora is false in adapter_",
        ),
        ({}, {"use_dora": True}, "'fc' lacks a lora_magnitude_vector, while use_dora is true in adapter_config"),
        ({"lora_bias": True}, {"lora_bias": None}, r"'fc' has a lora_B\.bias, while lora_bias is false"),
        ({}, {"peft_type": "ADALORA"}, "'fc' lacks a lora_E, while peft_type is 'ADALORA'"),
    ],
)
def test_parts_that_a_configuration_does_not_tell_of(options, changes, words, tmp_path):
    write_lora(Every(), tmp_path, target_modules=["fc"], **options)
    change_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=words):
        TaskVectors.open(Every(), {"a": tmp_path})


def test_a_square_layer_of_which_nothing_tells_is_named(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    write_lora(model, tmp_path, target_modules=["0", "1"])
    change_config(tmp_path, fan_in_fan_out=True)
    with pytest.raises(CheckpointError, match=r"the weight of '0' is square, and nothing tells .* give the base as a"):
        TaskVectors.open(model.state_dict(), {"a": tmp_path})


def test_the_command_line_merges_what_peft_merges(tmp_path):
    torch.manual_seed(1)
    model, options = case("Conv1D and Linear")
    model.save_pretrained(tmp_path / "base")
    expected = write_lora(model, tmp_path / "a", **options)
    out = tmp_path / "merged.safetensors"
    rule = ["--rule", "task_arithmetic", "--scale", "1", "--out", str(out)]
    main(["merge", str(tmp_path / "base"), f"a={tmp_path / 'a'}", *rule])
    merged = load_file(out)
    assert set(merged) >= set(load_file(tmp_path / "base" / "model.safetensors"))
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
