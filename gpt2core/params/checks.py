"""Checks of params against each other: values that are allowed alone and not together."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpt2core.redact import redacted, secret_in_url

if TYPE_CHECKING:
    from gpt2core.params.schema import Params

SECRETS_BELONG = (
    "a judge's key belongs in the environment variable OPENAI_API_KEY, a mirror's password in GPT2CORE_MIRROR, "
    "S3's keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the Hub's token in HF_TOKEN; "
    "download another file into data/own/ and name it own/FILE"
)
TRAININGS = ("pretrain", "finetune_classify", "finetune_instruct")


def contradictions(params: Params) -> list[str]:
    """Return one line per contradiction, with the key and the remedy. Keys that `params` lacks are skipped."""
    problems: list[str] = []
    for check in _ALL:
        with contextlib.suppress(AttributeError):  # a part that another message already speaks of
            problems += check(params)
    return problems


def _base(params: Params) -> Iterator[str]:
    pretrain = params.pretrain
    if not pretrain.has_base:
        return
    for name in ("n_layer", "n_head", "n_embd"):
        if (value := getattr(pretrain, name)) is not None:
            yield f"pretrain.{name}: {value} has no use, sizes are those of pretrain.base {pretrain.base!r}; take null"
    if pretrain.init != "random":
        yield (
            f"pretrain.init: {pretrain.init!r} writes into random weights, which pretrain.base {pretrain.base!r} "
            "replaces; take random, or base: none"
        )


def _continued(params: Params) -> Iterator[str]:
    if params.data.continued_corpus is not None and params.pretrain.continued_steps is None:
        yield "pretrain.continued_steps: null does not use data.continued_corpus; give a number of steps"
    if params.data.continued_corpus is None and params.pretrain.continued_steps is not None:
        yield "data.continued_corpus: null, and pretrain.continued_steps needs a second corpus; name one"


def _heads(params: Params) -> Iterator[str]:
    if params.pretrain.has_base:
        return
    sizes = params.pretrain.sizes()
    if sizes["n_embd"] % sizes["n_head"]:
        yield (
            f"pretrain.n_head: {sizes['n_head']} heads do not divide the width n_embd {sizes['n_embd']}; "
            "choose a divisor"
        )


def _context(params: Params) -> Iterator[str]:
    n_positions = params.pretrain.n_positions if params.pretrain.has_base else params.pretrain.sizes()["n_positions"]
    if n_positions is not None and params.pretrain.context > n_positions:
        yield (
            f"pretrain.context: {params.pretrain.context} is longer than the model's {n_positions} positions; "
            "lower it or raise pretrain.n_positions"
        )


def _warmup(params: Params) -> Iterator[str]:
    for name in TRAININGS:
        section = getattr(params, name)
        if section.max_steps is not None and section.warmup_steps > section.max_steps:
            yield f"{name}.warmup_steps: {section.warmup_steps} is more than {name}.max_steps {section.max_steps}"


def _processes(params: Params) -> Iterator[str]:
    pretrain, instruct = params.pretrain, params.finetune_instruct
    per_node = re.search(r"--nproc[-_]per[-_]node[= ]([1-9]\d*)\b", pretrain.launcher)
    nodes = re.search(r"--nnodes[= ]([1-9]\d*)", pretrain.launcher)  # of a range, 1:4, the least
    if per_node and (problem := pretrain.undivided(int(per_node[1]) * int(nodes[1] if nodes else 1))):
        yield problem
    for name in TRAININGS:
        section = getattr(params, name)
        if section.sharding == "full" and section.launcher == "python":
            yield f"{name}.sharding: 'full' needs several processes; set {name}.launcher to a command of torchrun"
    if instruct.sharding == "full" and instruct.lora_base_dtype != "float32":
        yield (
            f"finetune_instruct.sharding: 'full' cannot divide {instruct.lora_base_dtype!r} weights; take none, or "
            "lora_base_dtype: float32"
        )


def _numerics(params: Params) -> Iterator[str]:
    if params.numerics != "portable":
        return
    for name in TRAININGS:
        section = getattr(params, name, None)
        if getattr(section, "dtype", None) == "auto":
            yield f"{name}.dtype: 'auto' depends on the machine; take float32 or bfloat16, or numerics: native"
        if (compile_ := getattr(section, "compile", False)) is not False:
            value = str(compile_).lower()
            yield f"{name}.compile: {value} depends on the machine's compiler; take false, or numerics: native"
        launcher = getattr(section, "launcher", "python")
        if processes := re.search(r"--(?:nproc[-_]per[-_]node|nnodes)[= ](?!1\b)\S+", launcher):
            yield f"{name}.launcher: {processes[0]!r} starts several processes; take one, or numerics: native"


def _openai_sizes(params: Params) -> Iterator[str]:
    if len(set(params.openai.sizes)) < len(params.openai.sizes):
        yield f"openai.sizes: {params.openai.sizes} names a size twice"


def _bases(params: Params) -> Iterator[str]:
    for name in TRAININGS:
        base = getattr(params, name).base
        if base.startswith("openai/") and base.removeprefix("openai/") not in params.openai.sizes:
            yield f"{name}.base: {base!r} is not made: add its size to openai.sizes {params.openai.sizes}"


def _padded(params: Params) -> Iterator[str]:
    if params.finetune_classify.position == "padded" and params.finetune_classify.max_tokens is None:
        yield "finetune_classify.max_tokens: null with position 'padded'; give the number of tokens to pad texts to"


def _fractions(params: Params) -> Iterator[str]:
    for name in ("finetune_classify", "finetune_instruct"):
        section = getattr(params, name)
        if section.val_fraction + section.test_fraction >= 0.9:
            yield f"{name}: val_fraction and test_fraction leave less than a tenth for training"


def _seeds(params: Params) -> Iterator[str]:
    for name in ("finetune_classify", "finetune_instruct"):
        seeds = getattr(params, name).seeds or []
        if len(set(seeds)) < len(seeds):
            yield f"{name}.seeds: {seeds} names a seed twice"


def _judge(params: Params) -> Iterator[str]:
    judge = params.judge
    if "openai" in judge.kinds() and not (judge.base_url and judge.models()):
        yield "judge.kind: 'openai' needs judge.base_url (such as http://127.0.0.1:11434/v1) and judge.model"
    if "transformers" in judge.kinds() and not judge.model_dir:
        yield "judge.kind: 'transformers' needs judge.model_dir, the directory of a model that answers instructions"
    if len(set(judge.models())) < len(judge.models()):
        yield f"judge.model: {judge.model} names a model twice"


def _secrets(params: Params) -> Iterator[str]:
    """Refuse secrets in any address: Git, MLflow, and the report show the params."""
    for section, keys in params.model_dump().items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and re.search(r":[/\\]|^//", text) and (secret := secret_in_url(text)):
                    yield f"{section}.{key}: {redacted(text)} has {secret}, not allowed in params; {SECRETS_BELONG}"


def _evaluate(params: Params) -> Iterator[str]:
    if len(set(params.evaluate.tasks)) < len(params.evaluate.tasks):
        yield f"evaluate.tasks: {params.evaluate.tasks} names a task twice"
    if params.evaluate.tasks and importlib.util.find_spec("lm_eval") is None:  # said before hours of training
        yield "evaluate.tasks: lm-eval is not installed; pip install 'gpt2core[eval]', or leave the list empty: []"


def _benchmarks(params: Params) -> Iterator[str]:
    interval, evaluations = params.mlflow.benchmark_interval_steps, params.pretrain.eval_interval_steps
    if interval % evaluations:
        yield (
            f"mlflow.benchmark_interval_steps: {interval} is no multiple of pretrain.eval_interval_steps, {evaluations}"
        )
    if interval and not params.evaluate.tasks:
        yield "mlflow.benchmark_interval_steps: needs evaluate.tasks, such as [hellaswag]; or set it to 0"


def _lora(params: Params) -> Iterator[str]:
    for name in ("finetune_classify", "finetune_instruct"):
        section = getattr(params, name)
        if len(set(section.lora_targets)) < len(section.lora_targets):
            yield f"{name}.lora_targets: {section.lora_targets} names a layer twice"
    instruct = params.finetune_instruct
    if instruct.lora_base_dtype != "float32" and instruct.trainable != "lora":
        yield (
            f"finetune_instruct.lora_base_dtype: {instruct.lora_base_dtype!r} weights cannot learn; "
            "take float32, or trainable: lora"
        )


def _induction(params: Params) -> Iterator[str]:
    sizes = params.pretrain.sizes()
    head_size = sizes["n_embd"] // sizes["n_head"]
    has_room = sizes["n_layer"] >= 2 and sizes["n_head"] >= 4 and head_size % 2 == 0
    if params.pretrain.init == "induction" and not (has_room and params.pretrain.tie_weights):
        yield (
            f"pretrain.init: 'induction' needs 2 blocks, 4 heads of an even size and tie_weights: true; this model has "
            f"{sizes['n_layer']} and {sizes['n_head']} of {head_size}; change these or take random"
        )


_ALL = (
    _base, _continued, _heads, _context, _warmup, _processes, _numerics, _openai_sizes, _bases, _padded, _fractions,
    _seeds, _judge, _secrets, _evaluate, _benchmarks, _lora, _induction,
)  # fmt: skip
