"""The settings of one run: every parameter of the notebooks as a checked value with a readable name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from adaprune.runs.method import METHODS, Method
from adaprune.runs.refusals import explain
from adaprune.runs.retired import RETIRED

# Always part of a run's name, in this order.
NAMED = ("task", "method", "sparsity", "seed", "model")
# Where a run reads and writes, how often it saves, what it keeps: none of this changes the result.
RESULT_NEUTRAL = frozenset({"data_dir", "results_dir", "checkpoint_steps", "keep"})
# These come next in a name, in the order of the first records.
_FIRST_IN_NAMES = ("recipe", "scope", "epochs", "batch_size", "max_length", "max_train_examples")
# The longest file made of a name is "<name>.safetensors"; file systems allow 255 bytes.
NAME_BYTES = 255 - len(".safetensors")

Scope = Literal["encoder", "encoder+embeddings"]
Start = Literal["", "constant", "normal", "uniform", "magnitude", "relative", "activation", "gradient"]
Allocation = Literal["", "global", "equal", "scores"]
Ablation = Literal["", "head", "shuffle", "probe", "zero_shot"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Keep = Literal["", "theta", "snapshots", "theta+snapshots"]
Text = Annotated[str, StringConstraints(pattern=r"\S")]  # not empty

# Plain values that IPython and papermill add to a notebook's own.
_KERNEL_NAMES = frozenset({"In", "Out", "PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"})


class Run(BaseModel):
    """One run: a task, a method and everything else that decides the result; frozen, and checked when created.

    Types are strict, because papermill does not check them: ``"false"`` is not a boolean and ``1e5`` not a task. A
    whole number is accepted for a float. Anything else raises ValueError with one sentence per wrong parameter.

    >>> Run(task="sst2", epochs=3).name
    'task~sst2_method~adaprune_sparsity~0.5_seed~0_model~minilm_epochs~3'
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    # What to run: all that most people need.
    task: Text = Field("movie_reviews", description="a GLUE task, movie_reviews, or a path to your own data")
    method: Text = Field("adaprune", description="how the mask (or the model) is found")
    sparsity: float = Field(0.5, ge=0, lt=1, description="fraction of the weights in scope to remove")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of all random numbers in the run")
    model: Text = Field("minilm", description="minilm, a Hugging Face id, or a local folder of an encoder")
    teacher: str = Field("", description="a finished finetune record of the same data to learn from; empty: none")
    epochs: float = Field(0.0, ge=0, description="passes over the training set, may be fractional; 0: the recipe's")
    max_train_examples: int = Field(0, ge=0, description="use only the first N training rows; 0: all")
    data_dir: str = Field("", description="folder with <task>/{train,validation}.parquet; empty: the hub")
    results_dir: Text = Field("results", description="folder for the record and the mask file")
    # How to train: the recipe decides what is left at 0 or empty.
    recipe: Literal["paper", "tuned"] = Field("tuned", description="paper (the published settings) or tuned (ours)")
    scope: Scope = Field("encoder", description="weights that can be masked: encoder or encoder+embeddings")
    pattern: Literal["weights", "units"] = Field(
        "weights", description="what a theta stands for: one weight, or a whole attention head or FFN neuron (units)"
    )
    batch_size: int = Field(0, ge=0, description="examples in a batch; 0: the recipe's")
    max_length: int = Field(128, ge=8, le=512, description="tokens after which a text is cut")
    learning_rate: float = Field(0.0, ge=0, description="learning rate of theta or of the weights; 0: the recipe's")
    head_learning_rate: float = Field(0.0, ge=0, description="learning rate of the head; 0: the recipe's")
    initial_theta: Start = Field(
        "", description="constant, normal, uniform, magnitude, relative, activation, gradient; empty: the recipe's"
    )
    penalty: float = Field(
        0.0, ge=0, description="gamma per step (adaprune, recipe paper) or lambda (scores); 0: the recipe's"
    )
    temperature: float = Field(
        0.0, ge=0, description="t_s of the mask's sigmoid slope; 0: the recipe's (scores: a slope of 1)"
    )
    reach: float = Field(
        0.0, ge=0, le=1, description="share of the steps by which the sparsity is reached; 0: the recipe's"
    )
    head: Literal["", "mlp", "linear"] = Field(
        "", description="mlp (the paper's, one ReLU layer) or linear; empty: the recipe's"
    )
    rank: int = Field(0, ge=0, description="rank of lora's updates; 0: 8")
    recovery: bool = Field(True, description="whether a pruned connection may come back")
    allocation: Allocation = Field(
        "", description="one cut (global), or a share per matrix: equal, scores; empty: the recipe's"
    )
    ablation: Ablation = Field(
        "", description="of this run's finished mask: head (a new one), shuffle, probe or zero_shot"
    )
    noise: float = Field(0.0, ge=0, description="for an ablation: sigma of the N(1, sigma) that multiplies each weight")
    # Where to run, and what to keep besides the record and the mask.
    precision: Precision = Field("auto", description="auto, fp32, bf16 or fp16; auto: what the device supports")
    checkpoint_steps: int = Field(100, ge=0, description="steps between checkpoints; 0: never")
    keep: Keep = Field("", description="also write theta (its order, for other cuts), snapshots (8 masks), or both")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**{name: _plain(value) for name, value in fields.items()})
        except ValidationError as error:
            raise ValueError(explain(error, type(self).model_fields)) from None
        size = len(self.name.encode())
        if size > NAME_BYTES:
            raise ValueError(
                f"the run's name has {size} bytes, but file names allow {NAME_BYTES}: give task and "
                f"model by a shorter path, got task {self.task!r} and model {self.model!r}"
            )

    @field_validator("method")
    @classmethod
    def _is_method(cls, value: str) -> str:
        if value not in METHODS:
            raise PydanticCustomError("unknown_method", "no method")
        return value

    @classmethod
    def from_namespace(cls, namespace: Mapping[str, Any]) -> Run:
        """The run described by a notebook's variables: ``Run.from_namespace(globals())``.

        Args:
            namespace: names and values. Fields that are absent get their defaults. Within Jupyter, where the namespace
                holds the history ``In``, only names set by cells of plain assignments are checked (the parameters and
                what papermill injects). So a cell can be run again after later cells have made other variables.

        Raises:
            ValueError: a variable that is not a field (papermill only warns), or a field with a wrong value.
        """
        candidates = [name for name, value in namespace.items() if _is_variable(name, value)]
        if "In" in namespace:
            assigned = _assigned_names(namespace["In"])
            candidates = [name for name in candidates if name in assigned]
        else:  # a script, which may have imported constants
            candidates = [name for name in candidates if not name.isupper()]
        unknown = [name for name in candidates if name not in cls.model_fields]
        known = {name: namespace[name] for name in cls.model_fields if name in namespace}
        return cls(**known, **{name: namespace[name] for name in unknown})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Run:
        """A copy of the run with the fields in ``update``, checked like any other run (pydantic's own copy is not)."""
        return type(self)(**{**self.model_dump(), **(update or {})})

    @property
    def kind(self) -> Method:
        """The run's method: whether it makes a mask, leaves the weights intact, and so on."""
        return METHODS[self.method]

    @property
    def name(self) -> str:
        """The readable name of the run's files: always five fields, then those that differ from their defaults.

        Fields that do not affect the result (``RESULT_NEUTRAL``) are left out. In a path or a model id, each slash
        becomes ``--``, and characters that a file name cannot hold become ``-``. A teacher is named by what its own
        name adds. If two runs get the same name in this way, `records.find_record` tells them apart.
        """
        others = (
            name
            for name in dict.fromkeys((*_FIRST_IN_NAMES, *type(self).model_fields))
            if name not in {*NAMED, *RESULT_NEUTRAL, "teacher"} and getattr(self, name) != default_of(name)
        )
        parts = [f"{name}~{_readable(getattr(self, name))}" for name in (*NAMED, *others)]
        if self.teacher:
            taught = "_" + re.split(r"[/\\]", self.teacher)[-1].removesuffix(".json")
            for part in parts:
                taught = re.sub(f"_{re.escape(part)}(?=_|$)", "", taught)
            parts.append(f"teacher~{_readable(taught.removeprefix('_').replace('~', '-'))}")
        return "_".join(parts)

    @property
    def ablation_of(self) -> Run:
        """The run of which this one is an ablation; itself if it is none."""
        return self.model_copy(update={"ablation": "", "noise": 0.0})


