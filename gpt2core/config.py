"""Parameters: one frozen model a section of params.yaml, checked all at once before anything runs.

Every section forbids unknown keys and wrong types. `load_params` gathers the errors of all sections and of the
relations between them into one `UserError`, each line naming file, key, value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from gpt2core.contradictions import contradictions
from gpt2core.errors import UserError

# The sizes of the GPT-2 paper (Radford et al. 2019, table 2), by OpenAI's names; `tiny` is ours, for two cores.
PRESETS: dict[str, dict[str, int]] = {
    "tiny": dict(n_layer=4, n_head=4, n_embd=128, n_positions=256),
    "124M": dict(n_layer=12, n_head=12, n_embd=768, n_positions=1024),
    "355M": dict(n_layer=24, n_head=16, n_embd=1024, n_positions=1024),
    "774M": dict(n_layer=36, n_head=20, n_embd=1280, n_positions=1024),
    "1558M": dict(n_layer=48, n_head=25, n_embd=1600, n_positions=1024),
}
OPENAI_SIZES = ("124M", "355M", "774M", "1558M", "tiny")

MISSING = "missing; profiles/embedded.yaml shows a value, `gpt2core doctor` all lines that an older file lacks"

Numerics = Literal["portable", "native"]  # see gpt2core/numerics
PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
# A model directory, named from models/. No `..` and no root: the stage must stay inside the project.
BaseName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")]


def _names(value: Any) -> str | list[str]:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        return value
    raise PydanticCustomError("names", "Input should be a name or a list of names")


Names = Annotated[Any, PlainValidator(_names)]


def _launcher(value: Any) -> str:
    if isinstance(value, str) and (value == "python" or re.search(r"\btorchrun\b|\btorch\.distributed\.run\b", value)):
        return value
    raise PydanticCustomError(
        "launcher", "Input should be python or a command of torchrun, such as torchrun --standalone --nproc-per-node=8"
    )


Launcher = Annotated[Any, PlainValidator(_launcher)]
JUDGES = ("chrf", "openai", "transformers")


def _judges(value: Any) -> str | list[str]:
    kinds = value if isinstance(value, list) else [value]
    if kinds and all(kind in JUDGES for kind in kinds) and len(set(kinds)) == len(kinds):
        return value
    raise PydanticCustomError("judges", f"Input should be {', '.join(JUDGES)}, or a list of different ones")


Judges = Annotated[Any, PlainValidator(_judges)]


def _registry_name(value: Any) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and re.fullmatch(r"[^/:]*[^/:\s][^/:]*", value)):
        return value
    raise PydanticCustomError("registry_name", "Input should be false, true or a name without / and :")


RegistryName = Annotated[Any, PlainValidator(_registry_name)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Data(Section):
    """Inputs of `download-data`: names in `gpt2core/sources/registry.py`, or `own/FILE` in data/own/."""

    corpus: Names  # also own/GLOB and https://…
    sms: str
    instructions: str
    sms_label_column: str | None
    sms_text_column: str | None


class Tokenizer(Section):
    kind: Literal["bpe", "gpt2", "char"]
    vocab_size: Annotated[int, Field(ge=257, le=65536)]  # bpe: 256 bytes, merges, and <|endoftext|>
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    drop_duplicates: bool
    shuffle: bool


class Optimization(Section):
    """How all three trainings update parameters."""

    batch_size: PositiveInt
    grad_accum_steps: PositiveInt
    optimizer: Literal["adamw", "muon"]
    lr: PositiveFloat
    muon_lr: PositiveFloat
    schedule: Literal["cosine", "linear", "wsd", "constant"]
    warmup_steps: Count
    decay_fraction: Annotated[float, Field(gt=0, le=1)]
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    beta1: Fraction
    beta2: Fraction
    grad_clip: Annotated[float, Field(ge=0)]
    dropout: Fraction
    dtype: Literal["float32", "bfloat16", "auto"]
    compile: bool | Literal["auto"]
    activation_checkpointing: bool


class Pretrain(Optimization):
    """A preset, or a preset with single sizes replaced; then the recipe."""

    preset: Literal["tiny", "124M", "355M", "774M", "1558M"]
    n_layer: PositiveInt | None = None
    n_head: PositiveInt | None = None
    n_embd: PositiveInt | None = None
    n_positions: PositiveInt | None = None
    qkv_bias: bool
    tie_weights: bool
    initializer_range: PositiveFloat
    init: Literal["gpt2", "induction"]
    trainable: Literal["last_two_blocks", "blocks", "all"]
    context: PositiveInt
    max_steps: PositiveInt
    eval_interval_steps: PositiveInt
    eval_batches: PositiveInt
    sample_prompt: str
    sample_tokens: PositiveInt
    launcher: Launcher
    sharding: Literal["none", "full"]

    def sizes(self) -> dict[str, int]:
        """n_layer, n_head, n_embd, n_positions: the preset's, where not given."""
        return {key: getattr(self, key) or value for key, value in PRESETS[self.preset].items()}

    def undivided(self, n_processes: int) -> str:
        """What is wrong with so many processes, or nothing: each has as many windows of a step as the others."""
        windows = self.grad_accum_steps * self.batch_size
        if windows % n_processes == 0:
            return ""
        return (
            f"pretrain.launcher: {n_processes} processes do not divide the {windows} windows of a step "
            f"(grad_accum_steps {self.grad_accum_steps} * batch_size {self.batch_size}); "
            f"allowed: {', '.join(str(n) for n in range(1, windows + 1) if windows % n == 0)}"
        )


