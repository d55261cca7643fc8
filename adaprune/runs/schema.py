"""What a record contains: the keys of ``<results_dir>/<run name>.json``, their types, and their consistency."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from adaprune.runs.method import METHODS
from adaprune.runs.retired import RETIRED, head_asked, modern
from adaprune.runs.run import NAMED, Run

SCHEMA_VERSION = 1


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class Metrics(_Exact):
    """Official metrics by name, on the dev split (for reporting) and on the held-out training rows (for choosing)."""

    validation: dict[str, float]
    selection: dict[str, float]
    primary: str

    @model_validator(mode="after")
    def _has_primary(self) -> Metrics:
        if self.primary not in self.validation:
            names = ", ".join(self.validation)
            raise ValueError(f"primary {self.primary!r} is not among validation's {names}")
        return self


class Count(_Open):
    """How many of some weights are kept: sparsity = 1 - kept / total."""

    sparsity: float = Field(ge=0, le=1)
    kept: int = Field(ge=0)
    total: int = Field(ge=0)

    @model_validator(mode="after")
    def _adds_up(self) -> Count:
        if self.kept > self.total or abs(self.sparsity * self.total - (self.total - self.kept)) > 0.5:
            raise ValueError(f"kept {self.kept} of {self.total} is not a sparsity of {self.sparsity}")
        return self


class Mask(Count):
    """The counts of a mask: in scope, in all encoder matrices, in all weights, by component and by layer."""

    scope: str
    encoder: Count
    all_weights: Count
    per_component: dict[str, Count]
    per_layer: dict[str, Count]


class Cost(_Open):
    """What the run cost, and what its task adds to a base model that is already there.

    ``shipped_bytes``: the mask file's size or, without a mask, that of the head and of all trained weights in float32.
    Records older than the coded mask file count the head and 1 bit per weight; the oldest have no such number.
    """

    train_seconds: float = Field(ge=0)
    steps: int = Field(ge=0)
    examples_per_second: float = Field(ge=0)
    peak_memory_bytes: int | None
    device: str
    shipped_bytes: int | None = None


class Point(_Open):
    """A point of the curve: a step, with the metrics and the sparsity known at that step."""

    step: int = Field(ge=0)


class Environment(_Open):
    """The software and hardware of the run; null for what is unknown."""

    packages: dict[str, str | None]
    git_commit: str | None
    model_revision: str | None
    data_fingerprint: str | None
    seed: int | None
    threads: int
    start_time: str


class Record(_Exact):
    """The complete record of one finished run, as in ``<results_dir>/<run name>.json``."""

    schema_version: Literal[1]
    run: dict[str, Any]
    metrics: Metrics
    mask: Mask | None
    weights_intact: bool
    cost: Cost
    curve: list[Point]
    environment: Environment

    @field_validator("run")
    @classmethod
    def _is_run(cls, fields: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in NAMED if name not in fields]
        if missing:
            raise ValueError(f"{', '.join(missing)} missing")
        # A field younger than the record is absent from it: its default is what the run did. What is retired stays, and
        # so does a user's own method that this process does not know.
        fields = modern(fields)
        kept = {name: value for name, value in fields.items() if name in RETIRED}
        if isinstance(fields["method"], str) and fields["method"].isidentifier():
            kept["method"] = fields["method"]
        known = {name: value for name, value in fields.items() if name not in kept}
        return {**Run(**known).model_dump(), **kept}

    @model_validator(mode="after")
    def _names_its_head(self) -> Record:
        self.run["head"] = head_asked(self.run["head"], self.environment.model_extra)
        return self

    @model_validator(mode="after")
    def _has_its_mask(self) -> Record:
        method = METHODS.get(self.run["method"])
        if method is not None and method.mask != (self.mask is not None):
            raise ValueError(f"mask must {'not ' if method.mask else ''}be null for method {method.name}")
        return self