def default_of(name: str) -> Any:
    """The default of a current or retired field of `Run`; KeyError for any other name."""
    return RETIRED[name] if name in RETIRED else Run.model_fields[name].default


def _plain(value: Any) -> Any:
    """The Python value of a numpy scalar, and 0.0 for -0.0, so that equal runs get equal names."""
    value = value.item() if isinstance(value, np.generic) else value
    return 0.0 if isinstance(value, float) and value == 0 else value


def _readable(value: Any) -> str:
    """A value as written in a file name: the shortest float, a path without slashes."""
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return re.sub(r"[^\w.+-]", "-", re.sub(r"[/\\]+", "--", str(value).strip("/\\")))


def _is_variable(name: str, value: Any) -> bool:
    """Whether a global can be a parameter: a public name, not the kernel's, with a plain value."""
    plain = value is None or isinstance(value, (str, int, float, list, tuple, dict, set))
    return plain and not name.startswith("_") and name not in _KERNEL_NAMES


def _assigned_names(history: Iterable[str]) -> set[str]:
    """The names set by those cells of an IPython history that contain only ``name = plain value``."""
    names: set[str] = set()
    for source in history:
        try:
            statements = ast.parse(source).body
        except (SyntaxError, ValueError):
            continue
        if all(_is_parameter(statement) for statement in statements):
            names.update(
                node.id
                for statement in statements
                for node in ast.walk(statement)
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            )
    return names


def _is_parameter(statement: ast.stmt) -> bool:
    """Whether a statement is ``name = plain value`` or a bare text."""
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
        return False
    # papermill writes NaN as float('nan')
    return all(node.id == "float" for node in ast.walk(statement.value) if isinstance(node, ast.Name))
