"""Stage llm-judge-eval: score the responses of the instruction-tuned model from 0 to 100.

Reads data/responses/ of finetune-instruct; writes metrics/llm_judge_eval.json and metrics/plots/judge_scores.csv.
The judge is `judge.kind` of params.yaml: the reference metric chrF++, or a language model behind a server.
"""

from __future__ import annotations

from gpt2core import config, files
from gpt2core.evaluate.judge import evaluate_responses, read_responses
from gpt2core.evaluate.judges import make_judge
from gpt2core.runtime import run_stage
from gpt2core.track import plots, stage_run

RESPONSES = "data/responses"
METRICS = "metrics/llm_judge_eval.json"
SCORES = "metrics/plots/judge_scores.csv"
PICTURE = "metrics/plots/judge_scores.svg"


def main() -> None:
    params = config.load_params()
    test, train = read_responses(RESPONSES)
    judge = make_judge(params.judge, params.seed)
    with stage_run("llm-judge-eval", params, sections=("judge",)) as run:
        report = evaluate_responses(
            test[: params.judge.max_items], train, judge, params.judge.bootstrap_samples, params.seed
        )
        metrics = report.metrics()
        files.write_text(SCORES, report.to_csv())
        files.write_json(METRICS, metrics)
        run.log_artifact(SCORES)
        others = {name: metrics[f"{name}_score"] for name in ("base", "echo", "nearest")}
        run.log_figure(plots.score_histogram, report.model, others, PICTURE)
        run.finish(metrics)
    print(
        f"{metrics['judge']}: mean {metrics['mean_score']:.1f} of 100 "
        f"(95% interval {metrics['ci_low']:.1f} to {metrics['ci_high']:.1f}, n = {metrics['n']}); "
        f"base {metrics['base_score']:.1f}, echo {metrics['echo_score']:.1f}, nearest {metrics['nearest_score']:.1f}"
    )


if __name__ == "__main__":
    run_stage(main)
