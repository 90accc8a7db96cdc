"""Names of earlier versions that still work, and what they are called now. `make params` updates a file.

This is the only table of renames. A name stays in it for one release.
"""

from __future__ import annotations

from typing import Any

PARAMS = {  # old name -> new name; both in the same section
    "data.sms": "data.classification",
    "data.sms_label_column": "data.classification_label_column",
    "data.sms_text_column": "data.classification_text_column",
    "finetune_classify.patience_epochs": "finetune_classify.patience_evals",
}
VALUES: dict[str, dict[Any, Any]] = {  # new name of a param -> old value -> new value
    "pretrain.init": {"gpt2": "random"},
}
REMOVED: dict[str, str] = {}  # name of a param -> what to use instead
PROFILES = {"seeds": "public-small"}
OUTPUTS = {"data/raw/sms.jsonl": "data/raw/classification.jsonl"}


def with_new_names(values: Any) -> Any:
    """Return the content of a params file with new names in place of old ones.

    A name stays if the file has its new name too; the check of the file then reports it as unknown.

    >>> with_new_names({"data": {"sms": "own/a.tsv"}, "pretrain": {"init": "gpt2"}})
    {'data': {'classification': 'own/a.tsv'}, 'pretrain': {'init': 'random'}}
    """
    if not isinstance(values, dict):
        return values
    return {name: _renamed(name, rows) if isinstance(rows, dict) else rows for name, rows in values.items()}


def _renamed(name: str, section: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in section.items():
        new = PARAMS.get(f"{name}.{key}", f"{name}.{key}").partition(".")[2]
        new = key if new in section else new
        values = VALUES.get(f"{name}.{new}", {})
        result[new] = values.get(value, value) if isinstance(value, str) else value
    return result
