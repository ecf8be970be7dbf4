"""The two programs that answer for a tiny model: mlx-lm and transformers, behind one interface.

A reference is made from a folder and computes in float32: `cache()`, `step(ids, cache)` for the
logits after some tokens, `choices(gaps)` to watch how near the routers' choices are.  Torch is
needed only where a `Transformers` is made.  Which reference is right is tiny_models.py's to say.
"""
import contextlib
import json
import os
import tempfile

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load
from packing import decode_all
from publisher import publish, text_config, transposed


class MlxLm:
    """A folder's model as mlx-lm computes it in float32."""

    def __init__(self, folder):
        self.model, self.tokenizer = load(folder)
        self.model.set_dtype(mx.float32)

    def cache(self):
        return make_prompt_cache(self.model)

    def step(self, ids, cache=None):
        """Logits after the last of `ids`, which follow what `cache` holds."""
        return self.model(mx.array([ids]), cache=cache)[0, -1]

    @contextlib.contextmanager
    def choices(self, gaps):
        """Appends to `gaps` the least distance between a chosen expert's score and the next one's."""
        argpartition = mx.argpartition

        def watched(a, kth, axis=-1):
            ordered, last = mx.sort(a, axis=axis), kth if kth < 0 else kth + 1
            gaps.append((mx.take(ordered, last, axis=axis) - mx.take(ordered, last - 1, axis=axis)).min().item())
            return argpartition(a, kth=kth, axis=axis)

        mx.argpartition = watched
        mx.disable_compile()  # a compiled router would be watched only while it is traced
        try:
            yield
        finally:
            mx.argpartition = argpartition
            mx.enable_compile()


class Transformers:
    """A folder's text model as transformers computes it in float32."""

    def __init__(self, folder):
        import torch
        from transformers import AutoModelForCausalLM, DynamicCache, Mistral4Config, logging
        from transformers.models.mistral4.modeling_mistral4 import Mistral4ForCausalLM

        # By itself it is not among the automatic ones.
        AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        torch.set_num_threads(1)
        self.torch, self.new_cache = torch, DynamicCache
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        params = {}
        for file in sorted(os.listdir(folder)):
            if file.endswith(".safetensors"):
                params.update(mx.load(os.path.join(folder, file)))
        params = transposed(decode_all(params, config), config)
        params = {n: v.astype(mx.float32) for n, v in params.items()}
        text = {k: v for k, v in text_config(config).items() if not k.startswith("quantization")}
        with tempfile.TemporaryDirectory() as away:
            mx.save_safetensors(os.path.join(away, "model.safetensors"), publish(params, config),
                                metadata={"format": "pt"})
            with open(os.path.join(away, "config.json"), "w", encoding="utf-8") as f:
                json.dump(dict(text, dtype="float32", torch_dtype="float32"), f)
            self.model, info = AutoModelForCausalLM.from_pretrained(
                away, dtype=torch.float32, attn_implementation="eager",
                experts_implementation="eager", output_loading_info=True)
        wrong = {k: v for k, v in info.items() if v}
        assert not wrong, wrong
        self.model.eval()

    def cache(self):
        return self.new_cache(config=self.model.config)

    def step(self, ids, cache=None):
        """Logits after the last of `ids`, which follow what `cache` holds."""
        with self.torch.no_grad():
            y = self.model(self.torch.tensor([ids]), cache=cache, use_cache=cache is not None).logits[0, -1]
        return mx.array(y.numpy())

    @contextlib.contextmanager
    def choices(self, gaps):
        """Appends to `gaps` the least distance between a chosen expert's score and the next one's."""
        torch, topk = self.torch, self.torch.topk

        def watched(scores, k, *args, **kwargs):
            if k < scores.shape[-1]:
                best = topk(scores, k + 1, dim=-1).values
                gaps.append((best[..., -2] - best[..., -1]).min().item())
            return topk(scores, k, *args, **kwargs)

        before, torch.topk, torch.Tensor.topk = torch.Tensor.topk, watched, watched
        try:
            yield
        finally:
            torch.topk, torch.Tensor.topk = topk, before


REFERENCES = {"mlx-lm": MlxLm, "transformers": Transformers}


def greedy(reference, ids, steps):
    cache = reference.cache()
    first = y = reference.step(ids, cache)
    out, gaps = [], []
    while True:
        top = mx.sort(y)[-2:]
        out.append(mx.argmax(y).item())
        gaps.append(round((top[1] - top[0]).item(), 5))
        if len(out) == steps:
            return out, gaps, first
        y = reference.step([out[-1]], cache)


def log_probabilities(y):
    return y - mx.logsumexp(y)


def farthest(y, prompt):
    """The largest difference of a log-probability from what golden.json says."""
    return mx.abs(log_probabilities(y) - mx.array(prompt["last_logprobs"])).max().item()
