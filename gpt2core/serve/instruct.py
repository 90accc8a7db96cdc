"""An instruction-tuned model as an MLflow model: instructions in, responses out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from gpt2core import prompts, runtime
from gpt2core.checkpoint.chat_template import prompt_of
from gpt2core.checkpoint.model_dir import load_language_model
from gpt2core.errors import UserError
from gpt2core.inference.respond import respond
from gpt2core.model.inference import pack
from gpt2core.serve.columns import texts


class Instruct(PythonModel):
    """Input: a table with the column `instruction`, and `input` where an instruction needs one; greedy decoding."""

    def load_context(self, context: PythonModelContext) -> None:
        model, self.tokenizer = load_language_model(context.artifacts["model"], device=runtime.device())
        self.model = pack(model, "float32")
        self.form = prompt_of(Path(context.artifacts["model"])) or prompts.alpaca

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, str]]:
        """
        Raises:
            MlflowException: a row without an instruction, one that the model's context has no room for, or no room for
                a response in `params`; answered as the client's mistake.
        """
        max_new_tokens = (params or {})["max_new_tokens"]
        if max_new_tokens < 1:
            raise MlflowException.invalid_parameter_value(f"max_new_tokens: {max_new_tokens} must be 1 or more")
        given = model_input.get("input", pd.Series([""] * len(model_input))).tolist()
        entries = [
            {"instruction": instruction, "input": value if isinstance(value, str) else ""}  # nothing in its cell
            for instruction, value in zip(texts(model_input, "instruction"), given, strict=True)
        ]
        try:
            responses = respond(self.model, self.tokenizer, entries, max_new_tokens, form=self.form)
        except UserError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        return [{"response": response} for response in responses]


set_model(Instruct())
