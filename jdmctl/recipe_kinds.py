"""The kinds of values in a recipe. Infinity is refused by the sections, unless a kind allows it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from jdmctl.errors import JdmError

SCORE_DIVERGENCES = ("sim", "sid")
DEFAULT_DIVERGENCE = "reverse-kl"


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


_NUMBER = BeforeValidator(_no_truth_value)
Seed = Annotated[int, Field(ge=0, lt=2**32), _NUMBER]
Count = Annotated[int, Field(ge=0), _NUMBER]
PositiveInt = Annotated[int, Field(gt=0), _NUMBER]
Float = Annotated[float, _NUMBER]
NonNegativeFloat = Annotated[float, Field(ge=0), _NUMBER]
PositiveFloat = Annotated[float, Field(gt=0), _NUMBER]
Limit = Annotated[float, Field(gt=0, allow_inf_nan=True), _NUMBER]  # .inf where there is none
Fraction = Annotated[float, Field(ge=0, le=1), _NUMBER]
Share = Annotated[float, Field(gt=0, le=1), _NUMBER]
Momentum = Annotated[float, Field(ge=0, lt=1), _NUMBER]


def _known_divergence(text: str) -> str:
    name = text.strip().lower()
    if name in (DEFAULT_DIVERGENCE, *SCORE_DIVERGENCES):
        return name
    from jdmctl.objectives.divergence import load_divergence  # loads torch, which listing recipes must not

    try:
        return load_divergence(text, SCORE_DIVERGENCES).name
    except JdmError as problem:
        raise ValueError(f"{problem}; {problem.hint}") from problem


Divergence = Annotated[str, AfterValidator(_known_divergence)]
