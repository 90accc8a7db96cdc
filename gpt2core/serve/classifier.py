"""A classifier as an MLflow model: from texts to labels and probabilities of all classes."""

from __future__ import annotations

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from gpt2core.serve import require_own_code, texts

require_own_code(__file__)  # before the imports of what another version may lack

from gpt2core import runtime  # noqa: E402
from gpt2core.checkpoint.model_dir import load_classifier  # noqa: E402
from gpt2core.inference.classify import classify  # noqa: E402


class Classifier(PythonModel):
    """A classifier. Input: a table with the column `text`; longer texts are truncated to the model's context."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model."""
        self.model, self.tokenizer = load_classifier(context.artifacts["model"], device=runtime.device())

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return `label` and `probabilities` of each text."""
        return [prediction._asdict() for prediction in classify(self.model, self.tokenizer, texts(model_input, "text"))]


set_model(Classifier())
