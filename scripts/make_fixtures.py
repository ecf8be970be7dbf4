#!/usr/bin/env python3
"""Write the tiny random-weight models under fixtures/, with golden answers by mlx-lm.

  python make_fixtures.py [--out fixtures] [name ...]      (no name: the default list)
  python make_fixtures.py --list

Each OUT/tiny-NAME has config.json, model.safetensors, tokenizer.json, tokenizer_config.json
(ChatML template), generation_config.json and golden.json; together at most some 150 KB.
The weights mean nothing: a small byte-level BPE of 304 entries, hidden size 32 (64
where quantised), logits brought to a standard deviation of 3.  Weights lie on disk in float32
(llama, llama-4bit) or bfloat16 (the others); ALL golden values are computed in float32 on
the weights widened to float32, so a reader has to widen too.

golden.json, computed from the written folder by mlx-lm's model class with its own KV cache,
one sequence alone, EOS ignored:
  prompts      five, of 3, 17, 40, 64 and 100 ids; each with
    prompt_ids, greedy_ids (40), gaps (two best logits of each step; all above 5e-3),
    last_logprobs (the whole distribution after the prompt, six decimals)
  chat         llama only: messages, prompt_ids (chat template), greedy_ids, greedy_text (special
               tokens spelled out), greedy_text_no_special (left out), gaps

The result depends on nothing but the versions: mlx[cpu] 0.32.2, mlx-lm 0.32.2, tokenizers,
transformers (chat template).  BLAS changes the last bits only, hence the gaps.
"""
import argparse
import json
import math
import os
import shutil
import sys
from importlib.metadata import version

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load, quantize_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB, MERGES = 304, 45
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 301, 302, 303
ENDOFTEXT, IM_END = 301, 303
LENGTHS, STEPS, MIN_GAP, MIN_DISTINCT = (3, 17, 40, 64, 100), 40, 5e-3, 8

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
          "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TEXT = """The quick brown fox jumps over the lazy dog, and then counts 1 2 3 4 5 to itself before the sea
