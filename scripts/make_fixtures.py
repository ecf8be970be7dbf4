#!/usr/bin/env python3
"""Write the tiny random-weight models under fixtures/, with golden answers.

  python make_fixtures.py [--out fixtures] [name ...]      (no name: all)
  python make_fixtures.py --list

Which models, and what each is to show, is in tiny_models.py.  Each OUT/tiny-NAME has config.json,
model.safetensors, tokenizer.json, tokenizer_config.json (ChatML template), generation_config.json
and golden.json; together 90 to 220 KB.
The weights mean nothing: a small byte-level BPE of 304 entries, hidden size 32 (64
where quantised), logits brought to a standard deviation of 3.  Weights lie on disk in the
configuration's torch_dtype; ALL golden values are computed in float32 on the weights widened
to float32, so a reader has to widen too.

golden.json, computed from the written folder by mlx-lm's model class with its own KV cache
(by transformers' where mlx-lm computes something else: then `reference` and `why` say so),
one sequence alone, EOS ignored:
  prompts      five, most often of 3, 17, 40, 64 and 100 ids; each with
    prompt_ids, greedy_ids (40), gaps (two best logits of each step; all above 5e-3),
    last_logprobs (the whole distribution after the prompt, six decimals)
    router_gap   experts only: the least distance between the scores of the last expert that is
                 chosen and the first that is not, of all layers and tokens; above 1e-4
  chat         llama only: messages, prompt_ids (chat template), greedy_ids, greedy_text (special
               tokens spelled out), greedy_text_no_special (left out), gaps

Checked while writing: token by token gives the same as the whole prompt, and noise of 1e-6 on
the weights moves no log-probability by 2e-4.  check_fixtures.py checks more.

The result depends on nothing but the versions: mlx[cpu] 0.32.2 (0.32.4 for the models after
qwen3_5: before, mlx-lm's quantised experts do not run), mlx-lm 0.32.2, tokenizers, transformers
5.24.0 and torch 2.15.0 (where transformers is the reference).  BLAS changes the
last bits only, hence the gaps.
"""
import argparse
import contextlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
from importlib.metadata import version

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, quantize_model
from check_fixtures import changed
from packing import as_awq, as_blocks
from publisher import publish, text_config, transposed
from references import REFERENCES, farthest, greedy, log_probabilities
from tiny_models import ENDOFTEXT, EOS, MODELS, VOCAB
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

MERGES = 45
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 301, 302, 303
STEPS, MIN_GAP, MIN_DISTINCT = 40, 5e-3, 8
MIN_ROUTER_GAP = 1e-4  # between the scores of the last expert that is chosen and the first that is not
# Rounding differs from one way to compute to another: prompts whose answer hangs on it are no good.
SHAKE, MAX_SHAKEN = 1e-6, 2e-4  # relative noise on all weights, and what it may do to a log-probability

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

FACTORS = {"weight", "scale", "per_expert_scale", "layer_scalar"}  # vectors that multiply: random around 1
ONE_PLUS = {"gemma2", "gemma3_text"}  # its RMSNorm multiplies by 1 + weight


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
    assert tk.get_vocab_size() == VOCAB and tk.token_to_id("<|im_end|>") == EOS
    assert tk.token_to_id("<|endoftext|>") == ENDOFTEXT
    return tk


def write_tokenizer(tk, out):
    tk.save(os.path.join(out, "tokenizer.json"), pretty=False)
    dump(dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=None, eos_token="<|im_end|>",
              pad_token="<|endoftext|>", unk_token=None, add_bos_token=False, add_prefix_space=False,
              clean_up_tokenization_spaces=False, model_max_length=4096, chat_template=CHATML),
         os.path.join(out, "tokenizer_config.json"))
    dump(dict(eos_token_id=[EOS, ENDOFTEXT], pad_token_id=ENDOFTEXT, do_sample=False),
         os.path.join(out, "generation_config.json"))


