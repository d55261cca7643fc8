"""For the lessons: the theorem on problems small enough to enumerate, exercises that check themselves, sketches.

Take from here `begin`, `check`, `agree`, `say`, `reveal`, `quiet`, `slider`, `by_score`, and `sketches` and `theory`.
Imports `masks`, `methods`, `report`, `topology` and `training`.
"""

from adaprune.teach import sketches, theory
from adaprune.teach.exercises import agree, begin, check, done, quiet, reveal, say
from adaprune.teach.race import by_score
from adaprune.teach.slider import slider
