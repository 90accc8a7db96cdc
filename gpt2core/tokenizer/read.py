"""Read a tokenizer's files, as OpenAI, transformers, and the library `tokenizers` write them.

The schemas list every entry of these files that changes ids or text. An entry is computed (the tables, the prefix
space), or it must have the value that GPT-2's tokenizer has: any other is refused, so that no directory is misread.
Three entries have no effect on purpose: `truncation` and `padding` of tokenizer.json, which transformers sets for each
call, and `clean_up_tokenization_spaces`, which rewrites decoded texts.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpt2core import files
from gpt2core.errors import UserError, schema_problem
from gpt2core.tokenizer.byte_pair import END_OF_TEXT, Tokenizer, from_printable, is_part_of_character

VOCAB, MERGES, TOKENIZER_JSON = "vocab.json", "merges.txt", "tokenizer.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS_MAP, ADDED_TOKENS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
MAX_BYTES = 32 << 20  # of each file; GPT-2's largest has 3.5 MB
CLASSES = Literal["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _AddedToken(_Schema):
    """A token that texts are searched for before they are cut into words."""

    model_config = ConfigDict(strict=True, extra="ignore")  # transformers adds notes such as `__type`
    id: int | None = None
    content: Literal["<|endoftext|>"]
    single_word: Literal[False] = False
    lstrip: Literal[False] = False
    rstrip: Literal[False] = False


Special = Literal["<|endoftext|>"] | _AddedToken | None
SpecialTokens = list[Special] | dict[str, Special] | None


class _SpecialTokens(BaseModel):
    """What `special_tokens_map.json` and `tokenizer_config.json` have in common."""

    model_config = ConfigDict(strict=True, extra="ignore")
    bos_token: Special = None
    eos_token: Special = None
    unk_token: Special = None
    pad_token: Special = None
    sep_token: Special = None
    cls_token: Special = None
    mask_token: Special = None
    additional_special_tokens: SpecialTokens = None
    extra_special_tokens: SpecialTokens = None


class _TokenizerConfig(_SpecialTokens):
    tokenizer_class: CLASSES | None = None
    add_prefix_space: bool | None = None
    add_bos_token: Literal[False] | None = None
    add_eos_token: Literal[False] | None = None
    errors: Literal["replace"] | None = None
    added_tokens_decoder: dict[str, _AddedToken] = {}


class _ByteLevel(_Schema):
    type: Literal["ByteLevel"]
    add_prefix_space: bool = True
    trim_offsets: bool = True  # of places in the text, which are not used here
    use_regex: Literal[True] = True


class _Sequence(_Schema):
    Sequence: dict[str, Any]


class _Template(_Schema):
    """A template for the ids of a text; it may not add any."""

    type: Literal["TemplateProcessing"]
    single: Annotated[list[_Sequence], Field(min_length=1, max_length=1)]
    pair: Any = None
    special_tokens: Any = None


class _BPE(_Schema):
    type: Literal["BPE"] = "BPE"
    dropout: Annotated[float, Field(ge=0, le=0)] | None = None
    unk_token: str | None = None  # every byte has a token, or the text is refused
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None
    fuse_unk: bool = False
    byte_fallback: Literal[False] = False
    ignore_merges: bool = False  # no effect, since merges make every token
    vocab: dict[str, int]
    merges: list[str | list[str]]


class _TokenizerJson(_Schema):
    version: str = ""
    truncation: Any = None
    padding: Any = None
    added_tokens: list[_AddedToken] = []
    normalizer: None = None
    pre_tokenizer: _ByteLevel
    post_processor: Annotated[_ByteLevel | _Template, Field(discriminator="type")] | None = None
    decoder: _ByteLevel
    model: _BPE


S = TypeVar("S", bound=BaseModel)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Read the tokenizer of a model directory: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Raises:
        UserError: a file is missing, damaged, contradicts another, or has something that changes the tokens and that
            this library does not compute; names the file and the entry.
    """
    folder = Path(folder)
    config = _read(folder / TOKENIZER_CONFIG, _TokenizerConfig) or _TokenizerConfig()
    _read(folder / SPECIAL_TOKENS_MAP, _SpecialTokens)
    stated_ids = _added_tokens(folder / ADDED_TOKENS)
    for stated_id in config.added_tokens_decoder:
        stated_ids.append((folder / TOKENIZER_CONFIG, stated_id))
    tokenizer = _load_tables(folder, config)
    for path, stated_id in stated_ids:
        if str(stated_id) != str(tokenizer.eot_id):
            raise UserError(
                f"{path}: gives {END_OF_TEXT} the id {stated_id!r:.40}, the vocabulary {tokenizer.eot_id}; correct one"
            )
    return tokenizer


