"""What many runs say together: sweeps, statistics, comparison, contrasts, and every figure.

Take from here the modules by name: `figures.save`, `comparison.with_ways`, `contrasts.contrast`, `sweeps.read_sweep`.
Imports `data`, `masks`, `methods`, `runs` and `training`; draws and judges, and trains nothing.
"""

from adaprune.report import (
    comparison,
    contrasts,
    dots,
    drawings,
    figures,
    gains,
    names,
    published,
    statistics,
    sweeps,
)
