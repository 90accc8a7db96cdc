"""The report: the results of the pipeline on one page."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gpt2core import config, files, runtime
from gpt2core.errors import UserError
from gpt2core.evaluation import checkpoint_table
from gpt2core.executor import start_worker
from gpt2core.log import logger
from gpt2core.report import results
from gpt2core.report.inside import language_model_pictures, script_data, temperature_table
from gpt2core.report.page import Picture, Table, picture, render
from gpt2core.report.stage_status import outdated_stages
from gpt2core.tracking.find_runs import LOCAL_PAGE, FoundRun, look_for_runs
from gpt2core.tracking.plots.stages import FOLDER as PLOTS
from gpt2core.tracking.plots.stages import JUDGE_BASELINES, read_rows, stage_figures

METRICS = ("tokenize", *results.NAMES)
MAX_ANSWERS = 10
MAX_SAMPLES = 8
KILLED = "the process that reads them was killed, perhaps because memory ran out"
T = TypeVar("T")


# The stage whose results a section shows.
STAGE_OF = {
    "text": "tokenize", "pretraining": "pretrain", "inside": "pretrain", "classifier": "finetune-classify",
    "instructions": "finetune-instruct", "judge": "llm-judge-eval",
}  # fmt: skip
RUN_STAGES = ("download-data", "tokenize", "pretrain", "finetune-classify", "finetune-instruct", "llm-judge-eval")


class Text(NamedTuple):
    """A text that can be collapsed."""

    title: str
    text: str
    open: bool = False


class Bar(NamedTuple):
    """A bar of a chart: `share` of the full width, from 0 to 1."""

    name: str
    value: str
    share: float
    is_ours: bool = False


@dataclass
class Section:
    """A part of the report."""

    id: str
    title: str
    lead: str = ""
    outdated: str = ""  # why the results are not those of the present files
    bars: list[Bar] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    runs: list[FoundRun] = field(default_factory=list)
    inside: dict[str, Any] | None = None


def report_page(root: Path) -> str:
    """Return a self-contained page of a project's current metrics/, data/responses, models/pretrained, and runs.

    Missing results are left out, and the page lists them.

    Raises:
        UserError: there are no results yet, or a file is damaged.
    """
    metrics = {name: files.read_json(path) for name in METRICS if (path := root / "metrics" / f"{name}.json").exists()}
    if not metrics:
        raise UserError(f"{root / 'metrics'}: there are no results yet; make them: dvc repro")
    # MLflow and DVC take seconds to load, in another process while this one draws.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_worker) as other_process:
        runs = other_process.submit(look_for_runs, root, RUN_STAGES, metrics)
        outdated = other_process.submit(outdated_stages, root)
        builders: tuple[Callable[[Path, dict[str, Any]], Section | None], ...] = (
            _results, _corpus, _pretraining, _inside, _classifier, _instructions, _judge,
            lambda root, metrics: _runs(*_result(runs, ([], KILLED))), _params,
        )  # fmt: skip
        progress = runtime.progress(builders, what="report", unit="section")
        sections = [section for build in progress if (section := build(root, metrics))]
        reasons = _result(outdated, {})
        for section in sections:
            section.outdated = reasons.get(STAGE_OF.get(section.id, ""), "")
    return render(
        "report.html",
        title="gpt2core: results of the pipeline",
        description=f"{_corpus_and_model(root)}Written {datetime.now():%Y-%m-%d %H:%M}.",
        sections=sections,
    )


def _result(future: Future[T], otherwise: T) -> T:
    """Return the result of the other process, or `otherwise` if it was killed."""
    try:
        return future.result()
    except BrokenProcessPool:
        return otherwise


def _corpus_and_model(root: Path) -> str:
    if not (path := root / "params.yaml").exists():
        return ""
    params = config.read_yaml(path)
    return f"Corpus {params['data']['corpus']}, model {params['pretrain']['preset']}. "


def _results(root: Path, metrics: Mapping[str, Any]) -> Section:
    missing = [name.replace("_", "-") for name in METRICS if name not in metrics]
    lead = f"Not run yet: {', '.join(missing)} (dvc repro)." if missing else ""
    return Section(
        "results",
        "Results",
        lead,
        bars=_bits_per_byte(metrics.get("pretrain", {})),
        tables=[Table(("stage", "metric", "value"), [*results.headlines(metrics)], n_text_columns=2)],
    )


def _bits_per_byte(metrics: Mapping[str, Any]) -> list[Bar]:
    """Return the model next to the entropy of its corpus, if that is known, and a trigram model."""
    named = (
        ("entropy of the corpus", "bits_per_byte_floor"), ("this model", "bits_per_byte"),
        ("trigram model", "trigram_bits_per_byte"),
    )  # fmt: skip
    found = {name: metrics[key] for name, key in named if metrics.get(key) is not None}
    most = max(found.values(), default=0.0)
    return [Bar(name, f"{value:.4f}", value / most, name == "this model") for name, value in found.items()]


def _corpus(root: Path, metrics: Mapping[str, Any]) -> Section | None:
    if "tokenize" not in metrics:
        return None
    counts = ((key, value) for key, value in metrics["tokenize"].items() if isinstance(value, int | float))
    table = Table(("metric", "value"), [(key.replace("_", " "), f"{value:,}") for key, value in counts])
    return Section("text", "The text", tables=[table], pictures=_pictures("tokenize", metrics["tokenize"], root))


def _pretraining(root: Path, metrics: Mapping[str, Any]) -> Section | None:
    if "pretrain" not in metrics:
        return None
    section = Section("pretraining", "Pretraining", pictures=_pictures("pretrain", metrics["pretrain"], root))
    if (path := root / "metrics/samples.json").exists():
        samples = files.read_json(path)
        section.lead = "Below the curves: texts that the model generated during training."
        evenly_spaced = np.linspace(0, len(samples) - 1, min(MAX_SAMPLES, len(samples))).round().astype(int)
        section.texts = [
            Text(f"after {samples[i]['tokens']:,} tokens", samples[i]["text"], open=i in (0, len(samples) - 1))
            for i in evenly_spaced
        ]
    return section


def _inside(root: Path, metrics: Mapping[str, Any]) -> Section | None:
    """Return an inspection of the pretrained model on the start of the first validation document."""
    model_dir, shard = root / "models/pretrained", root / "data/tokens/val.bin"
    if not model_dir.exists() or not shard.exists():
        return None
    from gpt2core.checkpoint.model_dir import load_language_model
    from gpt2core.corpus.shards import open_shard
    from gpt2core.report.inspection_figures import inspect_first_document

    inspection = inspect_first_document(*load_language_model(model_dir), open_shard(shard))
    return Section(
        "inside",
        "Inside the pretrained model",
        "The text is the start of the first validation document. For another text: gpt2core inspect models/pretrained "
        "--prompt TEXT --out DIR.",
        tables=[temperature_table(inspection)],
        pictures=language_model_pictures(inspection),
        inside=script_data(inspection),
    )


def _classifier(root: Path, metrics: Mapping[str, Any]) -> Section | None:
    if (result := metrics.get("finetune_classify")) is None:
        return None
    labels = result.get("labels", ["ham", "spam"])  # earlier results had these two
    strongest = results.strongest_baseline(result)
    rows = [
        (
            name + (" (strongest baseline)" if f"{key}_accuracy" == strongest else ""),
            f"{result[f'{key}_accuracy']:.2%}",
            f"{result[f'{key}_f1']:.4f}",
        )
        for name, key in (
            ("before fine-tuning", "before_test"),
            ("after fine-tuning", "test"),
            ("TF-IDF of character n-grams + logistic regression", "characters_test"),
            ("TF-IDF of words + logistic regression", "baseline_test"),
            ("most frequent class", "majority_test"),
        )
        if f"{key}_accuracy" in result
    ]
    f1 = f"F1 of {labels[1]}" if len(labels) == 2 else "F1, mean of the classes"
    columns, caption = ("test messages", "accuracy", f1), "Means over the seeds"
    title = "Spam or not" if labels == ["ham", "spam"] else f"Which of {len(labels)} classes"
    section = Section("classifier", title, tables=[Table(columns, rows, caption)])
    section.pictures = _pictures("finetune-classify", result, root)
    if of_splits := results.accuracy_rows(result):
        caption = "Accuracy of models/classifier, trained with the first seed"
        section.tables.append(Table(("messages", "before fine-tuning", "after"), of_splits, caption))
    if mistakes := read_rows(root / PLOTS / "mistakes.csv"):
        rows = [(m["text"], m["actual"], f"{m['predicted']} {float(m['probability']):.1%}") for m in mistakes]
        caption = "The most confident mistakes of all seeds"
        section.tables.append(Table(("message", "is", "predicted"), rows, caption, n_text_columns=3))
    return section


def _instructions(root: Path, metrics: Mapping[str, Any]) -> Section | None:
    if (result := metrics.get("finetune_instruct")) is None:
        return None
    judged = metrics.get("llm_judge_eval", {})
    rows = [
        (name, format(values[before], form), format(values[after], form))
        for name, values, before, after, form in (
            ("validation loss, nats per token", result, "before_val_loss", "val_loss", ".3f"),
            ("loss on the test responses, nats per token", result, "before_test_loss", "test_loss", ".3f"),
            ("perplexity of the test responses", result, "before_test_perplexity", "test_perplexity", ".2f"),
            (f"mean score by {judged.get('judge')}, 0 to 100", judged, "base_score", "mean_score", ".1f"),
        )
        if before in values and after in values
    ]
    section = Section("instructions", "Following instructions")
    section.tables = [Table(("", "before fine-tuning", "after"), rows)]
    section.pictures = _pictures("finetune-instruct", result, root)
    section.answers = _answers(root)[:MAX_ANSWERS]
    return section


def _judge(root: Path, metrics: Mapping[str, Any]) -> Section | None:
    if (result := metrics.get("llm_judge_eval")) is None:
        return None
    interval = f" (95% interval {result['ci_low']:.1f} to {result['ci_high']:.1f})"
    table = [("the fine-tuned model", f"{result['mean_score']:.1f}{interval}")]
    table += [(name, f"{result[key]:.1f}") for key, name in JUDGE_BASELINES.items()]
    section = Section("judge", f"The judge: {result['judge']}", tables=[Table(("responses of", "mean score"), table)])
    section.tables += [*_several_judges(result), *_checkpoints(result), *_tasks(result)]
    if pictures := _pictures("llm-judge-eval", result, root):
        section.pictures = pictures
        worst = sorted((a for a in _answers(root) if a["score"] is not None), key=lambda answer: answer["score"])
        section.answers = worst[:2]
        section.lead = "The two answers with the lowest scores are below." if worst else ""
    return section


def _several_judges(result: Mapping[str, Any]) -> Iterator[Table]:
    """Yield tables of several judges' scores, their agreement, and comparisons with the base model."""
    if judges := result.get("judges"):
        rows = [(name, f"{j['mean_score']:.1f}", f"{j['base_score']:.1f}") for name, j in judges.items()]
        rows.append(("their mean", f"{result['panel']['mean_score']:.1f}" if "panel" in result else "-", ""))
        yield Table(("judge", "mean score", "of the base model"), rows)
        rows = [
            (pair, *("-" if a[key] is None else f"{a[key]:.2f}" for key in ("pearson", "spearman", "kendall")))
            for pair, a in result["agreement"].items()
        ]
        yield Table(("judges", "Pearson", "Spearman", "Kendall"), rows)
    if pairwise := result.get("pairwise"):
        rows = [
            (name, f"{won['win_rate']:.1%}", f"{won['ci_low']:.1%} to {won['ci_high']:.1%}",
             *(str(won[key]) for key in ("wins", "ties", "losses", "order_flips")))
            for name, won in pairwise.items()
        ]  # fmt: skip
        columns = ("tuned against base, by", "win rate", "95% interval", "wins", "ties", "losses", "order flips")
        yield Table(columns, rows)