def _load_tables(folder: Path, config: _TokenizerConfig) -> Tokenizer:
    """Read `tokenizer.json`, or `vocab.json` and `merges.txt`."""
    vocab_path, merges_path, json_path = folder / VOCAB, folder / MERGES, folder / TOKENIZER_JSON
    if not json_path.exists():
        return read_bpe(vocab_path, merges_path, add_prefix_space=bool(config.add_prefix_space))
    content = _read(json_path, _TokenizerJson)
    assert content is not None
    # Older versions wrote a merge as one string.
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in content.model.merges]
    vocab = content.model.vocab | {token.content: token.id for token in content.added_tokens}
    has_both = vocab_path.exists() and merges_path.exists()
    if has_both and (_read_vocab(vocab_path), [pair for _, pair in _read_merges(merges_path)]) != (vocab, pairs):
        raise UserError(
            f"{json_path}: has other tokens or merges than {VOCAB} and {MERGES} next to it, and libraries differ in "
            "which they read; remove what does not belong to this model"
        )
    add_prefix_space = content.pre_tokenizer.add_prefix_space
    # transformers' GPT2Tokenizer takes tokenizer_config.json's, or none; its general class takes this file's.
    stated = config.add_prefix_space
    if stated is None and config.tokenizer_class not in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        stated = False
    if stated not in (None, add_prefix_space):
        raise UserError(
            f"{json_path}: pre_tokenizer.add_prefix_space: is {add_prefix_space}, but {stated} in "
            f"{TOKENIZER_CONFIG}, and libraries differ in which they use; correct the wrong one"
        )
    places = [(f"merge {number}", pair) for number, pair in enumerate(pairs)]
    return _from_tables(vocab, places, json_path, json_path, add_prefix_space)


def has_tokenizer(folder: str | os.PathLike[str]) -> bool:
    """Return whether a directory has the files of a tokenizer."""
    names = {path.name for path in Path(folder).iterdir()}
    return {VOCAB, MERGES} <= names or TOKENIZER_JSON in names


def read_bpe(
    vocab_path: str | os.PathLike[str], merges_path: str | os.PathLike[str], *, add_prefix_space: bool = False
) -> Tokenizer:
    """Read GPT-2's two files (OpenAI: encoder.json, vocab.bpe). Raises UserError that names file and line."""
    vocab, merges = _read_vocab(vocab_path), _read_merges(merges_path)
    return _from_tables(vocab, merges, vocab_path, merges_path, add_prefix_space)


def _read_vocab(path: str | os.PathLike[str]) -> dict[str, Any]:
    vocab = files.read_json(path, MAX_BYTES)
    if not isinstance(vocab, dict):
        raise UserError(f"{path}: must be a JSON object of tokens and ids")
    return vocab


def _read_merges(path: str | os.PathLike[str]) -> list[tuple[str, list[str]]]:
    """Return the place in the file, and the parts, of each merge."""
    merges = []
    # Not splitlines(): it also splits at U+0085, which the byte alphabet has.
    for number, line in enumerate(files.read_text(path, MAX_BYTES).split("\n"), start=1):
        line = line.removesuffix("\r")
        if line and not (number == 1 and line.startswith("#version")):
            merges.append((f"line {number}", line.split(" ")))
    return merges


