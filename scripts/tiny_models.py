"""The table of tiny models that make_fixtures.py writes: configurations and what each is to show.

A `Tiny` is a config.json, and beside it whatever the folder needs that the configuration does
not say.  Nothing here computes: weights, golden answers and checks are in make_fixtures.py, the
publishers' names of weights in publisher.py.  Sizes are chosen so that a folder has some 150 KB.
"""
from dataclasses import dataclass, field

VOCAB, ENDOFTEXT, EOS = 304, 301, 303


@dataclass(frozen=True)
class Tiny:
    """One folder.  `without` maps a mechanism to the change that takes it out; check_fixtures.py
    holds that each moves some log-probability by more than 0.01."""

    config: dict
    without: dict = field(default_factory=dict)  # mechanism: {"config": {key: value}, "weights": {name ending: value}}
    reference: str = "mlx-lm"  # or "transformers", where mlx-lm computes something else
    why: str = ""  # why not mlx-lm
    differ_by: str = ""  # the mechanism of `without` that mlx-lm lacks: taken out, both agree
    spread: dict = field(default_factory=dict)  # name ending: standard deviation of its random weights
    quantised: dict = field(default_factory=dict)  # bits, group_size, mode; "paths": {path ending: the same | False}
    published: bool = False  # weights under the publisher's names and in its layout, not as mlx-lm converts them
    packed: str = ""  # "awq" or "blocks" (gpt-oss's mxfp4): in a publisher's packed format
    more: dict = field(default_factory=dict)  # name: shape of weights beside those that mlx-lm's class has
    steady: bool = True  # its prompts' answers do not hang on rounding (not asked of the first models)
    stepwise: bool = True  # keys do not depend on how long the sequence is in the end
    lengths: tuple = (3, 17, 40, 64, 100)  # of the prompts, in tokens


COMMON = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=4096, rope_theta=10000.0,
              tie_word_embeddings=True, bos_token_id=None, eos_token_id=EOS, torch_dtype="bfloat16")
LLAMA = dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False, mlp_bias=False,
             hidden_act="silu", head_dim=16, rope_scaling=None)
LINEAR_ATTENTION = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
                        linear_value_head_dim=8, linear_conv_kernel_dim=4, full_attention_interval=4)

FIRST = {
    "llama": dict(LLAMA, head_dim=8, intermediate_size=16, torch_dtype="float32"),
    "llama-sharded": dict(LLAMA),
    "llama-rope3": dict(LLAMA, tie_word_embeddings=False, intermediate_size=32,
                        rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                          original_max_position_embeddings=64)),
    "llama-linear": dict(LLAMA, rope_scaling=dict(rope_type="linear", factor=4.0)),
    "llama-yarn": dict(LLAMA, max_position_embeddings=256,
                       rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64,
                                         beta_fast=8.0, beta_slow=1.0)),
    "llama-4bit": dict(LLAMA, hidden_size=64, intermediate_size=32, tie_word_embeddings=False,
                       torch_dtype="float32"),
    "mistral-swa": dict(LLAMA, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=16,
                        tie_word_embeddings=False, intermediate_size=32,
                        layer_types=["sliding_attention", "full_attention"] * 2),
    "qwen2": dict(COMMON, model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_act="silu",
                  use_sliding_window=False, intermediate_size=64),
    "qwen3": dict(COMMON, model_type="qwen3", architectures=["Qwen3ForCausalLM"], hidden_act="silu", head_dim=16),
    "gemma3": dict(COMMON, model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], head_dim=16,
                   num_key_value_heads=1, num_hidden_layers=6, intermediate_size=24, query_pre_attn_scalar=16,
                   sliding_window=16, sliding_window_pattern=3, rope_local_base_freq=10000.0, rope_theta=1000000.0,
                   rope_scaling=None, hidden_activation="gelu_pytorch_tanh", attention_bias=False,
                   layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2),
    "lfm2": dict(COMMON, model_type="lfm2", architectures=["Lfm2ForCausalLM"], norm_eps=1e-5, conv_bias=False,
                 conv_L_cache=3, block_dim=32, block_ff_dim=48, block_multiple_of=16, block_ffn_dim_multiplier=1.0,
                 block_auto_adjust_ff_dim=False, layer_types=["conv", "conv", "full_attention", "conv"]),
    "qwen3_5": dict(model_type="qwen3_5", architectures=["Qwen3_5ForConditionalGeneration"],
                    tie_word_embeddings=True, bos_token_id=None, eos_token_id=EOS, torch_dtype="bfloat16",
                    text_config=dict({k: v for k, v in COMMON.items() if k != "rope_theta"},
                                     model_type="qwen3_5_text", head_dim=16, **LINEAR_ATTENTION,
                                     rope_parameters=dict(rope_type="default", mrope_section=[1, 1, 0],
                                                          rope_theta=10000.0, partial_rotary_factor=0.25))),
}
FOUR_BITS = dict(bits=4, group_size=32)

# ---------------------------------------------------------------- mixtures of experts
# In float32: MLX's gather_mm has nothing else on a CPU.
MOE = dict(COMMON, torch_dtype="float32", num_hidden_layers=3, head_dim=8, intermediate_size=16)
QWEN_MOE = dict(num_experts=8, num_experts_per_tok=3, moe_intermediate_size=6, norm_topk_prob=True,
                decoder_sparse_step=1, mlp_only_layers=[])
CORRECTION = {"e_score_correction_bias": 0.3}
UNSCALED = {"config": {"routed_scaling_factor": 1.0}}


def zero(*endings):
    return {"weights": {e: 0.0 for e in endings}}


def wrapped(config, text_type, **more):
    """`config` as the text_config of a wrapper, the way of models that also take pictures."""
    both = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "torch_dtype")
    return dict({k: config[k] for k in both if k in config}, text_config=dict(config, model_type=text_type), **more)


