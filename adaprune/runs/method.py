"""What a method says of itself, the settings that a recipe gives it, and the table of all methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# The fields of a run that only some methods read; every other field is for all.
SELECTIVE = (
    "learning_rate", "head_learning_rate", "initial_theta", "penalty", "temperature", "surrogate", "reach", "recovery",
    "allocation", "keep", "rank",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The settings of a run once its recipe has filled in what the run leaves open.

    ``learning_rate`` is alpha for theta (its mean starts at 0.01), or that of the weights in ``finetune``;
    ``penalty`` is gamma, ``temperature`` t_s. ``reach`` is the share of all steps after which the asked sparsity
    stands (``feedback`` and ``cubic``). ``allocation`` is empty for one cut through all matrices together.

    ``initial_theta`` is "own" for scores that start as their method has it. ``surrogate`` is the mask's slope:
    "sigmoid" (Eq. 4), or see `methods.Scores`. ``dropout`` is the encoder's (-1: the checkpoint's). ``pooling`` makes a
    sentence's vector: "cls", "mean", or "own", as the checkpoint was made.

    ``scores`` is True for methods that learn scores in another way, where ``penalty`` is lambda of the penalty on
    mean sigmoid(scores); ``fixed`` where the asked sparsity holds from the first step on, unless the run names a
    ``reach``; ``weight_learning_rate`` is that of weights trained beside the scores, 0 where they are frozen.
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
    temperature: float = 1.0
    allocation: str = ""
    surrogate: str = "sigmoid"
    dropout: float = -1.0
    pooling: str = "cls"
    scores: bool = False
    fixed: bool = False
    weight_learning_rate: float = 0.0


@dataclass(frozen=True)
class Method:
    """One way to adapt an encoder: what it does, what it leaves, how it is set and how it is drawn.

    Args:
        function: from a `training.Job` to a `training.Outcome`. Its name is the method's.
        line: what it does, in one line.
        source: paper and year, where there is one.
        mask: it ends in a mask.
        weights_intact: it leaves every weight of the checkpoint as it was.
        tuned, paper: settings of a `runs.Plan` in which it differs from that recipe; ``paper`` None: as ``tuned``.
        reads: which of the fields in ``SELECTIVE`` change what it does; a run that sets another one is refused.
        colour, marker: its look in figures, as matplotlib takes them.

    Raises:
        TypeError: ``function`` cannot be called, or has no name.
        ValueError: another piece is missing or impossible; the message says which.
    """

    function: Callable[..., Any]
    line: str
    source: str = ""
    mask: bool = True
    weights_intact: bool = True
    tuned: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, Any] | None = None
    reads: tuple[str, ...] = ("head_learning_rate",)
    colour: str = "#808080"
    marker: str | tuple[int, int, int] = "o"

    def __post_init__(self) -> None:
        name = getattr(self.function, "__name__", None)
        if not callable(self.function) or name is None:
            raise TypeError(f"a method needs a named function from a Job to an Outcome, got {self.function!r}")
        if not name.isidentifier():
            raise ValueError(f"a method is called by its function's name, and {name!r} is no name: use `def`")
        if not (isinstance(self.line, str) and self.line.strip()):
            raise ValueError(f"method {name!r} lacks its line: say in one line what it does, got {self.line!r}")
        if unknown := [read for read in self.reads if read not in SELECTIVE]:
            raise ValueError(f"method {name!r} reads {unknown[0]!r}; fields to name there are {', '.join(SELECTIVE)}")
        if self.paper is None:
            object.__setattr__(self, "paper", self.tuned)
        settings = [setting.name for setting in fields(Plan)]
        if unknown := [setting for setting in (*self.tuned, *self.paper) if setting not in settings]:
            raise ValueError(f"method {name!r} sets {unknown[0]!r}; a recipe's settings are {', '.join(settings)}")

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__


METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Puts ``method`` into ``METHODS``; `adaprune.methods` does so for the suite's own, `adapt` for a user's.

    Raises:
        TypeError: no `Method`.
        ValueError: another method has its name.
    """
    if not isinstance(method, Method):
        raise TypeError(
            f"method must be an adaprune.Method, got {type(method).__name__}: wrap the function, "
            'Method(my_function, line="what it does")'
        )
    known = METHODS.setdefault(method.name, method)
    if known.function is not method.function and not _same_place(known.function, method.function):
        raise ValueError(f"there is a method {method.name!r} already ({known.line}): give your function another name")
    METHODS[method.name] = method
    return method


def _same_place(one: Callable, other: Callable) -> bool:
    """Whether two functions come from one definition: a cell or module that is run again makes a new one."""
    places = [(getattr(f, "__module__", None), getattr(f, "__qualname__", None)) for f in (one, other)]
    return places[0] == places[1] and all(places[0]) and not places[0][0].startswith("adaprune.")
