"""A small picture of a training run: the loss, and the validation mIoU where it was measured."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 640, 360, 44
INK, LOSS, SCORE = (40, 40, 40), (40, 90, 200), (210, 90, 30)
Point = tuple[float, float]


def draw(losses: Sequence[Point], scores: Sequence[Point]) -> np.ndarray:
    """Return RGB of (step, loss) as a line and of (step, mIoU in percent) as dots."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    last = max((step for step, _ in [*losses, *scores]), default=1) or 1
    highest = max((loss for _, loss in losses), default=1) or 1

    def at(step: float, share: float) -> tuple[float, float]:
        x = MARGIN + step / last * (WIDTH - 2 * MARGIN)
        return x, HEIGHT - MARGIN - share * (HEIGHT - 2 * MARGIN)

    for share in (0, 0.25, 0.5, 0.75, 1):
        (left, y), (right, _) = at(0, share), at(last, share)
        pen.line((left, y, right, y), fill=(225, 225, 225))
        pen.text((4, y - 6), f"{share * highest:.2f}", fill=LOSS)
        pen.text((right + 4, y - 6), f"{100 * share:.0f}%", fill=SCORE)
    line = [at(step, loss / highest) for step, loss in losses]
    if len(line) > 1:
        pen.line(line, fill=LOSS, width=2)
    for step, score in scores:
        x, y = at(step, score / 100)
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=SCORE)
        pen.text((x - 12, y - 18), f"{score:.1f}", fill=SCORE)
    pen.text((MARGIN, 12), "training loss", fill=LOSS)
    pen.text((WIDTH - MARGIN - 90, 12), "validation mIoU", fill=SCORE)
    pen.text((MARGIN, HEIGHT - 28), f"{last:.0f} steps", fill=INK)
    return np.asarray(picture)
