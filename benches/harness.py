#!/usr/bin/env python3
"""lm-evaluation-harness over mlxbatch against mlx_lm.evaluate, on tasks made of the fixtures' data.

Owns the rounds, the bars and the table: the same answers, and the wall time of a multiple-choice task with five
examples. Leaves the tasks to harness_tasks.py, running them to harness_run.py and harness_judge.py. Needs a Python
that has lm-eval 0.4.13 beside mlx-lm: .mlx/reference/bin/python -m pip install lm-eval==0.4.13
"""
# The bar of a thousandth needs --double: MLX's log-softmax on the CPU is off by 2e-4 at each token of SmolLM2's
# vocabulary. With it, both sides' sums over an option are within 1.5e-4 of float64 (--judge) and of each other.
#
# Both sides run the harness itself, from its start to its result: loading Python, the model and the data is
# part of the time. The few-shot block is the same for all questions, as in MMLU.

import json
import pathlib
import sys
import tempfile

import harness_tasks
import sides

HERE = pathlib.Path(__file__).resolve().parent
TIMED = "local_continuations"
MAX_TIME, MAX_DIFFERENCE = 0.15, 1e-3


def arguments():
    parser = sides.parser_of(__doc__.split("\n")[0])
    add = parser.add_argument
    add("--tasks", nargs="+", default=list(harness_tasks.TASKS), choices=list(harness_tasks.TASKS), help="which to run")
    add("--batch-size", type=int, default=32, help="sequences at a time (default 32)")
    add("--limit", type=int, help="only the first so many questions of each task")
    add("--double", action="store_true", help="mlx-lm's log-softmax in float64; its time tells nothing then")
    add("--judge", action="store_true", help="the log-likelihoods in float64, too, by transformers; slow, so set --limit")
    add("--check", action="store_true", help="exit with 1 when a bar is missed")
    return sides.parse(parser, ("batch_size",), [])


def run(side, options, tasks_folder, tasks):
    """Runs one side; returns its wall time in seconds, its results and every answer."""
    with tempfile.TemporaryDirectory(prefix="mlxbatch-lm-eval-") as home:
        out = pathlib.Path(home, "out.json")
        settings = {
            "model": options.model if side == "mlxbatch" else options.model_folder,
            "tokenizer": options.model_folder,
            "binary": options.mlxbatch,
            "double": options.double,
            "limit": options.limit,
            "batch_size": options.batch_size if side == "mlxbatch" else 8,
            "tasks_folder": str(tasks_folder),
            "tasks": tasks,
            "out": str(out),
        }
        if side == "mlx-lm":
            environment = sides.environment_of_mlx_lm(options, options.openblas or sides.find_openblas())
        else:
            environment = sides.environment_with(None)
        command = [options.python, str(HERE / "harness_run.py"), side, json.dumps(settings)]
        _, seconds, _ = sides.run_child(command, environment | {"HF_HOME": home}, side)
        return {"seconds": seconds, **json.loads(out.read_text())}


def numbers_of(responses):
    """The log-likelihoods of a question's options, or of a text."""
    found = []
    for (response,) in (option if len(option) == 1 else [option] for option in responses):
        found.append(response[0] if isinstance(response, (list, tuple)) else response)
    return found


def compare(task, ours, theirs):
    """One line of the table, and whether the task's bar is met."""
    pairs = list(zip(ours["samples"][task], theirs["samples"][task], strict=True))
    metric = next(name for name in ours["results"][task] if name.endswith(",none") and "stderr" not in name)
    one, other = ours["results"][task][metric], theirs["results"][task][metric]
    values = [(numbers_of(mine), numbers_of(their)) for mine, their in pairs]
    if isinstance(values[0][0][0], str):
        num_equal = sum(mine == their for mine, their in values)
        return f"{task:22} {metric[:-5]:14} {one:9.4f} {other:9.4f}   {num_equal} of {len(values)} texts equal", num_equal == len(values)
    numbers = [pair for mine, their in values for pair in zip(mine, their, strict=True)]
    furthest = max(abs(a - b) for a, b in numbers)
    is_met = furthest <= MAX_DIFFERENCE and abs(one - other) <= MAX_DIFFERENCE
    return f"{task:22} {metric[:-5]:14} {one:9.4f} {other:9.4f}   {len(numbers)} log-likelihoods within {furthest:.1e}", is_met


def main():
    options = arguments()
    figures, misses = {}, []
    try:
        with tempfile.TemporaryDirectory(prefix="mlxbatch-tasks-") as folder:
            folder = pathlib.Path(folder)
            harness_tasks.write_tasks(folder)
            both = [side for side in ("mlxbatch", "mlx-lm") if options.only in (None, side)]
            print(f"{'task':22} {'metric':14} {both[0]:>9} {both[-1]:>9}")
            for task in options.tasks:
                found = {side: run(side, options, folder, [task]) for side in both}
                figures[task] = found
                line, is_met = compare(task, found[both[0]], found[both[-1]])
                print(line, *(f"  {side} {found[side]['seconds']:.1f} s" for side in both), flush=True)
                if options.judge:
                    judged = run("judge", options, folder, [task])
                    for side in both:
                        line, _ = compare(task, found[side], judged)
                        print(line, f"  {side} against float64", flush=True)
                if not is_met:
                    misses.append(f"{task}: the answers differ")
                if task == TIMED and len(both) == 2 and not options.double:
                    ratio = found["mlxbatch"]["seconds"] / found["mlx-lm"]["seconds"]
                    print(f"{'':22} wall time {ratio:.3f} of mlx-lm's (bar {MAX_TIME})")
                    if ratio > MAX_TIME:
                        misses.append(f"wall time {ratio:.3f}, more than {MAX_TIME}")
    except sides.SideError as error:
        sys.exit(f"harness.py: {error}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    for miss in misses:
        print(f"missed: {miss}")
    sys.exit(1 if misses and options.check else 0)


if __name__ == "__main__":
    main()
