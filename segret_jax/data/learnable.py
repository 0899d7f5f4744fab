"""Rejection of training data without anything to learn, before a run and by the label doctor.

With one class, in the table or in the labels, the loss is 0 everywhere; with no readable sample
there is no loss at all. Either run would end as if it had trained.
"""

import numpy as np
from jaxtyping import Int64
from tqdm import tqdm

from segret_jax.data.class_table import IGNORE, UNKNOWN, ClassTable
from segret_jax.data.decode import map_label
from segret_jax.data.layouts import Layout
from segret_jax.data.shift_signs import Counts, count_stored
from segret_jax.data.sources import RecordSource, Source
from segret_jax.errors import InputError
from segret_jax.parallel import processes

MAX_SKIPPED = 1000  # samples, photographs with them: more would delay the start by minutes


def check_class_table(table: ClassTable) -> None:
    """Raise InputError for a class table of one class."""
    if text := only_class_of_table(table):
        raise InputError(text)


def only_class_of_table(table: ClassTable) -> str:
    """Return what is wrong with a class table of one class; "" for any other."""
    if table.num_classes > 1:
        return ""
    (name,) = table.class_names
    return (
        f"the class table {table.name!r} has only one class, {name!r}, so that the loss is always "
        f'0; add a class for all other pixels, such as "background", with the value that the '
        'labels hold there as its "raw_id"'
    )


def classes_in(stored_counts: Counts, layout: Layout) -> Int64[np.ndarray, " k"]:
    """Return the classes of which there are pixels, from those of each stored value."""
    meanings = layout.lookup[stored_counts > 0]
    return np.unique(meanings[meanings < UNKNOWN]).astype(np.int64)


def only_class_of_labels(stored_counts: Counts, layout: Layout, table: ClassTable) -> str:
    """Return an error if the labels hold one class alone; "" otherwise.

    `stored_counts` is the number of pixels by stored value, over all labels that were read.
    """
    classes = classes_in(stored_counts, layout)
    if len(classes) != 1:
        return ""
    found = f"{table.class_names[classes[0]]} is the only class that occurs"
    stored = np.flatnonzero(stored_counts)
    unused = stored[layout.lookup[stored] >= UNKNOWN]
    if not unused.size:
        return f"{found}; label the other classes, too, or name the folder whose labels hold them"
    values = " or ".join(map(str, unused))
    fraction = stored_counts[unused].sum() / stored_counts.sum()
    now = "ignored" if (layout.lookup[unused] == IGNORE).all() else "no class"
    return (
        f"{found}; if {values} is meant as a class, give it one in a JSON file of your own "
        f'("raw_id": {unused[0]}); now {values} is {now}, {fraction:.1%} of the pixels'
    )


def check_samples(source: Source, *, skip_faulty: bool) -> None:
    """Raise InputError if all training labels hold one class, or no sample is readable.

    Reads one or two samples of valid data, and all labels where only one class is found. The order
    is random, as neighboring files often belong together, and the same in all processes. Faults
    that training reports itself are left to it.

    Args:
        source: The training samples.
        skip_faulty: Whether training skips faulty samples; then one must be readable.
    """
    if not isinstance(source, RecordSource):  # the synthetic scenes are valid
        return
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    if skip_faulty:
        _check_any_readable(source, order[:MAX_SKIPPED])
    counts = np.zeros(256, np.int64)
    quiet = not processes.is_primary()
    for index in tqdm(order, "looking for a second class", unit="label", delay=2, disable=quiet):
        try:
            raw = source.raw_label(index)
            map_label(raw, source.layout.lookup, path=source.name(index))
        except InputError:
            if skip_faulty:
                continue
            return
        counts += count_stored(raw)
        if len(classes_in(counts, source.layout)) > 1:
            return
    if text := only_class_of_labels(counts, source.layout, source.spec.class_table):
        raise InputError(
            f"labels of {source.spec.name}, {source.split} (all {len(source)} files read): {text}; "
            "with one class the loss is always 0"
        )


def _check_any_readable(source: RecordSource, indices: list[int]) -> None:
    first = None
    for index in indices:
        try:
            source[index]
            return
        except InputError as error:
            first = first or error
    raise InputError(
        f"data.on_error=skip would skip every sample: none of {len(indices)} that were read, of "
        f"{len(source)} of {source.spec.name}, {source.split}, is valid; the first: {first}; "
        "`segret data check` names all"
    )
