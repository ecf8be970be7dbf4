"""One side of harness.py, in a process of its own: tasks through mlx_lm.evaluate's class or through mlxbatch's.

Owns nothing but the call; both sides make the same one. Needs lm-eval, and mlx-lm for its side.
"""

import json
import os
import pathlib
import sys

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "scripts"))


def softmax_in_double():
    """Has mlx-lm's log-softmax computed in float64, from the same logits."""
    import mlx.core as mx
    import mlx.nn as nn

    def log_softmax(logits):
        with mx.stream(mx.cpu):
            wide = logits.astype(mx.float64)
            return (wide - mx.logsumexp(wide, axis=-1, keepdims=True)).astype(mx.float32)

    nn.log_softmax = log_softmax


def model_of(side, settings):
    if side == "mlx-lm":
        from mlx_lm.evaluate import MLXLM

        if settings["double"]:
            softmax_in_double()
        return MLXLM(settings["model"], batch_size=settings["batch_size"], use_chat_template=False)
    if side == "judge":
        from harness_judge import Judge

        return Judge(settings["model"])
    import lm_eval_mlxbatch

    names = ["model", "binary", "batch_size", "tokenizer"]
    return lm_eval_mlxbatch.MlxBatchLM(prefix_token="none", **{name: settings[name] for name in names})


def main():
    side, settings = sys.argv[1], json.loads(sys.argv[2])
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=settings["tasks_folder"], include_defaults=False)
    model = model_of(side, settings)
    found = lm_eval.simple_evaluate(
        model=model, tasks=settings["tasks"], task_manager=manager, log_samples=True, limit=settings["limit"]
    )
    samples = {
        task: [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        for task, samples in found["samples"].items()
    }
    pathlib.Path(settings["out"]).write_text(json.dumps({"results": found["results"], "samples": samples}))


if __name__ == "__main__":
    main()