def _added_tokens(path: Path) -> list[tuple[Path, Any]]:
    """Return the file with the id that it gives `<|endoftext|>`, if there is one. Raises UserError for other tokens."""
    content = files.read_json(path, MAX_BYTES) if path.exists() else {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a JSON object of tokens and ids")
    if other := content.keys() - {END_OF_TEXT}:
        raise UserError(f"{path}: {min(other)!r:.40} is an added token, and gpt2core computes none but {END_OF_TEXT}")
    return [(path, token_id) for token_id in content.values()]


def _read(path: Path, schema: type[S]) -> S | None:
    """Read a JSON file by its schema; None if there is no file."""
    if not path.exists():
        return None
    try:
        return schema.model_validate(files.read_json(path, MAX_BYTES))
    except ValidationError as error:
        raise UserError(f"{path}: {schema_problem(error)}; gpt2core computes GPT-2's own tokenizer only") from None


def _from_tables(
    vocab: dict[str, Any],
    pairs: Sequence[tuple[str, list[str]]],
    vocab_path: str | os.PathLike[str],
    merges_path: str | os.PathLike[str],
    add_prefix_space: bool,
) -> Tokenizer:
    """Build a tokenizer from printable tokens with ids, and pairs of tokens with their places in the file."""
    if END_OF_TEXT not in vocab:
        raise UserError(f"{vocab_path}: must have the token {END_OF_TEXT!r}")
    if "" in vocab:
        raise UserError(f"{vocab_path}: has an empty token, which no text contains")
    if set(map(type, vocab.values())) != {int} or sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(f"{vocab_path}: ids must be 0 to {len(vocab) - 1}, each once")
    eot_id = vocab[END_OF_TEXT]
    try:
        tokens = {token: from_printable(token) for token in vocab if token != END_OF_TEXT}
    except KeyError as error:
        raise UserError(f"{vocab_path}: {error} is no character of GPT-2's byte alphabet") from None
    ranks = {token: vocab[printable] for printable, token in tokens.items()}
    merges = []
    for place, pair in pairs:
        try:
            left, right = (tokens[part] for part in pair)
            _ = ranks[left + right]
        except (ValueError, KeyError):
            raise UserError(
                f"{merges_path}: {place}: {' '.join(pair)!r:.80} is not a pair of tokens of {vocab_path}"
            ) from None
        merges.append((left, right))
    if problem := _difference_from_ranks(ranks, merges):
        number, text = problem
        raise UserError(f"{merges_path if number is None else f'{merges_path}: {pairs[number][0]}'}: {text}")
    return Tokenizer(ranks, merges, eot_id, add_prefix_space=add_prefix_space)


def _difference_from_ranks(
    ranks: dict[bytes, int], merges: Sequence[tuple[bytes, bytes]]
) -> tuple[int | None, str] | None:
    """Return why merging by ids, as tiktoken does, could differ from merging in the order of `merges`.

    They are the same if each token of several bytes is the result of one merge that its own bytes reach, and a later
    merge has a higher id. Within a single character only one merge is ever possible, so its ids may have any order.

    Returns:
        The number of the first such merge (None if a token is concerned) and a sentence, or None if there is none.
    """
    in_order = not all(map(is_part_of_character, ranks))
    number_of = {pair: number for number, pair in enumerate(merges)}
    made = {token: -1 for token in ranks if len(token) == 1}  # the number of the merge that makes a token
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    last_id = -1
    for number, (left, right) in enumerate(merges):
        token = left + right
        if token in made:
            return number, f"makes the token of id {ranks[token]} a second time; GPT-2's merges make each token once"
        if left not in made or right not in made:
            return number, "joins a token that no earlier merge makes, so it is never applied"
        if in_order and ranks[token] < last_id:
            return number, f"makes id {ranks[token]} after id {last_id}; the order of merges must be that of the ids"
        if not _survives(left, right, number, number_of, made, halves):
            return number, f"is never applied: other merges come first, so no text is encoded as id {ranks[token]}"
        made[token], halves[token], last_id = number, (left, right), ranks[token]
    if len(made) < len(ranks):
        token_id = min(ranks[token] for token in ranks.keys() - made.keys())
        return None, (
            f"no merge makes the token of id {token_id}; if it is an added token, gpt2core computes none but "
            f"{END_OF_TEXT}"
        )
    return None


def _survives(
    left: bytes,
    right: bytes,
    end: int,
    number_of: dict[tuple[bytes, bytes], int],
    made: dict[bytes, int],
    halves: dict[bytes, tuple[bytes, bytes]],
) -> bool:
    """Return whether the boundary between two adjacent tokens is there when the merge `end` is applied.

    It undoes the merges that made the two tokens at the boundary, the latest first, and looks whether an earlier merge
    would have joined the parts that met there (the idea is from GitHub's crate `bpe`).
    """
    while True:
        if number_of.get((left, right), end) < end:
            return False
        if made[left] > made[right]:
            end, left = made[left], halves[left][1]
        elif made[right] >= 0:
            # Of equal pairs the left one is joined first: `a|aa` becomes `aa|a`.
            end, right = made[right] + 1, halves[right][0]
        else:
            return True
