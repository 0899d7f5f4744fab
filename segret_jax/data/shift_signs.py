"""Signs that label files do not hold the ids of the class table: above all, ids shifted by one.

A zero that was reduced twice, or not at all, leaves ids that are all valid: every class is trained
as its neighbor, and nothing fails. What gives it away is which stored values occur at all.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from segret_jax.data.class_table import IGNORE, UNKNOWN
from segret_jax.data.layouts import Layout
from segret_jax.data.sources import RecordSource
from segret_jax.errors import InputError, abbreviate

Counts = Int64[np.ndarray, "256"]
REMEDY = (
    "take the original files, or the dataset whose labels these are, or describe them in a class "
    "table of your own (.json)"
)
MUCH_IGNORED = 0.25  # of the pixels; CamVid: 0.04
FEW_IGNORED = 0.01  # less is no void: Cityscapes' raw ids hold 255 for license plates alone


@dataclass(frozen=True)
class Sign:
    """One line of evidence that labels do not fit the table.

    Attributes:
        certain: Whether files that fit the table cannot look like this.
        text: The evidence.
        values: The stored values that are the evidence, if there are any.
    """

    certain: bool
    text: str
    values: tuple[int, ...] = ()


def count_stored(raw: np.ndarray) -> Counts:
    """Return how many pixels of a label, as stored, have each value."""
    return np.bincount(raw.ravel(), minlength=256).astype(np.int64)


def shift_signs(stored_counts: Counts, layout: Layout) -> list[Sign]:
    """Return the signs that the stored values do not mean what the table of `layout` says.

    Args:
        stored_counts: The number of pixels by stored value, over as many labels as are at hand.
        layout: The layout, which gives the meaning of the stored values.
    """
    if not stored_counts.any():
        return []
    rules = (_no_class, _converted_already, _train_ids, _shifted_from_zero)
    return [sign for rule in rules for sign in rule(stored_counts, layout)]


def _no_class(counts: Counts, layout: Layout) -> Iterator[Sign]:
    """Find labels without any class, such as the public ones of some test splits."""
    if not counts[layout.lookup != IGNORE].any():
        held = abbreviate(np.flatnonzero(counts).tolist(), 8)
        yield Sign(True, f"no pixel has a class: the files hold {held} and nothing else")


def _converted_already(counts: Counts, layout: Layout) -> Iterator[Sign]:
    """Find values that the table ignores but that the dataset's own files never hold.

    ADE20K's files hold 0 for "other" and no 255. Reduced, 0 became 255, every class moved down by
    one, and the last id is gone. In the same way the gaps of COCO-Stuff's ids tell that they were
    closed.
    """
    occurs = counts > 0
    is_unknown = layout.lookup[IGNORE] == UNKNOWN  # in a custom table that does not ignore 255
    ignored = np.flatnonzero(occurs & (layout.lookup == IGNORE)).tolist()
    foreign = [value for value in ignored if value not in layout.void]
    foreign += [IGNORE] if is_unknown and occurs[IGNORE] else []
    if not foreign:
        return
    values = layout.class_values
    first, last = int(values[0]), int(values[-1])
    fraction = counts[foreign].sum() / counts.sum()
    held = f"the files hold {abbreviate(foreign, 8)} ({fraction:.2%} of the pixels), which "
    # Where ids start at 0, a foreign 255 may just be another way to write void.
    if occurs[0] and not occurs[last] and (first > 0 or foreign != [IGNORE]):
        yield Sign(
            True,
            f"{held}those of this dataset never do, and never {last}, the last class: their zero "
            "was reduced or their ids converted already, and classes would be read as others",
            tuple(foreign),
        )
    elif not is_unknown:  # which is a fault of each file that holds it, and reported there
        text = f"{held}those of this dataset never do; these pixels are ignored"
        yield Sign(False, text, tuple(foreign))


def _train_ids(counts: Counts, layout: Layout) -> Iterator[Sign]:
    """Find ids 0, 1, 2, ... where the table has raw ids, most of which lie above them."""
    values = layout.class_values
    num_classes = int(layout.lookup[values].max()) + 1
    above = values[values >= num_classes]
    below = np.count_nonzero(counts[:num_classes])
    ignored = counts[IGNORE] / counts.sum()
    may_be_raw = counts[above].any() or 2 * below < num_classes or ignored < FEW_IGNORED
    if not may_be_raw and 2 * len(above) > len(values):
        yield Sign(
            True,
            f"the files hold {below} of the values 0 to {num_classes - 1}, {ignored:.1%} of 255, "
            f"and none of the {len(above)} classes stored above: they hold class ids, not the raw "
            f"ids of the layout {layout.name}",
        )


def _shifted_from_zero(counts: Counts, layout: Layout) -> Iterator[Sign]:
    """Find classes counted from 1, or reduced once too often, where the table counts from 0."""
    values = layout.class_values
    after = int(values[-1]) + 1
    if values[0] != 0:
        return
    without_void = not counts[list(layout.void)].any()
    void = f", and never {abbreviate(layout.void, 8)}" if layout.void else ""
    unknown = np.flatnonzero((counts > 0) & (layout.lookup == UNKNOWN)).tolist()
    if unknown == [after] and without_void:
        yield Sign(
            True,
            f"the files hold {after}, one more than the last class{void}: they count the classes "
            f"from 1, with 0 for void, or store void as {after}",
            (after,),
        )
    missing = values[counts[values] == 0].tolist() if len(values) >= 3 else []
    if missing == [0] and without_void:
        text = f"the files hold all classes but the first (stored 0){void}"
        yield Sign(False, f"{text}: do they count the classes from 1?")
    fraction = counts[layout.lookup == IGNORE].sum() / counts.sum()
    if missing == [after - 1] and fraction >= MUCH_IGNORED:
        text = f"the files hold all classes but the last (stored {after - 1})"
        ignored = f"{fraction:.0%} of the pixels are ignored"
        yield Sign(False, f"{text}, and {ignored}: was the zero reduced once too often?")


def quick_check(source: RecordSource, samples: int = 64) -> None:
    """Raise InputError if some labels of `source`, evenly spread, show a certain sign of a shift.

    Files that cannot be decoded are left out: whoever reads them says so.

    Args:
        source: The samples of one split.
        samples: The number of labels to read.

    Raises:
        InputError: There is a certain sign.
    """
    counts = np.zeros(256, np.int64)
    indices = np.unique(np.linspace(0, len(source) - 1, min(samples, len(source))).astype(int))
    for index in indices.tolist():
        with suppress(InputError):
            counts += count_stored(source.raw_label(index))
    for sign in shift_signs(counts, source.layout):
        if sign.certain:
            raise InputError(
                f"labels of {source.spec.name}, {source.split} ({len(indices)} files read): "
                f"{sign.text}; {REMEDY}; `segret data check` tells more"
            )
