"""Models for `mlflow models serve`: each module is a model "from code", which `tracking/models.py` logs.

MLflow copies the module next to the weights, with the parts of the package that it needs, and runs it to load them.
"""

from __future__ import annotations

import pandas as pd
from mlflow.exceptions import MlflowException


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