class OpenAI(Section):
    sizes: list[Literal["124M", "355M", "774M", "1558M", "tiny"]]


class Lora(Section):
    """Of `trainable: lora`: sizes of the detours, and beside which linear layers of the blocks they lie."""

    lora_rank: PositiveInt
    lora_alpha: PositiveFloat
    lora_dropout: Fraction
    lora_targets: Annotated[list[Literal["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]], Field(min_length=1)]


class FinetuneClassify(Lora, Optimization):
    base: BaseName
    trainable: Literal["head", "last_block", "last_two_blocks", "all", "lora"]
    seeds: Annotated[list[Seed], Field(min_length=1)]
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    balance: bool
    drop_duplicates: bool
    epochs: PositiveInt
    max_tokens: PositiveInt | None
    position: Literal["last", "first", "mean"]
    max_steps: PositiveInt | None
    patience_epochs: PositiveInt | None


class FinetuneInstruct(Lora, Optimization):
    base: BaseName
    trainable: Literal["last_two_blocks", "blocks", "all", "lora"]
    lora_base_dtype: Literal["float32", "bfloat16", "int8", "nf4"]
    prompt: Literal["alpaca", "phi3"]
    mask_prompt: bool
    seeds: Annotated[list[Seed], Field(min_length=1)] | None
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    epochs: PositiveInt
    max_steps: PositiveInt | None
    checkpoint_steps: list[PositiveInt]
    max_new_tokens: PositiveInt

    @property
    def is_tabled(self) -> bool:
        """Whether there is more to compare than the model before and after."""
        return len(self.seeds or ()) > 1 or bool(self.checkpoint_steps)


class Judge(Section):
    """`chrf` needs nothing; `openai` asks a server (its key comes from the environment variable OPENAI_API_KEY);
    `transformers` asks a model in a local directory."""

    kind: Judges
    base_url: str | None
    model: Names | None
    model_dir: str | None
    num_ctx: PositiveInt | None
    timeout_s: PositiveFloat
    max_retries: Count
    concurrency: PositiveInt
    requests_per_minute: PositiveFloat | None
    pairwise: bool
    min_coverage: Annotated[float, Field(ge=0, le=1)]
    bootstrap_samples: PositiveInt
    max_items: PositiveInt | None

    def kinds(self) -> list[str]:
        """The kinds of judges, as a list also where there is one."""
        return self.kind if isinstance(self.kind, list) else [self.kind]

    def models(self) -> list[str]:
        """The server's models, each a judge."""
        return self.model if isinstance(self.model, list) else [self.model] if self.model else []


class Evaluate(Section):
    """lm-eval's tasks, by their names or as task files."""

    tasks: list[Annotated[str, Field(min_length=1)]]
    num_fewshot: Count | None
    limit: PositiveInt | None


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", 'Field name "register"')  # it hides a method of ABCMeta's that nobody calls

    class Mlflow(Section):
        """What MLflow gets of the models. It decides no result, and so is no stage's param in dvc.yaml."""

        log_models: bool
        register: RegistryName

        def registry_name(self) -> str | None:
            """What the names of registered models begin with; None: nothing is registered."""
            return "gpt2core" if self.register is True else self.register or None


class Params(Section):
    seed: Seed
    numerics: Numerics
    data: Data
    tokenizer: Tokenizer
    pretrain: Pretrain
    openai: OpenAI
    finetune_classify: FinetuneClassify
    finetune_instruct: FinetuneInstruct
    judge: Judge
    evaluate: Evaluate
    mlflow: Mlflow


def project_root() -> Path:
    """The project's root as DVC tells it (experiments run in a temporary copy); else the working directory."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd())


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Read YAML as DVC does (YAML 1.2), so that `6e-4` is a number to both. UserError if it is not YAML."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            return YAML(typ="safe").load(file)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run in the project's folder, or: make profile NAME=embedded") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def load_params(path: str | os.PathLike[str] = "params.yaml") -> Params:
    """Read and check a params file. Raises one UserError that lists everything wrong in it."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections ({', '.join(Params.model_fields)}), found {values!r}")
    try:
        params = Params.model_validate(values)
        problems = contradictions(params)
    except ValidationError as error:
        # What is sound is still held against itself, so that one run shows every mistake.
        problems = [_explain(details) for details in error.errors()]
        problems += contradictions(_sound_part(values, {details["loc"] for details in error.errors()}))
    if problems:
        noun = "problem" if len(problems) == 1 else "problems"
        raise UserError("\n".join([f"{path}: {len(problems)} {noun}", *(f"  {problem}" for problem in problems)]))
    return params


def _explain(details: Any) -> str:
    """One line for one pydantic error: the key, its value, what is allowed."""
    key = ".".join(str(part) for part in details["loc"])
    kind, context, value = details["type"], details.get("ctx", {}), details["input"]
    if kind == "extra_forbidden":
        section: Any = Params
        if len(details["loc"]) > 1:
            section = Params.model_fields[details["loc"][0]].annotation
        allowed = list(section.model_fields)
        closest = difflib.get_close_matches(str(details["loc"][-1]), allowed, n=1)
        question = f" did you mean {closest[0]}?" if closest else ""
        return f"{key}: unknown key;{question} allowed here: {', '.join(allowed)}"
    if kind == "missing":
        return f"{key}: {MISSING}"
    if kind == "literal_error":
        return f"{key}: {value!r} is not allowed; allowed: {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{key}: {value!r} must name a model directory under models/, such as pretrained or openai/124M"
    if kind in ("model_type", "model_attributes_type"):
        return f"{key}: {value!r} must be a section of keys"
    message = details["msg"].removeprefix("Input should be ")
    return f"{key}: {value!r} must be {message}"


def _sound_part(values: dict[str, Any], wrong: set[tuple[Any, ...]]) -> Params:
    """The params without the keys at the `wrong` places; what is absent raises AttributeError when it is asked for."""
    sections: dict[str, Any] = {}
    for name, field in Params.model_fields.items():
        if name in ("seed", "numerics"):
            if name in values and (name,) not in wrong:
                sections[name] = values[name]
        elif isinstance(values.get(name), dict):
            keys = {key: value for key, value in values[name].items() if (name, key) not in {w[:2] for w in wrong}}
            sections[name] = field.annotation.model_construct(**keys)  # type: ignore[union-attr]
    return Params.model_construct(**sections)
