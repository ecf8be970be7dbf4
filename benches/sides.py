"""The programs that the benchmarks compare, each run in a process of its own and measured alike.

Owns the flags that name them, their input, starting a child, its wall time and peak memory, and
turning what it reports into one dictionary with the same keys for all sides. Leaves what is compared,
how often and against which bar to the benchmarks, and what the others' figures mean to mlx_lm_run.py and
llama_cpp_run.py.
Standard library only.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024


class SideError(Exception):
    """A side could not be run or its figures cannot be compared; the text says what to do."""


# What another program than mlxbatch needs: flags that name files, and how to get these.
NEEDED = {
    "mlx-lm": [("python", "run scripts/setup.sh reference"), ("model_folder", "run scripts/setup.sh reference")],
    "llama.cpp": [("llama_cpp", "run scripts/setup.sh llama-cpp"), ("gguf", "run scripts/setup.sh model")],
}


def parser_of(description):
    """A command line with the flags that say what the two sides are; a benchmark adds its own."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="Needs target/release/mlxbatch (make build) and mlx-lm (scripts/setup.sh reference).",
    )
    add = parser.add_argument
    add("--model-folder", default=str(ROOT / ".mlx/models/smollm2-f32"), help="model of mlx-lm, in MLX's layout")
    add("--model", help="model of mlxbatch (default: the same folder)")
    add("--mlxbatch", default=str(ROOT / "target/release/mlxbatch"), help="the mlxbatch binary")
    add("--python", default=str(ROOT / ".mlx/reference/bin/python"), help="a Python that has mlx-lm")
    add("--openblas", help="library to preload for mlx-lm on Linux (default: the system's libopenblas)")
    add("--only", choices=["mlx-lm", "mlxbatch"], help="run one side alone")
    add("--json", type=pathlib.Path, metavar="OUT", help="write all figures to this file")
    return parser


def add_run_flags(parser, data, rounds):
    """Adds the flags that say what is run, and how often: a JSONL file below the fixtures' data by default."""
    add = parser.add_argument
    add("--data", default=ROOT / "fixtures/data" / data, type=pathlib.Path, help="conversations to answer")
    add("--limit", type=int, metavar="N", help="only the first N lines")
    add("--rounds", type=int, default=rounds, help=f"how often each side runs (default {rounds})")
    add("--max-tokens", type=int, default=64, help="new tokens a line (default 64)")
    add("--batch-size", type=int, default=16, help="sequences prefilled and decoded together (default 16)")
    add("--check", action="store_true", help="exit with 1 when a bar is missed")


def parse_for_mlxbatch(parser, why_alone):
    """Parses the command line of a benchmark that has run flags and is about mlxbatch alone."""
    parser.set_defaults(only="mlxbatch")
    options = parse(parser, ("rounds", "max_tokens", "batch_size"), [("data", "it must be a JSONL file")])
    if options.only != "mlxbatch":
        parser.error(f"{why_alone}: leave out --only")
    return options


def add_llama_cpp_flags(parser):
    """Adds the flags that say what llama.cpp is, and whether it is the other side."""
    add = parser.add_argument
    add("--against", default="mlx-lm", choices=list(NEEDED), help="the other side (default mlx-lm)")
    add("--gguf", default=str(ROOT / ".mlx/models/smollm2/SmolLM2-135M-Instruct.gguf"),
        help="model of both sides against llama.cpp")
    add("--llama-cpp", default=str(ROOT / ".mlx/llama-cpp"), help="the folder that holds xllamacpp")


def parse(parser, positive, needed):
    """Parses the command line; exits with a message where these flags are below 1, or where a file
    that the chosen sides need, or that `needed` names with a hint, does not exist."""
    options = parser.parse_args()
    other = getattr(options, "against", "mlx-lm")
    if other != "mlx-lm" and options.only == "mlx-lm":
        parser.error(f"--against {other} is not about mlx-lm: leave out --only mlx-lm")
    options.model = options.model or (options.model_folder if other == "mlx-lm" else options.gguf)
    for name in positive:
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    needed = list(needed)
    if options.only != "mlx-lm":
        needed.append(("mlxbatch", "run cargo build --release"))
    if options.only != "mlxbatch":
        needed += NEEDED[other]
    for name, hint in needed:
        if not pathlib.Path(getattr(options, name)).exists():
            parser.error(f"--{name.replace('_', '-')} {getattr(options, name)} does not exist: {hint}")
    return options


def first_lines(source, limit, destination):
    """Writes the first lines of a JSONL file that are not blank; returns how many there are."""
    with open(source, encoding="utf-8") as lines:
        kept = [line.rstrip("\n") for line in lines if line.strip()][:limit]
    if not kept:
        raise SideError(f"--data {source} has no lines")
    destination.write_text("\n".join(kept) + "\n", encoding="utf-8")
    return len(kept)


def find_openblas():
    """The path of the system's OpenBLAS, to be preloaded; None on macOS, where MLX brings its BLAS."""
    if sys.platform == "darwin":
        return None
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    listing = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
    for line in listing.splitlines():
        if line.strip().startswith("libopenblas.so"):
            return line.split(" => ")[-1].strip()
    raise SideError("no OpenBLAS found: install libopenblas-dev (scripts/setup.sh does), or name it with --openblas")