EXPERTS = {
    "qwen3_moe": Tiny(
        dict(MOE, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], hidden_act="silu",
             **dict(QWEN_MOE, mlp_only_layers=[1])),
        {"renormalising": {"config": {"norm_topk_prob": False}}, "third expert": {"config": {"num_experts_per_tok": 2}},
         "dense layer": zero("layers.1.mlp.down_proj.weight")}),
    "qwen3_moe-4bit": Tiny(
        dict(MOE, model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"], hidden_act="silu", hidden_size=64,
             num_hidden_layers=2, head_dim=16, **dict(QWEN_MOE, moe_intermediate_size=32)),
        {"third expert": {"config": {"num_experts_per_tok": 2}}}, quantised=FOUR_BITS),
    "qwen3_5_moe": Tiny(
        wrapped(dict({k: v for k, v in MOE.items() if k not in ("rope_theta", "intermediate_size")},
                     **dict(LINEAR_ATTENTION, full_attention_interval=3),
                     layer_types=["linear_attention", "linear_attention", "full_attention"],
                     num_experts=8, num_experts_per_tok=3, moe_intermediate_size=4, mlp_only_layers=[],
                     shared_expert_intermediate_size=8, attn_output_gate=True, mamba_ssm_dtype="float32",
                     mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False,
                     rope_parameters=dict(rope_type="default", mrope_interleaved=True, mrope_section=[1, 0, 0],
                                          rope_theta=10000.0, partial_rotary_factor=0.25)),
                "qwen3_5_moe_text", model_type="qwen3_5_moe",
                architectures=["Qwen3_5MoeForConditionalGeneration"]),
        {"shared expert": zero("shared_expert.down_proj.weight"), "its gate": zero("shared_expert_gate.weight"),
         "experts": zero("switch_mlp.down_proj.weight")}),
    "mixtral": Tiny(
        dict({k: v for k, v in MOE.items() if k != "head_dim"}, model_type="mixtral",
             architectures=["MixtralForCausalLM"], hidden_act="silu", intermediate_size=6, num_local_experts=8,
             num_experts_per_tok=2, sliding_window=None),
        {"second expert": {"config": {"num_experts_per_tok": 1}}}),
    "qwen2_moe": Tiny(
        dict({k: v for k, v in MOE.items() if k != "head_dim"}, model_type="qwen2_moe", tie_word_embeddings=False,
             architectures=["Qwen2MoeForCausalLM"], hidden_act="silu", num_hidden_layers=2, use_sliding_window=False,
             sliding_window=32, max_window_layers=1, output_router_logits=False,
             **dict(QWEN_MOE, moe_intermediate_size=4, norm_topk_prob=False), shared_expert_intermediate_size=8),
        {"shared expert": zero("shared_expert.down_proj.weight"), "its gate": zero("shared_expert_gate.weight"),
         "biases": zero("_proj.bias")}),
    "lfm2_moe": Tiny(
        dict({k: v for k, v in MOE.items() if k not in ("head_dim", "rms_norm_eps")}, model_type="lfm2_moe",
             architectures=["Lfm2MoeForCausalLM"], norm_eps=1e-5, conv_bias=False, conv_L_cache=3,
             moe_intermediate_size=4, num_experts=8, num_experts_per_tok=3, norm_topk_prob=True, use_expert_bias=True,
             num_dense_layers=1, routed_scaling_factor=1.5, layer_types=["conv", "full_attention", "conv"]),
        {"expert bias": zero("expert_bias"), "scaling": UNSCALED,
         "renormalising": {"config": {"norm_topk_prob": False}}}),
    "glm4_moe": Tiny(
        dict(MOE, model_type="glm4_moe", architectures=["Glm4MoeForCausalLM"], hidden_act="silu",
             tie_word_embeddings=False, moe_intermediate_size=4, n_routed_experts=8, num_experts_per_tok=2,
             n_shared_experts=1, n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=2.5,
             first_k_dense_replace=1, num_nextn_predict_layers=1, attention_bias=True, use_qk_norm=True,
             partial_rotary_factor=0.5, rope_scaling=None),
        {"correction bias": zero("e_score_correction_bias"), "scaling": UNSCALED, "biases": zero("_proj.bias"),
         "shared expert": zero("shared_experts.down_proj.weight"),
         "partial rotation": {"config": {"partial_rotary_factor": 1.0}}}, spread=CORRECTION),
    "olmoe": Tiny(
        dict(MOE, model_type="olmoe", architectures=["OlmoeForCausalLM"], hidden_act="silu", intermediate_size=4,
             num_experts=8, num_experts_per_tok=3, norm_topk_prob=False, clip_qkv=None, attention_bias=False,
             rope_scaling=None),
        {"not renormalising": {"config": {"norm_topk_prob": True}}, "norm of the keys": zero("k_norm.weight")},
        published=True),
    "ernie4_5_moe": Tiny(
        dict(MOE, model_type="ernie4_5_moe", architectures=["Ernie4_5_MoeForCausalLM"], hidden_act="silu",
             use_bias=False, moe_num_experts=8, moe_k=2, moe_intermediate_size=4, moe_num_shared_experts=2,
             moe_layer_start_index=1, moe_layer_end_index=2, moe_layer_interval=1, moe_use_aux_free=True,
             moe_capacity=[8, 8, 8], num_nextn_predict_layers=1, rope_scaling=None),
        {"correction bias": zero("e_score_correction_bias"), "shared experts": zero("shared_experts.down_proj.weight")},
        reference="transformers", why="mlx-lm leaves e_score_correction_bias out",
        differ_by="correction bias", published=True,
        spread={"e_score_correction_bias": 0.1},
        more={**{f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias": (1, 8) for layer in (1, 2)},
              "model.mtp_emb_norm.0.weight": (32,), "model.mtp_hidden_norm.0.weight": (32,),
              "model.mtp_linear_proj.0.weight": (32, 64), "model.mtp_block.0.self_attn.q_proj.weight": (32, 32)}),
    "qwen3_next": Tiny(
        dict(MOE, model_type="qwen3_next", architectures=["Qwen3NextForCausalLM"], hidden_act="silu",
             **dict(LINEAR_ATTENTION, full_attention_interval=3), partial_rotary_factor=0.25,
             **dict(QWEN_MOE, moe_intermediate_size=4), shared_expert_intermediate_size=8, rope_scaling=None),
        {"shared expert": zero("shared_expert.down_proj.weight"), "its gate": zero("shared_expert_gate.weight"),
         "partial rotation": {"config": {"partial_rotary_factor": 0.5}}}),
    "granitemoe": Tiny(
        dict({k: v for k, v in MOE.items() if k != "head_dim"}, model_type="granitemoe",
             architectures=["GraniteMoeForCausalLM"], hidden_act="silu", intermediate_size=4, num_local_experts=8,
             num_experts_per_tok=3, attention_bias=False, attention_dropout=0.1, output_router_logits=False,
             attention_multiplier=0.2, embedding_multiplier=6.0, residual_multiplier=0.5, logits_scaling=4.0,
             rope_scaling=None),
        {"attention_multiplier": {"config": {"attention_multiplier": 8 ** -0.5}},
         "embedding_multiplier": {"config": {"embedding_multiplier": 1.0}},
         "residual_multiplier": {"config": {"residual_multiplier": 1.0}},
         "logits_scaling": {"config": {"logits_scaling": 1.0}}}, published=True),
}