# ---------------------------------------------------------------- weights
def embedding_scale(text):
    """What the model multiplies embeddings by."""
    return text.get("embedding_multiplier") or (
        math.sqrt(text["hidden_size"]) if text["model_type"].startswith("gemma") else 1.0)


def init(model, text, spread, seed):
    key, new, model_type = mx.random.key(seed), [], text["model_type"]
    # a model that scales its embeddings up would otherwise only repeat the last token (tied head)
    emb = 0.1 / embedding_scale(text)
    for name, p in sorted(tree_flatten(model.parameters())):
        key, k = mx.random.split(key)
        g = lambda s=1.0: mx.random.normal(p.shape, key=k) * s  # noqa: B023,E731
        last = name.split(".")[-1]
        given = next((std for ending, std in spread.items() if name.endswith(ending)), None)
        if given is not None:
            v = g(given) + (1.0 if p.ndim == 1 and last in FACTORS else 0.0)
        elif last == "A_log":
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


def more_weights(tiny, seed):
    """Weights that mlx-lm's class has no place for."""
    keys = mx.random.split(mx.random.key(1000 + seed), len(tiny.more) + 1)
    std = lambda name: next((s for ending, s in tiny.spread.items() if name.endswith(ending)), 1.0)  # noqa: E731
    return {n: mx.random.normal(shape, key=k) * std(n) for (n, shape), k in zip(tiny.more.items(), keys)}


def scale_logits(model, model_type, ids, target=3.0):
    names = [n for n, _ in tree_flatten(model.parameters()) if "layers." not in n]
    fn = next(n for s in ("model.norm.weight", "embedding_norm.weight", "norm_f.weight",
                               "final_layernorm.weight") for n in names if n.endswith(s))
    for _ in range(3):
        f = target / mx.std(model(mx.array([ids]))).item()
        w = dict(tree_flatten(model.parameters()))[fn]
        model.update(tree_unflatten([(fn, (1 + w) * f - 1 if model_type in ONE_PLUS else w * f)]))


def quantise(model, cfg, settings):
    """By mlx-lm, with what the model's class asks for (routers at 8 bits) unless `paths` says otherwise."""
    paths = dict(settings.get("paths", {}))
    by_class = getattr(model, "quant_predicate", None) or (lambda path, _: True)

    def predicate(path, module):
        return next((own for ending, own in paths.items() if path.endswith(ending)), by_class(path, module))

    model, cfg = quantize_model(model, cfg, settings["group_size"], settings["bits"],
                                mode=settings.get("mode", "affine"), quant_predicate=predicate)
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
def golden(reference, shaken, name, tiny, seed, pool, has_experts):
    prompts, shift = [], seed
    for n in tiny.lengths:
        for _ in range(400):
            shift += 7
            ids, routed = [pool[(shift + i) % len(pool)] for i in range(n)], []
            if shaken is not None:
                moved = mx.abs(log_probabilities(shaken.step(ids)) - log_probabilities(reference.step(ids))).max()
                if moved.item() > MAX_SHAKEN:
                    continue
            with reference.choices(routed) if has_experts else contextlib.nullcontext():
                out, gaps, y = greedy(reference, ids, STEPS)
            if min(gaps) > MIN_GAP and len(set(out)) >= MIN_DISTINCT and min(routed, default=1.0) > MIN_ROUTER_GAP:
                break
        else:
            return None
        assert bool(routed) == has_experts
        prompts.append(dict(prompt_ids=ids, greedy_ids=out, gaps=gaps,
                            last_logprobs=[round(x, 6) for x in log_probabilities(y).tolist()]))
        if has_experts:
            prompts[-1]["router_gap"] = round(min(routed), 6)
    packages = ["mlx", "mlx-lm", "tokenizers"] + (["transformers", "torch"] if tiny.reference != "mlx-lm" else [])
    g = dict(model_type=tiny.config["model_type"], computed_in="float32", steps=STEPS, min_gap=MIN_GAP,
             made_with={k: version(k) for k in packages}, prompts=prompts)
    if tiny.reference != "mlx-lm":
        g.update(reference=tiny.reference, why=tiny.why)
    if name == "llama":
        tok = reference.tokenizer
        ids = list(tok.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=True, return_dict=False))
        out, gaps, _ = greedy(reference, ids, STEPS)
        if min(gaps) <= MIN_GAP or len(set(out)) < MIN_DISTINCT:
            return None
        g["chat"] = [dict(messages=MESSAGES, prompt_ids=ids, greedy_ids=out, greedy_text=tok.decode(out),
                          greedy_text_no_special=tok.decode(out, skip_special_tokens=True), gaps=gaps)]
    return g


