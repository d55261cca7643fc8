"""The settings of a run and its record: `Run`, recipes, records and their schema, refusals, safe writing of files.

Take from here `Run`, `plan_for`, and the reading and writing of records.
Imports `data`: tasks, metrics and the resampled dev rows.
"""

from adaprune.runs.answers import read_answers, write_answers
from adaprune.runs.files import read_bytes, replacing, write_bytes
from adaprune.runs.method import METHODS, SELECTIVE, Method, Plan, register
from adaprune.runs.paths import Paths, mask_path, needed, paths_of, record_path
from adaprune.runs.recipes import FINETUNE_RATE, TUNED, TUNED_WEIGHTS, epochs_of, plan_for
from adaprune.runs.records import check_writable, environment, find_record, read_record, table, write_record
from adaprune.runs.retired import RETIRED, plan_then
from adaprune.runs.run import NAMED, RESULT_NEUTRAL, Run, default_of
from adaprune.runs.schema import Cost
