"""The queue: one thread owns the model and serves photographs in the order in which they came."""

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from segret_jax.serve.limits import Limits, RefusedError

T = TypeVar("T")


class Entry:
    """A photograph of the queue; its content is let go when its client is gone."""

    content: bytes = b""


class WorkQueue:
    """First come, first served, with a bound for all clients and one for each."""

    def __init__(self, limits: Limits):
        self._limits, self._clients = limits, Counter[str]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    def __len__(self) -> int:
        return self._clients.total()

    @contextmanager
    def admit(self, client: str) -> Iterator[Entry]:
        """Keep an entry of the queue for a client during the block.

        Raises:
            RefusedError: The client has its share of the queue, or the queue is full.
        """
        limits = self._limits
        if self._clients[client] >= limits.per_client:
            raise RefusedError(
                429,
                f"{client} has {self._clients[client]} photographs in the queue, which is the "
                "share of one client: send the next when an answer has come",
                retry_after=1,
            )
        if len(self) >= limits.queue:
            message = f"the queue is full ({limits.queue} photographs): try again in some seconds"
            raise RefusedError(503, message, retry_after=5)
        self._clients[client] += 1
        entry = Entry()
        try:
            yield entry
        finally:
            entry.content = b""  # the thread meets a canceled entry only when its turn comes
            self._clients[client] -= 1
            self._clients += Counter()  # drops clients without entries

    async def run(self, job: Callable[[Entry], T], entry: Entry) -> T:
        """Return what `job` returns for an entry, once it is its turn.

        If the caller is canceled before, the job does not run.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, functools.partial(job, entry))

    def close(self) -> None:
        """Forget the waiting entries, and wait for the one at work."""
        self._thread.shutdown(cancel_futures=True)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it when the client of `request` goes.

    Raises:
        ClientDisconnect: It went.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
