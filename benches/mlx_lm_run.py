#!/usr/bin/env python3
"""The mlx-lm half of benches/compare.py: answers one JSONL file with mlx-lm's own batch API.

Run by compare.py in a process of its own, with the reference environment of `scripts/setup.sh
reference`; prints one JSON object on standard output. Owns what this side's figures mean; leaves
the choice of data, the rounds, OpenBLAS and the comparison to compare.py.
"""
# mlx-lm is used as its documentation says, through `batch_generate`: greedy, the model's own EOS
# tokens, prefill and decode batches of the same width. How it works and how it is counted here:
#
# - A free row is refilled at once, so prefill of new prompts and decode of the running ones
#   alternate on one stream. A decode step is launched before the last one's tokens are read, so a
#   prefill that begins may find a decode step still running and wait for it. mlx-lm's own
#   `prompt_time` contains that wait; here it is measured and counted as decode.
# - num_prefilled_tokens are real tokens, without padding and without each prompt's last token:
#   mlx-lm feeds that one to the first decode step.
# - num_generated_tokens counts every token sampled and kept, EOS included. The one step that
#   mlx-lm computes past a sequence's end is not counted.
# - prefill_seconds is the time in prefill calls less that wait. decode_seconds is all the rest of
#   the generator's wall time, as in mlx-lm's own `generation_tps`; decode_step_seconds is the part
#   of it spent in decode steps (the rest is joining, splitting and refilling batches).
# - run_seconds also holds reading the file, the chat template, tokenizing and detokenizing;
#   load_seconds importing mlx-lm and loading the model.
import time

START = time.perf_counter()

import argparse
import json
import os
import resource
import sys
from importlib.metadata import version


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="conversations, one JSON object with `messages` a line")
    parser.add_argument("--model-folder", required=True)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    return parser.parse_args()


def openblas_in_use():
    """The OpenBLAS library in this process that was not brought by numpy, or None."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            paths = {line.split()[-1] for line in maps if "openblas" in line}
    except OSError:
        return None
    return next((path for path in sorted(paths) if "numpy" not in path), None)


def measure_wait_for_decode():
    """Lets prefill first wait for the decode step in flight; returns a list that holds the seconds.

    The wait happens in any case, since both run on one stream; only its place becomes visible.
    """
    import mlx.core as mx
    from mlx_lm.generate import PromptProcessingBatch, generation_stream

    waited = [0.0]
    prompt = PromptProcessingBatch.prompt

    def prompt_after_decode(self, tokens):
        if tokens:
            began = time.perf_counter()
            mx.synchronize(generation_stream)
            waited[0] += time.perf_counter() - began
        return prompt(self, tokens)

    PromptProcessingBatch.prompt = prompt_after_decode
    return waited


def main():
    options = arguments()
    import mlx.core as mx
    from mlx_lm import batch_generate, load

    model, tokenizer = load(options.model_folder)
    waited = measure_wait_for_decode()
    loaded = time.perf_counter()

    with open(options.data, encoding="utf-8") as lines:
        requests = [json.loads(line) for line in lines if line.strip()]
    prompts = [
        list(tokenizer.apply_chat_template(x["messages"], add_generation_prompt=True, tokenize=True, return_dict=False))
        for x in requests
    ]
    response = batch_generate(
        model,
        tokenizer,
        prompts,
        max_tokens=options.max_tokens,
        return_token_ids=True,
        completion_batch_size=options.batch_size,
        prefill_batch_size=options.batch_size,
    )
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in response.token_ids]
    ended = time.perf_counter()

    stats = response.stats
    prefill_seconds = stats.prompt_time - waited[0]
    maxrss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {
        "num_requests": len(requests),
        "num_prompt_tokens": sum(len(prompt) for prompt in prompts),
        "num_prefilled_tokens": stats.prompt_tokens,
        "num_generated_tokens": stats.generation_tokens,
        "num_decode_steps": stats.generation_steps,
        "prefill_seconds": prefill_seconds,
        "decode_seconds": stats.wall_time - prefill_seconds,
        "decode_step_seconds": stats.decode_time + waited[0],
        "wait_for_decode_seconds": waited[0],
        "load_seconds": loaded - START,
        "run_seconds": ended - loaded,
        "wall_seconds": ended - START,
        "peak_memory_bytes": maxrss * (1 if sys.platform == "darwin" else 1024),
        "mlx_peak_memory_bytes": mx.get_peak_memory(),
        "prompt_tps_of_mlx_lm": stats.prompt_tps,
        "generation_tps_of_mlx_lm": stats.generation_tps,
        "openblas": openblas_in_use(),
        "device": str(mx.default_device()),
        "versions": {name: version(name) for name in ("mlx", "mlx-lm", "transformers")},
        # A sequence that ends with EOS has fewer ids than allowed: mlx-lm leaves the EOS out.
        "answers": [
            {"text": text, "num_tokens": len(ids), "stopped": len(ids) < options.max_tokens}
            for text, ids in zip(texts, response.token_ids)
        ],
    }
    json.dump(report, sys.stdout)
    print(flush=True)
    # mlx-lm's last decode step, launched ahead, is still running. OpenBLAS's exit handler waits for
    # ever when it comes upon its threads at work (seen with 0.3.21), so end without exit handlers.
    os._exit(0)


if __name__ == "__main__":
    main()
