#!/usr/bin/env bash
# Snakemake runs this in the new environment, at the root of the repository.
set -euo pipefail
python -m pip install -c constraints.txt -e .
