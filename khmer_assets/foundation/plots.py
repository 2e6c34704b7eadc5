"""Pictures for metadata and reports: a figure with a Khmer font, and its ways out of memory.

What a stage draws stands in that stage; only what all of them need is here.
"""

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float = 7, height: float = 3.2) -> "Figure":
    """An empty figure (sizes in inches) whose text may mix Latin and Khmer."""
    import fontpkg_noto_sans_khmer
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    for font in (Path(fontpkg_noto_sans_khmer.__file__).parent / "files").glob("*.ttf"):
        font_manager.fontManager.addfont(font)
    matplotlib.rcParams["font.family"] = ["DejaVu Sans", "Noto Sans Khmer"]
    return Figure(figsize=(width, height), layout="constrained")


def as_markdown(figure: "Figure") -> str:
    """The figure as a Markdown image with its data in it, for an asset's metadata."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return f"![plot](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})"
