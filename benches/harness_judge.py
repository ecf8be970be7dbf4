"""A third side of harness.py: the same requests by transformers in float64, to tell which side a difference is on.

Owns that computation, whose only trick is that what all requests begin with is computed once. Needs torch and
transformers beside lm-eval.
"""

import copy

import torch
from lm_eval.api.model import TemplateLM
from transformers import AutoModelForCausalLM, AutoTokenizer

CHUNK_TOKENS = 128


class Judge(TemplateLM):
    def __init__(self, folder):
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()

    @property
    def eot_token_id(self):
        return self.tokenizer.eos_token_id

    def tok_encode(self, string, **_):
        return self.tokenizer.encode(string, add_special_tokens=False)

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests, **_):
        wholes = [context + continuation for _, context, continuation in requests]
        num_shared = 0
        while all(whole[: num_shared + 1] == wholes[0][: num_shared + 1] for whole in wholes) and num_shared < len(wholes[0]):
            num_shared += 1
        # Each request computes the last token of its context itself.
        num_shared = min([num_shared, *(len(context) - 1 for _, context, _ in requests)])
        cache = None
        for start in range(0, num_shared, CHUNK_TOKENS):
            ids = torch.tensor([wholes[0][start : min(start + CHUNK_TOKENS, num_shared)]])
            cache = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
        answers = []
        for (_, context, continuation), whole in zip(requests, wholes, strict=True):
            ids = torch.tensor([whole[num_shared:-1]])
            logits = self.model(ids, past_key_values=copy.deepcopy(cache), logits_to_keep=len(continuation)).logits[0]
            probabilities = torch.log_softmax(logits, dim=-1)
            chosen = probabilities[torch.arange(len(continuation)), torch.tensor(continuation)]
            is_greedy = logits.argmax(dim=-1).tolist() == list(continuation)
            answers.append((chosen.sum().item(), is_greedy))
        return answers

    def loglikelihood_rolling(self, requests, **_):
        raise NotImplementedError("the judge knows multiple choice alone")

    def generate_until(self, requests, **_):
        raise NotImplementedError("the judge knows multiple choice alone")
