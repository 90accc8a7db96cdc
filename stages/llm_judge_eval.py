"""Stage llm-judge-eval: score the responses of the instruction-tuned model from 0 to 100.

Reads data/responses/ of finetune-instruct; writes metrics/llm_judge_eval.json and metrics/plots/judge_scores.csv.
The judge is `judge.kind` of params.yaml: the reference metric chrF++, or a language model behind a server or in a
directory, whose replies are kept in .judge-replies/; or several of them.
"""

from __future__ import annotations

from typing import Any

from gpt2core import config, files
from gpt2core.evaluate.judge import evaluate_responses, read_responses
from gpt2core.evaluate.judges import make_judges
from gpt2core.runtime import run_stage
from gpt2core.track import plots, stage_run

RESPONSES = "data/responses"
METRICS = "metrics/llm_judge_eval.json"
SCORES = "metrics/plots/judge_scores.csv"
PICTURE = "metrics/plots/judge_scores.svg"
REPLIES = ".judge-replies"  # in the project's root, as states: an experiment's temporary copy is deleted


def main() -> None:
    params = config.load_params()
    test, train = read_responses(RESPONSES)
    judge = params.judge
    judges = make_judges(judge, params.seed, config.project_root() / REPLIES)
    with stage_run("llm-judge-eval", params, sections=("judge",), inputs=[RESPONSES]) as run:
        evaluation = evaluate_responses(
            test[: judge.max_items], train, judges, judge.bootstrap_samples, params.seed, pairwise=judge.pairwise
        )
        metrics = evaluation.metrics()
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


def _line(metrics: dict[str, Any]) -> str:
    """A judge's figures on one line."""
    return (
        f"{metrics['judge']}: mean {metrics['mean_score']:.1f} of 100 "
        f"(95% interval {metrics['ci_low']:.1f} to {metrics['ci_high']:.1f}, n = {metrics['n']}); "
        f"base {metrics['base_score']:.1f}, echo {metrics['echo_score']:.1f}, nearest {metrics['nearest_score']:.1f}"
    )


if __name__ == "__main__":
    run_stage(main)
