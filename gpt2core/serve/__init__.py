"""Models for `mlflow models serve`: each module is a model "from code", which `tracking/models.py` logs.

MLflow copies the module next to the weights, with the parts of the package that it needs, and runs it to load them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
from mlflow.exceptions import MlflowException

PACKAGE = Path(__file__).parents[1]


def require_own_code(module_file: str) -> None:
    """Check that the gpt2core in this process has the code that was logged with a model.

    Args:
        module_file: `__file__` of the model's module. In the project there is no logged code next to it.

    Raises:
        MlflowException: the process imported another version, which would run in the place of the logged one.
    """
    logged = Path(module_file).resolve().parent / "code" / PACKAGE.name
    if not logged.is_dir() or logged == PACKAGE:
        return
    names = sorted(path.relative_to(logged) for path in logged.rglob("*") if path.suffix in (".c", ".py"))
    here, there = code_hash(PACKAGE, names), code_hash(logged, names)
    if here != there:
        raise MlflowException(
            f"this process has imported gpt2core from {PACKAGE} (code {here}), and the model was logged with other "
            f"code ({there}): load it in a process that has not imported gpt2core, or serve it: mlflow models serve"
        )


def code_hash(root: Path, names: list[Path]) -> str:
    """Return 12 hexadecimal digits of a hash of the files that exist, by their names."""
    digest = hashlib.sha256()
    for name in names:
        if (root / name).is_file():
            digest.update(f"{name.as_posix()}\0".encode() + (root / name).read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def texts(table: pd.DataFrame, column: str) -> list[str]:
    """Return a column of a request. Raises MlflowException, an error of the client, if a row has no text.

    >>> texts(pd.DataFrame({"text": ["a", "b"]}), "text")
    ['a', 'b']
    """
    values = table[column].tolist()
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise MlflowException.invalid_parameter_value(f"row {number}: {column} must be a text, found {value!r}")
    return values
