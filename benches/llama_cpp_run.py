#!/usr/bin/env python3
"""The llama.cpp half of benches/compare.py: answers one JSONL file with the server of llama.cpp.

Run by compare.py in a process of its own, with PyPI's xllamacpp on its path (`scripts/setup.sh
llama-cpp`); prints one JSON object on standard output. Owns how the server is set and what this side's
figures mean; leaves the choice of data, the rounds and the comparison to compare.py.
"""
# The server runs in this process and is asked without HTTP, which costs it less than its users pay.
# As many requests as it has slots are under way at any time; the next one goes in as one is answered.
# Its settings are its defaults, but for the number of slots, room for the longest prompt in each, all
# cores, and greedy sampling. It keeps the last prompt of each slot, and reuses the prefix it shares
# with the next one.
#
# run_seconds holds templates, tokenizing and detokenizing; load_seconds importing and loading.
import time

START = time.perf_counter()

import argparse
import concurrent.futures
import json
import os
import sys
from importlib.metadata import version


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", help="conversations, one JSON object with `messages` a line")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--slot-tokens", type=int, default=2048, help="room for a prompt and its answer")
    return parser.parse_args()


def started(options):
    """The server, with its model loaded."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.gguf
    params.n_parallel = options.batch_size
    params.n_ctx = options.batch_size * options.slot_tokens
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.n_gpu_layers = 0
    params.warmup = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def main():
    options = arguments()
    server = started(options)
    loaded = time.perf_counter()

    with open(options.data, encoding="utf-8") as lines:
        requests = [json.loads(line) for line in lines if line.strip()]

    def ask(request):
        body = {"messages": request["messages"], "max_tokens": options.max_tokens, "temperature": 0}
        answer = server.handle_chat_completions(body)
        if "choices" not in answer:
            sys.exit(f"llama.cpp refuses a request: {json.dumps(answer)[:500]}")
        return answer

    with concurrent.futures.ThreadPoolExecutor(options.batch_size) as pool:
        answers = list(pool.map(ask, requests))
    ended = time.perf_counter()

    usages = [answer["usage"] for answer in answers]
    report = {
        "num_requests": len(requests),
        "num_prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
        "num_prefilled_tokens": sum(answer["timings"]["prompt_n"] for answer in answers),
        "num_generated_tokens": sum(usage["completion_tokens"] for usage in usages),
        "load_seconds": loaded - START,
        "run_seconds": ended - loaded,
        "versions": {"xllamacpp": version("xllamacpp")},
        "answers": [
            {"text": answer["choices"][0]["message"]["content"] or "",
             "num_tokens": answer["usage"]["completion_tokens"],
             "stopped": answer["choices"][0]["finish_reason"] == "stop"}
            for answer in answers
        ],
    }
    json.dump(report, sys.stdout)
    print(flush=True)
    # The answers are there; ending the server takes a while.
    os._exit(0)


if __name__ == "__main__":
    main()
