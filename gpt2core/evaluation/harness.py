"""Our models under lm-eval (EleutherAI's evaluation harness), which brings the tasks, their prompts and their metrics.

The adapter answers the harness's three kinds of requests as its own `hf` model does on the same directory. Texts of
like length are computed together, equal ones once, and a generation ends at its stop string.
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
from pathlib import Path
from typing import Any

import lm_eval
import torch
import torch.nn.functional as F
from lm_eval.api.group import Group
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch.nn.utils.rnn import pad_sequence

from gpt2core import runtime
from gpt2core.checkpoint.model_dir import load_language_model
from gpt2core.config.evaluate import Evaluate
from gpt2core.errors import UserError
from gpt2core.evaluation.mmlu import read_mmlu
from gpt2core.inference import Sampling, TextStream
from gpt2core.inference.engine import stream
from gpt2core.model.inference import Packed, pack
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.byte_pair import END_OF_TEXT

DEFAULT_NEW_TOKENS = 256  # of a task that does not say: lm-eval's own default
LOGIT_ROWS = 1024  # logits that are in memory at once: 1,024 x 50,257 of them are 206 MB
DEFAULT_SEED = 1234  # of the choice of solved examples: lm-eval's own default
BOOTSTRAP_SAMPLES = 1000  # for the standard error of what is no mean, such as a perplexity
_DRAWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_SAID_ELSEWHERE = ("until", "do_sample", "max_gen_toks")


class Adapter(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """One of our language models as lm-eval's `LM`.

    Args:
        model: in eval mode.
        tokenizer: its own.
        batch_size: texts that are computed together.
    """

    def __init__(self, model: Packed, tokenizer: Tokenizer, batch_size: int) -> None:
        super().__init__()
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size

    @property
    def eot_token_id(self) -> int:
        return self._tokenizer.eot_id

    @property
    def max_length(self) -> int:
        return self._model.config.n_positions

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """`<|endoftext|>` in a task's text is the token, as it is for transformers."""
        return self._tokenizer.encode(string, allow_special=True)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)  # its bar would also show where there is no terminal

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Of each (…, context, continuation) in ids: log-likelihood of the continuation in nats, and whether every
        token of it is the likeliest. A context that is too long loses its beginning."""
        same: dict[tuple[int, ...], list[int]] = {}  # requests of one input: the choices of a question of one token
        for number, (_, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise UserError(
                    f"request {number}: an answer of {len(continuation)} tokens cannot be scored by a model of "
                    f"{self.max_length} positions"
                )
            same.setdefault(tuple((context + continuation)[-self.max_length - 1 :][:-1]), []).append(number)
        inputs = sorted(same, key=len)
        total = torch.zeros(len(requests), dtype=torch.float64)
        is_greedy = torch.ones(len(requests), dtype=torch.bool)
        device = self._model.transformer.wte.weight.device
        starts = range(0, len(inputs), self._batch_size)
        for start in runtime.progress(starts, what="likelihoods", unit="batch"):
            few = inputs[start : start + self._batch_size]
            ids = pad_sequence([torch.tensor(row) for row in few], batch_first=True)  # [B, T]; what follows is not seen
            hidden = self._model.transformer(ids.to(device))  # [B, T, C]
            # The n places to look at: in the flattened [B * T], which token comes next, for which request.
            places: list[int] = []
            targets: list[int] = []
            owners: list[int] = []
            for row, tokens in enumerate(few):
                for number in same[tokens]:
                    continuation = requests[number][2]
                    end = row * ids.size(1) + len(tokens)
                    places += range(end - len(continuation), end)
                    targets += continuation
                    owners += [number] * len(continuation)
            needed, place = torch.tensor(places).unique(return_inverse=True)  # [p], [n]
            target, owner = torch.tensor(targets), torch.tensor(owners)  # [n], [n]
            needed_hidden = hidden.flatten(0, 1)[needed.to(device)]  # [p, C]
            for first, rows in enumerate(needed_hidden.split(LOGIT_ROWS)):
                log_p = F.log_softmax(self._model.lm_head(rows).float(), dim=-1).cpu()  # [rows, V]
                here = (place // LOGIT_ROWS == first).nonzero()[:, 0]  # [m]
                line = place[here] - first * LOGIT_ROWS
                total.index_add_(0, owner[here], log_p[line, target[here]].double())
                is_greedy[owner[here[log_p.argmax(-1)[line] != target[here]]]] = False
        return list(zip(total.tolist(), is_greedy.tolist(), strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each whole text, in windows of the context side by side, the last one moved back."""
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
        """Continue each text up to one of its stop strings, by the cache; a context that leaves no room for as many
        new tokens as the task allows loses its beginning."""
        texts = [""] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        bar = runtime.progress(what="generate", unit="text", total=len(requests))
        for options, numbers in alike.items():
            sampling, stops, n_new = self._read(json.loads(options))
            prompts = {n: self.tok_encode(requests[n].args[0])[-(self.max_length - n_new) :] for n in numbers}
            numbers.sort(key=lambda number: len(prompts[number]))
            for start in range(0, len(numbers), self._batch_size):
                few = numbers[start : start + self._batch_size]
                rows = [prompts[number] or [self.eot_token_id] for number in few]
                written = [TextStream(self._tokenizer.token_bytes, self.eot_token_id, stops) for _ in few]
                for column in stream(self._model, rows, n_new, sampling, seed=0, slide=False):
                    for text, token in zip(written, column.tolist(), strict=True):
                        text.push(token)
                    if all(text.finished for text in written):
                        break
                for number, text in zip(few, written, strict=True):
                    text.close()
                    texts[number] = text.text
                bar.update(len(few))
        bar.close()
        return texts

    def _read(self, options: dict[str, Any]) -> tuple[Sampling, list[str], int]:
        """How a task wants its texts: drawn, stopped, how long at most."""
        read = dict(normalize_gen_kwargs(options, DEFAULT_NEW_TOKENS))
        if unknown := sorted(read.keys() - {*_DRAWN, *_SAID_ELSEWHERE}):
            raise UserError(f"generation_kwargs: {unknown[0]!r} is not known here; known are {', '.join(_DRAWN)}")
        n_new = read["max_gen_toks"]
        if n_new >= self.max_length:
            raise UserError(
                f"the task asks for up to {n_new} new tokens, and this model has {self.max_length} positions for them "
                "and the question: lower max_gen_toks in the task's generation_kwargs"
            )
        drawn = {key: read[key] for key in _DRAWN if read.get(key) is not None}
        sampling = Sampling(**drawn) if read["do_sample"] else Sampling()
        stops = [stop for stop in handle_stop_sequences(read["until"], eos=None) if stop and stop != END_OF_TEXT]
        return sampling, stops, n_new


