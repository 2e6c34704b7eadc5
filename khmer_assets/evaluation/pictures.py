"""The report's pictures: quality against size and against speed, and the reliability diagram, in light and in dark."""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from khmer_assets.foundation import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# colors of a picture on a light and on a dark page: background, text and axes, grid, and marks that both can show
LIGHT = ("#ffffff", "#1f2328", "#d0d7de")
DARK = ("#16191d", "#e6e8ea", "#3a4047")
MARKS = ("#3b82d6", "#d9743a", "#3a9d63", "#a86bd1")
DISTANCES = (9, 18, 30, 44)  # points from a mark to its label
LABEL_SIZE = 8


@contextmanager
def colors(theme: tuple[str, str, str]) -> Iterator[None]:
    """Pictures that are made and saved in the block have the theme's colors."""
    import matplotlib

    background, ink, grid = theme
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: dict[str, Any] = {name: ink for name in inked}
    backed = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    settings |= {name: background for name in backed} | {"grid.color": grid, "legend.edgecolor": grid}
    with matplotlib.rc_context(settings):
        yield


def data_uri(draw: Callable[[], "Figure"], theme: tuple[str, str, str]) -> str:
    """A picture as the address of an image that holds its own data."""
    with colors(theme):
        png = io.BytesIO()
        draw().savefig(png, format="png", dpi=130)
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def quality_against(label: str, points: dict[str, Sequence[tuple[str, float, float]]], title: str) -> "Figure":
    """A panel a language: models by what `label` says and bits a character; `points` are name, that figure, and bits,
    by language."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = plots.new_figure(8.4 if len(points) > 1 else 4.6, 3.6)
    panels = figure.subplots(1, max(1, len(points)), squeeze=False)[0]
    if len(points) > 1:
        figure.suptitle(title, fontsize=11)
    for axes, (language, listed) in zip(panels, points.items(), strict=False):
        ordered = [(x, y) for _, x, y in listed]
        axes.scatter([x for x, _ in ordered], [y for _, y in ordered], color=MARKS[0], zorder=3)
        xs = [x for x, _ in ordered if x > 0]
        if xs and max(xs) > 20 * min(xs):
            axes.set_xscale("log")
        axes.set(xlabel=label, ylabel="bits a character", title=language)
        axes.title.set_fontsize(10)
        axes.margins(0.25)
        axes.grid(alpha=0.6)
    FigureCanvasAgg(figure).draw()
    figure.set_layout_engine("none")  # else the places would move when it is saved
    for axes, listed in zip(panels, points.values(), strict=False):
        label_points(axes, listed)
    return figure


def label_points(axes: "Axes", points: Sequence[tuple[str, float, float]]) -> None:
    """Write each point's name beside it, where it covers neither another name nor a point; with a line to it where that
    is not near."""
    import matplotlib

    figure: Any = axes.figure
    ink = matplotlib.rcParams["text.color"]
    renderer = figure.canvas.get_renderer()
    scale = figure.dpi / 72
    places = [axes.transData.transform((x, y)) for _, x, y in points]
    frame = axes.get_window_extent(renderer)
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in places]
    for (name, x, y), (left, low) in sorted(zip(points, places, strict=True), key=lambda one: -one[1][1]):
        best = None
        for far in DISTANCES:
            for across, up in ((1, 0.4), (1, -0.6), (-1, 0.4), (-1, -0.6), (0, 1), (0, -1.2), (1, 1.4), (-1, -1.6)):
                side = {1: "left", -1: "right", 0: "center"}[across]
                text = axes.annotate(
                    name,
                    (x, y),
                    xytext=(across * far, up * far),
                    textcoords="offset points",
                    fontsize=LABEL_SIZE,
                    ha=side,
                    va="center",
                    zorder=4,
                    arrowprops={"arrowstyle": "-", "lw": 0.6, "alpha": 0.6, "color": ink}
                    if far > DISTANCES[0]
                    else None,
                )
                box = text.get_window_extent(renderer)
                words = (left + across * far * scale - box.width * {1: 0, -1: 1, 0: 0.5}[across],)
                own = (
                    words[0],
                    low + up * far * scale - box.height / 2,
                    words[0] + box.width,
                    low + up * far * scale + box.height / 2,
                )
                inside = frame.x0 <= own[0] and own[2] <= frame.x1 and frame.y0 <= own[1] and own[3] <= frame.y1
                if inside and not any(_overlap(own, other) for other in taken):
                    best = (text, own)
                    break
                text.remove()
            if best:
                break
        if best:
            taken.append(best[1])
        else:  # no room: rather near and covered than not at all
            axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=LABEL_SIZE)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def reliability_diagram(calibration: dict[str, Any], kinds: Sequence[str]) -> "Figure":
    """Accuracy by confidence, before and after scaling, of choices and answers."""
    figure = plots.new_figure(4.2 * len(kinds), 3.6)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=False):
        axes.plot([0, 1], [0, 1], lw=1, ls=":", color="#888888")
        figures = calibration[kind]
        scalings = ("before", "as it is"), (figures["best"], f"scaled ({figures['best']})")
        for (scaling, label), color in zip(scalings, MARKS, strict=False):
            bins = figures[scaling]["bins"]
            error = figures[scaling]["error"]
            axes.plot(
                [one["confidence"] for one in bins],
                [one["accuracy"] for one in bins],
                marker="o",
                ms=4,
                color=color,
                label=f"{label}: error {error:.3f}",
            )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share that is right", title=kind)
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.6)
        axes.legend(fontsize=8, loc="upper left")
    return figure
