"""What is asked of a run and what is kept of it: `Run`, recipes, records and their schema, refusals, whole files.

Take from here `Run`, `plan_for`, and the reading and writing of records.
Imports no room but `data` and `masks` (today neither).
"""

from adaprune.runs.files import read_bytes, write_bytes
from adaprune.runs.recipes import FINETUNE_RATE, TUNED, Plan, plan_for
from adaprune.runs.records import (
    check_writable,
    environment,
    find_record,
    mask_path,
    paper_results,
    read_record,
    record_path,
    table,
    write_record,
)
from adaprune.runs.run import METHODS, NAMED, RESULT_NEUTRAL, Run
from adaprune.runs.schema import Cost

__all__ = ["FINETUNE_RATE", "METHODS", "NAMED", "RESULT_NEUTRAL", "TUNED", "Cost", "Plan", "Run", "check_writable", "environment", "find_record", "mask_path", "paper_results", "plan_for", "read_bytes", "read_record", "record_path", "table", "write_bytes", "write_record",]
