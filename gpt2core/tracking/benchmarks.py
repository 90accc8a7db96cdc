"""Benchmarks of lm-eval during pretraining. Only MLflow gets them: they change neither the training nor its outputs."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpt2core.log import logger
from gpt2core.params.schema import Params
from gpt2core.tracking import store

if TYPE_CHECKING:
    from gpt2core.model import GPT
    from gpt2core.tokenizer import Tokenizer


def benchmark_logger(
    params: Params, tokenizer: Tokenizer, log: Callable[[Mapping[str, Any], int], None]
) -> Callable[[GPT, int], None]:
    """Return a function that evaluates a model on `evaluate.tasks` every `mlflow.benchmark_interval_steps`.

    Args:
        params: all of them.
        tokenizer: of the model.
        log: takes metrics, such as `hellaswag.acc_norm`, and their step.

    Raises:
        UserError: a task is unknown, or its data is not available; before the training, not after its first hours.
    """
    interval = params.mlflow.benchmark_interval_steps
    if not (interval and store.is_enabled()):
        return lambda model, step: None
    from gpt2core.evaluation import harness  # an extra
    from gpt2core.inference.batches import Batches

    tasks = harness.load_tasks(params.evaluate.tasks, num_fewshot=params.evaluate.num_fewshot)

    def log_benchmarks(model: GPT, step: int) -> None:
        if step % interval:
            return
        try:
            with _random_numbers_kept():
                results = harness.evaluate_loaded(Batches(model, tokenizer), tasks, limit=params.evaluate.limit)
        except Exception as error:  # lm-eval raises many types; none of them is worth a training
            logger.warning(f"step {step}: no benchmarks, {type(error).__name__}: {error}")
            return
        log(harness.named_metrics(results), step)

    return log_benchmarks


@contextlib.contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Restore the global random generators afterwards."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