def run_child(command, environment, what):
    """Runs a command to its end; returns its standard output, wall seconds and peak memory.

    Peak memory is the kernel's ru_maxrss of this one child. The kernel also counts what the child
    was before exec, a copy of this process, so this process stays small: a few tens of MiB.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        began = time.perf_counter()
        try:
            child = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        except OSError as error:
            raise SideError(f"cannot start {what}: {error}") from error
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.terminate()
            raise
        seconds = time.perf_counter() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode != 0:
            tail = "\n".join(err.read().splitlines()[-15:])
            raise SideError(f"{what} ended with exit code {child.returncode}:\n{tail}")
        return out.read(), seconds, usage.ru_maxrss * RSS_UNIT_BYTES


def environment_with(preload):
    """This process's environment without any LD_PRELOAD but the given one, and offline."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("LD_PRELOAD", None)
    if preload:
        environment["LD_PRELOAD"] = preload
    return environment


def kernels_of_mlxbatch(options):
    """The name of the kernels that mlxbatch has OpenBLAS use, or None where it does not say."""
    try:
        facts = subprocess.run([options.mlxbatch, "--version", "-v"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    found = re.search(r"OpenBLAS \((\S+) kernels\)", facts.stdout)
    return found.group(1) if found else None


def environment_of_mlx_lm(options, openblas):
    """The environment of a process of mlx-lm's, with the given OpenBLAS preloaded or, with None, stock.

    A preloaded OpenBLAS uses the same kernels as mlxbatch's, which chooses better ones by itself where
    OpenBLAS does not know the processor.
    """
    environment = environment_with(openblas)
    kernels = kernels_of_mlxbatch(options) if openblas else None
    if kernels:
        environment.setdefault("OPENBLAS_CORETYPE", kernels)
    return environment


def run_mlx_lm(options, data, max_tokens, openblas):
    """mlx-lm's figures on a JSONL file, with the given OpenBLAS preloaded or, with None, stock."""
    command = [options.python, str(HERE / "mlx_lm_run.py"), str(data), "--model-folder", options.model_folder]
    command += ["--max-tokens", str(max_tokens), "--batch-size", str(options.batch_size)]
    environment = environment_of_mlx_lm(options, openblas)
    out, seconds, peak_bytes = run_child(command, environment, "mlx-lm")
    figures = json.loads(out)
    if sys.platform == "linux" and bool(openblas) != bool(figures["openblas"]):
        wanted = "with" if openblas else "without"
        raise SideError(f"mlx-lm was to run {wanted} OpenBLAS but uses {figures['openblas']}")
    return {
        **figures, "process_seconds": seconds, "peak_rss_bytes": peak_bytes,
        "openblas_kernels": environment.get("OPENBLAS_CORETYPE"),
    }


def run_llama_cpp(options, data, max_tokens):
    """The figures of llama.cpp's server on a JSONL file."""
    command = [sys.executable, str(HERE / "llama_cpp_run.py"), str(data), "--gguf", options.gguf]
    command += ["--max-tokens", str(max_tokens), "--batch-size", str(options.batch_size)]
    environment = {**environment_with(None), "PYTHONPATH": options.llama_cpp}
    out, seconds, peak_bytes = run_child(command, environment, "llama.cpp")
    # What the library itself prints comes first.
    figures = json.loads(out.splitlines()[-1])
    return {**figures, "process_seconds": seconds, "peak_rss_bytes": peak_bytes}


def run_mlxbatch(options, data, max_tokens, more_flags=()):
    """mlxbatch's figures on a JSONL file, from its --report and its output lines."""
    with tempfile.TemporaryDirectory(prefix="mlxbatch-bench-") as folder:
        output, report = pathlib.Path(folder, "out.jsonl"), pathlib.Path(folder, "report.json")
        command = [options.mlxbatch, "run", str(data), "-o", str(output), "--model", options.model]
        command += ["--max-tokens", str(max_tokens), "--batch-size", str(options.batch_size)]
        command += ["--temperature", "0", "--report", str(report), *more_flags]
        _, seconds, peak_bytes = run_child(command, environment_with(None), "mlxbatch")
        figures = json.loads(report.read_text(encoding="utf-8"))
        lines = output.read_text(encoding="utf-8").splitlines()
    if figures["num_failed"]:
        raise SideError(f"mlxbatch: {figures['num_failed']} of {figures['num_requests']} requests failed")
    figures["answers"] = [answer(json.loads(line)) for line in lines]
    # mlxbatch reports the seconds inside decode steps; mlx-lm's twin of it has this name.
    figures["decode_step_seconds"] = figures["decode_seconds"]
    return {**figures, "process_seconds": seconds, "peak_rss_bytes": peak_bytes}


def answer(line):
    body = line["response"]["body"]
    choice = body["choices"][0]
    return {
        "text": choice["message"]["content"] or "",
        "num_tokens": body["usage"]["completion_tokens"],
        "stopped": choice["finish_reason"] == "stop",
    }


def machine():
    """The machine and the programs in words, for the head of the table."""
    cpu, memory_bytes, system = platform.processor(), 0, platform.platform()
    if sys.platform == "darwin":
        cpu = first_line(["sysctl", "-n", "machdep.cpu.brand_string"])
        memory_bytes = int(first_line(["sysctl", "-n", "hw.memsize"]) or 0)
    elif sys.platform == "linux":
        info = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((x.split(":", 1)[1].strip() for x in info if x.startswith("model name")), cpu)
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        release = platform.freedesktop_os_release()
        system = f"{release.get('PRETTY_NAME', 'Linux')} {platform.machine()}"
    return f"{cpu}, {os.cpu_count()} cores, {memory_bytes / 2**30:.0f} GiB, {system}"


def first_line(command):
    """The first line that a command prints, or an empty string."""
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout.splitlines()
    except OSError:
        return ""
    return lines[0] if lines else ""
