"""Types of parameters that several sections use."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator
from pydantic_core import PydanticCustomError


def _text(value: str) -> str:
    """Return a text. Raises an error for half a surrogate pair, which no UTF-8 has."""
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise PydanticCustomError("text", "Input has half of a surrogate pair, which is no character")
    return value


PositiveInt = Annotated[int, Field(gt=0, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(gt=0, le=1 << 20)]  # of a batch or a model: what memory could hold, by far
Samples = Annotated[int, Field(gt=0, le=1_000_000)]
Text = Annotated[str, AfterValidator(_text)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch's generators take
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, le=1)]
SplitFraction = Annotated[float, Field(gt=0, lt=0.5)]
# A model directory, named from models/. No `..` and no root: the stage must stay inside the project.
BaseName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$")]


def _names(value: Any) -> str | list[str]:
    if isinstance(value, str) or (isinstance(value, list) and value and all(isinstance(name, str) for name in value)):
        return value
    raise PydanticCustomError("names", "Input should be a name or a list of names")


Names = Annotated[Any, PlainValidator(_names)]


class Section(BaseModel):
    """A section of params.yaml. Unknown keys and values of another type are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
