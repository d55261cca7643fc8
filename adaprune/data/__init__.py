"""Tasks, a user's own files, and metrics: sentences and labels in, official scores out.

Take from here `load_task`, `TaskData`, `tokenize` and the table of `GLUE` tasks.
Imports no other room, and knows nothing of masks.
"""

from adaprune.data.metrics import CORRELATIONS
from adaprune.data.movie_reviews import fetch_movie_reviews
from adaprune.data.places import expanded, public
from adaprune.data.reading import check_known, examples, rows_read, texts_read, unknown_share
from adaprune.data.resampling import RESAMPLES, resampled
from adaprune.data.sampler import GroupedByLength
from adaprune.data.tasks import GLUE, KNOWN_TASKS, TaskData, check_name, is_users, load_task, tokenize
