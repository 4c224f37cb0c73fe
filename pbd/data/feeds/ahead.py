"""Batches made ahead of their use by a few threads, in order."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def made_ahead(make: Callable[[Item], Made], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Made]:
    """Yield `make(item)` for every item, in order, while threads make at most `ahead` later ones.

    The threads begin at the first `next` and end with the iteration: at its end, at an error, or when the generator is
    closed or no longer referenced. An error of `make` is raised where its result would be yielded.

    Args:
        make: called in the threads.
        items: iterated over in the thread of the caller.
        threads: number of threads.
        ahead: maximum number of prefetched results.
    """
    waiting: collections.deque[Future[Made]] = collections.deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="feed")
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
