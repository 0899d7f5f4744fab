"""Threads that work ahead of whoever takes their results."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetch(
    function: Callable[[A], B], items: Iterable[A], *, workers: int, ahead: int
) -> Generator[B, None, None]:
    """Yield function(item) in order; threads work up to `ahead` items ahead.

    What is not begun when the iterator is closed is not done.
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[B]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
