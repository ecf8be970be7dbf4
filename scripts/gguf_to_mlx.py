#!/usr/bin/env python3
"""Convert a GGUF file (llama, qwen2 or gemma3) into an MLX model folder.

  python gguf_to_mlx.py IN.gguf OUT_DIR [--dtype bfloat16|float16|float32]
                        [--chat-template FILE] [--extra-eos ID ...]

OUT_DIR gets config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
generation_config.json, as mlx-lm and mlxbatch read them.

Weights are dequantised with gguf-py, so they are the quantised model's values and not the
original checkpoint's.  llama's q/k rows are un-permuted to the rotate-half layout; the
"+1" that GGUF adds to gemma3's norm weights is taken off.  tokenizer.json is rebuilt from
the GGUF's tokens, merges and scores; the chat template is the GGUF's own, or FILE where it
has none.

Needs: gguf, numpy, mlx (on Linux: mlx[cpu]) and tokenizers.
"""
import argparse
import json
import os
import re
import sys

import numpy as np
import mlx.core as mx
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def field(r, k, d=None):
    f = r.fields.get(k)
    return d if f is None else f.contents()


# ---------------------------------------------------------------- weights
def unpermute(w, n_head):
    """inverse of llama.cpp's LlamaModel.permute (HF rotate-half -> interleaved)."""
    out, inp = w.shape
    return w.reshape(n_head, out // n_head // 2, 2, inp).swapaxes(1, 2).reshape(out, inp)


LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
}
LAYER_BY_ARCH = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "qwen2": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    },
}


def hf_name(arch, n):
    if n == "token_embd.weight": return "model.embed_tokens.weight"
    if n == "output_norm.weight": return "model.norm.weight"
    if n == "output.weight": return "lm_head.weight"
    m = re.fullmatch(r"blk\.(\d+)\.(.+)\.(weight|bias)", n)
    key = {**LAYER, **LAYER_BY_ARCH[arch]}.get(m.group(2)) if m else None
    if key is None:
        return None
    return f"model.layers.{m.group(1)}.{key}.{m.group(3)}"


def weights(r, arch, n_head, n_kv, dtype):
    out, skipped = {}, []
    for t in r.tensors:
        name = hf_name(arch, t.name)
        if name is None:
            skipped.append(t.name); continue
        w = dequantize(t.data, t.tensor_type).astype(np.float32)
        w = w.reshape([int(x) for x in reversed(t.shape)])
        if arch == "llama" and (".attn_q." in t.name or ".attn_k." in t.name):
            w = unpermute(w, n_head if ".attn_q." in t.name else n_kv)
        if arch == "gemma3" and t.name.endswith("norm.weight"):
            w = w - 1.0
        a = mx.array(w).astype(dtype)
        mx.eval(a)
        out[name] = a
    if skipped:
        print("not used:", skipped)
    return out


# ---------------------------------------------------------------- tokenizer
def spm_merges(tokens, scores, types):
    """merges ranked by the merged piece's score, as HF's SentencePieceExtractor does."""
    # every non-special piece can merge: USER pieces too (HF's gemma tokenizer.json has them)
    vocab = {t: i for i, t in enumerate(tokens)}
    skip = {t for t, ty in zip(tokens, types) if ty in (CONTROL, UNKNOWN, BYTE, UNUSED)}
    merges = []
    for i, piece in enumerate(tokens):
        if piece in skip: continue
        local = []
        for k in range(1, len(piece)):
            l, rr = piece[:k], piece[k:]
            if l in vocab and rr in vocab and l not in skip and rr not in skip:
                local.append((l, rr, scores[i]))
        local.sort(key=lambda x: (vocab[x[0]], vocab[x[1]]))
        merges.extend(local)
    merges.sort(key=lambda v: (v[2], len(v[0]), len(v[1])), reverse=True)
    return [(a, b) for a, b, _ in merges]


