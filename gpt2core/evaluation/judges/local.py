"""A language model in a local directory as judge: GPT-2 with this project's engine, other models with transformers."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from gpt2core import files, runtime
from gpt2core.errors import UserError, first_line
from gpt2core.evaluation.judges.language_model import Chat, NoReply
from gpt2core.evaluation.judges.reply_cache import Messages
from gpt2core.executor import cluster_address, open_executor

MAX_REPLY_TOKENS = 16  # a score has one to three tokens, and a longer reply cannot be parsed anyway


def local_chat(model_dir: Path) -> Chat:
    """Load the model in `model_dir`, to reply in this process or on the Ray cluster of `GPT2CORE_RAY`.

    Raises:
        UserError: there is no model, or it has no chat template; as `open_executor`.
    """
    chat = _load(model_dir)
    return ClusterChat(chat, model_dir) if cluster_address() else chat


def _load(model_dir: Path) -> Chat:
    where = f"judge.model_dir {str(model_dir)!r}"
    config_path = model_dir / "config.json"
    if not config_path.is_file():
        raise UserError(f"{where}: no model directory is there (it has no config.json); name one, or: judge.kind chrf")
    content = files.read_json(config_path)
    is_gpt2 = isinstance(content, dict) and content.get("model_type") == "gpt2"
    return GPT2Chat(model_dir, where) if is_gpt2 else TransformersChat(model_dir, where)


class _LocalChat:
    """Common part of local models. One conversation at a time, because the model uses all cores."""

    kind = "transformers"
    concurrency = 1
    remedy = "choose another judge.model_dir"

    def __init__(self, model_dir: Path, where: str) -> None:
        self.where = where
        self.model = model_dir.resolve().name
        self.settings: dict[str, Any] = {"temperature": 0, "weights": _digest(model_dir)}

    def _check_room(self, n_tokens: int, context: int | None) -> None:
        if context and n_tokens + 1 > context:
            raise NoReply(f"the question does not fit the model's context of {context} tokens")


class GPT2Chat(_LocalChat):
    """A GPT-2 directory, such as models/instruct. The whole conversation is the instruction of its prompt template."""

    def __init__(self, model_dir: Path, where: str) -> None:
        super().__init__(model_dir, where)
        from gpt2core.checkpoint.chat_template import instruction_prompt
        from gpt2core.checkpoint.decoding import load_for_decoding

        self._model, self._tokenizer = load_for_decoding(model_dir)
        self._prompt = instruction_prompt(model_dir)

    def reply(self, messages: Messages) -> str:
        """Return the most likely reply. Raises NoReply if the conversation fills the context."""
        from gpt2core.inference import generate_batch

        prompt = self._prompt("\n\n".join(message["content"] for message in messages))
        ids = self._tokenizer.encode(prompt)
        self._check_room(len(ids), self._model.config.n_positions)
        (answer,) = generate_batch(self._model, [ids], MAX_REPLY_TOKENS, eos_id=self._tokenizer.eot_id)
        return self._tokenizer.decode(answer)


class TransformersChat(_LocalChat):
    """A directory that transformers can open, with a chat template. No code or pickle in it is executed."""

    def __init__(self, model_dir: Path, where: str) -> None:
        super().__init__(model_dir, where)
        self._tokenizer: Any
        self._model: Any
        try:
            import transformers
        except ImportError:
            raise UserError(
                f"{where}: is no GPT-2, and needs transformers, which is not installed: pip install transformers"
            ) from None
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                model_dir, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype="auto"
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise UserError(f"{where}: transformers cannot open it ({first_line(error)})") from None
        if not self._tokenizer.chat_template:
            raise UserError(f"{where}: has no chat template, so it cannot be asked; take an instruction-tuned model")
        self._model = self._model.to(runtime.device()).eval()

    def reply(self, messages: Messages) -> str:
        """Return the most likely reply. Raises NoReply if the conversation fills the context."""
        inputs = self._tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._model.device)
        n_tokens = inputs["input_ids"].shape[1]
        self._check_room(n_tokens, getattr(self._model.config, "max_position_embeddings", None))
        ids = self._model.generate(
            **inputs, do_sample=False, max_new_tokens=MAX_REPLY_TOKENS, pad_token_id=self._tokenizer.eos_token_id
        )
        return str(self._tokenizer.decode(ids[0, n_tokens:], skip_special_tokens=True))


class ClusterChat:
    """A local model on a Ray cluster: several conversations at a time, each in a process that has loaded the model."""

    def __init__(self, chat: Chat, model_dir: Path) -> None:
        self.kind, self.model, self.settings, self.where = chat.kind, chat.model, chat.settings, chat.where
        self.remedy = chat.remedy
        self._model_dir = str(model_dir.absolute())
        self._executor = open_executor(with_model=True).__enter__()  # the connection ends with this process
        self.concurrency = self._executor.slots

    def reply(self, messages: Messages) -> str:
        """Return the local model's reply, or raise what it raises."""
        (reply,) = self._executor.map(_reply, [[self._model_dir, list(map(dict, messages))]])
        return reply


def _reply(model_dir: str, messages: Messages) -> str:
    """Reply in a process of the cluster."""
    return _loaded(model_dir).reply(messages)


@functools.lru_cache(maxsize=1)
def _loaded(model_dir: str) -> Chat:
    return _load(Path(model_dir))


def _digest(model_dir: Path) -> str:
    """Return a short hash of the weights, to distinguish models with the same name."""
    digest = hashlib.sha256()
    for path in sorted(model_dir.glob("*.safetensors")):
        digest.update(f"{path.name} {files.sha256(path)}\n".encode())
    return digest.hexdigest()[:16]
