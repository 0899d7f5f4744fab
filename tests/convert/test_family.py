"""Names and shapes tell the model: of the released files, and of those that differ from them."""

import numpy as np
import pytest

from segret_jax.config import ModelConfig, choose_family
from segret_jax.convert.classes import choose_classes
from segret_jax.convert.file_classes import FileClasses
from segret_jax.convert.recognize import TorchModel, identify
from segret_jax.data.class_table import MAX_CLASSES, load_class_table, parse_class_table
from segret_jax.errors import InputError
from tests import golden_weights as golden
from tests.settings import segret

VARIANTS = ("tiny", "small", "base", "large")
Tensors = dict[str, np.ndarray]


def released(name: str) -> Tensors:
    """Tensors of the right names and shapes, without memory."""
    return {key: np.broadcast_to(np.float32(0), s) for key, s in golden.keys(name).items()}


def without(tensors: Tensors, part: str) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_released_models_are_distinguished(variant: str) -> None:
    tensors = identify(released(f"segret_{variant}"), ModelConfig())
    assert tensors == TorchModel(model=ModelConfig(variant=variant), num_classes=150, prefix=True)
    rmt = identify(released(f"rmt_{variant}"), ModelConfig())
    expected = segret(task="classification", variant=variant, rotary=True, ffn_conv=True)
    assert rmt == TorchModel(model=expected, num_classes=1000, prefix=False)


def test_differences_from_the_released_models_are_inferred() -> None:
    tensors, rmt = released("segret_base"), released("rmt_base")
    assert not identify(without(tensors, "zeroLayer"), ModelConfig()).model.settings.zero_branch
    assert not identify(without(rmt, "ffn.dwconv"), ModelConfig()).model.settings.rotary
    token = rmt | {"aux_head.weight": np.zeros((1000, 512)), "aux_head.bias": np.zeros(1000)}
    assert identify(token, ModelConfig()).model.settings.token_head
    tensors["decode_head.linear_fuse.conv.weight"] = np.zeros((512, 2048, 1, 1))
    tensors["decode_head.linear_pred.weight"] = np.zeros((7, 512, 1, 1))
    family = identify(tensors, ModelConfig())
    assert (family.model.settings.decoder_channels, family.num_classes) == (512, 7)
    both = tensors | {"backbone.layers.0.blocks.0.ffn.dwconv.conv.bias": np.zeros(320)}
    assert identify(both, ModelConfig()).model.settings.rotary


def test_a_block_too_few_does_not_hide_the_variant() -> None:
    tensors = without(released("segret_small"), "layers.2.blocks.17.")
    assert identify(tensors, ModelConfig()).model.variant == "small"


def test_what_no_file_holds_is_taken_from_the_settings() -> None:
    model = segret(rotary=True, decay="post_softmax", dtype="bfloat16", variant="large")
    given = ["settings.rotary", "settings.decay"]
    found = identify(released("segret_tiny"), model, given=given).model
    assert (found.variant, found.dtype) == ("tiny", "bfloat16")
    own = found.settings
    assert (own.rotary, own.decay, own.ffn_conv) == (True, "post_softmax", False)
    assert not identify(
        released("segret_tiny"), model
    ).model.settings.rotary  # it was not asked for


def test_a_setting_that_contradicts_the_file_is_named_with_what_it_holds() -> None:
    model = segret(variant="base", ffn_conv=True, decoder_channels=512)
    given = ["variant", "settings.ffn_conv", "settings.decoder_channels"]
    with pytest.raises(InputError) as caught:
        identify(released("segret_small"), model, given)
    assert "model.variant is set to 'base', but the file holds 'small'" in str(caught.value)
    assert "model.settings.ffn_conv is set to True, but the file holds False" in str(caught.value)
    assert "model.settings.decoder_channels is set to 512, but the file holds 256" in str(
        caught.value
    )
    agreeing = segret(variant="small", decoder_channels=256)
    assert identify(released("segret_small"), agreeing, given).model.variant == "small"
    own = segret(decoder_channels=0)  # of whichever variant: 512 of the large one
    assert (
        identify(released("segret_large"), own, ["settings.decoder_channels"]).model.variant
        == "large"
    )
    wide = {"decode_head.linear_fuse.conv.weight": np.zeros((512, 2048, 1, 1))}
    with pytest.raises(InputError, match="channels is set to 0, but the file holds 512"):
        identify(released("segret_tiny") | wide, own, ["settings.decoder_channels"])


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (
            {f"layers.{i}.blocks.{j}.pos.conv.bias": np.zeros(9) for i in range(4) for j in (0, 1)},
            r"\[\(9, 2\), \(9, 2\), \(9, 2\), \(9, 2\)\], as no variant of segret",
        ),
        ({"layers.0.blocks.0.pos.conv.bias": np.zeros(64)}, r"\[\(64, 1\)\], as .* segret"),
        ({"layers.9999.blocks.0.pos.conv.bias": np.zeros(64)}, r"\[\(64, 1\)\], as .* segret"),
        ({"layers.0.blocks.0.cpe1.bias": np.zeros(32)}, r"\[\(32, 1\)\], as no variant of segman"),
    ],
)
def test_a_model_of_no_variant_is_rejected_with_its_stages(tensors: Tensors, what: str) -> None:
    message = rf"has stages of \(width, blocks\) {what}\. Give a file of tiny, small, base, large"
    with pytest.raises(InputError, match=message):
        identify(tensors, ModelConfig())


