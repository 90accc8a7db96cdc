"""Texts of a request."""

from __future__ import annotations

import pandas as pd
from mlflow.exceptions import MlflowException


def texts(table: pd.DataFrame, column: str) -> list[str]:
    """Return a column of texts.

    Raises:
        MlflowException: a row has no text. MLflow reports it as an error of the client.

    >>> texts(pd.DataFrame({"text": ["a", "b"]}), "text")
    ['a', 'b']
    """
    values = table[column].tolist()
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise MlflowException.invalid_parameter_value(f"row {number}: {column} must be a text, found {value!r}")
    return values
