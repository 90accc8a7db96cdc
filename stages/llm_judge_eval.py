"""Stage llm-judge-eval: score the responses of the instruction-tuned model from 0 to 100.

It reads data/responses/ of finetune-instruct, and writes metrics/llm_judge_eval.json and
metrics/plots/judge_scores.csv. The judge is `judge.kind` of params.yaml: the reference metric chrF++, a language model
of a server or in a directory, whose replies are kept in .judge-replies/, or several of these. If there are several
seeds or checkpoints of the fine-tuning, or benchmarks in `evaluate.tasks`, their results are in the same file.
"""

from __future__ import annotations

from pathlib import Path

from gpt2core import config, files, numerics
from gpt2core.config.evaluate import Evaluate
from gpt2core.config.judge import Judge
from gpt2core.config.top_level import TopLevel
from gpt2core.evaluation.comparison import compare_checkpoints
from gpt2core.evaluation.judges import make_judges
from gpt2core.evaluation.llm_judge_eval import evaluate_responses, read_responses
from gpt2core.metric_files import write_metrics
from gpt2core.params import load_params
from gpt2core.runtime import stage_main
from gpt2core.tracking import track_stage

RESPONSES = "data/responses"
MODEL = Path("models/instruct")  # for evaluate.tasks alone
SCORES = "metrics/plots/judge_scores.csv"
REPLIES = ".judge-replies"  # in the project's root, as checkpoints: an experiment's temporary copy is deleted


def main() -> None:
    params = load_params()
    test, train = read_responses(RESPONSES)
    top, judge, section = (
        config.load_section(TopLevel), config.load_section(Judge, "judge"), config.load_section(Evaluate, "evaluate")
    )  # fmt: skip
    tasks = section.tasks
    numerics.start(top.numerics, with_torch=bool(tasks) or "transformers" in judge.kinds())
    test = test[: judge.max_items]
    judges = make_judges(judge, top.seed, config.project_root() / REPLIES)
    inputs = [RESPONSES, str(MODEL)] if tasks else [RESPONSES]
    with track_stage("llm-judge-eval", params, sections=("numerics", "judge", "evaluate"), inputs=inputs) as run:
        evaluation = evaluate_responses(test, train, judges, judge.bootstrap_samples, top.seed, pairwise=judge.pairwise)
        table = compare_checkpoints(RESPONSES, test, judges[0], judge.bootstrap_samples, top.seed)
        metrics = evaluation.metrics | (table.metrics() if table else {})
        if tasks:
            from gpt2core.evaluation.harness import task_metrics  # an extra

            metrics["tasks"] = task_metrics(section, MODEL)
        files.write_text(SCORES, evaluation.to_csv())
        write_metrics("llm_judge_eval", metrics)
        run.log_artifact(SCORES)
        run.finish(metrics)
    print(*evaluation.lines(), sep="\n")
    if table:
        print("\nseeds and checkpoints:", *table.lines(), sep="\n")
    for task, figures in metrics.get("tasks", {}).items():
        print(f"{task}: " + ", ".join(f"{name} {value:g}" for name, value in figures.items()))


if __name__ == "__main__":
    stage_main(main)
