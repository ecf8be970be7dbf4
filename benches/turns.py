#!/usr/bin/env python3
"""How much of a second turn's prompt comes from the cache: 80 conversations of two turns, played by one run.

Owns the conversations and the figure. First questions, and the second ones of those that have them, are MT-Bench's
in fixtures/data; the other second questions are below. Standard library only.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

SECOND = """\
Rewrite it so that every sentence begins with the letter A.
Take the role of its reader and say what is missing.
Now do the same in the form of a limerick.
Can you rephrase it for a friend who has no time?
Change it so that it takes place in winter.
Which of these points is the weakest, and why?
Shorten it to a single sentence.
Replace every adjective by its opposite.
Say it once more as a table with two columns.
Write a title for it of at most six words.
What would your neighbour say about that?
Go on with the story, but let it end badly.
Give me three questions that I could ask next.
How would you explain it to a child of five?
Answer again as if it were the year 1820.
Which facts in it should I check before I use it?
Translate the first sentence into French.
Now speak against your own opinion.
Tell me what you would do with ten thousand dollars.
Make it sound like the beginning of a novel.
Put the most important part first.
List the names that you mentioned, in alphabetical order.
Add a number to each of your claims, and say how sure you are.
Is there a simpler way? Describe it in two steps.
Say which of them came first in time.
Format your answer as JSON with one key for each item.
Could it be the other way round? Give an example.
What changes if the price doubles next year?
Name two books in which I can read more about it.
Turn it into a dialogue between two colleagues.
Explain the word that is the hardest to understand.
What are the costs, and who has to pay them?
Summarise both sides in one sentence each.
Now leave out everything that is not about people.
Who would disagree with you, and on what grounds?
Describe an experiment that could show it to be wrong.
What did people believe before this was known?
Compare it with the situation in your own country.
Which of the steps takes longest? Estimate how long.
Write the same as a short message to my boss.
What does it mean for somebody who lives in a desert?
Draw a conclusion and say how strong it is.
Give a second example that is not taken from nature.
How has the answer changed in the last hundred years?
Which law would you write to solve the problem?
Explain the part about the cause once more, in other words.
What should a teacher say about it in class?
Imagine that it never happened. What would be different?
Which of the two is better for the environment?
Make a plan for a lesson of ten minutes about it.
""".splitlines()


def conversations():
    first, second = {}, {}
    for line in (ROOT / "fixtures/data/mt_bench.jsonl").read_text().splitlines():
        item = json.loads(line)
        number, turn = re.fullmatch(r"mtbench-(\d+)-(\d)", item["id"]).groups()
        (first if turn == "1" else second)[number] = item["messages"][-1]["content"]
    own = iter(SECOND)
    for number, question in first.items():
        yield {"question_id": int(number), "turns": [question, second.get(number) or next(own)]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--binary", default=ROOT / "target/release/mlxbatch", type=pathlib.Path)
    parser.add_argument("--model", default=ROOT / ".mlx/models/smollm2/SmolLM2-135M-Instruct.gguf", type=pathlib.Path)
    parser.add_argument("--max-tokens", default=48, type=int)
    parser.add_argument("flags", nargs="*", help="more flags of `mlxbatch run`, behind --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlxbatch-bench-") as folder:
        data, out = pathlib.Path(folder, "in.jsonl"), pathlib.Path(folder, "out.jsonl")
        lines = list(conversations())
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = [options.binary, "run", data, "-o", out, "--model", options.model,
                   "--max-tokens", str(options.max_tokens), "--temperature", "0", *options.flags]
        if subprocess.run(command).returncode != 0:
            sys.exit("turns.py: error: the run failed")
        turns = [json.loads(line)["response"]["body"]["choices"][0]["turns"] for line in out.read_text().splitlines()]
    usages = [[turn["usage"] for turn in both] for both in turns]
    num_prompt = sum(second["prompt_tokens"] for _, second in usages)
    num_cached = sum(second["prompt_tokens_details"]["cached_tokens"] for _, second in usages)
    # What was there: the first prompt and its answer, of whose last token nobody has needed the KV.
    num_there = sum(first["total_tokens"] - 1 for first, _ in usages)
    print(f"{len(lines)} conversations, {options.max_tokens} tokens an answer: second turns have {num_prompt:,} prompt tokens, "
          f"{num_cached:,} of them cached ({num_cached / num_prompt:.1%})")
    print(f"first turns and their answers left {num_there:,} tokens, {num_cached / num_there:.1%} of which were found again")


if __name__ == "__main__":
    main()
