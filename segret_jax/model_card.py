"""Model cards for the Hugging Face Hub, made of what is stored with a model and of nothing else."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from segret_jax.checkpoint import model as checkpoints
from segret_jax.checkpoint.folders import is_saved_model, saved_mean_iou
from segret_jax.checkpoint.pretrained import read_description
from segret_jax.checkpoint.reading import UnreadableError, read_stored_json
from segret_jax.config import Config
from segret_jax.data.class_table import ClassTable
from segret_jax.digests import weights_digest
from segret_jax.errors import InputError
from segret_jax.evaluation import results
from segret_jax.models.config import model_name
from segret_jax.models.factory import ModelBundle
from segret_jax.settings import flatten

Facts = dict[str, Any]  # values of JSON
# What a score depends on, as an evaluation records it.
PROTOCOL = ("dataset", "split", "num_images", "resize_target", "mode", "scales", "flip")


def known_facts(checkpoint: Path | None, variables: Any) -> Facts:
    """Return what is stored with a checkpoint or a saved model, for `model_card`.

    Args:
        checkpoint: The folder; None if the model was read from none.
        variables: The parameters and batch statistics. Only an evaluation of these is taken.

    Returns:
        Of training: `step`, `from_scratch`, `num_train_images`, and `mIoU` of the validation in
        training under the settings `eval`; of `segret eval`: `evaluation`; of a conversion:
        `converted_from`. What is not stored is left out.
    """
    if checkpoint is None:
        return {}
    if is_saved_model(checkpoint):
        return dict(read_description(checkpoint).facts)
    facts: Facts = {}
    with suppress(UnreadableError):
        if (checkpoint / "source").is_dir():
            source = read_stored_json(checkpoint / "source")
            facts["converted_from"] = {k: source[k] for k in ("file", "sha256") if k in source}
        elif checkpoint.name.isdigit():
            facts["step"] = int(checkpoint.name)
            facts["from_scratch"] = not checkpoints.load_config(checkpoint).init_from
            facts["num_train_images"] = read_stored_json(checkpoint / "data")["images"]
    if (mean_iou := saved_mean_iou(checkpoint)) >= 0:
        facts["mIoU"] = mean_iou
        facts["eval"] = _eval_settings(checkpoints.load_config(checkpoint))
    with suppress(InputError):
        found = results.read(results.default_folder(checkpoint) / results.METRICS)
        if found.protocol["may_differ"].get("weights") == weights_digest(variables):
            facts["evaluation"] = _evaluation(found)
    return facts


def _eval_settings(config: Config) -> Facts:
    values: Facts = {"dataset": Path(config.data.dataset).stem, "split": "validation"}
    for key, value in flatten(config.eval).items():
        if key in PROTOCOL:
            values[key] = [*value] if isinstance(value, tuple) else value  # as JSON has it
    return values


def _evaluation(found: results.SavedResult) -> Facts:
    scores = {key: found.content.get(key) for key in ("mIoU", "mAcc", "aAcc")}
    classes = {name: row.get("IoU") for name, row in found.content["classes"].items()}
    agreed = found.protocol["must_agree"]
    return scores | {"IoU": classes} | {key: agreed.get(key) for key in PROTOCOL}


def model_card(
    name: str, config: Config, table: ClassTable, bundle: ModelBundle, facts: Facts
) -> str:
    """Return a model card: Markdown with YAML front matter.

    Args:
        name: The name of the saved model.
        config: The config that it was trained with.
        table: The classes.
        bundle: The model, for its size.
        facts: The result of `known_facts`, perhaps with `license` and `rounded_to`.
    """
    segments = config.model.task == "segmentation"
    architecture, dataset = model_name(config.model), Path(config.data.dataset).stem
    front = {
        "license": facts.get("license"),
        "library_name": "segret_jax",
        "pipeline_tag": "image-segmentation" if segments else "image-classification",
        "tags": [config.model.family, architecture, dataset, "jax"],
    }
    # JSON is YAML, and quotes whatever a name may hold.
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value]
    sections = [
        "\n".join(["---", *lines, "---"]),
        f"# {name}",
        f"{architecture}, {table.num_classes} classes, {bundle.num_params / 1e6:.1f} million "
        "parameters, for segret_jax (JAX).",
        "## Use\n\n" + _usage(name, segments),
        "## Scores\n\n" + _scores(facts),
        "## Training\n\n" + _training(config, dataset, facts),
        "## Classes\n\n" + _classes(table, facts),
        "## Intended use and limits\n\n" + _limits(table, dataset, segments),
    ]
    return "\n\n".join(sections) + "\n"


def _usage(name: str, segments: bool) -> str:
    call = (
        'result = model.predict("photograph.jpg")  # result.label_map: uint8 [H, W], class ids'
        if segments
        else "logits = model.logits(images)  # images: uint8 [b, H, W, 3]; logits: [b, classes]"
    )
    lines = ["import segret_jax", f"model = segret_jax.load({json.dumps(name)})", call]
    return "\n".join(["```python", *lines, "```"])


def _scores(facts: Facts) -> str:
    """Return the scores that are known, each with its settings."""
    lines = []
    if evaluation := _dict(facts.get("evaluation")):
        means = ", ".join(f"{k} {_percent(evaluation.get(k))}" for k in ("mIoU", "mAcc", "aAcc"))
        lines.append(f"- {means} (%; `segret eval`: {_settings(evaluation)})")
    if "mIoU" in facts:
        settings = _settings(_dict(facts.get("eval")))
        lines.append(f"- mIoU {_percent(facts['mIoU'])} (%; validation in training: {settings})")
    if not lines:
        return "None is stored with these weights."
    if rounded := facts.get("rounded_to"):
        lines.append(f"\nMeasured before the weights were rounded to {rounded}.")
    return "\n".join(lines)


def _training(config: Config, dataset: str, facts: Facts) -> str:
    if "converted_from" in facts:
        source = _dict(facts["converted_from"])
        return (
            f"Converted from `{source.get('file')}` (SHA-256 `{source.get('sha256')}`); how it was "
            f"trained is not stored with it. Classes and evaluation are those of {dataset}."
        )
    if "step" not in facts:
        return "Nothing is stored about it."
    train, optim, data = config.train, config.optim, config.data
    images = f" of {facts['num_train_images']} images" if "num_train_images" in facts else ""
    start = "from scratch" if facts.get("from_scratch") else "from other weights (`init_from`)"
    rows = {
        "data": f"training split of {dataset}{images}",
        "start": start,
        "steps": f"{facts['step']} of {train.steps}, batches of {train.batch_size}",
        "crops": f"{data.crop}, from images resized to {data.resize_base} x {data.resize_ratio}",
        "optimizer": f"AdamW, peak learning rate {optim.learning_rate:g}, weight decay "
        f"{optim.weight_decay:g}, {optim.warmup_steps} steps of warmup, poly schedule",
        "seed": train.seed,
    }
    table = ["| setting | value |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows.items())]
    return "\n".join([*table, "", "All settings are in `config.json`."])


def _classes(table: ClassTable, facts: Facts) -> str:
    scores = _dict(_dict(facts.get("evaluation")).get("IoU"))
    head = "| id | class | color | IoU (%) |" if scores else "| id | class | color |"
    lines = [head, "| --: | --- | --- |" + " --: |" * bool(scores)]
    for i, (name, color) in enumerate(zip(table.class_names, table.colors, strict=True)):
        text = name.replace("|", "\\|")
        row = f"| {i} | {text} | #{color.tobytes().hex()} |"
        lines.append(row + f" {_percent(scores.get(name))} |" * bool(scores))
    return "\n".join(lines)


def _limits(table: ClassTable, dataset: str, segments: bool) -> str:
    what = "pixel" if segments else "image"
    return (
        f"For photographs like those of {dataset}. Every {what} gets one of the "
        f"{table.num_classes} classes, also where none fits. Other cameras, places, weather and "
        "light are not covered by the scores above: measure on your own images first. Not tested "
        "for decisions on which the safety of people depends."
    )


def _settings(values: Facts) -> str:
    known = {key: values[key] for key in PROTOCOL if values.get(key) is not None}
    return ", ".join(f"{key} {value}" for key, value in known.items()) or "settings not stored"


def _percent(score: Any) -> str:
    return f"{100 * score:.1f}" if isinstance(score, int | float) else "—"


def _dict(value: Any) -> Facts:
    return value if isinstance(value, dict) else {}
