"""Evaluation by lm-eval (EleutherAI's evaluation harness), which has the tasks, their prompts, and their metrics.

The adapter answers the harness's three types of requests like its own `hf` model on the same directory. Texts of
similar length are computed together, equal texts once, and a generation ends at its stop string.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import lm_eval
import torch
from lm_eval.api.group import Group
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn.utils.rnn import pad_sequence

from gpt2core import runtime
from gpt2core.checkpoint.cluster import batches_of_directory
from gpt2core.checkpoint.decoding import load_for_decoding
from gpt2core.config.evaluate import Evaluate
from gpt2core.errors import UserError, first_line
from gpt2core.evaluation.metrics.language_model import token_nats
from gpt2core.evaluation.mmlu import read_mmlu
from gpt2core.inference import Sampling, TextStream
from gpt2core.inference.batches import Batches
from gpt2core.inference.engine import by_length, stream
from gpt2core.inference.sampling import check_finite
from gpt2core.model.inference import Packed
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.byte_pair import END_OF_TEXT

DEFAULT_NEW_TOKENS = 256  # lm-eval's default for tasks that set no limit
DEFAULT_SEED = 1234  # of the choice of solved examples: lm-eval's default
BOOTSTRAP_SAMPLES = 1000  # for the standard errors of metrics that are not means, such as perplexity
_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_OTHER_KEYS = ("until", "do_sample", "max_gen_toks")


class Adapter(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A language model in eval mode as lm-eval's `LM`; `batch_size` texts per forward pass."""

    def __init__(self, batches: Batches, batch_size: int) -> None:
        super().__init__()
        self._batches, self._batch_size = batches, batch_size
        self._model, self._tokenizer = batches.model, batches.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The id of `<|endoftext|>`."""
        return self._tokenizer.eot_id

    @property
    def max_length(self) -> int:
        """The context of the model in tokens."""
        return self._model.config.n_positions

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text; `<|endoftext|>` in it is the special token, as in transformers."""
        return self._tokenizer.encode(string, allow_special=True)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return log-likelihoods without lm-eval's progress bar, which it would also print to a file."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations of contexts. A context that is too long loses its beginning.

        Args:
            requests: (ignored, context ids, continuation ids) each.

        Returns:
            For each request the log-likelihood of the continuation in nats, and whether greedy decoding would write it.

        Raises:
            UserError: a continuation is empty or longer than the model's context.
        """
        by_input: dict[tuple[int, ...], list[int]] = {}  # numbers of the requests with equal inputs
        for number, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"request {number}: an answer of {len(continuation)} tokens cannot be scored by a model of "
                    f"{self.max_length} positions"
                )
            by_input.setdefault(tuple((context + continuation)[-self.max_length - 1 :][:-1]), []).append(number)
        inputs = sorted(by_input, key=len)
        groups = [inputs[start : start + self._batch_size] for start in range(0, len(inputs), self._batch_size)]
        work = ([group, [[requests[number][2] for number in by_input[row]] for row in group]] for group in groups)
        results = self._batches.map(score_batch, work)
        results = runtime.progress(results, what="likelihoods", unit="batch", total=len(groups))
        scores: dict[int, tuple[float, bool]] = {}
        for group, rows in zip(groups, results, strict=True):
            for tokens, row in zip(group, rows, strict=True):
                scores |= zip(by_input[tokens], map(tuple, row), strict=True)
        return [scores[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each whole text in nats, in adjacent windows of the model's context."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            rolling = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Continue each text up to one of its stop strings.

        A text that is too long for the new tokens that the task allows loses its beginning.
        """
        texts: dict[int, str] = {}
        by_options: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_options.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        work: list[tuple[list[int], list[Any]]] = []  # numbers of requests, and the arguments of `continue_batch`
        for options, numbers in by_options.items():
            sampling, stops, n_new = self._parse_options(json.loads(options))
            prompts = [self.tok_encode(requests[n].args[0])[-(self.max_length - n_new) :] for n in numbers]
            for group in by_length(prompts, self._batch_size):
                rows = [prompts[i] or [self.eot_token_id] for i in group]
                work.append(([numbers[i] for i in group], [rows, n_new, asdict(sampling), stops]))
        with runtime.progress(what="generate", unit="text", total=len(requests)) as bar:
            results = self._batches.map(continue_batch, (arguments for _, arguments in work))
            for (numbers, _), written in zip(work, results, strict=True):
                texts |= zip(numbers, written, strict=True)
                bar.update(len(numbers))
        return [texts[number] for number in range(len(requests))]

    def _parse_options(self, options: dict[str, Any]) -> tuple[Sampling, list[str], int]:
        """Return a task's sampling options, stop strings, and maximum number of new tokens."""
        kwargs = dict(normalize_gen_kwargs(options, DEFAULT_NEW_TOKENS))
        if unknown := sorted(kwargs.keys() - {*_SAMPLING_KEYS, *_OTHER_KEYS}):
            known = ", ".join(_SAMPLING_KEYS)
            raise UserError(f"generation_kwargs: {unknown[0]!r} is not known here; known are {known}")
        n_new = kwargs["max_gen_toks"]
        if n_new >= self.max_length:
            raise UserError(
                f"the task asks for up to {n_new} new tokens, and this model has {self.max_length} positions for them "
                "and the question: lower max_gen_toks in the task's generation_kwargs"
            )
        sampling_kwargs = {key: kwargs[key] for key in _SAMPLING_KEYS if kwargs.get(key) is not None}
        sampling = Sampling(**sampling_kwargs) if kwargs["do_sample"] else Sampling()
        stops = [stop for stop in handle_stop_sequences(kwargs["until"], eos=None) if stop and stop != END_OF_TEXT]
        return sampling, stops, n_new


