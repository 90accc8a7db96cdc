"""A classifier as an MLflow model: texts in; of each its label, and the probability of every class, out."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from gpt2core import runtime
from gpt2core.checkpoint.model_dir import load_classifier
from gpt2core.inference.classify import classify
from gpt2core.serve.columns import texts


class Classifier(PythonModel):
    """Input: a table with the column `text`; what is longer than the model's context is cut."""

    def load_context(self, context: PythonModelContext) -> None:
        self.model, self.tokenizer = load_classifier(context.artifacts["model"], device=runtime.device())

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        return [prediction._asdict() for prediction in classify(self.model, self.tokenizer, texts(model_input, "text"))]


set_model(Classifier())