def test_another_model_is_rejected_with_its_tensor_names() -> None:
    names = ["conv1.weight", "\x1b[2J\ud800", "b", "c"]
    with pytest.raises(InputError) as caught:
        identify({name: np.zeros(1) for name in names}, ModelConfig())
    assert str(caught.value) == (
        r"is no model of segret or segman: its names begin with conv1.weight, \x1b[2J\ud800, b. "
        "Give a file of one of these families"
    )


def test_an_impossible_number_of_classes_is_refused() -> None:
    last = "decode_head.linear_pred"
    tensors = released("segret_tiny")
    for count in (10**6, 255, 0):
        wrong = tensors | {f"{last}.weight": np.broadcast_to(np.float32(0), (count, 256, 1, 1))}
        message = rf"has {count} classes, but a segmentation model has 1 to 254"
        with pytest.raises(InputError, match=message):
            identify(wrong, ModelConfig())
    wrong = {"head.weight": np.broadcast_to(np.float32(0), (2**16 + 1, 512))}
    with pytest.raises(
        InputError, match=r"65537 classes, but a classification model has 1 to 65536"
    ):
        identify(released("rmt_tiny") | wrong, ModelConfig())
    assert identify(without(tensors, last), ModelConfig()).num_classes == 150  # conv_seg's
    with pytest.raises(InputError, match=rf"lacks {last}.weight, which tells"):
        identify(without(without(tensors, last), "conv_seg"), ModelConfig())
    scalar = released("rmt_tiny") | {"head.weight": np.float32(0)}
    assert identify(scalar, ModelConfig()).num_classes == 1000


@pytest.mark.parametrize(
    ("count", "dataset", "first"),
    [
        (150, "ade20k", "wall"), (19, "cityscapes", "road"), (171, "coco_stuff10k", "person"),
        (11, "camvid", "sky"), (7, "synthetic", "class 0"),
    ],
)  # fmt: skip
def test_the_dataset_follows_from_the_number_of_classes(
    count: int, dataset: str, first: str
) -> None:
    family = TorchModel(model=ModelConfig(), num_classes=count, prefix=True)
    name, table = choose_classes(family, "synthetic", given=False)
    assert (name, table.num_classes, table.class_names[0]) == (dataset, count, first)
    if name == "synthetic":  # no dataset has 7 classes: names and colors are made up
        assert len({color.tobytes() for color in table.colors}) == count
    if count < 8:
        with pytest.raises(InputError, match=rf"'synthetic' with 8 .* but .* a model of {count}"):
            choose_classes(family, "synthetic", given=True)


def test_classes_of_coco_stuff_are_of_the_split_that_the_family_was_trained_on() -> None:
    model = ModelConfig()
    choose_family(model, "segman")
    names = load_class_table("coco_stuff").class_names
    in_file = FileClasses(names=names, count=171, colors=None, source="names")
    for named in (None, in_file):
        found = TorchModel(model=model, num_classes=171, prefix=True)
        assert choose_classes(found, "synthetic", named, given=False)[0] == "coco_stuff164k"


def test_a_classifier_has_generic_classes_and_no_dataset() -> None:
    family = TorchModel(model=ModelConfig(task="classification"), num_classes=1000, prefix=False)
    _, table = choose_classes(family, "synthetic", given=False)
    assert (table.name, table.num_classes, table.class_names[999]) == (
        "imagenet",
        1000,
        "class 999",
    )
    for known in ("ade20k", "synthetic"):
        with pytest.raises(InputError, match=rf"classifier .* '{known}'; leave data.dataset out"):
            choose_classes(family, known, given=True)


@pytest.mark.parametrize(("task", "most"), [("segmentation", 254), ("classification", 1000)])
def test_as_many_classes_as_are_converted_can_be_loaded(task: str, most: int) -> None:
    family = TorchModel(model=ModelConfig(task=task), num_classes=most, prefix=True)
    _, table = choose_classes(family, "synthetic", given=False)
    loaded = parse_class_table(table.to_dict(), "", default_name="", most=MAX_CLASSES)
    assert loaded.class_names == table.class_names
