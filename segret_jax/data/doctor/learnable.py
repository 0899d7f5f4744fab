"""Training data that teaches nothing: refused before a run, and an error of the label doctor.

With one class, in the table or in the labels, the loss is 0 everywhere; with no readable sample
there is no loss at all. Either run would end as if it had trained.
"""

import numpy as np

from segret_jax.data.class_table import IGNORE, STRAY, ClassTable
from segret_jax.data.decode import decode_label, map_label
from segret_jax.data.doctor.signs import Counts, count_stored
from segret_jax.data.layouts import Layout
from segret_jax.data.sources import RecordSource, Source
from segret_jax.errors import InputError

MOST_READ = 1000  # samples; reading more would delay the start by minutes


def check_class_table(table: ClassTable) -> None:
    """Raise InputError for a class table of one class."""
    if text := only_class_of_table(table):
        raise InputError(text)


def only_class_of_table(table: ClassTable) -> str:
    """Say what is wrong with a class table of one class; of any other return an empty string."""
    if table.num_classes > 1:
        return ""
    (name,) = table.class_names
    return (
        f"the class table {table.name!r} has only one class, {name!r}, so that the loss is always "
        f'0; add a class for all other pixels, such as "background", with the value that the '
        'labels hold there as its "raw_id"'
    )


def only_class_of_labels(stored_counts: Counts, layout: Layout, table: ClassTable) -> str:
    """Say so if the labels hold one class alone; return an empty string otherwise.

    `stored_counts` are the pixels of each stored value, over all labels that were read.
    """
    stored = np.flatnonzero(stored_counts)
    classes = np.unique(layout.lookup[stored])
    classes = classes[classes < STRAY]
    if len(classes) != 1:
        return ""
    text = f"{table.class_names[classes[0]]} is the only class that occurs"
    ignored = stored[layout.lookup[stored] == IGNORE]
    if not ignored.size:
        return f"{text}; label the other classes, too, or name the folder whose labels hold them"
    values = " or ".join(map(str, ignored))
    share = stored_counts[ignored].sum() / stored_counts.sum()
    return (
        f"{text}; if {values} is meant as a class, give it one in a JSON file of your own "
        f'("raw_id": {ignored[0]}), and leave {values} out of "ignore"; now {values} is ignored, '
        f"{share:.1%} of the pixels"
    )


def check_samples(source: Source, *, skip_faulty: bool, most: int = MOST_READ) -> list[str]:
    """Raise InputError if the training samples teach nothing; return what is to be said otherwise.

    Of sound data one or two samples are read. Up to `most` are where no sample can be read, with
    `skip_faulty`, or only one class is found. The order is random yet the same in all processes:
    files that belong together often follow each other. A class that is too rare to be found among
    `most` labels may still be learned, so this is said and no error.
    """
    if not isinstance(source, RecordSource):  # the synthetic scenes are sound
        return []
    indices = np.random.default_rng(0).permutation(len(source))[:most].tolist()
    if skip_faulty:
        _check_any_readable(source, indices)
    counts = np.zeros(256, np.int64)
    table = source.spec.class_table
    for index in indices:
        try:
            record = source.record(index)
            raw = decode_label(record.label, where=record.label_path)
            map_label(raw, source.layout.lookup, path=record.label_path)
        except InputError:
            if skip_faulty:
                continue
            return []  # training names this fault when it comes to the sample
        counts += count_stored(raw)
        if counts.any() and not only_class_of_labels(counts, source.layout, table):
            return []
    text = only_class_of_labels(counts, source.layout, table)
    if not text:  # no label can be read
        return []
    labels = f"labels of {source.spec.name}, {source.split}"
    if len(indices) < len(source):
        return [f"{labels} ({len(indices)} of {len(source)} files read): {text}"]
    raise InputError(
        f"{labels} (all {len(source)} files read): {text}; with one class the loss is always 0"
    )


def _check_any_readable(source: RecordSource, indices: list[int]) -> None:
    faults = []
    for index in indices:
        try:
            source[index]
            return
        except InputError as error:
            faults.append(str(error))
    raise InputError(
        f"data.on_error=skip would skip every sample: none of {len(faults)} that were read, of "
        f"{len(source)} of {source.spec.name}, {source.split}, is sound; the first: {faults[0]}; "
        "`python -m segret_jax.data check` names all"
    )