@torch.inference_mode()
def score_batch(
    model: Packed, _: Tokenizer, inputs: Sequence[Sequence[int]], continuations: Sequence[Sequence[Sequence[int]]]
) -> list[list[tuple[float, bool]]]:
    """Score the continuations that end with each input.

    Args:
        model: in eval mode.
        inputs: ids of each text without its last one.
        continuations: of each input, ids of the continuations whose last ids, except for the last one, end the input.

    Returns:
        For each continuation of each input its log-likelihood in nats, and whether greedy decoding would write it.

    Raises:
        UserError: a likelihood is not finite.
    """
    device = model.transformer.wte.weight.device
    ids = pad_sequence([torch.tensor(row) for row in inputs], batch_first=True)  # [B, T], padded on the right
    hidden = model.transformer(ids.to(device)).flatten(0, 1)  # [B * T, C]
    # For each target token: its place in the flattened [B * T], its id, and the number of its continuation.
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    flat = [(row, continuation) for row, several in enumerate(continuations) for continuation in several]
    for owner, (row, continuation) in enumerate(flat):
        end = row * ids.size(1) + len(inputs[row])
        places += range(end - len(continuation), end)
        targets += continuation
        owners += [owner] * len(continuation)
    total = torch.zeros(len(flat), dtype=torch.float64)
    is_greedy = torch.ones(len(flat), dtype=torch.bool)
    hidden, target = hidden[torch.tensor(places, device=device)], torch.tensor(targets, device=device)
    first = 0
    for nats, logits in token_nats(model, hidden, target):
        owner_ids = torch.tensor(owners[first : first + len(nats)])
        is_likeliest = logits.argmax(-1) == target[first : first + len(nats)]
        total.index_add_(0, owner_ids, -nats.cpu().double())
        is_greedy[owner_ids[~is_likeliest.cpu()]] = False
        first += len(nats)
    check_finite(total)
    scores = iter(zip(total.tolist(), is_greedy.tolist(), strict=True))
    return [list(islice(scores, len(several))) for several in continuations]


def continue_batch(
    model: Packed, tokenizer: Tokenizer, rows: Sequence[list[int]], n_new: int, sampling: dict[str, Any],
    stops: Sequence[str],
) -> list[str]:  # fmt: skip
    """Return the continuation of each row of ids, up to a stop string or `n_new` tokens."""
    written = [TextStream(tokenizer.token_bytes, tokenizer.eot_id, stops) for _ in rows]
    for column in stream(model, rows, n_new, Sampling(**sampling), seed=0, slide=False):
        for text, token in zip(written, column.tolist(), strict=True):
            text.push(token)
        if all(text.finished for text in written):
            break
    for text in written:
        text.close()
    return [text.text for text in written]


