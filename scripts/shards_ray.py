#!/usr/bin/env python3
"""Answers a file in shards, each a Ray task that starts again where its worker is lost, and joins them.

Needs `pip install ray`, and a folder for the output that all workers see. A task that is tried once more goes on
from what the last try has left, so nothing is computed twice but what was in flight. Other flags are mlxbatch run's.

  scripts/shards_ray.py INPUT OUTPUT NUM_SHARDS [--kill-one] [FLAGS OF mlxbatch run ...]

--kill-one kills the worker of one shard and its run in the middle, to see that nothing is lost.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ray


@ray.remote(max_retries=3)
def answer(command: list[str], shard: int, notes: str) -> tuple[int, int]:
    """Runs a shard; returns its number and how many tries it took."""
    tries = Path(notes) / f"tries.{shard}"
    with tries.open("a") as file:
        file.write(f"{os.getpid()}\n")
    # A run outlives its worker where the worker is killed: it must not write beside the next try.
    child = subprocess.Popen(command)
    (Path(notes) / f"run.{shard}").write_text(f"{child.pid}\n")
    if child.wait() != 0:
        raise RuntimeError(f"shard {shard} ended with {child.returncode}")
    return shard, len(tries.read_text().splitlines())


def kill_one(parts: Path, shard: int) -> None:
    """Waits until a shard has some results, then kills its worker and its run."""
    partial = parts / f"out.{shard}.jsonl.partial"
    while not partial.exists() or partial.read_text().count("\n") < 2:
        if (parts / f"out.{shard}.jsonl").exists():
            raise SystemExit(f"shard {shard} ended before it could be killed")
        time.sleep(0.01)
    num_results = partial.read_text().count("\n")
    worker = int((parts / f"tries.{shard}").read_text().split()[-1])
    run = int((parts / f"run.{shard}").read_text())
    os.kill(worker, signal.SIGKILL)
    os.kill(run, signal.SIGKILL)
    print(f"killed worker {worker} and run {run} of shard {shard}, which had {num_results} results", flush=True)


def main() -> int:
    """Runs all shards and joins them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("num_shards", type=int)
    parser.add_argument("--kill-one", action="store_true")
    args, flags = parser.parse_known_args()
    mlxbatch = os.environ.get("MLXBATCH", "mlxbatch")
    parts = args.output.resolve().with_suffix(".shards")
    parts.mkdir(parents=True, exist_ok=True)

    def command(shard: int) -> list[str]:
        output = parts / f"out.{shard}.jsonl"
        return [mlxbatch, "run", str(args.input.resolve()), "-o", str(output), "--shard", f"{shard}/{args.num_shards}",
                "--resume", "--quiet", "--fail-on-errors", "100%", *flags]

    ray.init(log_to_driver=True)
    tasks = [answer.remote(command(shard), shard, str(parts)) for shard in range(1, args.num_shards + 1)]
    if args.kill_one:
        kill_one(parts, 1)
    for shard, num_tries in ray.get(tasks):
        print(f"shard {shard}: {num_tries} {'try' if num_tries == 1 else 'tries'}", flush=True)
    return subprocess.run([mlxbatch, "merge", str(parts / "out.*.jsonl"), "-o", str(args.output)]).returncode


if __name__ == "__main__":
    sys.exit(main())
