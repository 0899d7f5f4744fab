"""Signs that label files do not hold what the class table says: above all, ids shifted by one.

A zero that was reduced twice, or not at all, leaves ids that are all valid: every class is trained
as its neighbor, and nothing fails. What gives it away is which stored values occur at all.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from segret_jax.data.class_table import IGNORE, STRAY
from segret_jax.data.layouts import Layout
from segret_jax.data.sources import RecordSource
from segret_jax.errors import InputError

Counts = Int64[np.ndarray, "256"]
REMEDY = (
    "take the original files, or the dataset whose labels these are, or describe them in a class "
    "table of your own (.json)"
)
MUCH_IGNORED = 0.25  # of the pixels; CamVid: 0.04
FEW_IGNORED = 0.01  # less is no void: Cityscapes' raw ids hold 255 for license plates alone


@dataclass(frozen=True)
class Sign:
    """One line of evidence; `certain` where files that fit the table cannot look like this.

    `values` are the stored values that give it away, where there are such.
    """

    certain: bool
    text: str
    values: tuple[int, ...] = ()


def count_stored(raw: np.ndarray) -> Counts:
    """Return how many pixels of a label, as stored, have each value."""
    return np.bincount(raw.ravel(), minlength=256).astype(np.int64)


def shift_signs(stored_counts: Counts, layout: Layout) -> list[Sign]:
    """Return the signs that the stored values do not mean what the table of `layout` says.

    `stored_counts` are the pixels of each stored value, over as many label files as are at hand.
    """
    if not stored_counts.any():
        return []
    rules = (
        _no_class, _converted_already, _train_ids, _not_reduced, _first_missing, _last_missing
    )  # fmt: skip
    return [sign for rule in rules if (sign := rule(stored_counts, layout)) is not None]


def _class_values(layout: Layout) -> np.ndarray:
    """Stored values that mean a class, in increasing order."""
    return np.flatnonzero(layout.lookup < STRAY)


def _void_occurs(counts: Counts, layout: Layout) -> bool:
    return bool(counts[list(layout.void)].any())


def _no_class(counts: Counts, layout: Layout) -> Sign | None:
    """Find that there is nothing to learn from, as in the public labels of some test splits."""
    if counts[layout.lookup != IGNORE].any():
        return None
    held = np.flatnonzero(counts).tolist()
    return Sign(True, f"no pixel has a class: the files hold {_values(held)} and nothing else")


def _converted_already(counts: Counts, layout: Layout) -> Sign | None:
    """Find values that the table ignores but that the dataset's own files never hold.

    ADE20K's files hold 0 for "other" and no 255. Reduced, 0 became 255, every class moved down by
    one, and the last id is gone. In the same way the gaps of COCO-Stuff's ids tell that they were
    closed.
    """
    occurs = counts > 0
    is_stray = layout.lookup[IGNORE] == STRAY  # in a table of one's own that does not ignore 255
    foreign = [v for v in np.flatnonzero(occurs & (layout.lookup == IGNORE)).tolist()
               if v not in layout.void]  # fmt: skip
    foreign += [IGNORE] if is_stray and occurs[IGNORE] else []
    if not foreign:
        return None
    values = _class_values(layout)
    first, last = int(values[0]), int(values[-1])
    share = counts[foreign].sum() / counts.sum()
    held = f"the files hold {_values(foreign)} ({share:.2%} of the pixels), which "
    # Where ids start at 0, a foreign 255 may just be another way to write void.
    if occurs[0] and not occurs[last] and (first > 0 or foreign != [IGNORE]):
        return Sign(
            True,
            f"{held}those of this dataset never do, and never {last}, the last class: their zero "
            "was reduced or their ids converted already, and classes would be read as others",
            tuple(foreign),
        )
    if is_stray:  # a fault of each file that holds it, and said there
        return None
    text = f"{held}those of this dataset never do; these pixels are ignored"
    return Sign(False, text, tuple(foreign))


def _train_ids(counts: Counts, layout: Layout) -> Sign | None:
    """Find ids 0, 1, 2, ... where the table has raw ids, most of which lie above them."""
    values = _class_values(layout)
    num_classes = int(layout.lookup[values].max()) + 1
    above = values[values >= num_classes]
    below = np.count_nonzero(counts[:num_classes])
    ignored = counts[IGNORE] / counts.sum()
    may_be_raw = counts[above].any() or 2 * below < num_classes or ignored < FEW_IGNORED
    if may_be_raw or 2 * len(above) <= len(values):
        return None
    return Sign(
        True,
        f"the files hold {below} of the values 0 to {num_classes - 1}, {ignored:.1%} of 255, and "
        f"none of the {len(above)} classes stored above: they hold class ids, not the raw ids of "
        f"the layout {layout.name}",
    )


def _not_reduced(counts: Counts, layout: Layout) -> Sign | None:
    """Find the value after the last class where classes start at 0, without the usual void."""
    values = _class_values(layout)
    after = int(values[-1]) + 1
    stray = np.flatnonzero((counts > 0) & (layout.lookup == STRAY)).tolist()
    if values[0] != 0 or stray != [after] or _void_occurs(counts, layout):
        return None
    void = f", and never {_values(layout.void)}" if layout.void else ""
    return Sign(
        True,
        f"the files hold {after}, one more than the last class{void}: they count the classes "
        f"from 1, with 0 for void, or store void as {after}",
        (after,),
    )


def _first_missing(counts: Counts, layout: Layout) -> Sign | None:
    """Find a first class that never occurs where all others do and nothing is void."""
    values = _class_values(layout)
    others_occur = len(values) >= 3 and counts[values[1:]].all()
    if values[0] != 0 or counts[0] or not others_occur or _void_occurs(counts, layout):
        return None
    void = f", and void ({_values(layout.void)}) does not" if layout.void else ""
    return Sign(
        False,
        f"the first class (stored 0) never occurs, all others do{void}: do the files count the "
        "classes from 1?",
    )


def _last_missing(counts: Counts, layout: Layout) -> Sign | None:
    """Find a last class that never occurs where all others do and very much is ignored."""
    values = _class_values(layout)
    ignored = np.flatnonzero(layout.lookup == IGNORE).tolist()
    share = counts[ignored].sum() / counts.sum()
    others_occur = len(values) >= 3 and counts[values[:-1]].all()
    if values[0] != 0 or counts[values[-1]] or not others_occur or share < MUCH_IGNORED:
        return None
    return Sign(
        False,
        f"the last class (stored {values[-1]}) never occurs, all others do, and {share:.0%} of the "
        "pixels are ignored: was the zero reduced once too often?",
    )


def _values(values: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")


def quick_check(source: RecordSource, samples: int = 64) -> None:
    """Raise InputError if some labels of `source`, evenly spread, show a certain sign of a shift.

    Files that cannot be decoded are left out: whoever reads them says so.
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
