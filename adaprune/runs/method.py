"""How a method describes itself, the settings that a recipe gives it, and the table of all methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# The fields of a run that only some methods read; all methods read the others.
SELECTIVE = (
    "learning_rate", "head_learning_rate", "initial_theta", "penalty", "temperature", "reach", "recovery",
    "allocation", "keep", "rank", "pattern",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The settings of a run, with everything that the run left open filled in by its recipe.

    ``learning_rate`` is alpha for theta (whose mean starts at 0.01), or the rate of the weights in ``finetune``.
    ``steps`` is the least number of optimiser steps per halving of the weights (`epochs_of`); 0 means that ``epochs``
    holds as it is. ``penalty`` is gamma, ``temperature`` t_s. ``reach`` is the share of all steps after which the
    sparsity is reached (``feedback`` and ``cubic``). ``allocation`` is empty for one cut over all matrices together.

    ``initial_theta`` is "own" for scores whose method defines their start. ``surrogate`` is the mask's slope: "sigmoid"
    (Eq. 4), or see `methods.Scores`. ``dropout`` is the encoder's (-1: the checkpoint's). ``pooling`` makes a
    sentence's vector: "cls", "mean", or "own", the checkpoint's way. ``head`` is "mlp" or "linear".

    ``copies`` names the kind of corrupted copies of its rows that a pupil learns from too, which only a teacher can
    label: "words and splices" (`training.teachers`), or empty for none.

    ``scores`` is True for methods that learn scores in another way; there ``penalty`` is the lambda of the penalty on
    the sum of sigmoid(scores) over BERT-base's number of weights. ``fixed`` is True if the sparsity holds from the
    first step on, unless the run sets ``reach``. ``weight_learning_rate`` is the rate of weights trained together with
    the scores; 0 if they are frozen.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    schedule: str
    initial_theta: str
    step_rule: str
    control: str
    reach: float
    penalty: float
    steps: int = 0
    temperature: float = 1.0
    allocation: str = ""
    surrogate: str = "sigmoid"
    dropout: float = -1.0
    pooling: str = "cls"
    head: str = "mlp"
    copies: str = ""
    scores: bool = False
    fixed: bool = False
    weight_learning_rate: float = 0.0


@dataclass(frozen=True)
class Method:
    """One way to adapt an encoder: what it does, what it produces, its settings and its look in figures.

    Args:
        function: from a `training.Job` to a `training.Outcome`. Its name is the method's name.
        line: what it does, in one line.
        source: paper and year, if there is one.
        mask: whether it produces a mask.
        weights_intact: whether it leaves every weight of the checkpoint as it was.
        tuned, paper: settings of a `runs.Plan` in which it differs from that recipe; ``paper`` None: as ``tuned``.
        needs: a package that it needs besides the package's own.
        reads: the fields in ``SELECTIVE`` that change what it does; a run that sets any other of them is refused.
        colour, marker: its look in figures, as matplotlib accepts them.

    Raises:
        TypeError: ``function`` cannot be called, or has no name.
        ValueError: another argument is missing or impossible; the message says which.
    """

    function: Callable[..., Any]
    line: str
    source: str = ""
    mask: bool = True
    weights_intact: bool = True
    tuned: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] | None = None
    needs: str = ""
    reads: tuple[str, ...] = ("head_learning_rate",)
    colour: str = "#808080"
    marker: str | tuple[int, int, int] = "o"

    def __post_init__(self) -> None:
        name = getattr(self.function, "__name__", None)
        if not callable(self.function) or name is None:
            raise TypeError(f"a method needs a named function from a Job to an Outcome, got {self.function!r}")
        if not name.isidentifier():
            raise ValueError(f"a method has its function's name, and {name!r} is not a name: use `def`")
        if not (isinstance(self.line, str) and self.line.strip()):
            raise ValueError(f"method {name!r} needs a line that says what it does, got {self.line!r}")
        if unknown := [read for read in self.reads if read not in SELECTIVE]:
            raise ValueError(f"method {name!r} reads {unknown[0]!r}; fields to choose from are {', '.join(SELECTIVE)}")
        if self.paper is None:
            object.__setattr__(self, "paper", self.tuned)
        settings = [setting.name for setting in fields(Plan)]
        if unknown := [setting for setting in (*self.tuned, *self.paper) if setting not in settings]:
            raise ValueError(f"method {name!r} sets {unknown[0]!r}; a recipe's settings are {', '.join(settings)}")

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def trains(self) -> bool:
        """Whether any setting changes what it does; none does for the probe, the majority class and zero shot."""
        return bool(self.reads)


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Adds ``method`` to ``METHODS``; `adaprune.methods` does so for the suite's own, `adapt` for a user's.

    Raises:
        TypeError: not a `Method`.
        ValueError: another method has the same name.
    """
    if not isinstance(method, Method):
        raise TypeError(
            f"method must be an adaprune.Method, got {type(method).__name__}: wrap the function, "
            'Method(my_function, line="what it does")'
        )
    known = METHODS.setdefault(method.name, method)
    if known.function is not method.function and not _same_place(known.function, method.function):
        raise ValueError(f"there already is a method {method.name!r} ({known.line}): give your function another name")
    METHODS[method.name] = method
    return method


def _same_place(one: Callable, other: Callable) -> bool:
    """Whether two functions come from one definition, as when a cell or module is run again."""
    places = [(getattr(f, "__module__", None), getattr(f, "__qualname__", None)) for f in (one, other)]
    return places[0] == places[1] and all(places[0]) and not places[0][0].startswith("adaprune.")
