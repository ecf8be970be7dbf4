"""Five small tasks for lm-evaluation-harness whose data are the fixtures': nothing is downloaded.

Owns which questions they ask. Leaves running them to harness_run.py. Standard library only.
"""

import json
import pathlib
import random

DATA = pathlib.Path(__file__).resolve().parent.parent / "fixtures/data"

# What MT-bench's questions are, by their number.
CATEGORIES = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]

NUMBERS = "zero one two three four five six seven eight nine ten".split()


def records(name):
    with (DATA / f"{name}.jsonl").open() as file:
        return [json.loads(line) for line in file]


def last_user_text(record):
    return [message["content"] for message in record["messages"] if message["role"] == "user"][-1]


def halves(text, mark):
    """What stands before the mark that is nearest to a text's middle, and behind it; None where it has none."""
    places = [at + len(mark) for at in range(len(text)) if text.startswith(mark, at)]
    places = [at for at in places if 20 < at < len(text) - 10]
    if not places:
        return None
    at = min(places, key=lambda at: abs(at - len(text) // 2))
    return text[:at].strip()[-300:], text[at:].strip()[:160].rstrip()


def continuations(numbers):
    """Which of four texts goes on with a text: each text's own second half and those of three others."""
    sources = [
        [halves(last_user_text(record), ". ") for record in records("gsm8k_8shot")],
        [halves(last_user_text(record), "\n    ") for record in records("humaneval")],
        [halves(last_user_text(record), ". ") for record in records("mt_bench")],
    ]
    documents = []
    for source in sources:
        pairs = [pair for pair in source if pair is not None]
        for first, second in pairs:
            others = numbers.sample([other for _, other in pairs if other != second], 3)
            label = numbers.randrange(4)
            choices = others[:label] + [second] + others[label:]
            documents.append({"text": f"Text: {first}\nIt goes on:", "choices": choices, "label": label})
    numbers.shuffle(documents)
    return documents


def categories(numbers):
    documents = []
    for record in records("mt_bench"):
        number = int(record["id"].split("-")[1])
        text = last_user_text(record)[:300]
        label = (number - 81) // 10
        documents.append({"text": f"Question: {text}\nKind:", "choices": CATEGORIES, "label": label})
    numbers.shuffle(documents)
    return documents


def sums(numbers):
    documents = []
    for _ in range(60):
        one, other = numbers.randrange(5), numbers.randrange(6)
        text = f"Question: What is {NUMBERS[one]} plus {NUMBERS[other]}?\nAnswer:"
        documents.append({"text": text, "choices": NUMBERS, "label": one + other, "answer": NUMBERS[one + other]})
    return documents


def texts(_):
    return [{"text": last_user_text(record)} for record in records("humaneval")]


CHOICE = """output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""

ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""

GENERATED = """output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
filter_list: [{name: none, filter: [{function: remove_whitespace}, {function: take_first}]}]
generation_kwargs: {until: ["\\n\\n", "Question:", "."], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true, ignore_punctuation: true}]
"""

# Name: documents, shots, questions, how they are asked.
TASKS = {
    "local_continuations": (continuations, 5, 200, CHOICE),
    "local_categories": (categories, 3, 40, CHOICE),
    "local_sums": (sums, 4, 40, CHOICE),
    "local_perplexity": (texts, 0, 40, ROLLING),
    "local_answers": (sums, 4, 40, GENERATED),
}


def write_tasks(folder):
    """Writes the tasks into a folder for lm_eval's --include_path."""
    for name, (documents_of, num_shots, num_questions, form) in TASKS.items():
        documents = documents_of(random.Random(7))
        shots, questions = documents[:num_shots], documents[num_shots : num_shots + num_questions]
        files = {}
        for split, members in (("train", shots or questions[:1]), ("test", questions)):
            files[split] = str(folder / f"{name}.{split}.jsonl")
            with open(files[split], "w") as file:
                file.writelines(json.dumps(member) + "\n" for member in members)
        # The same shots in front of every question, as in MMLU.
        lines = [
            f"task: {name}",
            "dataset_path: json",
            f"dataset_kwargs: {{data_files: {json.dumps(files)}}}",
            "test_split: test",
            "fewshot_split: train",
            "fewshot_config: {sampler: first_n}",
            f"num_fewshot: {num_shots}",
        ]
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n" + form)
