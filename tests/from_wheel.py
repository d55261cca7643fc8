"""What somebody does who has installed the wheel and nothing else of the repository: run in such an environment.

    python -I from_wheel.py README.md

Prints the zoo's prediction of README's first Python example, then one of a model fitted to a few rows.
"""

import re
import sys
from importlib.metadata import version
from pathlib import Path

import adaprune

if __name__ == "__main__":
    assert Path(adaprune.__file__).is_relative_to(sys.prefix), f"{adaprune.__file__} is not the wheel's"
    assert adaprune.__version__ == version("adaprune")
    assert adaprune.load_mask("cola").card["task"] == "cola"
    readme = Path(sys.argv[1]).read_text(encoding="utf8")
    exec(re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1])

    texts = [f"{word} film, number {number}" for number in range(8) for word in ("fine", "dull")]
    adapted = adaprune.fit(texts, ["good", "bad"] * 8, sparsity=0.5, epochs=1, max_length=16, results_dir="fitted")
    print(adapted.predict("a fine film") in ("good", "bad"))
