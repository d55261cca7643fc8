"""A slider over pictures that were drawn before: it moves in JupyterLab, in Colab and on a page without a kernel."""

import base64
import io
from collections.abc import Mapping
from html import escape

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure

_MOVE = (
    "const box = this.parentNode; box.querySelectorAll('img').forEach((img, i) => "
    "img.style.display = i == this.value ? 'block' : 'none'); "
    "box.querySelector('b').textContent = this.dataset.names.split('|')[this.value]"
)


def slider(pictures: Mapping[str, Figure], start: int = 0) -> HTML:
    """One picture at a time, its name beside the handle; the figures are closed.

    No script is loaded and no kernel asked: the pictures are in the page. Where a page may not run scripts, the picture
    ``start`` stands alone.

    Raises:
        ValueError: no pictures, or no picture ``start``.
    """
    if not 0 <= start < len(pictures):
        raise ValueError(f"start must be one of the {len(pictures)} pictures, 0 ... {len(pictures) - 1}, got {start}")
    names = [escape(name) for name in pictures]
    shown = []
    for number, (name, figure) in enumerate(zip(names, pictures.values(), strict=True)):
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100)
        plt.close(figure)
        source, look = base64.b64encode(content.getvalue()).decode(), "block" if number == start else "none"
        shown.append(f'<img alt="{name}" style="display: {look}" src="data:image/png;base64,{source}">')
    handle = (
        f'<input type="range" min="0" max="{len(names) - 1}" value="{start}" style="width: 20em" '
        f'aria-label="choose a picture" data-names="{"|".join(names)}" oninput="{escape(_MOVE)}">'
    )
    return HTML(f"<div>{handle} <b>{names[start]}</b>{''.join(shown)}</div>")