QWEN2_RE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def build_tokenizer(r):
    model, pre = field(r, "tokenizer.ggml.model"), field(r, "tokenizer.ggml.pre")
    tokens, types = field(r, "tokenizer.ggml.tokens"), field(r, "tokenizer.ggml.token_type")
    if model == "gpt2":
        merges = [tuple(m.split(" ", 1)) for m in field(r, "tokenizer.ggml.merges")]
        keep = [(t, i, ty) for i, (t, ty) in enumerate(zip(tokens, types)) if ty != UNUSED]
        added = [(t, i, ty) for t, i, ty in keep if ty in (CONTROL, USER)]
        if pre == "smollm":
            # the original keeps its special tokens inside the BPE vocabulary (ids 0..16)
            vocab = {t: i for t, i, ty in keep}
            norm = None
            pretok = pre_tokenizers.Sequence([
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
            dec, post = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True), None
        elif pre == "qwen2":
            vocab = {t: i for t, i, ty in keep if ty == NORMAL}
            norm = normalizers.NFC()
            pretok = pre_tokenizers.Sequence([
                pre_tokenizers.Split(Regex(QWEN2_RE), "isolated", False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
            dec = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
            post = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
        else:
            sys.exit(f"pre-tokenizer {pre!r} is not known here")
        tk = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
        if norm is not None: tk.normalizer = norm
        tk.pre_tokenizer, tk.decoder = pretok, dec
        if post is not None: tk.post_processor = post
    elif model == "llama":  # SentencePiece BPE with byte fallback
        scores = field(r, "tokenizer.ggml.scores")
        # llama.cpp writes user-defined pieces with plain spaces and a score of -1000;
        # the .model has U+2581 and 0 there
        tokens = [t.replace(" ", "\u2581") if ty == USER else t for t, ty in zip(tokens, types)]
        scores = [0.0 if ty == USER else s for s, ty in zip(scores, types)]
        vocab = {t: i for i, t in enumerate(tokens)}
        tk = Tokenizer(models.BPE(vocab=vocab, merges=spm_merges(tokens, scores, types),
                                  unk_token=tokens[field(r, "tokenizer.ggml.unknown_token_id", 0)],
                                  fuse_unk=True, byte_fallback=True))
        steps = [normalizers.Replace(" ", "\u2581")]
        dsteps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        if field(r, "tokenizer.ggml.add_space_prefix", True):
            steps.insert(0, normalizers.Prepend("\u2581")); dsteps.append(decoders.Strip(" ", 1, 0))
        tk.normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
        if field(r, "general.architecture") == "gemma3":
            tk.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous", False)
        tk.decoder = decoders.Sequence(dsteps)
        added = [(t, i, ty) for i, (t, ty) in enumerate(zip(tokens, types)) if ty in (CONTROL, USER, UNKNOWN)]
        if field(r, "tokenizer.ggml.add_bos_token", True):
            b = field(r, "tokenizer.ggml.bos_token_id")
            bos = tokens[b]
            tk.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, b)])
    else:
        sys.exit(f"tokenizer model {model!r} is not known here")
    # qwen2's GGUF marks all its added tokens CONTROL; HF has the tool/fim ones special=false
    plain = re.compile(r"</?tool_call>|<\|(fim_|repo_name|file_sep)")
    gemma_special = {"<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>",
                     "<start_of_image>", "<end_of_image>"}
    gemma = field(r, "general.architecture") == "gemma3"
    for t, i, ty in sorted(added, key=lambda x: x[1]):
        special = (t in gemma_special if gemma else
                   ty in (CONTROL, UNKNOWN) and not (pre == "qwen2" and plain.match(t)))
        tok = AddedToken(t, special=special, normalized=False)
        (tk.add_special_tokens if special else tk.add_tokens)([tok])
        assert tk.token_to_id(t) == i, (t, i, tk.token_to_id(t))
    return tk, added


# ---------------------------------------------------------------- config
def config(r, arch, dtype, tied):
    g = lambda k, d=None: field(r, f"{arch}.{k}", d)
    n_head = g("attention.head_count")
    eps = float(np.format_float_positional(np.float32(g("attention.layer_norm_rms_epsilon")), unique=True, trim="-"))
    head_dim = g("attention.key_length") or g("embedding_length") // n_head
    eos = field(r, "tokenizer.ggml.eos_token_id")
    c = dict(
        architectures=[{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "gemma3": "Gemma3ForCausalLM"}[arch]],
        model_type={"llama": "llama", "qwen2": "qwen2", "gemma3": "gemma3_text"}[arch],
        hidden_size=g("embedding_length"), intermediate_size=g("feed_forward_length"),
        num_hidden_layers=g("block_count"), num_attention_heads=n_head,
        num_key_value_heads=g("attention.head_count_kv", n_head), rms_norm_eps=eps,
        vocab_size=len(field(r, "tokenizer.ggml.tokens")), max_position_embeddings=g("context_length"),
        rope_theta=float(g("rope.freq_base", 10000.0)), tie_word_embeddings=tied,
        bos_token_id=field(r, "tokenizer.ggml.bos_token_id"), eos_token_id=eos, torch_dtype=dtype,
    )
    if arch == "llama":
        c.update(attention_bias=False, mlp_bias=False, hidden_act="silu", rope_scaling=None, head_dim=head_dim)
    if arch == "qwen2":
        c.update(hidden_act="silu", rope_scaling=None, use_sliding_window=False)
    if arch == "gemma3":
        n, pat = c["num_hidden_layers"], 6
        c.update(head_dim=head_dim, query_pre_attn_scalar=256, sliding_window=g("attention.sliding_window"),
                 sliding_window_pattern=pat, rope_local_base_freq=10000.0, rope_scaling=None,
                 hidden_activation="gelu_pytorch_tanh", attention_bias=False,
                 layer_types=["full_attention" if (i + 1) % pat == 0 else "sliding_attention" for i in range(n)])
    return c


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("gguf"); ap.add_argument("out"); ap.add_argument("--dtype", default="bfloat16")
    ap.add_argument("--chat-template"); ap.add_argument("--extra-eos", type=int, nargs="*", default=[])
    a = ap.parse_args()
    r = GGUFReader(a.gguf)
    arch = field(r, "general.architecture")
    os.makedirs(a.out, exist_ok=True)
    n_head = field(r, f"{arch}.attention.head_count"); n_kv = field(r, f"{arch}.attention.head_count_kv", n_head)
    w = weights(r, arch, n_head, n_kv, getattr(mx, a.dtype))
    tied = "lm_head.weight" not in w
    cfg = config(r, arch, a.dtype, tied)
    if a.extra_eos:
        cfg["eos_token_id"] = [cfg["eos_token_id"], *a.extra_eos]
    mx.save_safetensors(os.path.join(a.out, "model.safetensors"), w, metadata={"format": "mlx"})
    json.dump(cfg, open(os.path.join(a.out, "config.json"), "w"), indent=2)
    tk, added = build_tokenizer(r)
    path = os.path.join(a.out, "tokenizer.json")
    tk.save(path)
    if field(r, "tokenizer.ggml.pre") == "qwen2":  # the binding drops the ByteLevel decoder's arguments
        j = json.load(open(path))
        j["decoder"].update(add_prefix_space=False, trim_offsets=False, use_regex=False)
        json.dump(j, open(path, "w"), ensure_ascii=False, indent=2)
    tokens = field(r, "tokenizer.ggml.tokens")
    tpl = field(r, "tokenizer.chat_template") or (open(a.chat_template).read() if a.chat_template else None)
    name = lambda k: (None if field(r, k) is None else tokens[field(r, k)])
    tcfg = dict(
        # Not the architecture's own class: transformers 5's GPT2Tokenizer puts a pre-tokenizer of its
        # own in the place of tokenizer.json's, and SmolLM2's digits are then split otherwise.
        tokenizer_class="PreTrainedTokenizerFast",
        bos_token=name("tokenizer.ggml.bos_token_id"), eos_token=name("tokenizer.ggml.eos_token_id"),
        unk_token=name("tokenizer.ggml.unknown_token_id"), pad_token=name("tokenizer.ggml.padding_token_id"),
        add_bos_token=bool(field(r, "tokenizer.ggml.add_bos_token", False)), add_prefix_space=False,
        clean_up_tokenization_spaces=False, model_max_length=cfg["max_position_embeddings"])
    if arch == "qwen2": tcfg["bos_token"] = None
    if tpl: tcfg["chat_template"] = tpl
    json.dump(tcfg, open(os.path.join(a.out, "tokenizer_config.json"), "w"), indent=2, ensure_ascii=False)
    json.dump(dict(bos_token_id=cfg["bos_token_id"], eos_token_id=cfg["eos_token_id"],
                   pad_token_id=field(r, "tokenizer.ggml.padding_token_id"), do_sample=False),
              open(os.path.join(a.out, "generation_config.json"), "w"), indent=2)
    n = sum(x.size for x in w.values())
    print(f"{a.out}: {arch}, {len(w)} tensors, {n/1e6:.1f}M parameters, tied={tied}, added tokens {len(added)}")


if __name__ == "__main__":
    main()
