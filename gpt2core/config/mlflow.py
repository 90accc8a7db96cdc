"""Section `mlflow`."""

from __future__ import annotations

import re
import warnings
from typing import Annotated, Any

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from gpt2core.config.fields import Count, Section


def _registry_name(value: Any) -> bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and re.fullmatch(r"[^/:]*[^/:\s][^/:]*", value)):
        return value
    raise PydanticCustomError("registry_name", "Input should be false, true or a name without / and :")


RegistryName = Annotated[Any, PlainValidator(_registry_name)]

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", 'Field name "register"')  # it hides a method of ABCMeta's that nobody calls

    class Mlflow(Section):
        """What MLflow gets in addition to the metrics. No stage runs again for these."""

        log_models: bool = Field(default=True, description="log the fine-tuned models, ready for `mlflow models serve`")
        register: RegistryName = Field(
            default=False,
            description="true: as the next versions of gpt2core-classifier and gpt2core-instruct | "
            "a name instead of gpt2core",
        )
        benchmark_interval_steps: Count = Field(
            default=0,
            description="steps of pretraining between evaluations of evaluate.tasks, a multiple of "
            "pretrain.eval_interval_steps; 0: none",
        )

        def registry_name(self) -> str | None:
            """Return the prefix of the names of registered models, or None if none is registered."""
            return "gpt2core" if self.register is True else self.register or None
