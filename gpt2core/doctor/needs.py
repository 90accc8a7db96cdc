"""What the params need of memory, time and disk, against what is free here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from gpt2core import prompts, runtime
from gpt2core.checkpoint.config_json import read_config_json
from gpt2core.config.presets import PRESETS
from gpt2core.doctor import step, stores
from gpt2core.doctor.finding import Finding
from gpt2core.doctor.step import Training
from gpt2core.errors import UserError
from gpt2core.params import Params
from gpt2core.sources.synthetic import generate_instructions, generate_messages
from gpt2core.tasks import instructions, labeled_texts

CHARACTERS_A_TOKEN = 4  # of English, in GPT-2's BPE as in the embedded one
CHARACTER_VOCABULARY = 100
GPT2_VOCABULARY = 50_257
FORWARD_SHARE = 1 / 3  # of a training step: the backward pass computes twice as much as the forward pass
GENERATED_BYTES = 20 << 20  # what the embedded sources write, about
STATES = 2  # of a training that are kept; each holds the weights and AdamW's two moments


class Texts(NamedTuple):
    """How many there are (of messages: as they are split), and their characters, the prompt included."""

    n: int
    mean: float
    longest: int


# Of the public ones, counted; see sources/registry.py.
KNOWN = {"sms-spam-collection": Texts(1306, 104, 629), "instruction-data": Texts(1100, 262, 457)}
KNOWN_UNBALANCED = {"sms-spam-collection": Texts(5171, 79, 910)}


def messages(params: Params, own_dir: Path) -> Texts:
    name = params.data.classification
    section = params.finetune_classify
    known = KNOWN if section.balance else KNOWN_UNBALANCED
    if name in known:
        return known[name]
    if name.startswith("own/"):
        rows = labeled_texts.read_table(
            own_dir / name.removeprefix("own/"),
            params.data.classification_label_column,
            params.data.classification_text_column,
        )
    else:
        rows = [labeled_texts.Message(label, text) for label, text in generate_messages(params.seed)]
    splits = labeled_texts.split(
        rows, section.val_fraction, section.test_fraction, 0,
        balance=section.balance, drop_duplicates=section.drop_duplicates,
    )  # fmt: skip
    return _texts([message.text for split in splits for message in split])


def entries(params: Params, own_dir: Path) -> Texts:
    name = params.data.instructions
    if name in KNOWN:
        return KNOWN[name]
    found = (
        instructions.read(own_dir / name.removeprefix("own/"))
        if name.startswith("own/")
        else generate_instructions(params.seed)
    )
    prompt = prompts.PROMPTS[params.finetune_instruct.prompt]
    return _texts([prompt(row["instruction"], row["input"]) + row["output"] for row in found])


def _texts(texts: list[str]) -> Texts:
    lengths = [len(text) for text in texts]
    return Texts(len(texts), sum(lengths) / len(lengths), max(lengths))


def base_sizes(name: str, params: Params, root: Path) -> dict[str, int]:
    """n_layer, n_head, n_embd, n_positions and vocab_size of a base model.

    Raises:
        UserError: a directory of one's own that is not there, or is no model.
    """
    if name == "pretrained":
        vocabulary = {"bpe": params.tokenizer.vocab_size, "gpt2": GPT2_VOCABULARY, "char": CHARACTER_VOCABULARY}
        return {**params.pretrain.sizes(), "vocab_size": vocabulary[params.tokenizer.kind]}
    if name == "openai/tiny":
        text = resources.files("gpt2core").joinpath("assets/openai-tiny/hparams.json").read_text(encoding="utf-8")
        made = json.loads(text)
        return {**{key: made[key] for key in ("n_layer", "n_head", "n_embd")}, "n_positions": made["n_ctx"],
                "vocab_size": made["n_vocab"]}  # fmt: skip
    size = name.removeprefix("openai/")
    if size in PRESETS:
        return {**PRESETS[size], "vocab_size": GPT2_VOCABULARY}
    described = read_config_json(root / "models" / name / "config.json").config
    return {key: getattr(described, key) for key in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")}


def parameters(sizes: dict[str, int]) -> int:
    """Of a GPT-2 with a tied head: embeddings, blocks of 12 C² + 13 C, the last norm."""
    c = sizes["n_embd"]
    return (sizes["vocab_size"] + sizes["n_positions"]) * c + sizes["n_layer"] * (12 * c * c + 13 * c) + 2 * c


def trainings(params: Params, root: Path) -> list[Training]:
    """The three trainings of the params. Raises UserError where a file or a base of one's own is not there."""
    own_dir, p = root / "data" / "own", params.pretrain
    shape = ("n_layer", "n_head", "n_embd", "vocab_size")
    sizes = base_sizes("pretrained", params, root)
    evaluations = -(-p.max_steps // p.eval_interval_steps) * p.eval_batches
    found = [
        Training("pretrain", p.max_steps, p.grad_accum_steps, evaluations, p.batch_size, p.context, p.context,
                 **{key: sizes[key] for key in shape})
    ]  # fmt: skip

    c, texts = params.finetune_classify, messages(params, own_dir)
    sizes = base_sizes(c.base, params, root)
    limit = min(c.max_tokens or sizes["n_positions"], sizes["n_positions"])
    n_train = texts.n * (1 - c.val_fraction - c.test_fraction)
    n_steps = _steps(n_train, c.batch_size, c.epochs, c.max_steps)
    read = texts.n * (2 * c.val_fraction * -(-n_steps * c.batch_size // n_train) + 2 * c.test_fraction)
    found.append(
        Training("finetune-classify", n_steps * len(c.seeds), 1, read / c.batch_size * len(c.seeds), c.batch_size,
                 *_tokens(texts, limit), **{key: sizes[key] for key in shape})
    )  # fmt: skip

    i, texts = params.finetune_instruct, entries(params, own_dir)
    sizes = base_sizes(i.base, params, root)
    n_train = texts.n * (1 - i.val_fraction - i.test_fraction)
    n_steps = _steps(n_train, i.batch_size * i.grad_accum_steps, i.epochs, i.max_steps)
    read = texts.n * i.val_fraction * (1 + i.epochs)
    found.append(
        Training("finetune-instruct", n_steps, i.grad_accum_steps, read / i.batch_size, i.batch_size,
                 *_tokens(texts, sizes["n_positions"]), **{key: sizes[key] for key in shape})
    )  # fmt: skip
    return found


def _steps(n_texts: float, batch_size: int, epochs: int, max_steps: int | None) -> int:
    return min(epochs * -(-int(n_texts) // batch_size), max_steps or 1 << 62)


def _tokens(texts: Texts, limit: int) -> tuple[int, int]:
    """Mean and longest, in tokens, cut to `limit`."""
    mean, longest = (max(1, round(length / CHARACTERS_A_TOKEN)) for length in (texts.mean, texts.longest))
    return min(mean, limit), min(longest, limit)


def memory_and_time(params: Params, root: Path) -> Iterator[Finding]:
    """Each training's memory and time, from some short steps; then both against what is here."""
    try:
        planned = trainings(params, root)
    except UserError as error:
        yield Finding("warning", "needs", f"not measured: {error}", "name data and bases that are there")
        return
    most, total_s, all_measured = 0.0, 0.0, True
    for training in planned:
        try:
            cost = step.measure(training, params)
        except UserError as error:
            all_measured = False
            yield Finding("problem", "needs", f"{training.stage}: {error}", _smaller(training.stage))
            continue
        seconds = cost.step_s * (training.n_steps * training.n_micro + training.n_forward * FORWARD_SHARE)
        most, total_s = max(most, cost.memory_bytes), total_s + seconds
        level, remedy = ("ok", "") if cost.memory_bytes <= free_bytes() else ("problem", _smaller(training.stage))
        said = f"{training.stage}: {gigabytes(cost.memory_bytes)}, about {duration(seconds)}"
        yield Finding(level, "needs", f"{said} ({training.n_steps:,} steps)", remedy)  # type: ignore[arg-type]
    if all_measured:
        where = "of the GPU" if runtime.device().type == "cuda" else "of memory"
        free = free_bytes()
        said = (
            f"these params need {gigabytes(most)} {where} ({gigabytes(free)} free) and about {duration(total_s)} here"
        )
        several = "; torchrun divides it" if params.pretrain.launcher != "python" else ""
        fits = most <= free
        remedy = "" if fits else "a smaller batch_size, activation_checkpointing: true, or a smaller model"
        yield Finding("ok" if fits else "problem", "needs", f"{said}, of training alone{several}", remedy)


def _smaller(stage: str) -> str:
    return f"{stage.replace('-', '_')}: a smaller batch_size, activation_checkpointing: true, or a smaller model"


def free_bytes() -> int:
    """Memory that a training may take: the GPU's, or the machine's, or what the control group leaves of it."""
    if runtime.device().type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        return min(free, max(0, int(limit) - used)) if limit != "max" else free
    except (OSError, ValueError):
        return free


def disk(params: Params, root: Path) -> Iterator[Finding]:
    """Room for what is fetched, made and kept: DVC's cache holds every output a second time."""
    fetched = sum(file.size_bytes or 0 for asset, listed in stores.needed(params) for file in listed)
    weights: list[int] = []
    for name in ("pretrained", params.finetune_classify.base, params.finetune_instruct.base):
        try:
            weights.append(4 * parameters(base_sizes(name, params, root)))
        except UserError:
            continue
    openai = sum(4 * parameters(base_sizes(f"openai/{size}", params, root)) for size in params.openai.sizes)
    outputs = GENERATED_BYTES + 2 * fetched + 2 * openai + sum(weights)  # fetched: as it came, and as tokens
    wanted = 2 * outputs + STATES * 3 * max(weights, default=0)
    free = shutil.disk_usage(root).free
    said = f"these params write up to {gigabytes(wanted)}, {gigabytes(free)} are free"
    if wanted > free:
        yield Finding("problem", "disk", said, f"free some: dvc gc --workspace, or another disk for {root}")
    else:
        yield Finding("ok", "disk", said)


def gigabytes(n_bytes: float) -> str:
    """
    >>> gigabytes(14.2e9), gigabytes(3e8)
    ('14.2 GB', '0.3 GB')
    """
    return f"{n_bytes / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """
    >>> [duration(s) for s in (7, 100, 5000, 10000, 400_000)]
    ['7 s', '2 min', '83 min', '2.8 hours', '4.6 days']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
