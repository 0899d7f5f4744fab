"""Ending a run between two steps: on Ctrl-C or SIGTERM, in all processes at the same step."""

import signal
from collections import deque
from types import FrameType, TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from segret_jax import processes
from segret_jax.training.sharding import AXES

DELAY = 2  # steps after which the processes know each other's wishes, without waiting for them


class StopRequest:
    """Ctrl-C and SIGTERM ask for a clean stop after the current step; a second Ctrl-C kills."""

    def __init__(self, mesh: Mesh) -> None:
        self.requested = False
        self._wishes: deque[jax.Array] = deque()
        self._shards = NamedSharding(mesh, PartitionSpec(AXES))
        self._num_devices = mesh.size
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __enter__(self) -> "StopRequest":
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:  # schedulers repeat SIGTERM
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self) -> bool:
        """Tell, once after each step, whether all are to stop now: the same in every process.

        A signal does not come to all processes at the same step. So each gives its wish to a sum
        over all devices, and reads the one that was begun two steps ago: by then it is there.
        """
        if not processes.are_several():
            return self.requested
        wish = np.full(self._num_devices, self.requested, np.int32)
        shared = jax.make_array_from_callback(wish.shape, self._shards, lambda part: wish[part])
        self._wishes.append(self._any(shared))
        return len(self._wishes) > DELAY and bool(self._wishes.popleft())