answers. In the morning the lighthouse keeper wrote a letter to his sister: the storm has passed, the boats
are back in the harbour, and nobody was lost. "How many boats?" she asked. There were twelve, and one of them
had a new sail, red as a berry. The children ran along the shore, shouting and counting, while their mother
baked bread with rye and honey. What is the sum of seven and eight? It is fifteen. Why does the moon follow
us when we walk home? Because it is far away, and we are slow. A café in Zürich serves tea for 4 €; the
waiter says that the answer to everything is written in the book on the highest shelf, but no one has ever
read further than page 42. Winter came early that year; the river froze, the mill stood still, and the
miller's daughter learned to skate. When spring returned, she had grown taller than her brother.
"""
MESSAGES = [
    {"role": "system", "content": "You answer in one sentence."},
    {"role": "user", "content": "How many boats are in the harbour?"},
    {"role": "assistant", "content": "Twelve, and one of them has a red sail."},
    {"role": "user", "content": "Is \"seven < eight\" & true — même à Zürich?"},
]

COMMON = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=2, rms_norm_eps=1e-6, max_position_embeddings=4096, rope_theta=10000.0,
              tie_word_embeddings=True, bos_token_id=None, eos_token_id=IM_END, torch_dtype="bfloat16")
LLAMA = dict(COMMON, model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=False, mlp_bias=False,
             hidden_act="silu", head_dim=16, rope_scaling=None)
LINEAR_ATTENTION = dict(linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8,
                        linear_value_head_dim=8, linear_conv_kernel_dim=4, full_attention_interval=4)

DEFAULT = {
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
}
EXTRA = {  # hybrids, for later
    "lfm2": dict(COMMON, model_type="lfm2", architectures=["Lfm2ForCausalLM"], norm_eps=1e-5, conv_bias=False,
                 conv_L_cache=3, block_dim=32, block_ff_dim=48, block_multiple_of=16, block_ffn_dim_multiplier=1.0,
                 block_auto_adjust_ff_dim=False, layer_types=["conv", "conv", "full_attention", "conv"]),
    "qwen3_5": dict(model_type="qwen3_5", architectures=["Qwen3_5ForConditionalGeneration"],
                    tie_word_embeddings=True, bos_token_id=None, eos_token_id=IM_END, torch_dtype="bfloat16",
                    text_config=dict({k: v for k, v in COMMON.items() if k != "rope_theta"},
                                     model_type="qwen3_5_text", head_dim=16, **LINEAR_ATTENTION,
                                     rope_parameters=dict(rope_type="default", mrope_section=[1, 1, 0],
                                                          rope_theta=10000.0, partial_rotary_factor=0.25))),
}
ONE_PLUS = {"gemma3_text"}  # its RMSNorm multiplies by 1 + weight


def dump(x, path):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(x, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


# ---------------------------------------------------------------- tokenizer
def build_tokenizer():
    tk = Tokenizer(models.BPE())
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tk.decoder = decoders.ByteLevel()
    tk.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=256 + MERGES, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    tk.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    assert tk.get_vocab_size() == VOCAB and tk.token_to_id("<|im_end|>") == IM_END
    assert tk.token_to_id("<|endoftext|>") == ENDOFTEXT
    return tk


def write_tokenizer(tk, out):
    tk.save(os.path.join(out, "tokenizer.json"), pretty=False)
    dump(dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token="<|im_end|>",
              pad_token="<|endoftext|>", unk_token=None, add_bos_token=False, add_prefix_space=False,
              clean_up_tokenization_spaces=False, model_max_length=4096, chat_template=CHATML),
         os.path.join(out, "tokenizer_config.json"))
    dump(dict(eos_token_id=[IM_END, ENDOFTEXT], pad_token_id=ENDOFTEXT, do_sample=False),
         os.path.join(out, "generation_config.json"))


# ---------------------------------------------------------------- weights
def init(model, model_type, hidden, seed):
    key, new = mx.random.key(seed), []
    # a model that scales its embeddings up would otherwise only repeat the last token (tied head)
    emb = 0.1 / (math.sqrt(hidden) if model_type in ONE_PLUS else 1.0)
    for name, p in sorted(tree_flatten(model.parameters())):
        key, k = mx.random.split(key)
        g = lambda s=1.0: mx.random.normal(p.shape, key=k) * s  # noqa: B023,E731
        last = name.split(".")[-1]
        if last == "A_log":
            v = mx.log(mx.random.uniform(1.0, 16.0, p.shape, key=k))
        elif last == "dt_bias":
            v = g(0.5) - 1.0
        elif "embed" in name and p.ndim == 2 and p.shape[0] == VOCAB:
            v = g(emb)
        elif last == "bias" or last.endswith("_bias"):
            v = g(0.3)
        elif p.ndim == 1:  # norms and other vectors
            v = (0.0 if model_type in ONE_PLUS else 1.0) + g(0.1)
        else:
            fan = p.shape[-1] if "conv" not in name else math.prod(p.shape[1:])
            v = g(1.5 / math.sqrt(max(fan, 1)))
        new.append((name, v.astype(mx.float32)))
    model.update(tree_unflatten(new))
    mx.eval(model.parameters())


def scale_logits(model, model_type, ids, target=3.0):
    names = [n for n, _ in tree_flatten(model.parameters()) if "layers." not in n]
    fn = next(n for s in ("model.norm.weight", "embedding_norm.weight") for n in names if n.endswith(s))
    for _ in range(3):
        f = target / mx.std(model(mx.array([ids]))).item()
        w = dict(tree_flatten(model.parameters()))[fn]
        model.update(tree_unflatten([(fn, (1 + w) * f - 1 if model_type in ONE_PLUS else w * f)]))


def quantise(model, cfg):
    """4 bits in groups of 32; lm_head at 8 bits in groups of 64, one down_proj at 8, one k_proj left as it is."""
    special = {"lm_head": dict(group_size=64, bits=8), "model.layers.2.mlp.down_proj": dict(group_size=32, bits=8),
               "model.layers.1.self_attn.k_proj": False}
    model, cfg = quantize_model(model, cfg, 32, 4, quant_predicate=lambda path, _: special.get(path, True))
    cfg["quantization_config"] = cfg["quantization"]  # mlx-lm writes both
    return model, cfg


def write_weights(params, out, sharded):
    meta = {"format": "mlx"}
    if not sharded:
        return mx.save_safetensors(os.path.join(out, "model.safetensors"), params, metadata=meta)
    names = sorted(params)
    late = lambda n: n.startswith(("model.layers.2", "model.layers.3", "model.norm", "lm_head"))  # noqa: E731
    parts = [[n for n in names if not late(n)], [n for n in names if late(n)]]
    where = {}
    for i, part in enumerate(parts, 1):
        file = f"model-{i:05d}-of-{len(parts):05d}.safetensors"
        mx.save_safetensors(os.path.join(out, file), {n: params[n] for n in part}, metadata=meta)
        where.update({n: file for n in part})
    dump({"metadata": {"total_size": sum(p.nbytes for p in params.values())},
          "weight_map": {n: where[n] for n in names}}, os.path.join(out, "model.safetensors.index.json"))


# ---------------------------------------------------------------- golden answers
def greedy(model, ids, steps):
    cache = make_prompt_cache(model)
    first = y = model(mx.array([ids]), cache=cache)[0, -1]
    out, gaps = [], []
    while True:
        top = mx.sort(y)[-2:]
        out.append(mx.argmax(y).item())
        gaps.append(round((top[1] - top[0]).item(), 5))
        if len(out) == steps:
            return out, gaps, first
        y = model(mx.array([[out[-1]]]), cache=cache)[0, -1]


def golden(model, name, seed, pool, tok):
    prompts, shift = [], seed
    for n in LENGTHS:
        for _ in range(400):
            shift += 7
            ids = [pool[(shift + i) % len(pool)] for i in range(n)]
            out, gaps, y = greedy(model, ids, STEPS)
            if min(gaps) > MIN_GAP and len(set(out)) >= MIN_DISTINCT:
                break
        else:
            return None
        lp = y - mx.logsumexp(y)
        prompts.append(dict(prompt_ids=ids, greedy_ids=out, gaps=gaps,
                            last_logprobs=[round(x, 6) for x in lp.tolist()]))
    g = dict(model_type=model.model_type, computed_in="float32", steps=STEPS, min_gap=MIN_GAP,
             made_with={k: version(k) for k in ("mlx", "mlx-lm", "tokenizers")}, prompts=prompts)
    if name == "llama":
        ids = list(tok.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=False))
        out, gaps, _ = greedy(model, ids, STEPS)
        if min(gaps) <= MIN_GAP or len(set(out)) < MIN_DISTINCT:
            return None
        g["chat"] = [dict(messages=MESSAGES, prompt_ids=ids, greedy_ids=out, greedy_text=tok.decode(out),
                          greedy_text_no_special=tok.decode(out, skip_special_tokens=True), gaps=gaps)]
    return g


def make(name, root):
    tk = build_tokenizer()
    pool = tk.encode(TEXT.replace("\n", " ")).ids
    out = os.path.join(root, "tiny-" + name)
    for seed in range(1, 40):
        cfg = json.loads(json.dumps({**DEFAULT, **EXTRA}[name]))
        model_type, hidden = cfg["model_type"], cfg.get("text_config", cfg)["hidden_size"]
        Model, Args = _get_classes(cfg)
        model = Model(Args.from_dict(json.loads(json.dumps(cfg))))
        if model_type == "gemma3_text":  # tied: drop the class's separate head as its loader does
            model.sanitize({})
        init(model, model_type, hidden, seed)
        scale_logits(model, model_type, pool[:100])
        if name.endswith("-4bit"):
            model, cfg = quantise(model, cfg)
        else:
            model.set_dtype(getattr(mx, cfg["torch_dtype"]))
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        write_weights(dict(tree_flatten(model.parameters())), out, name.endswith("-sharded"))
        dump(cfg, os.path.join(out, "config.json"))
        write_tokenizer(tk, out)
        model, tok = load(out)  # from what was written
        if not name.endswith("-4bit"):
            model.set_dtype(mx.float32)
        g = golden(model, name, seed, pool, tok)
        if g is not None:
            break
    else:
        raise RuntimeError(f"{name}: no seed gives clear answers")
    dump(g, os.path.join(out, "golden.json"))
    # what the file says, checked another way: token by token instead of the whole prompt at once
    ids = g["prompts"][-1]["prompt_ids"]
    cache = make_prompt_cache(model)
    for t in ids:
        y = model(mx.array([[t]]), cache=cache)[0, -1]
    diff = mx.abs(y - mx.logsumexp(y) - mx.array(g["prompts"][-1]["last_logprobs"])).max().item()
    assert diff < 1e-3, diff
    size = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out))
    std = mx.std(model(mx.array([ids]))).item()
    print(f"{name:14s} seed {seed}, {sum(p.size for _, p in tree_flatten(model.parameters()))} stored values, "
          f"{size / 1000:.0f} kB, logits std {std:.2f}, smallest gap {min(min(p['gaps']) for p in g['prompts']):.4f}, "
          f"distinct {[len(set(p['greedy_ids'])) for p in g['prompts']]}, stepwise diff {diff:.1e}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("names", nargs="*")
    ap.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures"))
    ap.add_argument("--list", action="store_true")
    a = ap.parse_args()
    if a.list:
        print("default:", *DEFAULT)
        print("extra:", *EXTRA)
        return 0
    for n in a.names or DEFAULT:
        make(n, a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
