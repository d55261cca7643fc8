#!/usr/bin/env bash
# Installs the package and its pinned dependencies for one Python: `bash .devcontainer/install.sh [PYTHON] [EXTRAS]`.
# Used by the container here and by the first cell of notebooks on Colab. A torch that is there already stays, if the
# package can use it: Colab's own does, and pip's takes gigabytes on Linux because it carries CUDA. No GPU is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-python3}
pins=$(mktemp)
if "$python" -c "import torch" 2> /dev/null; then grep -v "^torch==" constraints.txt > "$pins"; else cp constraints.txt "$pins"; fi
"$python" -m pip install --quiet --constraint "$pins" torch setuptools
"$python" -m pip install --quiet --constraint "$pins" --no-build-isolation --editable ".${2:+[$2]}"
rm "$pins"
