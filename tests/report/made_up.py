"""Folders of runs as training leaves them, made up: of any number of classes, in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from segret_jax import config as configs
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable, generic_table
from segret_jax.data.sources import Sample
from segret_jax.data.synthetic import SyntheticSource
from segret_jax.digests import digest
from segret_jax.evaluation import confusion, gallery, results
from segret_jax.evaluation.metrics import ConfusionAccumulator
from segret_jax.evaluation.protocol import identify
from segret_jax.run import description

HOSTILE = "</script><img src=x onerror=alert(1)><b>'\"&"


class Scenes:
    """Generated street scenes whose classes are spread over `num_classes` ids."""

    def __init__(self, num_images: int, num_classes: int, size: tuple[int, int]):
        self._source = SyntheticSource(seed=1, num_images=num_images, size=size)
        self._num_classes = num_classes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Sample:
        sample = self._source[index]
        label = sample["label"].copy()
        valid = label != 255
        label[valid] = (label[valid].astype(int) + 7 * int(index)) % self._num_classes
        return {"image": sample["image"], "label": label, "name": sample["name"]}


def predicted(label: np.ndarray, seed: int, num_classes: int) -> np.ndarray:
    """Return a label with moved edges and a wrong region."""
    rng = np.random.default_rng(seed)
    pred = np.roll(label, rng.integers(-6, 7, 2), axis=(0, 1))
    height, width = label.shape
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    region = pred[top : top + height // 3, left : left + width // 3]
    region[:] = (region.astype(int) + rng.integers(1, 3)) % num_classes
    return np.where(pred == 255, np.uint8(0), pred)


def table_of(num_classes: int, names: tuple[str, ...] = ()) -> ClassTable:
    table = generic_table("made_up", num_classes)
    given = names + table.class_names[len(names) :]
    return ClassTable(name="made_up", class_names=given, colors=table.colors, raw_ids=table.raw_ids)


def write_result(
    folder: Path, table: ClassTable, *, num_images: int = 6, size: tuple[int, int] = (48, 64),
    seed: int = 0, absent: int = 0,
) -> None:  # fmt: skip
    """Write a result; the last `absent` classes are in no label and no prediction."""
    num_classes = table.num_classes - absent
    source = Scenes(num_images, num_classes, size)
    counted = ConfusionAccumulator(num_images, table.num_classes)
    reduced = gallery.ReducedMaps()
    for i in range(num_images):
        label = source[i]["label"]
        pred = predicted(label, seed + i, num_classes)
        counted.add(i, pred, label)
        reduced.add(i, label, pred)
    agree = {"dataset": "made_up", "flip": False, "num_images": num_images}
    agree["classes"] = digest(table.class_names)
    protocol = {
        "id": identify(agree),
        "must_agree": agree,
        "may_differ": {"weights": f"{seed:064x}"},
    }
    scores = counted.metrics().to_dict(table.class_names)
    content = {"checkpoint": "checkpoints/40", **scores, "num_images": num_images, "faults": []}
    names = [source[i]["name"] for i in range(num_images)]
    results.write(folder, content, protocol=protocol, names=names, images=counted.images)
    confusion.write_csv(counted.counts, table.class_names, folder / results.CONFUSION[0])
    chosen = gallery.choose(counted.images)
    maps = gallery.merge([reduced.to_bytes(chosen)], chosen)
    gallery.save(folder, maps, source, table.colors)


def write_log(
    folder: Path, *, steps: int = 40, every: int = 2, evaluations: tuple[int, ...] = (20, 40),
    resumed_at: int = 20, seed: int = 0,
) -> None:  # fmt: skip
    """Write metrics.jsonl of a run that was stopped once."""
    rng, lines = np.random.default_rng(seed), []
    for step in range(every, steps + 1, every):
        since = step - resumed_at * (step > resumed_at)
        values = {
            "loss": 2 * np.exp(-2 * step / steps) + rng.normal(0, 0.03), "accuracy": 70.0,
            "learning_rate": 1e-3 * (1 - step / steps) ** 0.9, "skipped_samples": 0,
            "steps_per_second": 2.5, "images_per_second": 10 + rng.normal(),
            "input_wait_share": 0.02 + 0.01 * rng.random(), "peak_memory_gb": 1.25,
        }  # fmt: skip
        if since == every:
            values |= {"images_per_second": None, "input_wait_share": None}
        lines.append({"kind": "train", "step": step, "seconds": 2.5 * since, **values})
        if step in evaluations:
            scores = {"mIoU": 0.2 + 0.5 * step / steps, "mAcc": 0.6, "aAcc": 0.8}
            lines.append({"kind": "validation", "step": step, "seconds": 2.5 * since + 1, **scores})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def write_run(
    folder: Path, *, num_classes: int = 11, names: tuple[str, ...] = (), status: str = "finished",
    learning_rate: float = 2e-3, seed: int = 0, steps: int = 40, **result: Any,
) -> Path:  # fmt: skip
    """Write the folder of a run that is complete but for its checkpoints and its page."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Config()
    recipe = description.Recipe("demo", configs.flatten(config))
    config.optim.learning_rate, config.train.steps = learning_rate, steps
    configs.save(config, folder / "config.json")
    (folder / "status").write_text(status + "\n", encoding="utf-8")
    description.try_write(folder, recipe)
    write_log(folder, seed=seed, steps=steps, evaluations=(steps // 2, steps))
    write_result(folder, table_of(num_classes, names), seed=seed, **result)
    return folder
