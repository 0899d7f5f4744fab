"""The values of `data.dataset`, checked without the imports that reading a dataset needs."""

from pathlib import Path

from segret_jax.errors import InputError, unknown_name

PUBLISHED = ("ade20k", "cityscapes", "coco_stuff10k", "coco_stuff164k", "camvid")
SYNTHETIC = "synthetic"
"""Name of the generated scenes, which are no `DatasetSpec`: they have no files."""

TABLE_EXAMPLE = '{"classes": [{"id": 0, "name": "wall", "color": "#787878"}, ...]}'


def check_dataset(name: str) -> None:
    """Check the name of a dataset, or the path of a user's JSON file.

    Args:
        name: A value of `data.dataset`.

    Raises:
        InputError: The name is unknown, or there is no such file.
    """
    if not name.endswith(".json"):
        if name not in (*PUBLISHED, SYNTHETIC):
            raise unknown_name("dataset", name, [*PUBLISHED, SYNTHETIC, "your own FILE.json"])
    elif not (file := Path(name).expanduser().absolute()).exists():
        raise InputError(
            f"there is no file {file}: write one that names your classes, or give its path\n"
            f"form: {TABLE_EXAMPLE}\n`segret demo` needs no data"
        )