# ---------------------------------------------------------------- one folder
def make(name, root):
    tk, tiny = build_tokenizer(), MODELS[name]
    pool = tk.encode(TEXT.replace("\n", " ")).ids
    out = os.path.join(root, "tiny-" + name)
    for seed in range(1, 40):
        cfg = json.loads(json.dumps(tiny.config))
        text = text_config(cfg)
        Model, Args = _get_classes(cfg)
        model = Model(Args.from_dict(json.loads(json.dumps(cfg))))
        if cfg["model_type"] == "gemma3_text":  # tied: drop the class's separate head as its loader does
            model.sanitize({})
        init(model, text, tiny.spread, seed)
        scale_logits(model, text["model_type"], pool[:100])
        if tiny.quantised:
            model, cfg = quantise(model, cfg, tiny.quantised)
        elif tiny.packed != "awq":
            model.set_dtype(getattr(mx, cfg["torch_dtype"]))
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)
        params = dict(tree_flatten(model.parameters()))
        has_experts = any(p.ndim == 3 and "conv" not in n for n, p in params.items())
        if tiny.published:
            params = transposed(publish(params, cfg), cfg)
            if "text_config" in cfg:
                params = {re.sub(r"^model\.", "model.language_model.", n): p for n, p in params.items()}
        if tiny.packed == "awq":
            params = as_awq(params, cfg["quantization_config"]["group_size"])
        elif tiny.packed == "blocks":
            params, cfg = as_blocks(params), json.loads(json.dumps(tiny.config))
        params.update(more_weights(tiny, seed))
        write_weights(params, out, name.endswith("-sharded"))
        dump(cfg, os.path.join(out, "config.json"))
        write_tokenizer(tk, out)
        reference = REFERENCES[tiny.reference](out)  # from what was written
        with tempfile.TemporaryDirectory() as away:
            if tiny.steady:
                changed(out, {}, away, SHAKE)
            shaken = REFERENCES[tiny.reference](away) if tiny.steady else None
        g = golden(reference, shaken, name, tiny, seed, pool, has_experts)
        if g is not None:
            break
    else:
        raise RuntimeError(f"{name}: no seed gives clear answers")
    dump(g, os.path.join(out, "golden.json"))
    # what the file says, checked another way: token by token (or without a cache) instead of at once
    last = g["prompts"][-1]
    cache = reference.cache()
    for t in [[t] for t in last["prompt_ids"]] if tiny.stepwise else [last["prompt_ids"]]:
        y = reference.step(t, cache if tiny.stepwise else None)
    stepwise = farthest(y, last)
    assert stepwise < 1e-3, stepwise
    size = sum(os.path.getsize(os.path.join(out, f)) for f in os.listdir(out))
    print(f"{name:14s} seed {seed}, {sum(p.size for p in params.values())} stored values, "
          f"{size / 1000:.0f} kB, logits std {mx.std(y).item():.2f}, "
          f"smallest gap {min(min(p['gaps']) for p in g['prompts']):.4f}, "
          f"distinct {[len(set(p['greedy_ids'])) for p in g['prompts']]}, stepwise diff {stepwise:.1e}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("names", nargs="*")
    ap.add_argument("--out", default=os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures"))
    ap.add_argument("--list", action="store_true")
    a = ap.parse_args()
    if a.list:
        print(*MODELS)
        return 0
    for n in a.names or MODELS:
        make(n, a.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
