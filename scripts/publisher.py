"""The publishers' names and layout of a text model's weights, from mlx-lm's.

`publish` undoes what mlx-lm's conversion does to names and shapes, so that the same weights can
be read by transformers' classes, and so that make_fixtures.py can write a folder as a publisher
would.  Packed matrices are packing.py's; what the models compute is none of this file's business.
"""
import re

import mlx.core as mx

# What a text model of a wrapper is by itself, where transformers has no causal class for it.
BY_ITSELF = {"qwen3_vl_text": "qwen3", "qwen2_5_vl_text": "qwen2", "qwen2_vl_text": "qwen2", "qwen2_5_vl": "qwen2",
             "qwen3_vl_moe_text": "qwen3_moe"}
OTHER_PARTS = re.compile(
    r"(^|\.)(visual|vision_tower|multi_modal_projector|audio_tower|embed_vision|embed_audio|mtp_\w+)\.")
GLU = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"}
W123 = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
ONE_BY_ONE = {  # experts each with matrices of their own, and what these are called
    "qwen3_moe": GLU, "qwen2_moe": GLU, "qwen3_next": GLU, "olmoe": GLU, "glm4_moe": GLU, "ernie4_5_moe": GLU,
    "deepseek_v2": GLU, "deepseek_v3": GLU, "glm4_moe_lite": GLU, "nemotron_h": GLU,
    "mixtral": W123, "minimax_m2": W123, "lfm2_moe": W123, "kimi_linear": W123,
}
TRANSPOSED = {"qwen3_vl_moe_text"}  # whose publisher has fused experts as (num_experts, in, out)
NORMS_LESS_ONE = {"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"}
LESS_ONE = re.compile(r"(layernorm|[qk]_norm|^model\.norm)\.weight$")


def text_config(config):
    """The configuration of the text model, under the name transformers has for it alone."""
    text = dict(config.get("text_config", config))
    if (text.get("rope_scaling") or {}).get("type") == "mrope":  # for text the same as none
        text["rope_scaling"] = None
    if "tie_word_embeddings" in config:
        text.setdefault("tie_word_embeddings", config["tie_word_embeddings"])
    return dict(text, model_type=BY_ITSELF.get(text["model_type"], text["model_type"]))


def experts(name, stacked, model_type):
    """`name`'s stacked experts (num_experts, out, in) as the publisher has them: names and arrays."""
    base, which = re.fullmatch(r"(.*)\.(?:switch_mlp|switch_glu|experts)\.(\w+_proj)\.weight", name).groups()
    base = base.removesuffix(".experts")
    for expert in range(stacked.shape[0]):
        yield f"{base}.experts.{expert}.{ONE_BY_ONE[model_type][which]}.weight", stacked[expert]


def fused(params, model_type):
    """Experts whose gate and up matrices are one array: (num_experts, 2 * intermediate, hidden)."""
    out = {}
    for name, value in params.items():
        found = re.fullmatch(r"(.*?)(?:\.experts)?\.(?:switch_mlp|switch_glu)\.(\w+)_proj\.weight", name)
        if found is None:
            out[name] = value
            continue
        base, which = found.groups()
        if which == "up":
            continue
        if which == "gate":
            value = mx.concatenate([value, params[name.replace("gate_proj", "up_proj")]], axis=1)
        if model_type.startswith("granitemoe"):
            out[f"{base}.{'input' if which == 'gate' else 'output'}_linear.weight"] = value
        else:
            out[f"{base}.experts.{'gate_up' if which == 'gate' else 'down'}_proj"] = value
    return out


def gpt_oss(params):
    """Experts transposed, (num_experts, in, out), the gate's and up's columns in turns."""
    out = {}
    for name, value in params.items():
        found = re.fullmatch(r"(.*\.experts)\.(\w+)_proj\.(weight|bias)", name)
        if found is None:
            out[name] = value
            continue
        base, which, part = found.groups()
        if which == "up":
            continue
        if which == "gate":
            up = params[name.replace("gate_proj", "up_proj")]
            value = mx.flatten(mx.stack([value, up], axis=2), 1, 2)
        tail = "_bias" if part == "bias" else ""
        out[f"{base}.{'gate_up' if which == 'gate' else 'down'}_proj{tail}"] = (
            value if tail else value.swapaxes(1, 2))
    return out