# ---------------------------------------------------------------- gpt-oss and the modes of quantisation
GPT_OSS = dict(MOE, model_type="gpt_oss", architectures=["GptOssForCausalLM"], hidden_act="silu", head_dim=16,
               num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=16,
               tie_word_embeddings=False, intermediate_size=4, num_local_experts=8, num_experts_per_tok=2,
               experts_per_token=2, attention_bias=True, swiglu_limit=7.0, max_position_embeddings=2048,
               initial_context_length=64,
               rope_scaling=dict(rope_type="yarn", factor=32.0, beta_fast=4.0, beta_slow=1.0, truncate=False,
                                 original_max_position_embeddings=64))
GPT_OSS_WITHOUT = {
    "truncate false": {"config": {"rope_scaling": dict(GPT_OSS["rope_scaling"], truncate=True)}},
    "sinks": {"weights": {"sinks": -1e4}}, "window": {"config": {"sliding_window": 4096}},
    "clamping": {"config": {"swiglu_limit": 1e6}}, "bias of the router": zero("router.bias"),
    "bias of the output": zero("o_proj.bias"),
}
GPT_OSS_BIASES = {f"biases of the experts' {which}": zero(f"experts.{which}_proj.bias")
                  for which in ("gate", "up", "down")}
GPT_OSS_MORE = dict(reference="transformers", why="mlx-lm floors and ceils yarn's range whatever `truncate` says",
                    differ_by="truncate false", spread={"sinks": 1.0, "experts.gate_proj.weight": 0.7,
                                                        "experts.up_proj.weight": 0.7})
