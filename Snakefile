"""A sweep: runs every row of a table with notebooks/01_adapt.ipynb, then makes the comparison and its figures.

    pip install -c constraints.txt -e '.[sweep]'
    snakemake -c2 --config sweep=sweeps/quick.tsv data_dir=DIR      two runs at a time on this machine
    snakemake --workflow-profile sweeps/slurm --config sweep=...    the same on a SLURM cluster
    snakemake -n --config sweep=...                                 only what would be done

--config takes `sweep` (the table), `figures_dir` (default figures), and any parameter of 01_adapt that is the same for
all rows and not a column: `model=bert-base-uncased`, `data_dir=...`, `results_dir=...` (default results/<name of the
table>). --retries N repeats a failed run up to N times, from its checkpoint. With a GPU: --set-resources adapt:gpu=1
--resources gpu=1. After a kill -9 or a power cut, run snakemake --unlock once.

A record is never made twice: runs that have one are not jobs. The executed notebook of each run, with the traceback if
it failed, is runs/<name of the table>/<run name>.ipynb.
"""

import logging
import os
import re
import shlex
import sys
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from adaprune.ablations import source
from adaprune.report.sweeps import Progress, read_sweep
from adaprune.runs import find_record, record_path

NOTEBOOKS = Path(workflow.basedir) / "notebooks"
SWEEP = Path(config.get("sweep", Path(workflow.basedir) / "sweeps" / "tiny.tsv"))
RESULTS = config.get("results_dir", f"results/{SWEEP.stem}")
FIGURES = config.get("figures_dir", "figures")
LOGS = f"runs/{SWEEP.stem}"
PAPERMILL = (
    "JUPYTER_PREFER_ENV_PATH=1 OMP_NUM_THREADS={threads} OMP_WAIT_POLICY=passive TOKENIZERS_PARALLELISM=false "
    + shlex.quote(sys.executable)
    + " -m papermill -k python3 --no-progress-bar {input.notebook:q} {log.notebook:q} "
)

try:
    common = {name: value for name, value in config.items() if name not in ("sweep", "figures_dir")}
    RUNS = {run.name: run for run in read_sweep(SWEEP, **common | {"results_dir": RESULTS})}
    TO_DO = [name for name, run in RUNS.items() if find_record(run) is None]
except (ValueError, OSError) as error:
    raise WorkflowError(str(error)) from None

RECORDS = [f"{RESULTS}/{name}.json" for name in RUNS]
TABLE = f"{FIGURES}/table_{Path(RESULTS).name}.md"
PICTURE = f"{FIGURES}/extra_comparison.svg"


def source_of(wildcards):
    """The record of the run that an ablation starts from."""
    run = RUNS[wildcards.name]
    return [str(record_path(source(run)))] if run.ablation else []


def fields_of(wildcards):
    """All fields, because the notebook's defaults differ from Run's; as YAML, because papermill guesses types with -p."""
    fields = RUNS[wildcards.name].model_dump()
    return yaml.safe_dump(fields, default_flow_style=True, width=float("inf")).strip()


class Watch(logging.Handler):
    """Listens to snakemake's events of the rule adapt, and reports the progress of the sweep after each."""

    progress = Progress(len(RUNS), len(RUNS) - len(TO_DO))

    def emit(self, record):
        event, job = getattr(record, "event", None), getattr(record, "jobid", getattr(record, "job_id", None))
        if event == "job_info" and record.rule_name == "adapt":
            print(self.progress.note("job_started", job), file=sys.stderr, flush=True)
        elif event in ("job_finished", "job_error") and job in self.progress.running:
            print(self.progress.note(str(event), job), file=sys.stderr, flush=True)


onstart:
    logger.addHandler(Watch())


onerror:
    notebook = os.path.relpath(NOTEBOOKS / "02_compare.ipynb")
    print(
        f"sweep: compare what is finished with: papermill {notebook} {LOGS}/02_compare.ipynb "
        f"-p results_dir {RESULTS} -p figures_dir {FIGURES}",
        file=sys.stderr,
    )


localrules: all


rule all:
    input: TABLE, PICTURE


rule adapt:
    input:
        source_of,
        notebook=str(NOTEBOOKS / "01_adapt.ipynb"),
        teacher=lambda wildcards: RUNS[wildcards.name].teacher or [],  # made first where it is a row too
    output: f"{RESULTS}/{{name}}.json"
    log: notebook=f"{LOGS}/{{name}}.ipynb"
    # Finished runs are not jobs of this rule, whatever has changed since: snakemake would delete their output first.
    wildcard_constraints: name="|".join(map(re.escape, TO_DO)) or "(?!)"
    params: fields=fields_of
    threads: 1
    resources: gpu=0, mem_mb=4000, runtime=240
    # If a notebook fails after its record is written, the run is done.
    shell: PAPERMILL + "-y {params.fields:q} || test -s {output:q}"


rule compare:
    input: RECORDS, notebook=str(NOTEBOOKS / "02_compare.ipynb")
    output: TABLE
    log: notebook=f"{LOGS}/02_compare.ipynb"
    resources: mem_mb=4000, runtime=30
    shell: PAPERMILL + "-r results_dir {RESULTS:q} -r figures_dir {FIGURES:q}"


rule draw:
    input: RECORDS, notebook=str(NOTEBOOKS / "00_start_here.ipynb")
    output: PICTURE
    log: notebook=f"{LOGS}/00_start_here.ipynb"
    resources: mem_mb=4000, runtime=30
    shell: PAPERMILL + "-r results_dir {RESULTS:q} -r figures_dir {FIGURES:q}"
