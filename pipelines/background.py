"""A thread that runs at the same time as a block of code, and ends with it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def background_thread(work: Callable[[threading.Event], None], name: str) -> Iterator[None]:
    """Run `work` in a daemon thread while the block runs. At the end of the block, set its event and wait for it.

    Args:
        work: is called with an event that is set when the block ends; must return soon after that.
        name: the thread's name.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
