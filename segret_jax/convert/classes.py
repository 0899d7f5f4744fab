"""Classes of a converted model: the file's, the user's, or a guess by their number."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import zip_longest

from segret_jax.convert.file_classes import FileClasses
from segret_jax.convert.recognize import TorchModel
from segret_jax.data.class_table import ClassTable, generic_table, load_class_table
from segret_jax.data.datasets import DATASETS, SYNTHETIC, get_dataset
from segret_jax.errors import InputError
from segret_jax.models.families import get_family

UNNAMED = "unnamed"
REMEDY = "say which they are: --config.data.dataset=NAME or FILE.json"


def choose_classes(
    recognized: TorchModel, dataset: str, named: FileClasses | None = None, *, given: bool
) -> tuple[str, ClassTable]:
    """Return the name of the dataset that a model is for, and its classes.

    A model may have more outputs than a known dataset has classes: SegMAN-T for Cityscapes has 150.
    The further ones are added as classes that no label has.

    Args:
        recognized: The model.
        dataset: The name of the configured dataset.
        named: The classes that the file names. Names of a known dataset select it; otherwise the
            classes are the file's own. Without names the number of classes selects a dataset, or
            the classes get generic names.
        given: Whether the user chose `dataset`, which then wins.

    Raises:
        InputError: The user's dataset is unknown or has another number of classes, the model is a
            classifier, or the file's names do not fit the model.
    """
    count, likely = recognized.num_classes, get_family(recognized.model.family).datasets
    if recognized.model.task == "classification":
        if given:
            raise InputError(
                f"is a classifier of {count} ImageNet classes, but data.dataset is set to "
                f"{dataset!r}; leave data.dataset out"
            )
        return dataset, generic_table("imagenet", count)
    if named and not given:
        return _named(named, count, dataset, likely.values())
    if count not in likely and not given:
        return dataset, _unknown_dataset(UNNAMED, count)
    dataset = dataset if given else likely[count]
    synthetic = dataset == SYNTHETIC
    table = load_class_table(dataset) if synthetic else get_dataset(dataset).class_table
    if table.num_classes > count:
        raise InputError(
            f"data.dataset is set to {dataset!r} with {table.num_classes} classes, but the file "
            f"holds a model of {count}; leave it out, or give your own FILE.json"
        )
    return dataset, table.extended(count)


def class_notes(table: ClassTable, named: FileClasses | None, *, given: bool) -> list[str]:
    """Return what there is to say on the classes of a segmentation model.

    `given` says whether the user chose the dataset, which then wins over the file.
    """
    names = [name for name, ids in zip(table.class_names, table.raw_ids, strict=True) if ids]
    return _origin_notes(table.name, names, named, given=given) + [
        f"NOTE: {table.num_classes} outputs, but {table.name} has {len(names)} classes: output "
        f"{len(names)} and all after it stay, and a pixel predicted as one of them counts as wrong"
    ] * (len(names) < table.num_classes)


def _origin_notes(
    table: str, class_names: Sequence[str], named: FileClasses | None, *, given: bool
) -> list[str]:
    if named is None:
        guessed = not given and table != UNNAMED
        return [
            f"NOTE: the file does not name its classes, and {len(class_names)} are taken for "
            f"those of {table}; --config.data.dataset=NAME or FILE.json says otherwise"
        ] * guessed
    if not given:
        return [f"classes as the file names them ({named.source})"]
    names = enumerate(zip_longest(named.names, class_names, fillvalue="missing"))
    differing = [
        f"NOTE: the file names other classes ({named.source}) than data.dataset: class {i} is "
        f"{there!r} there, {here!r} here"
        for i, (there, here) in names
        if _plain(there) != _plain(here)
    ]
    return differing[:1]


def _plain(name: str) -> str:
    """Normalize a name: writers differ in case and separators ("bed ", "SignSymbol")."""
    return "".join(filter(str.isalnum, name.casefold()))


def _named(
    named: FileClasses, count: int, dataset: str, likely: Collection[str]
) -> tuple[str, ClassTable]:
    """Return the dataset with these classes in this order, or `dataset` with the file's own.

    Of datasets with the same names a `likely` one is returned.

    Raises InputError if the classes do not fit the model's `count` outputs.
    """
    names = list(map(_plain, named.names))
    for spec in sorted(DATASETS.values(), key=lambda spec: spec.name not in likely):
        if names == list(map(_plain, spec.class_table.class_names)) and len(names) <= count:
            return spec.name, spec.class_table.extended(count)
    if named.count != count:
        raise InputError(
            f"names {named.count} classes ({named.source}), but its model has {count} outputs; "
            f"{REMEDY}"
        )
    if twice := next((name for name in named.names if named.names.count(name) > 1), None):
        raise InputError(f"names class {twice!r} twice ({named.source}); {REMEDY}")
    own = replace(_unknown_dataset("own", count), class_names=named.names)
    return dataset, own if named.colors is None else replace(own, colors=named.colors)


def _unknown_dataset(name: str, count: int) -> ClassTable:
    return replace(generic_table(name, count), raw_ids=tuple((i,) for i in range(count)))