def shared_mlp(params):
    """Granite's MLP beside the experts, or without these: gate and up in one matrix."""
    out = {}
    for name, value in params.items():
        if name.endswith(".mlp.up_proj.weight"):
            continue
        if name.endswith(".mlp.gate_proj.weight"):
            value = mx.concatenate([value, params[name.replace("gate_proj", "up_proj")]], axis=0)
        name = name.replace(".mlp.gate_proj.", ".shared_mlp.input_linear.")
        out[name.replace(".mlp.down_proj.", ".shared_mlp.output_linear.")] = value
    return out


def kimi_linear(params):
    """What follows in layers with experts is `block_sparse_moe`, with the bias below the router."""
    sparse = {n.partition(".mlp.")[0] for n in params if ".switch_mlp." in n}
    out = {}
    for name, value in params.items():
        name = re.sub(r"\.([qkv])_conv\.conv\.", r".\1_conv1d.", name)
        layer, mlp, rest = name.partition(".mlp.")
        if mlp and layer in sparse:
            rest = "gate." + rest if rest == "e_score_correction_bias" else rest
            name = f"{layer}.block_sparse_moe.{rest}"
        out[name] = value
    return out


def latents(params):
    """Each head's rows from latents to keys, then to values, of all heads in one matrix."""
    out = {}
    for name, value in params.items():
        if name.endswith(".unembed_out.weight"):
            continue
        if name.endswith(".embed_q.weight"):
            to_values = params[name.replace("embed_q", "unembed_out")]
            rows = mx.concatenate([value.swapaxes(1, 2), to_values], axis=1)
            name, value = name.replace("embed_q", "kv_b_proj"), mx.flatten(rows, 0, 1)
        out[name] = value
    return out


def transposed(params, config):
    """The other layout of fused experts, where the publisher's is not what transformers' text model has."""
    if config.get("text_config", {}).get("model_type") not in TRANSPOSED:
        return params
    return {n: v.swapaxes(1, 2) if re.search(r"\.experts\.(gate_up|down)_proj$", n) else v for n, v in params.items()}


def publish(params, config):
    """The text model's weights in the publisher's names and layout, from mlx-lm's.

    `params` maps names to arrays (not quantised); weights of other parts are left out.
    """
    text = text_config(config)
    model_type, out = text["model_type"], {}
    params = {n.removeprefix("language_model."): v for n, v in params.items() if not OTHER_PARTS.search(n)}
    params = {re.sub(r"^model\.language_model\.", "model.", n): v for n, v in params.items()}
    params = latents(params)
    if model_type == "granitemoehybrid":
        params = shared_mlp(params)
    if model_type == "nemotron_h":
        fc = {".switch_mlp.fc1.": ".switch_mlp.up_proj.", ".switch_mlp.fc2.": ".switch_mlp.down_proj."}
        params = {re.sub(r"\.switch_mlp\.fc[12]\.", lambda m: fc[m[0]], n): v for n, v in params.items()}
    if model_type == "kimi_linear":
        params = kimi_linear(params)
    if model_type == "gpt_oss":
        params = gpt_oss(params)
    elif model_type not in ONE_BY_ONE or config.get("text_config", {}).get("model_type") in TRANSPOSED:
        params = fused(params, model_type)
    for name, value in params.items():
        if ".switch_mlp." in name:
            out.update(experts(name, value, model_type))
            continue
        if "conv" in name and value.ndim == 3 and value.shape[2] == 1:
            value = value.moveaxis(2, 1)
        if model_type == "lfm2_moe" or model_type == "lfm2":
            name = re.sub(r"(feed_forward)\.(\w+_proj)\.", lambda m: f"{m[1]}.{W123[m[2]]}.", name)
        if model_type in NORMS_LESS_ONE and LESS_ONE.search(name):
            value = value - 1.0
        out[name] = value
    return out
