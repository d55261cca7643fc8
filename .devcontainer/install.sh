#!/usr/bin/env bash
# Installs the package and its pinned dependencies for one Python: `bash .devcontainer/install.sh [PYTHON] [EXTRAS]`.
# Used by the container here and by the first cell of notebooks on Colab. No GPU is needed. On Linux pip's own torch
# carries CUDA (gigabytes): where PyTorch's CPU build of the pinned version is there already, it stays.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-python3}
"$python" -m pip install --quiet --constraint constraints.txt torch setuptools
"$python" -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".${2:+[$2]}"
