"""What fields of a manifest are made of: names, shares, paths that stay inside, and models that nobody changes."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _stays_inside(value: str) -> str:
    path = PurePosixPath(value)
    plain = value == str(path) and "\\" not in value and ":" not in value and "\0" not in value
    if not plain or path.is_absolute() or ".." in path.parts or not path.name:
        raise ValueError(f"{value!r} must be a relative POSIX path inside the bundle, like 'stage0.onnx'")
    return value


Inside = Annotated[str, AfterValidator(_stays_inside)]


class Frozen(BaseModel):
    """Immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
