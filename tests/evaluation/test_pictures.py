"""Labels of a picture cover neither each other nor the points."""

from khmer_assets.evaluation.pictures import quality_against


def test_labels_of_points_that_lie_close_do_not_overlap():
    points = [(f"gguf Q{n}_K_M", 3.0 + 0.05 * n, 0.66 + 0.0005 * n) for n in range(6)] + [("merged", 8.4, 0.664)]
    figure = quality_against("MB", {"khm": points}, "Quality and size")
    (axes,) = figure.axes
    figure.canvas.draw()
    # a text's own box, without the line to its point
    boxes = [super(type(text), text).get_window_extent(figure.canvas.get_renderer()) for text in axes.texts]
    assert len(boxes) == len(points)
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert not any(box.contains(*axes.transData.transform((x, y))) for _, x, y in points)
