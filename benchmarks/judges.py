"""How far judges agree with GPT-4, on 200 responses that it scored.

    python -m benchmarks.judges MIRROR [--params params.yaml]

The responses, two models' to the same 100 instructions, and the scores by GPT-4 and by Llama-3-8B are those of
LLMs-from-scratch (MIRROR/judge-examples; Apache-2.0). chrF++ and BLEU score them here; with --params so do the judges
of that file, to choose one by. Ranks count (Spearman, Kendall): no two judges share a scale. Llama-3-8B's recorded
scores of the second model are 99: one reply was dropped, nobody knows which, so only those of the first can be used.
"""

from __future__ import annotations

from pathlib import Path

import sacrebleu

from benchmarks.machine import ROOT, new_parser
from gpt2core import files
from gpt2core.evaluation.judges import Item, make_judges
from gpt2core.evaluation.judges.chrf import ChrfJudge
from gpt2core.evaluation.metrics.agreement import agreement
from gpt2core.evaluation.metrics.intervals import Scores, drop_missing, mean
from gpt2core.params import load_params
from gpt2core.runtime import stage_main

MODELS = ("1", "2")
N_ENTRIES = 100
PARTS = {"model 1": slice(0, 100), "model 2": slice(100, 200), "both": slice(0, 200)}


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("mirror", type=Path, help="the folder that holds judge-examples")
    parser.add_argument("--params", type=Path, help="a params file whose judges score the responses, too")
    arguments = parser.parse_args()
    items = read_items(arguments.mirror / "judge-examples")
    # Sentence BLEU (Papineni et al. 2002), as sacrebleu computes and smooths it.
    bleu = [sacrebleu.sentence_bleu(item.response, [item.reference]).score for item in items]
    judged: dict[str, Scores] = {"chrF++": ChrfJudge().score(items), "BLEU": bleu}
    if arguments.params:
        params = load_params(arguments.params)
        for judge in make_judges(params.judge, params.seed, ROOT / ".judge-replies"):
            judged[judge.name] = judge.score(items)
    judged["Llama-3-8B, as recorded"] = read_scores(arguments.mirror / "judge-examples", "llama3-8b")
    print("\n".join(table(judged, read_scores(arguments.mirror / "judge-examples", "gpt4"))))


def read_items(folder: Path) -> list[Item]:
    """Return the responses of the first model, then those of the second."""
    entries = files.read_json(folder / "eval-example-data.json")
    return [
        Item(entry["instruction"], entry["input"], entry["output"], entry[f"model {model} response"])
        for model in MODELS
        for entry in entries
    ]


def read_scores(folder: Path, judge: str) -> list[float | None]:
    """Return a judge's recorded scores, 0 to 100, in the order of `read_items`; None where their item is unknown."""
    scores: list[float | None] = []
    for model in MODELS:
        recorded = files.read_json(folder / f"scores-{judge}-model-{model}-response.json")
        scores += map(float, recorded) if len(recorded) == N_ENTRIES else [None] * N_ENTRIES
    return scores


def table(judged: dict[str, Scores], gpt4: Scores) -> list[str]:
    """Return lines of Markdown: each judge's agreement with GPT-4, and both means."""
    lines = [
        "| judge | responses of | n | Pearson | Spearman | Kendall | mean | GPT-4's mean |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, scores in judged.items():
        # "both" says nothing new of a judge of one.
        parts = {
            key: part for key, part in PARTS.items() if len(drop_missing(scores[part])) > (part.stop - part.start) / 2
        }
        for responses, part in parts.items():
            found = agreement(scores[part], gpt4[part])
            correlations = (found[key] for key in ("pearson", "spearman", "kendall"))
            cells = ["-" if value is None else f"{value:.3f}" for value in correlations]
            cells += [f"{mean(scores[part]):.1f}", f"{mean(gpt4[part]):.1f}"]
            lines.append(f"| {name} | {responses} | {found['n']} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    stage_main(main)