def _checkpoints(result: Mapping[str, Any]) -> Iterator[Table]:
    """Yield tables of the seeds and checkpoints of the fine-tuning, if there are several."""
    if checkpoints := result.get("checkpoints"):
        columns = ("after", *checkpoint_table.COLUMNS[1:])
        caption = "Seeds and checkpoints on the test set: 95% intervals, and differences to the model that is kept"
        rows = [  # a narrow cell wraps before its interval
            (name.replace("_", " "), *(cell.replace(" to ", "\u00a0to\u00a0") for cell in cells))
            for name, *cells in checkpoint_table.table_rows(checkpoints)
        ]
        yield Table(columns, rows, caption)
    if seeds := result.get("over_seeds"):
        rows = [
            (name, f"{row['mean']:.3f}", f"{row['sd']:.3f}", f"{row['ci_low']:.3f} to {row['ci_high']:.3f}")
            for name, row in seeds.items()
        ]
        yield Table(("over the seeds", "mean", "deviation", "95% interval"), rows)


def _tasks(result: Mapping[str, Any]) -> Iterator[Table]:
    """Yield a table of the benchmarks of `evaluate.tasks`."""
    rows = [
        (task, name, f"{value:.4g}", f"{figures[f'{name}_stderr']:.2g}" if f"{name}_stderr" in figures else "")
        for task, figures in result.get("tasks", {}).items()
        for name, value in figures.items()
        if name not in ("samples", "num_fewshot") and not name.endswith("_stderr")
    ]
    if rows:
        yield Table(("benchmark", "metric", "value", "± error"), rows, "The fine-tuned model", n_text_columns=2)