def evaluate(
    model: Packed,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    mmlu_csv: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, Any]:
    """What lm-eval's tasks say of a model, JSON values.

    Args:
        model: in eval mode.
        tokenizer: its own.
        tasks: names of lm-eval's tasks, groups and tags, or paths of task files (YAML).
        include: a folder of more task files, whose names then count.
        mmlu_csv: a folder of MMLU as it is distributed, see `read_mmlu`; the task `mmlu` is then read from there.
        num_fewshot: solved examples before each question; None: as the task says.
        limit: only the first so many items of each task.
        batch_size: texts that are computed together.

    Returns:
        By task: metrics (value and standard error each, None where there is none), samples, num_fewshot, version.

    Raises:
        UserError: a task is not known, its data cannot be had, or its file is wrong.
    """
    import datasets

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval's bootstrap would fork a process that has torch's threads
    loaded: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    manager = _manager([task for task in tasks if not (task == "mmlu" and mmlu_csv)], include)
    for task in tasks:
        found = _load(manager, task, _mmlu(mmlu_csv, num_fewshot) if task == "mmlu" and mmlu_csv else task)
        for kind, named in loaded.items():
            named |= found.get(kind, {})
    # As lm_eval.simple_evaluate does, which also asks pip for all that is installed.
    for each in loaded["tasks"].values():
        if num_fewshot is not None and each.get_config("num_fewshot") != 0:
            each.set_config(key="num_fewshot", value=num_fewshot)
        elif each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=DEFAULT_SEED)
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it is doing
        results = lm_eval.evaluate(
            Adapter(model, tokenizer, batch_size), loaded,
            limit=limit, bootstrap_iters=BOOTSTRAP_SAMPLES, log_samples=False,
        )  # fmt: skip
    return {name: _figures(name, results) for name in results["results"]}


