"""Write the figures of the README from metrics/ and benchmarks/records/seeds.json.

python tools/readme.py           # after dvc repro, or make seeds
python tools/readme.py --check   # only compare
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SAMPLE_SENTENCES = 5
Read = Callable[[str], Any]  # the content of a JSON file, by its path


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail if the README is out of date.")
def main(check: bool) -> None:
    """Write the figures of the README."""
    text = README.read_text(encoding="utf-8")
    new = with_figures(text, lambda path: json.loads((ROOT / path).read_text(encoding="utf-8")))
    if check and new != text:
        raise click.ClickException("README.md: its figures are out of date; run: python tools/readme.py")
    if not check:
        README.write_text(new, encoding="utf-8")
    click.echo("README.md: " + ("up to date" if new == text else "updated"))


def with_figures(text: str, read: Read) -> str:
    """Return the README with the present figures between its markers, such as `<!-- results -->` and `<!-- end -->`."""
    for name, block in (("results", results(read)), ("sample", sample(read))):
        pattern = rf"(<!-- {name}[^>]*-->\n).*?(<!-- end -->)"
        text, n_blocks = re.subn(pattern, lambda match: f"{match[1]}{block}\n{match[2]}", text, flags=re.DOTALL)  # noqa: B023
        if n_blocks != 1:
            raise click.ClickException(f"README.md: has {n_blocks} blocks {name!r}, and needs one")
    return text


def results(read: Read) -> str:
    """Return the table of results, with the strongest baselines and the spread over seeds."""
    pretrain, classify, instruct, judge = (
        read(f"metrics/{name}.json")
        for name in ("pretrain", "finetune_classify", "finetune_instruct", "llm_judge_eval")
    )
    seeds = read("benchmarks/records/seeds.json")["metrics"]
    bits, floor, trigram = (pretrain[key] for key in ("bits_per_byte", "bits_per_byte_floor", "trigram_bits_per_byte"))
    rows = [
        ("result", "value", "compared with", "five seeds: mean ± deviation (95% interval)"),
        ("---",) * 4,
        (
            "pretraining: bits per byte of validation text",
            f"**{bits:.4f}**, {bits / floor:.2f} × the entropy of the corpus",
            f"entropy {floor:.4f}; Kneser-Ney trigram {trigram:.4f}",
            spread(seeds["pretrain.bits_per_byte"], 1, 4),
        ),
        (
            "spam: test accuracy, mean of three seeds",
            f"**{classify['test_accuracy']:.1%}**",
            f"TF-IDF of words {classify['baseline_test_accuracy']:.1%}; "
            f"before fine-tuning {classify['before_test_accuracy']:.1%}",
            spread(seeds["finetune-classify.test_accuracy"], 100, 1, "%"),
        ),
        (
            "spam: the strongest baseline, TF-IDF of character n-grams",
            f"{classify['characters_test_accuracy']:.1%}",
            "",
            spread(seeds["finetune-classify.characters_test_accuracy"], 100, 1, "%"),
        ),
        (
            "instructions: validation loss in nats per token",
            f"**{instruct['val_loss']:.3f}**",
            f"before fine-tuning {instruct['before_val_loss']:.2f}",
            "",
        ),
        (
            "instructions: score of the test answers (chrF++, 0 to 100)",
            f"**{judge['mean_score']:.1f}** ({judge['ci_low']:.1f} to {judge['ci_high']:.1f})",
            f"base {judge['base_score']:.1f}; echo of the input {judge['echo_score']:.1f}; "
            f"nearest training answer {judge['nearest_score']:.1f}",
            spread(seeds["llm-judge-eval.mean_score"], 1, 1),
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(record: Mapping[str, float], scale: float, n_decimals: int, unit: str = "") -> str:
    """Return mean, deviation, and interval of a figure over seeds."""
    mean, sd, low, high = (f"{scale * record[key]:.{n_decimals}f}" for key in ("mean", "sd", "ci_low", "ci_high"))
    return f"{mean}{unit} ± {sd} ({low} to {high})"


def sample(read: Read) -> str:
    """Return the first sentences of the last sampled text, as a quotation."""
    sentences = re.split(r"(?<=[.!?]) ", read("metrics/samples.json")[-1]["text"].strip())
    return "> " + " ".join(sentences[:SAMPLE_SENTENCES])


if __name__ == "__main__":
    main()