def evaluate(
    batches: Batches,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    mmlu_csv: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """Evaluate a model on lm-eval's tasks; see `load_tasks` and `evaluate_loaded`."""
    loaded = load_tasks(tasks, include=include, mmlu_csv=mmlu_csv, num_fewshot=num_fewshot)
    return evaluate_loaded(batches, loaded, limit=limit, batch_size=batch_size)


def load_tasks(
    tasks: Sequence[str], *, include: Path | None = None, mmlu_csv: Path | None = None, num_fewshot: int | None = None
) -> dict[str, Any]:
    """Load lm-eval's tasks with their data, which it downloads if necessary.

    Args:
        tasks: names of lm-eval's tasks, groups, and tags, or paths of task files (YAML).
        include: a folder with further task files, which are found by their names.
        mmlu_csv: a folder with MMLU as it is distributed, see `read_mmlu`; the task `mmlu` is then read from there.
        num_fewshot: solved examples before each question; None: as the task says.

    Raises:
        UserError: a task is unknown, its data is not available, or its file is wrong.
    """
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap would fork a process that has torch's threads
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    manager = _manager([task for task in tasks if not (task == "mmlu" and mmlu_csv)], include)
    for task in tasks:
        task_objects = _load(manager, task, _mmlu(mmlu_csv, num_fewshot) if task == "mmlu" and mmlu_csv else task)
        for kind, named in loaded.items():
            named |= task_objects.get(kind, {})
    # Like lm_eval.simple_evaluate, which in addition lists all installed packages with pip.
    for each in loaded["tasks"].values():
        if num_fewshot is not None and each.get_config("num_fewshot") != 0:
            each.set_config(key="num_fewshot", value=num_fewshot)
        elif each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
    return loaded


def evaluate_loaded(
    batches: Batches, loaded: dict[str, Any], *, limit: int | None = None, batch_size: int = 16
) -> dict[str, Any]:
    """Evaluate a model on tasks that `load_tasks` has loaded.

    Args:
        batches: a model in eval mode with its tokenizer, and where it computes.
        loaded: the tasks.
        limit: maximum number of items per task, the first ones.
        batch_size: texts per forward pass.

    Returns:
        JSON values by task: metrics (value and standard error of each, None if not available), samples, num_fewshot,
        version.
    """
    for each in loaded["tasks"].values():
        each.set_fewshot_seed(seed=DEFAULT_SEED)
    with contextlib.redirect_stdout(sys.stderr):  # it prints its progress
        results = lm_eval.evaluate(
            Adapter(batches, batch_size), loaded,
            limit=limit, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False,
        )  # fmt: skip
    return {name: _task_result(name, results) for name in results["results"]}


def task_metrics(params: Evaluate, model_dir: Path) -> dict[str, dict[str, float]]:
    """Evaluate the language model in a directory on `params.tasks`.

    Returns:
        Numbers by task, under names that MLflow accepts: each metric, its `_stderr` if available, `samples`, and
        `num_fewshot`.

    Raises:
        UserError: as `evaluate`, or the directory has no language model with its tokenizer.
    """
    model, tokenizer = load_for_decoding(model_dir)
    with batches_of_directory(model_dir, model, tokenizer, "float32") as batches:
        results = evaluate(batches, params.tasks, num_fewshot=params.num_fewshot, limit=params.limit)
    return named_metrics(results)


def named_metrics(results: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the numbers of `evaluate`'s result by task, under names that MLflow accepts."""
    metrics: dict[str, dict[str, float]] = {}
    for task, result in results.items():
        values: dict[str, float | None] = {}
        for metric, row in result["metrics"].items():
            values |= {_mlflow_name(metric): row["value"], f"{_mlflow_name(metric)}_stderr": row["stderr"]}
        values |= {"samples": result["samples"], "num_fewshot": result["num_fewshot"]}
        metrics[_mlflow_name(task)] = {name: round(value, 4) for name, value in values.items() if value is not None}
    return metrics


def _mlflow_name(name: str) -> str:
    """Return a name that MLflow accepts.

    >>> _mlflow_name("exact_match (strict-match)")
    'exact_match_strict-match'
    """
    return re.sub(r"[^\w-]+", "_", name).strip("_")


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """Return lm-eval's index of tasks.

    Reading all takes ten seconds. First try only the folders whose names are the start of a task's name.
    """
    own = [include] if include else []
    root = Path(lm_eval.__file__).parent / "tasks"
    named = {root / "_".join(task.split("_")[:n]) for task in tasks for n in range(1, task.count("_") + 2)}
    folders = [*sorted(folder for folder in named if folder.parent == root and folder.is_dir()), *own]
    manager = TaskManager(include_defaults=False, include_path=folders)
    if all(task in manager.task_index or Path(task).is_file() for task in tasks):
        return manager
    return TaskManager(include_path=own)


def _load(manager: Any, task: str, spec: Any) -> dict[str, Any]:
    if isinstance(spec, str) and spec not in manager.task_index and not Path(spec).is_file():
        import difflib

        close_matches = difflib.get_close_matches(task, manager.task_index, 3)
        raise UserError(
            f"{task}: is neither a task of lm-eval nor a file; "
            f"{'do you mean ' + ' or '.join(close_matches) + '?' if close_matches else 'lm-eval ls tasks lists them'}"
        )
    try:
        return manager.load([spec])
    except UserError:
        raise
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"{task}: its data is not available ({first_line(error)}). lm-eval downloads data from the Hub: "
            "run once where there is a network, or name a task file over local data (docs/benchmarks.md)"
        ) from None
    except Exception as error:  # lm-eval and datasets raise many types for a wrong task file
        raise UserError(f"{task}: lm-eval cannot load it: {type(error).__name__}: {first_line(error)}") from error


def _mmlu(folder: Path, num_fewshot: int | None) -> Any:
    """Return lm-eval's group `mmlu` with the questions of local files."""
    import datasets

    def config(subject: str, splits: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
        return {
            "task": f"mmlu_{subject}",
            "custom_dataset": _returns({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}),
            "test_split": "test",
            "fewshot_split": "dev" if "dev" in splits else None,
            "fewshot_config": {"sampler": "first_n"},
            "output_type": "multiple_choice",
            "description": "The following are multiple choice questions (with answers) about "
            f"{subject.replace('_', ' ')}.\n\n",
            "doc_to_text": "{{question.strip()}}\nA. {{choices[0]}}\nB. {{choices[1]}}\nC. {{choices[2]}}\n"
            "D. {{choices[3]}}\nAnswer:",
            "doc_to_choice": ["A", "B", "C", "D"],
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }

    group = Group.from_config(
        {
            "group": "mmlu",
            "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
            "metadata": {"version": 2},
        }
    )
    for subject, splits in read_mmlu(folder, needs_dev=bool(num_fewshot)).items():
        group.add(ConfigurableTask(config=config(subject, splits)))
    return group


def _returns(value: Any) -> Callable[..., Any]:
    return lambda **_: value


def _task_result(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's part of `evaluate`'s result from lm-eval's keys METRIC,FILTER, such as `acc_stderr,none`."""
    row = results["results"][name]
    metrics = {}
    for key, value in row.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = row.get(f"{metric}_stderr,{filter_name}")
        metrics[metric if filter_name == "none" else f"{metric} ({filter_name})"] = {
            "value": _number(value),
            "stderr": _number(stderr),
        }
    members = results.get("group_subtasks", {}).get(name) or [name]
    counts = [results["n-samples"][member]["effective"] for member in _leaves(members, results)]
    return {
        "metrics": metrics,
        "samples": sum(counts),
        "num_fewshot": results["n-shot"].get(name),
        "version": _number(results["versions"].get(name)),
    }


def _leaves(names: Sequence[str], results: Mapping[str, Any]) -> list[str]:
    """Return the tasks in a tree of groups."""
    leaves: list[str] = []
    for name in names:
        members = results.get("group_subtasks", {}).get(name)
        leaves += _leaves(members, results) if members else [name]
    return leaves


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