def _runs(runs: list[FoundRun], problem: str) -> Section:
    section = Section("runs", "Runs in MLflow", runs=runs)
    if problem:  # an error of MLflow, its database, or its server must not stop the report
        logger.warning(f"the report has no runs ({problem})")
        section.lead = "The runs could not be read when this page was written."
        return section
    section.lead = "The runs of these results." if section.runs else "No run with these results is recorded here."
    if section.runs and section.runs[0].url.startswith(LOCAL_PAGE):
        section.lead += f" The links work while make mlflow serves {LOCAL_PAGE}."
    return section


def _params(root: Path, metrics: Mapping[str, Any]) -> Section | None:
    if not (path := root / "params.yaml").exists():
        return None
    return Section("params", "Parameters", texts=[Text("params.yaml", files.read_text(path))])


def _answers(root: Path) -> list[dict[str, Any]]:
    """Return the responses to the test set, with their scores if they were judged."""
    if not (path := root / "data/responses/test.json").exists():
        return []
    scores = {int(row["index"]): row for row in read_rows(root / PLOTS / "judge_scores.csv")}

    def score(index: int, column: str) -> float | None:
        cell = scores.get(index, {}).get(column)
        return float(cell) if cell else None

    return [
        {**entry, "score": score(index, "score"), "base_score": score(index, "base")}
        for index, entry in enumerate(files.read_json(path))
    ]


def _pictures(stage: str, metrics: Mapping[str, Any], root: Path) -> list[Picture]:
    """Return the figures of a stage, which are also in its MLflow run."""
    return [picture(figure.caption, figure.draw) for figure in stage_figures(stage, metrics, root)]
