#!/usr/bin/env bash
# Installs the package and its pinned dependencies for one Python: `bash .devcontainer/install.sh [PYTHON] [EXTRAS]`.
# Used by this container and by the first cell of the notebooks on Colab. An installed torch is kept if the package can
# use it (Colab's own can), because pip's takes gigabytes on Linux: it includes CUDA. No GPU is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${1:-python3}
pins=$(mktemp)
if "$python" -c "import torch" 2> /dev/null; then grep -v "^torch==" constraints.txt > "$pins"; else cp constraints.txt "$pins"; fi
"$python" -m pip install --quiet --constraint "$pins" torch setuptools
"$python" -m pip install --quiet --constraint "$pins" --no-build-isolation --editable ".${2:+[$2]}"
rm "$pins"
