#!/usr/bin/env python3
"""lm-evaluation-harness over mlxbatch: `--model mlxbatch`.

  python scripts/lm_eval_mlxbatch.py --model mlxbatch --tasks hellaswag --num_fewshot 5 \\
      --model_args model=./models/smollm2,binary=target/release/mlxbatch

takes lm_eval's own command line. Each kind of request that the tasks make (loglikelihood,
loglikelihood_rolling, generate_until) goes to the binary as one batch, so that contexts which share their
few-shot block, and options which share their context, are computed once.

Owns turning the harness's requests into lines and records into its answers. Leaves everything that is
computed to mlxbatch, and tokens to the model's tokenizer.

Model arguments: model (a folder, GGUF file or hub repository, as --model of mlxbatch), binary (default
"mlxbatch"), tokenizer (default: the model), batch_size, max_length (default 2048), max_gen_toks (256),
add_bos_token (False), prefix_token (what stands before a text whose first token is scored: "auto" is BOS, else
the end token; "none" leaves the first token unscored, as mlx_lm.evaluate does; or an id), flags (more flags of
`mlxbatch run`, separated by spaces), folder (keep the batches there). Needs lm-eval 0.4 and transformers.
"""

import json
import pathlib
import shutil
import subprocess
import tempfile

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window


class MlxBatchError(RuntimeError):
    """The batch, or a line of it, has failed; the text is mlxbatch's own."""


@register_model("mlxbatch")
class MlxBatchLM(TemplateLM):
    def __init__(
        self,
        model,
        binary="mlxbatch",
        tokenizer=None,
        batch_size=None,
        max_batch_size=None,
        max_length=2048,
        max_gen_toks=256,
        add_bos_token=False,
        prefix_token="auto",
        flags="",
        folder=None,
        device=None,
    ):
        """`max_batch_size` and `device` are what lm_eval hands to every model."""
        super().__init__()
        from transformers import AutoTokenizer

        self.model, self.max_length, self.max_gen_toks = str(model), int(max_length), int(max_gen_toks)
        self.binary = shutil.which(str(binary))
        if self.binary is None:
            raise MlxBatchError(f"there is no program {binary!r}: give its path with binary=…")
        self.tokenizer = AutoTokenizer.from_pretrained(str(tokenizer or model))
        self.add_bos_token, self.prefix_token = add_bos_token, prefix_token
        self.flags = str(flags).split()
        # lm_eval says 1 where nobody has spoken.
        if batch_size not in (None, 1, "1", "auto"):
            self.flags += ["--batch-size", str(batch_size)]
        self.folder, self.num_batches = folder, 0

    # Tokens.

    @property
    def eot_token_id(self):
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self):
        """The token in front of an empty context; "none" is for rolling texts alone."""
        if self.prefix_token in ("auto", "none", None):
            bos = self.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else bos
        return int(self.prefix_token)

    @property
    def tokenizer_name(self):
        return self.model.replace("/", "__")

    def tok_encode(self, string, add_special_tokens=None, **_):
        wanted = self.add_bos_token if add_special_tokens is None else add_special_tokens
        return self.tokenizer.encode(string, add_special_tokens=wanted)

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # Requests.

    def _loglikelihood_tokens(self, requests, **_):
        """Each request is ((context, continuation), context tokens, continuation tokens)."""
        answers = self._score([(context, continuation) for _, context, continuation in requests])
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        windows, owners = [], []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            if self.prefix_token == "none":
                first, tokens = tokens[:1], tokens[1:]
            else:
                first = [self.prefix_token_id]
            # One token less than the context: the harness's windows predict one more than they read.
            for window in get_rolling_token_windows(tokens, first[0] if first else 0, self.max_length - 1, 1):
                windows.append(make_disjoint_window(window))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (log_likelihood, _) in zip(owners, self._score(windows), strict=True):
            sums[owner] += log_likelihood
        for request, log_likelihood in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, log_likelihood)
        return sums

    def generate_until(self, requests, disable_tqdm=False):
        lines = []
        for request in requests:
            context, settings = request.args[0], dict(request.args[1])
            stops = settings.pop("until", None) or []
            num_new = settings.pop("max_gen_toks", settings.pop("max_tokens", self.max_gen_toks))
            if not settings.pop("do_sample", False):
                settings["temperature"] = 0
            prompt = self.tok_encode(context)[-(self.max_length - num_new) :] or [self.prefix_token_id]
            stops = [stops] if isinstance(stops, str) else stops
            # What else the task says goes on as it is: mlxbatch names what it does not know.
            lines.append({"prompt": [prompt], "max_tokens": num_new, "stop": [stop for stop in stops if stop], **settings})
        texts = [body["choices"][0]["text"] for body in self._run(lines)]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _score(self, pairs):
        """(log-likelihood, is greedy) of continuations behind their contexts, both as tokens."""
        distinct = list(dict.fromkeys((tuple(context), tuple(continuation)) for context, continuation in pairs))
        lines, starts = [], []
        for context, continuation in distinct:
            prompt = (context + continuation)[-self.max_length :]
            # The first token of all has nothing to be predicted from.
            start = max(len(prompt) - len(continuation), 1)
            starts.append(start)
            lines.append({"prompt": [prompt], "max_tokens": 0, "prompt_logprobs": 0, "logprob_start_len": start})
        known = {}
        for pair, start, body in zip(distinct, starts, self._run(lines), strict=True):
            scored = [next(iter(entry.values())) for entry in body["choices"][0]["prompt_logprobs"][start:]]
            known[pair] = (sum(token["logprob"] for token in scored), all(token["rank"] == 1 for token in scored))
        return [known[tuple(context), tuple(continuation)] for context, continuation in pairs]

    def _run(self, lines):
        """Has mlxbatch answer these lines; returns the bodies of its records, in order."""
        if not lines:
            return []
        with tempfile.TemporaryDirectory(prefix="mlxbatch-lm-eval-") as temporary:
            folder = pathlib.Path(self.folder or temporary)
            folder.mkdir(parents=True, exist_ok=True)
            self.num_batches += 1
            source, target = (folder / f"batch-{self.num_batches}.{end}.jsonl" for end in ("in", "out"))
            with source.open("w") as file:
                for number, line in enumerate(lines):
                    file.write(json.dumps({"custom_id": str(number), **line}) + "\n")
            command = [self.binary, "run", str(source), "-o", str(target), "--model", self.model, *self.flags]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            # 3 says that some lines failed: the first of them says why.
            if done.returncode not in (0, 3):
                raise MlxBatchError(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
            with target.open() as file:
                records = [json.loads(line) for line in file]
        for record in records:
            problem = record["error"] or record["response"]["body"].get("error")
            if problem:
                raise MlxBatchError(problem["message"])
        return [record["response"]["body"] for record in records]


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
