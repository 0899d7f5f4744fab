"""What is sent between chips, read from programs whose collectives are known."""

import textwrap

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from segret_jax.aot.hlo import collectives
from segret_jax.parallel.mesh import data_mesh

LINES = NamedSharding(data_mesh(), PartitionSpec("data"))
WHOLE = NamedSharding(data_mesh(), PartitionSpec())


def compiled_text(function, *args) -> str:
    return jax.jit(function, out_shardings=WHOLE).lower(*args).compile().as_text()


def split(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=LINES)


def test_a_sum_over_devices_is_one_all_reduce_of_its_result():
    text = compiled_text(lambda x: x.sum(0), split(8, 100))
    assert collectives(text) == {"all-reduce": {"count": 1, "bytes": 400}}


def test_all_gather_counts_its_result():
    assert collectives(compiled_text(lambda x: x, split(8, 100))) == {
        "all-gather": {"count": 1, "bytes": 3200}
    }


def test_collectives_in_a_loop_count_once_per_iteration():
    def summed(x):
        def body(carry, row):
            return lax.with_sharding_constraint(jnp.outer(row * carry, row).sum(0), WHOLE), None

        return lax.scan(body, jnp.ones(100), x)[0]

    lines = jax.ShapeDtypeStruct(
        (7, 100), jnp.float32, sharding=NamedSharding(data_mesh(), PartitionSpec(None, "data"))
    )
    found = collectives(compiled_text(summed, lines))
    assert found["all-reduce"] == {"count": 7, "bytes": 7 * 400}


def test_reduce_scatter_counts_the_bytes_sent():
    for groups in ("[2,4]<=[8]", "{{0,1,2,3},{4,5,6,7}}"):
        text = f"""\
ENTRY %main.1 (p: f32[100]) -> f32[25] {{
  %r = f32[25]{{0}} reduce-scatter(%p), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
        assert collectives(text) == {"reduce-scatter": {"count": 1, "bytes": 400}}


def test_a_program_of_one_device_sends_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((4, 4))).compile().as_text()
    assert collectives(text) == {}


def test_asynchronous_and_tuple_results_as_a_tpu_writes_them():
    text = """\
    %body.1 (p: (f32[2], s32[])) -> (f32[2], s32[]) {
      %a = (f32[2]{0:T(128)}, bf16[4,2]{1,0}) all-reduce(%x, %y), channel_id=1, to_apply=%add.1
    }
    ENTRY %main.9_spmd (param: f32[2]) -> f32[2] {
      %s = (f32[8]{0}, f32[16]{0}, u32[]) all-gather-start(%param), channel_id=2
      %d = f32[16]{0:T(256)S(1)} all-gather-done(%s)
      %w = (f32[2], s32[]) while(%t), condition=%c.1, body=%body.1, backend_config={"known_trip_count":{"n":"3"}}
    }
    """  # noqa: E501
    assert collectives(textwrap.dedent(text)) == {
        "all-gather": {"count": 1, "bytes": 64},
        "all-reduce": {"count": 3, "bytes": 3 * (8 + 16)},
    }
