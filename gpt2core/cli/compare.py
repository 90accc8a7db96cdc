"""`gpt2core compare`: several instruction-tuned models on one test set."""

from __future__ import annotations

from pathlib import Path

import click

from gpt2core import config, runtime
from gpt2core.cli import options
from gpt2core.errors import UserError
from gpt2core.params import load_params

RESPONSES = Path("data/responses")


@click.command(short_help="Compare instruction-tuned models.")
@click.argument("model_dirs", metavar="MODEL_DIR...", nargs=-1, required=True, type=options.PATH)
@click.option(
    "--responses", "folder", type=options.PATH, default=RESPONSES, show_default=True,
    help="The folder of finetune-instruct whose test set is answered.",
)  # fmt: skip
@click.option(
    "--params", "params_file", type=options.PATH,
    help="Use the first judge of this file, such as params.yaml; the default is chrF++.",
)  # fmt: skip
@options.limit
@options.max_new_tokens(256, "Maximum length of a response.")
@options.seed("the bootstrap")
@options.as_json
def compare(
    model_dirs: tuple[Path, ...],
    folder: Path,
    params_file: Path | None,
    limit: int | None,
    max_new_tokens: int,
    seed: int,
    as_json: bool,
) -> None:
    """Compare models on the test set.

    Each model answers with the prompt that it was tuned with. The table has loss and perplexity on the reference
    responses and the judge's score, with 95% intervals, and the differences to the first model, entry by entry.

    The models must have the same tokenizer. To compare seeds and checkpoints of one run, set the params
    finetune_instruct.seeds and checkpoint_steps.
    """
    options.require_extra("pipeline", "scipy", "sacrebleu")
    from gpt2core.checkpoint.chat_template import instruction_prompt
    from gpt2core.checkpoint.cluster import batches_of_directory
    from gpt2core.checkpoint.model_dir import load_language_model
    from gpt2core.evaluation.comparison import Answers, compare_models
    from gpt2core.evaluation.judges import Judge, make_judges
    from gpt2core.evaluation.judges.chrf import ChrfJudge
    from gpt2core.evaluation.llm_judge_eval import read_responses
    from gpt2core.inference.respond import respond
    from gpt2core.training.instruct import entry_nats, make_example

    if len(set(model_dirs)) < len(model_dirs):
        raise UserError("a MODEL_DIR is named twice")
    section = load_params(params_file).judge if params_file else None
    judge: Judge = make_judges(section, seed, config.project_root() / ".judge-replies")[0] if section else ChrfJudge()
    entries = read_responses(folder)[0][:limit]
    tokens: list[int] = []
    models = []
    for path in model_dirs:
        model, tokenizer = load_language_model(path, device=runtime.device())
        form = instruction_prompt(path)
        examples = [make_example(entry, tokenizer, model.config.n_positions, True, form) for entry in entries]
        own = [example.n_target_tokens for example in examples]
        if own != (tokens := tokens or own):
            raise UserError(f"{path}: has other tokens than {model_dirs[0]}: losses per token cannot be compared")
        nats = entry_nats(model, examples, tokenizer.eot_id)
        with batches_of_directory(path, model, tokenizer) as batches:
            responses = respond(model, tokenizer, entries, max_new_tokens, form=form, batches=batches)
        models.append(Answers(str(path), nats, responses))
    samples = section.bootstrap_samples if section else 1000
    table = compare_models(entries, tokens, models, judge, str(model_dirs[0]), samples, seed)
    if as_json:
        options.print_json({"judge": table.judge, "n": len(entries), "models": table.metrics()["checkpoints"]})
        return
    click.echo(f"{len(entries)} entries, ", nl=False)
    for line in table.lines():
        options.show(line)
