"""For the walkthroughs: the theorem on a problem small enough to enumerate, exercises that check, sketches.

Take from here `begin`, `check` and `reveal` of the exercises, and the modules `sketches` and `theory`.
Imports `masks` and `report`.
"""

from adaprune.teach import sketches, theory
from adaprune.teach.exercises import EXACT, begin, check, reveal
