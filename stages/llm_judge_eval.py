"""Stage llm-judge-eval: score the responses of the instruction-tuned model from 0 to 100.

Reads data/responses/ of finetune-instruct; writes metrics/llm_judge_eval.json and metrics/plots/judge_scores.csv.
The judge is `judge.kind` of params.yaml: the reference metric chrF++, or a language model behind a server or in a
directory, whose replies are kept in .judge-replies/; or several of them. The seeds and checkpoints of the fine-tuning,
where there are several, and the benchmarks of `evaluate.tasks` stand beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2core import config, files
from gpt2core.evaluate.judge import evaluate_responses, read_responses
from gpt2core.evaluate.judges import make_judges
from gpt2core.evaluate.side_by_side import read_checkpoints, side_by_side
from gpt2core.runtime import run_stage
from gpt2core.track import plots, stage_run

RESPONSES = "data/responses"
MODEL = Path("models/instruct")  # for evaluate.tasks alone
METRICS = "metrics/llm_judge_eval.json"
SCORES = "metrics/plots/judge_scores.csv"
PICTURE = "metrics/plots/judge_scores.svg"
REPLIES = ".judge-replies"  # in the project's root, as states: an experiment's temporary copy is deleted


def main() -> None:
    params = config.load_params()
    test, train = read_responses(RESPONSES)
    judge, tasks = params.judge, params.evaluate.tasks
    judges = make_judges(judge, params.seed, config.project_root() / REPLIES)
    inputs = [RESPONSES, str(MODEL)] if tasks else [RESPONSES]
    with stage_run("llm-judge-eval", params, sections=("judge", "evaluate"), inputs=inputs) as run:
        evaluation = evaluate_responses(
            test[: judge.max_items], train, judges, judge.bootstrap_samples, params.seed, pairwise=judge.pairwise
        )
        metrics = evaluation.metrics()
        table = None
        if checkpoints := read_checkpoints(RESPONSES, judge.max_items):
            test_tokens, models, kept = checkpoints
            table = side_by_side(
                test[: judge.max_items], test_tokens, models, judges[0], kept, judge.bootstrap_samples, params.seed
            )
            metrics |= table.metrics()
        if tasks:
            from gpt2core.evaluate.harness import task_metrics  # an extra

            metrics["tasks"] = task_metrics(params.evaluate, MODEL)
        files.write_text(SCORES, evaluation.to_csv())
        files.write_json(METRICS, metrics)
        run.log_artifact(SCORES)
        others = {name: metrics[f"{name}_score"] for name in ("base", "echo", "nearest")}
        run.log_figure(plots.score_histogram, evaluation.reports[0].model, others, PICTURE)
        run.finish(metrics)
    for report in evaluation.reports:
        print(_line(report.metrics()))
    for pair, found in metrics.get("agreement", {}).items():
        print(
            f"agreement of {pair}: Pearson {found['pearson']}, Spearman {found['spearman']}, Kendall {found['kendall']}"
        )
    for name, won in metrics.get("pairwise", {}).items():
        print(
            f"{name}: tuned against base, win rate {won['win_rate']:.1%} "
            f"(95% interval {won['ci_low']:.1%} to {won['ci_high']:.1%}, n = {won['n']}): {won['wins']} wins, "
            f"{won['ties']} ties, {won['losses']} losses; {won['order_flips']} flipped with the order"
        )
    if table:
        print(f"\nseeds and checkpoints, by {table.judge}; differences to {table.reference}, the model that is kept:")
        print(*table.lines(), sep="\n")
        for name, figures in metrics.get("over_seeds", {}).items():
            print(
                f"{name} over the seeds: {figures['mean']:.3f} ± {figures['sd']:.3f} "
                f"(95% interval {figures['ci_low']:.3f} to {figures['ci_high']:.3f})"
            )
    for task, figures in metrics.get("tasks", {}).items():
        print(f"{task}: " + ", ".join(f"{name} {value:g}" for name, value in figures.items()))


def _line(metrics: dict[str, Any]) -> str:
    """A judge's figures on one line."""
    return (
        f"{metrics['judge']}: mean {metrics['mean_score']:.1f} of 100 "
        f"(95% interval {metrics['ci_low']:.1f} to {metrics['ci_high']:.1f}, n = {metrics['n']}); "
        f"base {metrics['base_score']:.1f}, echo {metrics['echo_score']:.1f}, nearest {metrics['nearest_score']:.1f}"
    )


if __name__ == "__main__":
    run_stage(main)