def task_metrics(params: Evaluate, model_dir: Path) -> dict[str, dict[str, float]]:
    """`params.tasks` of the language model in a directory, as numbers under names that MLflow takes.

    Returns:
        By task: each metric, its `_stderr` where there is one, `samples` and `num_fewshot`.

    Raises:
        UserError: as `evaluate`, or the directory holds no language model with its tokenizer.
    """
    model, tokenizer = load_language_model(model_dir, device=runtime.device())
    found = evaluate(
        pack(model, "float32"), tokenizer, params.tasks, num_fewshot=params.num_fewshot, limit=params.limit
    )
    metrics: dict[str, dict[str, float]] = {}
    for task, result in found.items():
        figures = metrics[_plain(task)] = {}
        for metric, figure in result["metrics"].items():
            figures |= {_plain(metric): figure["value"], f"{_plain(metric)}_stderr": figure["stderr"]}
        figures |= {"samples": result["samples"], "num_fewshot": result["num_fewshot"]}
        metrics[_plain(task)] = {name: round(value, 4) for name, value in figures.items() if value is not None}
    return metrics


def _plain(name: str) -> str:
    """
    >>> _plain("exact_match (strict-match)")
    'exact_match_strict-match'
    """
    return re.sub(r"[^\w-]+", "_", name).strip("_")


def _manager(tasks: Sequence[str], include: Path | None) -> Any:
    """lm-eval's index of tasks: reading all takes ten seconds, the folders that bear the tasks' names far less."""
    own = [include] if include else []
    root = Path(lm_eval.__file__).parent / "tasks"
    near = {root / "_".join(task.split("_")[:n]) for task in tasks for n in range(1, task.count("_") + 2)}
    folders = [*sorted(folder for folder in near if folder.parent == root and folder.is_dir()), *own]
    manager = TaskManager(include_defaults=False, include_path=folders)
    if all(task in manager.task_index or Path(task).is_file() for task in tasks):
        return manager
    return TaskManager(include_path=own)


def _load(manager: Any, task: str, spec: Any) -> dict[str, Any]:
    if isinstance(spec, str) and spec not in manager.task_index and not Path(spec).is_file():
        import difflib

        near = difflib.get_close_matches(task, manager.task_index, 3)
        raise UserError(
            f"{task}: is neither a task of lm-eval nor a file; "
            f"{'do you mean ' + ' or '.join(near) + '?' if near else 'lm-eval ls tasks lists them'}"
        )
    try:
        return manager.load([spec])
    except UserError:
        raise
    except (ConnectionError, FileNotFoundError) as error:
        raise UserError(
            f"{task}: its data cannot be had ({_first_line(error)}). lm-eval fetches data from the Hugging Face Hub: "
            "run once where there is a network, or name a task file over local data (docs/benchmarks.md)"
        ) from None
    except Exception as error:  # whatever lm-eval and datasets raise over a task file that is wrong
        raise UserError(f"{task}: lm-eval cannot load it: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]


def _mmlu(folder: Path, num_fewshot: int | None) -> Any:
    """MMLU as lm-eval's group `mmlu` asks it, over local files."""
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


def _figures(name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval writes `acc,none` and `acc_stderr,none`: the metric, and the filter of the answers."""
    row = results["results"][name]
    metrics = {}
    for key, value in row.items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = row.get(f"{metric}_stderr,{chosen}")
        shown = metric if chosen == "none" else f"{metric} ({chosen})"
        metrics[shown] = {"value": _number(value), "stderr": _number(stderr)}
    members = results.get("group_subtasks", {}).get(name) or [name]
    counts = [results["n-samples"][member]["effective"] for member in _leaves(members, results)]
    return {
        "metrics": metrics,
        "samples": sum(counts),
        "num_fewshot": results["n-shot"].get(name),
        "version": _number(results["versions"].get(name)),
    }


def _leaves(names: Sequence[str], results: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for name in names:
        inner = results.get("group_subtasks", {}).get(name)
        found += _leaves(inner, results) if inner else [name]
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
