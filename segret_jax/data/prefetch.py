"""Threads that compute results ahead of their use."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetch(
    function: Callable[[A], B], items: Iterable[A], *, workers: int, buffer_size: int
) -> Generator[B, None, None]:
    """Yield function(item) in order; threads compute up to `buffer_size` items ahead.

    Closing the iterator cancels the calls that have not begun.

    Args:
        function: The function of an item.
        items: The items, taken as they are needed.
        workers: The number of threads.
        buffer_size: The number of items to compute ahead.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[B]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > buffer_size:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
