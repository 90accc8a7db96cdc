"""An instruction-tuned model as an MLflow model: from instructions to responses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from gpt2core.serve import require_own_code, texts

require_own_code(__file__)  # before the imports of what another version may lack

from gpt2core.checkpoint.chat_template import instruction_prompt  # noqa: E402
from gpt2core.checkpoint.decoding import load_for_decoding  # noqa: E402
from gpt2core.errors import UserError  # noqa: E402
from gpt2core.inference.respond import respond  # noqa: E402


class Instruct(PythonModel):
    """An instruction-tuned model. Input: a table with the column `instruction`, and optionally `input`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model."""
        path = Path(context.artifacts["model"])
        self.model, self.tokenizer = load_for_decoding(path)
        self.form = instruction_prompt(path)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        """Return the greedy `response` to each instruction.

        Raises:
            MlflowException: a row has no instruction or does not fit the model's context, or `max_new_tokens` is less
                than 1. MLflow reports it as an error of the client.
        """
        max_new_tokens = (params or {})["max_new_tokens"]
        if max_new_tokens < 1:
            raise MlflowException.invalid_parameter_value(f"max_new_tokens: {max_new_tokens} must be 1 or more")
        inputs = model_input.get("input", pd.Series([""] * len(model_input))).tolist()
        entries = [
            {"instruction": instruction, "input": value if isinstance(value, str) else ""}  # an empty cell is NaN
            for instruction, value in zip(texts(model_input, "instruction"), inputs, strict=True)
        ]
        try:
            responses = respond(self.model, self.tokenizer, entries, max_new_tokens, form=self.form)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [{"response": response} for response in responses]


set_model(Instruct())
