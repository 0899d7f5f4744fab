"""Reading `scene_parse150` and `cityscapes` where TFDS itself prepared them as ArrayRecord."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from segret_jax.data.decode import decode_label
from segret_jax.data.layouts import DatasetSpec
from segret_jax.data.lfs import refuse_pointer
from segret_jax.data.shards.manifest import PREPARE
from segret_jax.data.sources import Record, RecordSource
from segret_jax.errors import InputError, unknown_name


@dataclass(frozen=True, kw_only=True)
class TfdsSet:
    """How TFDS stores one of our datasets."""

    folder: str  # NAME or NAME/CONFIG below TFDS's data_dir
    image: str
    label: str
    splits: dict[str, str]
    layout: str  # of ours, whose stored label values are these


TFDS_SETS = {
    "ade20k": TfdsSet(
        folder="scene_parse150",
        image="image",
        label="annotation",
        splits={"training": "train", "validation": "test"},
        layout="annotations",
    ),
    "cityscapes": TfdsSet(
        folder="cityscapes/semantic_segmentation",
        image="image_left",
        label="segmentation_label",
        splits={"training": "train", "validation": "validation"},
        layout="labelIds",
    ),
}


def find(spec: DatasetSpec, top: Path) -> Path | None:
    """Return the folder below `top` that TFDS wrote for a dataset, the newest version, or None."""
    if spec.name not in TFDS_SETS:
        return None
    form = TFDS_SETS[spec.name]
    if _describes(top, form):
        return top
    versions = [
        path.parent
        for path in (top / form.folder).glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return max(versions, key=lambda path: [*map(int, path.name.split("."))], default=None)


def _describes(folder: Path, form: TfdsSet) -> bool:
    if not (folder / "dataset_info.json").is_file():
        return False
    info = _read_info(folder)
    return "/".join(part for part in (info.name, info.config) if part) == form.folder


@dataclass(frozen=True)
class _Info:
    """What dataset_info.json tells; it leaves out what is empty."""

    name: str
    config: str
    file_format: str
    lengths: dict[str, int]


def _read_info(folder: Path) -> _Info:
    path = folder / "dataset_info.json"
    refuse_pointer(path, str(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _Info(
            str(content.get("name", "")),
            str(content.get("configName", "")),
            str(content.get("fileFormat", "tfrecord")),
            {
                s["name"]: sum(map(int, s.get("shardLengths", [])))
                for s in content.get("splits", [])
            },
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); prepare {folder} again") from error


class TfdsSource(RecordSource):
    """One split as TFDS stored it. A record's name is the split and its place in it."""

    def __init__(self, spec: DatasetSpec, folder: Path, split: str) -> None:
        """Open the folder of a version; InputError for another file format or other labels."""
        self.spec, self.split, self._folder = spec, split, folder
        self._form = TFDS_SETS[spec.name]
        self.layout = spec.layout(self._form.layout)
        info = _read_info(folder)
        if info.file_format != "array_record":
            raise _other_format(spec, folder, info.file_format)
        stored = self._form.splits[split]
        if stored not in info.lengths:
            raise unknown_name(f"split of {folder}", stored, info.lengths)
        if not info.lengths[stored]:
            raise InputError(f"the split {stored} of {folder} is empty; prepare it again")
        self.names = [f"{stored}/{i:06d}" for i in range(info.lengths[stored])]
        self._check_labels()

    def __repr__(self) -> str:
        """Name the data, not the machine, as `FolderSource` does."""
        return f"TfdsSource({self._form.folder}, {self.split}, {len(self)} images)"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open shards: each worker process opens its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_records"}

    @cached_property
    def _records(self) -> Any:
        from segret_jax.data.shards import builders

        return builders.open_records(
            str(self._folder),
            self._form.splits[self.split],
            data_dir=str(self._folder),
            images=(self._form.image, self._form.label),
        )

    def record(self, index: int) -> Record:
        """Return the undecoded pair; InputError where it cannot be read."""
        name = self.names[index]
        where = f"{self._folder}: {name}"
        try:
            stored = self._records[index]
        except Exception as error:  # ArrayRecord's own, whose kinds are not documented
            for shard in self._folder.glob("*.array_record*"):
                refuse_pointer(shard, str(shard))
            reason = str(error).partition("\n")[0]
            raise InputError(f"{where} is damaged ({reason}); prepare it again") from error
        image, label = stored[self._form.image], stored[self._form.label]
        return Record(name, image, label, f"{where} (image)", f"{where} (label)")

    def _check_labels(self) -> None:
        """Refuse the instance labels that TFDS's own scene_parse150 downloads, RGB files."""
        record = self.record(0)
        try:
            decode_label(record.label, where=record.label_path)
        except InputError as error:
            raise InputError(
                f"{self._folder} does not hold the labels of {self.spec.name}: {error}. TFDS's "
                "scene_parse150 takes the archive annotations_instance.tar, which has 100 kinds "
                f"of objects and no stuff; {_own_command(self.spec, self._folder)}"
            ) from error


def _other_format(spec: DatasetSpec, folder: Path, file_format: str) -> InputError:
    name = TFDS_SETS[spec.name].folder
    line = f'tfds.builder("{name}", file_format="array_record").download_and_prepare()'
    return InputError(
        f"{folder} is stored as {file_format}, which needs TensorFlow; "
        f"{_own_command(spec, folder)}, or, where TensorFlow is installed: {line}"
    )


def _own_command(spec: DatasetSpec, folder: Path) -> str:
    top = folder.parents[len(Path(TFDS_SETS[spec.name].folder).parts)]
    return (
        f"prepare the official files instead: {PREPARE} {spec.name} --source DIR --data_dir {top}"
    )