QUANTISED_LLAMA = dict(LLAMA, hidden_size=64, intermediate_size=32, tie_word_embeddings=False, torch_dtype="float32")
MODES = {
    "gpt_oss": Tiny(GPT_OSS, {**GPT_OSS_WITHOUT, **GPT_OSS_BIASES}, **GPT_OSS_MORE),
    # As gpt-oss's conversions are: experts in the publisher's mxfp4, the rest affine at 8 bits.
    "gpt_oss-mxfp4": Tiny(
        dict(GPT_OSS, hidden_size=64, intermediate_size=32), {**GPT_OSS_WITHOUT, **GPT_OSS_BIASES}, **GPT_OSS_MORE,
        quantised=dict(bits=4, group_size=32, mode="mxfp4", paths={
            ending: dict(group_size=32, bits=8) for ending in (
                "embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "router")})),
    # As gpt-oss's publisher has it.
    "gpt_oss-blocks": Tiny(
        dict(GPT_OSS, hidden_size=64, intermediate_size=32, torch_dtype="bfloat16", quantization_config=dict(
            quant_method="mxfp4", modules_to_not_convert=[
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"])),
        {**GPT_OSS_WITHOUT, **{f"biases of the experts' {which}": zero(f"experts.{which}_proj_bias")
                               for which in ("gate_up", "down")}},
        **GPT_OSS_MORE, packed="blocks", quantised=dict(bits=4, group_size=32, mode="mxfp4", paths={
            ending: False for ending in (
                "embed_tokens", "lm_head", "q_proj", "k_proj", "v_proj", "o_proj", "router")})),
    "llama-awq": Tiny(
        dict(QUANTISED_LLAMA, torch_dtype="float16", quantization_config=dict(
            quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm", modules_to_not_convert=None)),
        packed="awq"),
    "llama-mxfp4": Tiny(QUANTISED_LLAMA, quantised=dict(bits=4, group_size=32, mode="mxfp4")),
    "llama-nvfp4": Tiny(QUANTISED_LLAMA, quantised=dict(bits=4, group_size=16, mode="nvfp4")),
    "llama-mxfp8": Tiny(QUANTISED_LLAMA, quantised=dict(bits=8, group_size=32, mode="mxfp8")),
}

# ---------------------------------------------------------------- old mechanisms under new names
WINDOW_OFF = {"config": {"sliding_window": 4096}}
PATCHES = {"patch_embed.proj.weight": (8, 2, 2, 2, 3), "blocks.0.attn.qkv.weight": (24, 8),
           "blocks.0.attn.qkv.bias": (24,), "merger.mlp.0.weight": (8, 8)}
VISION_CONFIG = dict(depth=1, hidden_size=8, num_heads=1, patch_size=2, out_hidden_size=32)
RENAMED = {
    "gemma2": Tiny(
        dict({k: v for k, v in COMMON.items() if k != "tie_word_embeddings"}, model_type="gemma2",
             architectures=["Gemma2ForCausalLM"], head_dim=16, num_key_value_heads=1, intermediate_size=24,
             hidden_activation="gelu_pytorch_tanh", attn_logit_softcapping=5.0,
             final_logit_softcapping=20.0, query_pre_attn_scalar=8, sliding_window=16, sliding_window_size=16,
             hidden_act="gelu_pytorch_tanh", cache_implementation="hybrid", attention_bias=False),
        {"window": WINDOW_OFF, "cap of the scores": {"config": {"attn_logit_softcapping": 1e6}},
         "cap of the logits": {"config": {"final_logit_softcapping": 1e6}},
         "query_pre_attn_scalar": {"config": {"query_pre_attn_scalar": 16}}},
        reference="transformers", why="mlx-lm attends fully in the layers that have a window", differ_by="window"),
    "seed_oss": Tiny(
        dict(COMMON, model_type="seed_oss", architectures=["SeedOssForCausalLM"], hidden_act="silu", head_dim=16,
             attention_bias=True, attention_out_bias=False, mlp_bias=False, attention_dropout=0.1,
             residual_dropout=0.1, rope_scaling=dict(rope_type="default")),
        {"biases": zero("_proj.bias")}),
    "ernie4_5": Tiny(
        dict(COMMON, model_type="ernie4_5", architectures=["Ernie4_5ForCausalLM"], hidden_act="silu", head_dim=16,
             use_bias=False, rope_scaling=None),
        {"rotation of neighbours": {"config": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}}}),
    # As mlx-vlm's conversions are.
    "qwen3_vl": Tiny(
        wrapped(dict(COMMON, head_dim=16, hidden_act="silu", attention_bias=False,
                     rope_scaling=dict(rope_type="default", mrope_interleaved=True, mrope_section=[4, 2, 2])),
                "qwen3_vl_text", model_type="qwen3_vl", architectures=["Qwen3VLForConditionalGeneration"],
                vision_config=dict(VISION_CONFIG, model_type="qwen3_vl", deepstack_visual_indexes=[0])),
        {"norm of the keys": zero("k_norm.weight")},
        more={**{f"vision_tower.{name}": shape for name, shape in PATCHES.items()},
              "vision_tower.deepstack_merger_list.0.norm.weight": (8,)}),
    # As the publisher's are: experts fused and transposed.
    "qwen3_vl_moe": Tiny(
        wrapped(dict(MOE, hidden_act="silu", attention_bias=False, tie_word_embeddings=False, num_hidden_layers=2,
                     rope_scaling=dict(rope_type="default", mrope_interleaved=True, mrope_section=[2, 1, 1]),
                     **dict(QWEN_MOE, moe_intermediate_size=4)),
                "qwen3_vl_moe_text", model_type="qwen3_vl_moe", architectures=["Qwen3VLMoeForConditionalGeneration"],
                vision_config=dict(VISION_CONFIG, model_type="qwen3_vl_moe", deepstack_visual_indexes=[0])),
        {"renormalising": {"config": {"norm_topk_prob": False}},
         "third expert": {"config": {"num_experts_per_tok": 2}}},
        published=True, more={f"model.visual.{name}": shape for name, shape in PATCHES.items()}),
    # As the publisher's are: no text_config, weights of the text under `model.`
    "qwen2_5_vl": Tiny(
        dict(COMMON, model_type="qwen2_5_vl", architectures=["Qwen2_5_VLForConditionalGeneration"], hidden_act="silu",
             intermediate_size=64, use_sliding_window=False, sliding_window=4096, max_window_layers=4,
             rope_scaling=dict(type="mrope", mrope_section=[2, 1, 1]),
             vision_config=dict(VISION_CONFIG, model_type="qwen2_5_vl")),
        {"biases": zero("_proj.bias")}, published=True,
        more={f"visual.{name}": shape for name, shape in PATCHES.items()}),
    # As the publisher's: tie_word_embeddings is nowhere, which means that they are not.
    "mistral3": Tiny(
        wrapped(dict({k: v for k, v in LLAMA.items() if k not in ("architectures", "tie_word_embeddings")},
                     intermediate_size=32, sliding_window=None), "mistral",
                model_type="mistral3", architectures=["Mistral3ForConditionalGeneration"], spatial_merge_size=2,
                vision_config=dict(model_type="pixtral", hidden_size=8, num_hidden_layers=1)),
        {"own head": zero("lm_head.weight")},
        more={"vision_tower.patch_conv.weight": (8, 2, 2, 3), "vision_tower.ln_pre.weight": (8,),
              "multi_modal_projector.linear_1.weight": (32, 8)}),
}

# ---------------------------------------------------------------- attention of other kinds
GEMMA4 = dict({k: v for k, v in COMMON.items() if k != "rope_theta"}, head_dim=8, global_head_dim=16,
              hidden_activation="gelu_pytorch_tanh", attention_bias=False, sliding_window=16,
              final_logit_softcapping=20.0, vocab_size_per_layer_input=VOCAB, use_bidirectional_attention=None,
              rope_parameters=dict(
                  sliding_attention=dict(rope_type="default", rope_theta=10000.0),
                  full_attention=dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1000000.0)))
GEMMA4_WITHOUT = {
    "window": WINDOW_OFF, "cap of the logits": {"config": {"final_logit_softcapping": 1e6}},
    "layer scalar": {"weights": {"layer_scalar": 1.0}},
    "partial rotation": {"config": {"rope_parameters": dict(
        GEMMA4["rope_parameters"], full_attention=dict(GEMMA4["rope_parameters"]["full_attention"],
                                                       partial_rotary_factor=1.0))}},
}
OLMO3_YARN = dict(rope_type="yarn", factor=8.0, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=1.0)
MINISTRAL_ROPE = dict(type="yarn", rope_type="yarn", rope_theta=10000.0, factor=8.0, beta_fast=4.0, beta_slow=1.0,
                      original_max_position_embeddings=32, max_position_embeddings=256, mscale=1.0, mscale_all_dim=1.0,
                      llama_4_scaling_beta=0.3)
ATTENTION = {
    # As E2B and E4B: per-layer embeddings, keys and values of the last three layers from earlier ones.
    "gemma4": Tiny(
        wrapped(dict(GEMMA4, num_hidden_layers=6, num_key_value_heads=1, intermediate_size=16,
                     layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
                     num_kv_shared_layers=3, use_double_wide_mlp=True, hidden_size_per_layer_input=4,
                     attention_k_eq_v=False, num_global_key_value_heads=None, enable_moe_block=False,
                     num_experts=None, top_k_experts=None, moe_intermediate_size=None),
                "gemma4_text", model_type="gemma4", architectures=["Gemma4ForConditionalGeneration"],
                vocab_size=VOCAB, vision_config=dict(model_type="gemma4_vision", hidden_size=8),
                audio_config=dict(model_type="gemma4_audio", hidden_size=8)),
        {**GEMMA4_WITHOUT, "embeddings of the layers": zero("embed_tokens_per_layer.weight"),
         "per-layer inputs": zero("per_layer_projection.weight")},
        spread={"embed_tokens_per_layer.weight": 0.5, "layer_scalar": 0.3},
        more={"vision_tower.patch_embedder.input_proj.weight": (8, 12),
              "embed_vision.embedding_projection.weight": (32, 8), "audio_tower.output_proj.weight": (8, 8),
              "embed_audio.embedding_projection.weight": (32, 8)}),
    # As 26B-A4B: experts beside the MLP, values from the keys' projection in the full layers.
    "gemma4-moe": Tiny(
        wrapped(dict(GEMMA4, torch_dtype="float32", num_hidden_layers=3, num_key_value_heads=2, intermediate_size=8,
                     layer_types=["sliding_attention", "sliding_attention", "full_attention"],
                     num_kv_shared_layers=0, use_double_wide_mlp=False, hidden_size_per_layer_input=0,
                     attention_k_eq_v=True, num_global_key_value_heads=1, enable_moe_block=True, num_experts=8,
                     use_bidirectional_attention="vision",
                     top_k_experts=2, moe_intermediate_size=4),
                "gemma4_text", model_type="gemma4", architectures=["Gemma4ForConditionalGeneration"],
                vocab_size=VOCAB, vision_config=dict(model_type="gemma4_vision", hidden_size=8)),
        {**GEMMA4_WITHOUT, "experts": zero("experts.down_proj"), "MLP": zero("mlp.down_proj.weight"),
         "scale of an expert": {"weights": {"per_expert_scale": 1.0}},
         "scale of the router": {"weights": {"router.scale": 1.0}}},
        published=True, spread={"layer_scalar": 0.3, "router.scale": 0.3, "per_expert_scale": 0.3},
        more={"model.vision_tower.patch_embedder.input_proj.weight": (8, 12),
              "model.embed_vision.embedding_projection.weight": (32, 8)}),
    "smollm3": Tiny(
        dict(COMMON, model_type="smollm3", architectures=["SmolLM3ForCausalLM"], hidden_act="silu",
             pad_token_id=ENDOFTEXT, attention_bias=False, mlp_bias=False, no_rope_layers=[1, 1, 0, 1],
             no_rope_layer_interval=3, use_sliding_window=False, sliding_window=None,
             layer_types=["full_attention"] * 4, rope_scaling=None, max_window_layers=28, pretraining_tp=2),
        {"layer without rotation": {"config": {"no_rope_layers": [1, 1, 1, 1]}}}),
    "ministral3": Tiny(
        wrapped(dict({k: v for k, v in COMMON.items() if k != "rope_theta"}, head_dim=16, hidden_act="silu",
                     sliding_window=None, max_position_embeddings=256, rope_parameters=MINISTRAL_ROPE),
                "ministral3", model_type="mistral3", architectures=["Mistral3ForConditionalGeneration"],
                vision_config=dict(model_type="pixtral", hidden_size=8, num_hidden_layers=1)),
        {"scaling of the queries": {"config": {"rope_parameters": dict(MINISTRAL_ROPE, llama_4_scaling_beta=0.0)}},
         "yarn": {"config": {"rope_parameters": dict(MINISTRAL_ROPE, factor=1.0)}}},
        more={"vision_tower.patch_conv.weight": (8, 2, 2, 3), "multi_modal_projector.linear_1.weight": (32, 8)}),
    "minimax_m2": Tiny(
        dict(MOE, model_type="minimax_m2", architectures=["MiniMaxM2ForCausalLM"], hidden_act="silu",
             intermediate_size=4, shared_intermediate_size=0, num_local_experts=8, num_experts_per_tok=2,
             scoring_func="sigmoid", use_routing_bias=True, use_qk_norm=True, qk_norm_type="per_layer", rotary_dim=4,
             use_mtp=True, mtp_transformer_layers=1, num_mtp_modules=3),
        {"correction bias": zero("e_score_correction_bias"), "norm of the keys": zero("k_norm.weight"),
         "partial rotation": {"config": {"rotary_dim": 8}}}, spread=CORRECTION),
    "olmo2": Tiny(
        dict(COMMON, model_type="olmo2", architectures=["Olmo2ForCausalLM"], hidden_act="silu", attention_bias=False,
             rope_scaling=None),
        {"norm of the keys": zero("k_norm.weight"), "MLP": zero("post_feedforward_layernorm.weight")}),
    "olmo3": Tiny(
        dict(COMMON, model_type="olmo3", architectures=["Olmo3ForCausalLM"], hidden_act="silu", attention_bias=False,
             sliding_window=16, layer_types=["sliding_attention"] * 3 + ["full_attention"], rope_theta=500000.0,
             rope_scaling=dict(OLMO3_YARN, attention_factor=1.4), tie_word_embeddings=False),
        {"window": WINDOW_OFF, "attention_factor": {"config": {"rope_scaling": OLMO3_YARN}},
         "yarn": {"config": {"rope_scaling": None}}},
        reference="transformers", why="mlx-lm ignores yarn's attention_factor", differ_by="attention_factor"),
    "exaone4": Tiny(
        dict(COMMON, model_type="exaone4", architectures=["Exaone4ForCausalLM"], hidden_act="silu", head_dim=16,
             sliding_window=16, sliding_window_pattern="LLLG",
             layer_types=["sliding_attention"] * 3 + ["full_attention"],
             rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=64)),
        {"window": WINDOW_OFF, "scaled rotation": {"config": {"rope_scaling": dict(rope_type="default")}}}),
}

# ---------------------------------------------------------------- fused matrices, multipliers, parallel blocks
LONGROPE = dict(type="longrope", rope_type="longrope", long_factor=[1.5, 6.0, 20.0], short_factor=[1.0, 1.3, 2.0])
FUSED = {
    # Prompts on either side of the original length, 88, and their answers on the same.
    "phi3": Tiny(
        dict(COMMON, model_type="phi3", architectures=["Phi3ForCausalLM"], hidden_act="silu", pad_token_id=ENDOFTEXT,
             attention_bias=False,
             partial_rotary_factor=0.75, max_position_embeddings=1024, original_max_position_embeddings=88,
             rope_scaling=LONGROPE, sliding_window=2048, embd_pdrop=0.0, resid_pdrop=0.0, full_attn_mod=1,
             interpolate_factor=1, lm_head_bias=False, mlp_bias=False),
        {"short factors": {"config": {"rope_scaling": dict(LONGROPE, short_factor=LONGROPE["long_factor"])}},
         "long factors": {"config": {"rope_scaling": dict(LONGROPE, long_factor=LONGROPE["short_factor"])}},
         "scaled rotation": {"config": {"max_position_embeddings": 88}}},
        reference="transformers", why="mlx-lm takes the long factors for short sequences, too",
        differ_by="short factors", stepwise=False, lengths=(3, 17, 40, 90, 130)),
    "glm4": Tiny(
        dict(COMMON, model_type="glm4", architectures=["Glm4ForCausalLM"], hidden_act="silu",
             pad_token_id=ENDOFTEXT, head_dim=16, attention_bias=True, partial_rotary_factor=0.5,
             tie_word_embeddings=False, intermediate_size=24),
        {"biases": zero("_proj.bias"), "partial rotation": {"config": {"partial_rotary_factor": 1.0}},
         "norm after the MLP": zero("post_mlp_layernorm.weight")}),
    "granite": Tiny(
        dict(COMMON, model_type="granite", architectures=["GraniteForCausalLM"], hidden_act="silu",
             attention_bias=False, mlp_bias=False, attention_multiplier=0.2, embedding_multiplier=6.0,
             residual_multiplier=0.5, logits_scaling=4.0, rope_scaling=None),
        {"attention_multiplier": {"config": {"attention_multiplier": 8 ** -0.5}},
         "embedding_multiplier": {"config": {"embedding_multiplier": 1.0}},
         "residual_multiplier": {"config": {"residual_multiplier": 1.0}},
         "logits_scaling": {"config": {"logits_scaling": 1.0}}}),
    "cohere2": Tiny(
        dict({k: v for k, v in COMMON.items() if k not in ("rms_norm_eps", "tie_word_embeddings")},
             model_type="cohere2", architectures=["Cohere2ForCausalLM"], hidden_act="silu", head_dim=8,
             layer_norm_eps=1e-5, logit_scale=0.25, attention_bias=False, sliding_window=16,
             sliding_window_pattern=4, layer_switch=4,
             order_of_interleaved_layers="local_attn_first", position_embedding_type="rope_gptj", rotary_pct=1.0,
             rope_scaling=None, cache_implementation="hybrid", use_embedding_sharing=True, use_gated_activation=True,
             use_parallel_block=True, use_parallel_embedding=True),
        {"window": WINDOW_OFF, "logit_scale": {"config": {"logit_scale": 1.0}}}),
}

# ---------------------------------------------------------------- latent attention
LATENT_YARN = dict(type="yarn", factor=8.0, original_max_position_embeddings=64, beta_fast=8, beta_slow=1)
LATENT = dict({k: v for k, v in MOE.items() if k != "head_dim"}, hidden_act="silu", tie_word_embeddings=False,
              num_hidden_layers=2, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=12, qk_nope_head_dim=8,
              qk_rope_head_dim=4, v_head_dim=12, moe_intermediate_size=4, moe_layer_freq=1, n_routed_experts=8,
              num_experts_per_tok=2, n_shared_experts=1, first_k_dense_replace=1, n_group=4, topk_group=2,
              norm_topk_prob=True, scoring_func="sigmoid", topk_method="noaux_tc", routed_scaling_factor=2.5,
              attention_bias=False, attention_dropout=0.0, num_nextn_predict_layers=1)
MISTRAL4_ROPE = dict(MINISTRAL_ROPE, partial_rotary_factor=4 / 12)
UNGROUPED = {"config": {"n_group": 1, "topk_group": 1}}
ROTATION_OFF = {"config": {"rope_theta": 1e12}}
GLM4_LITE = dict(LATENT, model_type="glm4_moe_lite", architectures=["Glm4MoeLiteForCausalLM"], v_head_dim=16,
                 n_group=1, topk_group=1, routed_scaling_factor=1.8, rms_norm_eps=1e-5, partial_rotary_factor=1.0,
                 rope_theta=1000000.0, rope_scaling=None)
LATENTS = {
    "deepseek_v3": Tiny(
        dict(LATENT, model_type="deepseek_v3", architectures=["DeepseekV3ForCausalLM"], hidden_size=24,
             num_hidden_layers=3, ep_size=1, rope_scaling=dict(LATENT_YARN, mscale=0.5, mscale_all_dim=1.0)),
        {"correction bias": zero("e_score_correction_bias"), "groups": UNGROUPED, "scaling": UNSCALED,
         "mscale_all_dim": {"config": {"rope_scaling": dict(LATENT_YARN, mscale=0.5, mscale_all_dim=0.1)}},
         "rotation": ROTATION_OFF, "dense layer": zero("layers.0.mlp.down_proj.weight")},
        spread={"e_score_correction_bias": 0.1}),
    "deepseek_v2": Tiny(
        dict({k: v for k, v in LATENT.items() if k != "num_nextn_predict_layers"}, model_type="deepseek_v2",
             architectures=["DeepseekV2ForCausalLM"], q_lora_rank=None, scoring_func="softmax", norm_topk_prob=False,
             topk_method="group_limited_greedy", topk_group=1, routed_scaling_factor=4.0, aux_loss_alpha=0.001,
             seq_aux=True, ep_size=1, attention_bias=True, n_shared_experts=2,
             rope_scaling=dict(LATENT_YARN, mscale=0.707, mscale_all_dim=0.707)),
        {"groups": {"config": {"topk_method": "greedy"}}, "scaling": UNSCALED, "biases": zero("_proj.bias"),
         "shared experts": zero("shared_experts.down_proj.weight"), "rotation": ROTATION_OFF}),
    # As the publisher's: each head's matrices in one.
    "glm4_moe_lite": Tiny(
        GLM4_LITE,
        {"correction bias": zero("e_score_correction_bias"), "scaling": UNSCALED,
         "values": zero("o_proj.weight"), "rotation": ROTATION_OFF},
        published=True, spread={"e_score_correction_bias": 0.1}),
    "mistral4": Tiny(
        wrapped(dict({k: v for k, v in LATENT.items() if k not in (
                    "scoring_func", "topk_method", "moe_layer_freq", "num_nextn_predict_layers", "rope_theta")},
                     kv_lora_rank=8, first_k_dense_replace=0, topk_group=1, max_position_embeddings=256,
                     routed_scaling_factor=1.5, rope_parameters=MISTRAL4_ROPE, rope_interleave=True),
                "mistral4", model_type="mistral3", architectures=["Mistral3ForConditionalGeneration"],
                vision_config=dict(model_type="pixtral", hidden_size=8, num_hidden_layers=1)),
        {"scaling of the queries": {"config": {"rope_parameters": dict(MISTRAL4_ROPE, llama_4_scaling_beta=0.0)}},
         "groups": UNGROUPED, "renormalising": {"config": {"norm_topk_prob": False}}, "scaling": UNSCALED},
        more={"vision_tower.patch_conv.weight": (8, 2, 2, 3), "multi_modal_projector.linear_1.weight": (32, 8)}),
    # As MLX's: matrices of each head by themselves.
    "glm4_moe_lite-4bit": Tiny(
        dict(GLM4_LITE, hidden_size=64, num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=32, q_lora_rank=32,
             qk_nope_head_dim=32, qk_rope_head_dim=32, v_head_dim=32, intermediate_size=32, moe_intermediate_size=32),
        {"rotation": ROTATION_OFF}, spread={"e_score_correction_bias": 0.1}, quantised=FOUR_BITS),
}

# ---------------------------------------------------------------- Mamba-2
SINGLE = {k: v for k, v in COMMON.items() if k not in ("rope_theta", "rms_norm_eps", "torch_dtype")}
GRANITE_HYBRID = dict(
    {k: v for k, v in MOE.items() if k != "head_dim"}, model_type="granitemoehybrid",
    architectures=["GraniteMoeHybridForCausalLM"], hidden_act="silu", attention_bias=False, attention_dropout=0.0,
    attention_multiplier=0.2, embedding_multiplier=6.0, residual_multiplier=0.5, logits_scaling=4.0,
    normalization_function="rmsnorm", init_method="mup", mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8,
    mamba_d_conv=4, mamba_n_groups=1, mamba_conv_bias=True, mamba_proj_bias=False, mamba_expand=2,
    mamba_chunk_size=16, rope_scaling=None, output_router_logits=False)
NEMOTRON = dict(
    SINGLE, torch_dtype="float32", model_type="nemotron_h", architectures=["NemotronHForCausalLM"], head_dim=8,
    tie_word_embeddings=False, attention_bias=False, mlp_bias=False, use_bias=False, use_conv_bias=True,
    mamba_proj_bias=False, layer_norm_epsilon=1e-5, mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8,
    conv_kernel=4, n_groups=2, expand=2, chunk_size=16, mlp_hidden_act="relu2", mamba_hidden_act="silu",
    time_step_limit=[0.0, float("inf")], time_step_min=0.001, time_step_max=0.1, time_step_floor=1e-4,
    residual_in_fp32=False, rescale_prenorm_residual=True, num_logits_to_keep=1, use_mamba_kernels=True)
FALCON = dict(
    COMMON, torch_dtype="float32", model_type="falcon_h1", architectures=["FalconH1ForCausalLM"], hidden_act="silu",
    num_hidden_layers=2, head_dim=8, tie_word_embeddings=False, attention_bias=False, mlp_bias=False,
    projectors_bias=False, rms_norm_eps=1e-5, rope_scaling=None, intermediate_size=32, mamba_d_ssm=64,
    mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8, mamba_n_groups=2, mamba_d_conv=4, mamba_conv_bias=True,
    mamba_proj_bias=False, mamba_expand=2, mamba_chunk_size=16, mamba_rms_norm=False, mamba_norm_before_gate=False,
    mamba_use_mlp=True, attention_in_multiplier=1.0, attention_out_multiplier=0.9, key_multiplier=0.4,
    ssm_in_multiplier=1.25, ssm_out_multiplier=0.5, ssm_multipliers=[0.9, 1.5, 0.7, 0.8, 1.2],
    mlp_multipliers=[0.9, 0.6], embedding_multiplier=2.0, lm_head_multiplier=0.5)
KIMI_LINEAR = dict(
    {k: v for k, v in SINGLE.items() if k != "max_position_embeddings"}, torch_dtype="float32",
    model_type="kimi_linear", architectures=["KimiLinearForCausalLM"], hidden_act="silu", num_hidden_layers=3,
    tie_word_embeddings=False, model_max_length=4096, head_dim=8, rms_norm_eps=1e-5, rope_theta=10000.0,
    rope_scaling=None, mla_use_nope=True, q_lora_rank=None, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4,
    v_head_dim=8, num_key_value_heads=4, intermediate_size=24, pad_token_id=ENDOFTEXT,
    linear_attn_config=dict(kda_layers=[1, 3], full_attn_layers=[2], num_heads=2, head_dim=8,
                            short_conv_kernel_size=4),
    num_experts=8, num_experts_per_token=3, num_shared_experts=1, moe_intermediate_size=6, first_k_dense_replace=1,
    moe_layer_freq=1, moe_renormalize=True, moe_router_activation_func="sigmoid", num_expert_group=1, topk_group=1,
    use_grouped_topk=True, routed_scaling_factor=2.446, num_nextn_predict_layers=0)
KIMI_LINEAR_WITHOUT = {
    "eps of the other norms": {"config": {"rms_norm_eps": 1e-6}},
    "decay": {"weights": {"A_log": -4.0}}, "bias of the decays": {"weights": {"dt_bias": 2.0}},
    "what decays depend on": zero("f_b_proj.weight"), "output gate": zero("g_b_proj.weight"),
    "convolution of the keys": zero("k_conv1d.weight"), "write strength": zero("b_proj.weight"),
    "part of the keys that heads share": {"weights": {"kv_a_proj_with_mqa.weight": 0.0}},
    "correction bias": zero("e_score_correction_bias"), "scaling": UNSCALED,
    "shared expert": zero("shared_experts.down_proj.weight"), "renormalising": {"config": {"moe_renormalize": False}}}
STATES = {"decay": {"weights": {"A_log": -4.0}}, "what passes by the states": zero(".D"),
          "bias of the steps": {"weights": {"dt_bias": 2.0}}, "bias of the convolution": zero("conv1d.bias")}
MAMBA = {
    # With experts, without rotation, as the publisher has it.
    "granitemoehybrid": Tiny(
        dict(GRANITE_HYBRID, layer_types=["mamba", "attention", "mamba"], position_embedding_type="nope",
             intermediate_size=4, shared_intermediate_size=8, num_local_experts=8, num_experts_per_tok=3),
        {**STATES, "shared MLP": zero("shared_mlp.output_linear.weight"),
         "experts": zero("block_sparse_moe.output_linear.weight"),
         "attention_multiplier": {"config": {"attention_multiplier": 8 ** -0.5}},
         "no rotation": {"config": {"position_embedding_type": "rope"}}}, published=True),
    # Without experts, with rotation, as MLX converts it.
    "granitemoehybrid-dense": Tiny(
        dict(GRANITE_HYBRID, layer_types=["mamba", "attention", "mamba"], position_embedding_type="rope",
             intermediate_size=16, shared_intermediate_size=16, num_local_experts=0, num_experts_per_tok=0),
        {**STATES, "MLP": zero("mlp.down_proj.weight"),
         "rotation": {"config": {"position_embedding_type": "nope"}}}),
    # As the publisher's.
    "nemotron_h": Tiny(
        dict(NEMOTRON, num_hidden_layers=5, hybrid_override_pattern="M-M*-", intermediate_size=48),
        {**STATES, "MLP": zero("mixer.down_proj.weight"), "attention": zero("mixer.o_proj.weight")},
        published=True),
    # As MLX's, with experts that see fewer numbers.
    "nemotron_h-moe": Tiny(
        dict(NEMOTRON, num_hidden_layers=5, hybrid_override_pattern="MEM*E", intermediate_size=16,
             n_routed_experts=8, num_experts_per_tok=3, n_shared_experts=1, moe_intermediate_size=8,
             moe_shared_expert_intermediate_size=12, moe_latent_size=16, n_group=1, topk_group=1,
             norm_topk_prob=True, routed_scaling_factor=2.5),
        {**STATES, "correction bias": zero("e_score_correction_bias"), "scaling": UNSCALED,
         "shared expert": zero("shared_experts.down_proj.weight"), "experts": zero("fc2_latent_proj.weight"),
         "renormalising": {"config": {"norm_topk_prob": False}}}, spread=CORRECTION),
    # Latents are small, so that what keeps their norm from division by zero counts.
    "kimi_linear": Tiny(
        KIMI_LINEAR, KIMI_LINEAR_WITHOUT, reference="transformers",
        why="mlx-lm's norm of latents has the other norms' eps, the publisher's 1e-6", differ_by="eps of the other norms",
        published=True, spread={**CORRECTION, "kv_a_proj_with_mqa.weight": 3e-4}),
    # As MLX's, where both agree.
    "kimi_linear-4bit": Tiny(
        dict(KIMI_LINEAR, hidden_size=64, rms_norm_eps=1e-6, kv_lora_rank=32, qk_nope_head_dim=32, v_head_dim=32,
             linear_attn_config=dict(kda_layers=[1, 3], full_attn_layers=[2], num_heads=2, head_dim=32,
                                     short_conv_kernel_size=4), intermediate_size=32, moe_intermediate_size=32,
             num_experts=4, num_attention_heads=2, num_key_value_heads=2),
        {"scaling": UNSCALED}, spread=CORRECTION, quantised=FOUR_BITS),
    # As the publisher has it: the factors are not in the weights.
    "falcon_h1": Tiny(
        FALCON,
        {**STATES, "factor of the keys": {"config": {"key_multiplier": 1.0}},
         "factors of the states": {"config": {"ssm_multipliers": [1.0] * 5}},
         "factors of the MLP": {"config": {"mlp_multipliers": [1.0, 1.0]}},
         "factor of the attention": {"config": {"attention_out_multiplier": 0.1}},
         "factor of the embeddings": {"config": {"embedding_multiplier": 1.0}},
         "factor of the head": {"config": {"lm_head_multiplier": 1.0}}},
        reference="transformers", why="mlx-lm leaves key_multiplier out", differ_by="factor of the keys",
        published=True),
    "mamba2": Tiny(
        dict({k: v for k, v in SINGLE.items() if k not in ("num_attention_heads", "num_key_value_heads")},
             torch_dtype="float32", model_type="mamba2", architectures=["Mamba2ForCausalLM"], hidden_act="silu",
             intermediate_size=64, num_heads=4, head_dim=16, state_size=8, conv_kernel=4, expand=2, n_groups=1,
             chunk_size=16, use_bias=False, use_conv_bias=True, layer_norm_epsilon=1e-5, residual_in_fp32=True,
             rms_norm=True, rescale_prenorm_residual=False, time_step_rank=2, time_step_min=0.001, time_step_max=0.1,
             time_step_floor=1e-4, time_step_limit=[0.0, float("inf")]),
        {**STATES, "norm of the states": zero("mixer.norm.weight")}),
}

MODELS = {
    **{name: Tiny(config, steady=False, quantised=dict(FOUR_BITS, paths={
        "lm_head": dict(group_size=64, bits=8), "layers.2.mlp.down_proj": dict(group_size=32, bits=8),
        "layers.1.self_attn.k_proj": False}) if name.endswith("-4bit") else {}) for name, config in FIRST.items()},
    **EXPERTS, **MODES, **RENAMED, **ATTENTION, **FUSED, **LATENTS, **MAMBA,
}
