"""Pairing of the image and label files of a split, and messages about missing files."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from segret_jax.data.layouts import DatasetSpec, Layout
from segret_jax.data.listing import Files, list_files
from segret_jax.errors import InputError, abbreviate

MAX_ENDINGS = 2  # of other files, in a message


@dataclass(frozen=True)
class FilePairs:
    """The files of one split: its layout, both kinds of files, and the names in sorted order."""

    spec: DatasetSpec
    layout: Layout
    images: Files
    labels: Files
    names: list[str]
    without_label: list[str]
    without_image: list[str]
    note: str = ""
    """One line for the user: that labels are read in another form than usual."""

    @property
    def unpaired(self) -> list[tuple[str, str, list[str]]]:
        """Names of files without a partner, each after its kind and the kind that is missing."""
        both = ("image", "label", self.without_label), ("label", "image", self.without_image)
        return [one for one in both if one[2]]


def find_pairs(spec: DatasetSpec, root: str | Path, split: str) -> FilePairs:
    """Pair the files of a split.

    Takes the first layout in which every file has its partner, else the one with most pairs.

    Args:
        spec: The dataset.
        root: The folder of the dataset.
        split: "training" or "validation".

    Raises:
        InputError: No layout has a pair.
    """
    spec.check_split(split)
    top = Path(root).expanduser().absolute()
    if not top.is_dir():
        raise InputError(f"there is no folder {top}; {remedy(spec, split)}")
    if spec.archive and (top / spec.archive).is_dir():
        top = top / spec.archive
    found = []
    for layout in spec.layouts:
        pairs = _pairs_of(spec, layout, top, split)
        if pairs.names and not pairs.unpaired:
            break
        found.append(pairs)
    else:
        pairs = max(found, key=lambda one: len(one.names))  # the first of several
    if not pairs.names:
        raise InputError(f"{_describe_missing(found)}; {remedy(spec, split)}")
    return replace(pairs, note=_replaced(pairs, found, split))


def _replaced(pairs: FilePairs, found: list[FilePairs], split: str) -> str:
    """Return a note if labels of another form are read because usual ones are missing."""
    first = next((one for one in found if one.names), pairs)
    if first.labels.suffix == pairs.labels.suffix or not first.without_label:
        return ""
    missing = f"{len(first.without_label)} of {len(first.images.by_name)} images have no"
    return (
        f"{pairs.spec.name}, {split}: {missing} *{first.labels.suffix} "
        f"({abbreviate(first.without_label)}); all labels are read from *{pairs.labels.suffix}"
    )


def _pairs_of(spec: DatasetSpec, layout: Layout, top: Path, split: str) -> FilePairs:
    folder = layout.splits[split]
    images, labels = _list_both(spec, layout, top, split)
    have_image, have_label = set(images.by_name), set(labels.by_name)
    if layout.stems:
        file = top / layout.stems.format(split=folder)
        listed = set(file.read_text(encoding="utf-8-sig").split()) if file.is_file() else set()
        have_image, have_label = have_image & listed, have_label & listed
    if _same_files(images, labels):
        have_image = set()  # a file is not its own label
    return FilePairs(
        spec, layout, images, labels,
        sorted(have_image & have_label), sorted(have_image - have_label),
        sorted(have_label - have_image),
    )  # fmt: skip


def _list_both(spec: DatasetSpec, layout: Layout, top: Path, split: str) -> tuple[Files, Files]:
    """List images and labels; where both lie in one folder, the longest ending says which is which.

    So x_mask.png beside x.png is a label and no image, and x_labelTrainIds.png beside x.png is no
    label of the layout that reads *.png.
    """

    def patterns(one: Layout) -> tuple[tuple[Path, str], tuple[Path, str]]:
        images, labels = (top / f.format(split=one.splits[split]) for f in (one.images, one.labels))
        return (images, one.image_suffix), (labels, one.label_suffix)

    image, label = patterns(layout)
    all_images, all_labels = map(set, zip(*map(patterns, spec.layouts), strict=True))
    return list_files(*image, all_labels), list_files(*label, all_images | all_labels)


def _same_files(images: Files, labels: Files) -> bool:
    return (images.folder, images.suffix.lower()) == (labels.folder, labels.suffix.lower())


def _describe_missing(found: list[FilePairs]) -> str:
    """Return what is missing where no layout has a pair, by the layout with most files."""
    pairs = max(found, key=lambda one: len(one.images.by_name) + len(one.labels.by_name))
    images, labels = pairs.images, pairs.labels
    for files in (images, labels):
        if not files.folder.is_dir():
            return f"there is no folder {files.folder}"
    if _same_files(images, labels):
        return (
            f'images and labels are both *{images.suffix} in {images.folder}; set "label_suffix" '
            f'in {pairs.spec.json_file}, such as "_mask{images.suffix}"'
        )
    if not images.by_name:
        suffixes = {f"*{i.suffix}": None for f in found if (i := f.images).folder == images.folder}
        return f"no {' or '.join(suffixes)} in {images.folder}{hints(pairs)}"
    if not labels.by_name:
        return f"no *{labels.suffix} in {labels.folder}{hints(pairs)}"
    return f"no image of {images.folder} has a label in {labels.folder}{hints(pairs)}"


def hints(pairs: FilePairs) -> str:
    """Return in brackets which files lie in place of the missing ones, and what to do."""
    return hint(pairs, "image") + hint(pairs, "label")


def hint(pairs: FilePairs, kind: str) -> str:
    """Return `hints` for one kind of files, "image" or "label"."""
    files, missing, spare = pairs.images, pairs.without_image, pairs.without_label
    if kind == "label":
        files, missing, spare = pairs.labels, pairs.without_label, pairs.without_image
    if not (missing or pairs.names or files.by_name):  # neither kind is there
        missing = [file[: file.rfind(".")] for file in files.not_read]
    others = [*files.not_read, *(files.by_name[name] for name in spare)]
    own, suffix, texts = pairs.spec.json_file, files.suffix, []
    for ending, there in _by_ending({*missing}, others).items():
        if ending.lower() == suffix.lower():
            texts.append(f"links to files that do not exist: {abbreviate(there)}")
        # The other files of an archive differ in what stands before the extension.
        elif own or ending.rpartition(".")[0] == suffix.rpartition(".")[0]:
            action = f"convert or rename to *{suffix}"
            if len(there) > len(pairs.names):
                where = own or "a JSON file of your own"
                action += f', or set "{kind}_suffix": "{ending}" in {where}'
            found = f"{plural(len(there), f'{ending} file')} there ({abbreviate(there)})"
            texts.append(f"{found}, but only *{suffix} is read: {action}")
    return f" ({'; '.join(texts[:MAX_ENDINGS])})" if texts else ""


def _by_ending(names: set[str], files: Iterable[str]) -> dict[str, list[str]]:
    """Group the files that begin with one of `names` by what follows it, the most first."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        start = file.rfind("/") + 1
        cuts = [i for i in range(len(file) - 1, start, -1) if file[i] in "._- "]
        cut = next((i for i in cuts if file[:i] in names), None)  # the longest name
        if cut is not None:
            groups[file[cut:]].append(file)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def plural(number: int, noun: str) -> str:
    """Write "1 image", "2 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def remedy(spec: DatasetSpec, split: str) -> str:
    """Return what a dataset needs, and, in a second line, where to get it."""
    layouts = " or ".join(dict.fromkeys(layout.describe(split) for layout in spec.layouts))
    return f"{spec.name} needs {layouts}\nget {spec.name}: {spec.download_hint}"
