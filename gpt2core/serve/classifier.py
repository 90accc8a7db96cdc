"""A classifier as an MLflow model: texts in; of each its label, and the probability of every class, out."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from gpt2core import runtime
from gpt2core.model import GPTClassifier
from gpt2core.serve.columns import texts
from gpt2core.train.classify import encode, predict
from gpt2core.weights.model_dir import load


class Classifier(PythonModel):
    """Input: a table with the column `text`; what is longer than the model's context is cut."""

    def load_context(self, context: PythonModelContext) -> None:
        model, tokenizer = load(context.artifacts["model"], device=runtime.device())
        assert isinstance(model, GPTClassifier) and tokenizer is not None  # what the pipeline logs
        self.model, self.tokenizer = model, tokenizer

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        ids, _ = encode(texts(model_input, "text"), self.tokenizer, self.model.config.n_positions, None)
        rows = predict(self.model, ids).softmax(-1).tolist() if ids else []  # [n, classes]
        labels = self.model.labels
        return [
            {"label": labels[row.index(max(row))], "probabilities": dict(zip(labels, row, strict=True))} for row in rows
        ]


set_model(Classifier())
