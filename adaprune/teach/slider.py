"""A slider over pictures drawn in advance: it works in JupyterLab, in Colab and on a page without a kernel."""

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
    """Shows one picture at a time, with its name next to the handle, and closes the figures.

    The pictures are embedded in the page, so it loads nothing and needs no kernel. Where scripts are blocked, only the
    picture ``start`` is shown.

    Raises:
        ValueError: there are no pictures, or no picture number ``start``.
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
