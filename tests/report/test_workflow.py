"""The workflow's files: what snakemake says of them, and the schema of a sweep's table.

After a change of `Run`: `python tests/report/test_workflow.py` writes the schema anew.
"""

import json
from pathlib import Path

import jsonschema
import pytest

from adaprune import Run

WORKFLOW = Path(__file__).resolve().parents[2] / "workflow"
SCHEMA = WORKFLOW / "schemas" / "sweep.schema.json"


def schema_of_run() -> str:
    """What snakemake's validate reads of a table: the JSON schema of `Run`."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(dialect | Run.model_json_schema(), indent=1) + "\n"


def test_the_schema_of_a_table_is_that_of_run():
    assert SCHEMA.read_text(encoding="utf8") == schema_of_run()
    with pytest.raises(jsonschema.ValidationError, match="1.5 is greater than or equal to the maximum of 1"):
        jsonschema.validate({"task": "rte", "sparsity": 1.5}, json.loads(schema_of_run()))


def test_snakemake_finds_nothing_to_better(tmp_path):
    from tests.report.test_sweeps import snakemake

    pytest.importorskip("snakemake", reason="needs snakemake: pip install -e '.[sweep]'")
    told, _ = (process := snakemake(tmp_path, "--lint")).communicate()
    assert process.returncode == 0, told


if __name__ == "__main__":
    SCHEMA.write_text(schema_of_run(), encoding="utf8")
