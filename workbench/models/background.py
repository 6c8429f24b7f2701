"""An event loop in a thread, for synchronous callers: it works inside Jupyter, whose own loop is running."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, TypeVar

from workbench.errors import ModelError

T = TypeVar("T")


class Background:
    """One event loop in a daemon thread, started when it is first needed; any thread may hand it work."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finaliser may come in between
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._endings: list[Callable[[], Coroutine[Any, Any, object]]] = []

    def at_end(self, ending: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run this on the loop before it ends: somebody may never close what uses it."""
        self._endings.append(ending)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run to the end and return the result.

        Raises:
            ModelError: this is closed.
        """
        with self._lock:
            if self._closed:
                work.close()
                raise ModelError("the background loop is closed", hint="open the workbench again")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="workbench-calls", daemon=True)
                self._thread.start()
                # A generator that lives until the interpreter's end must not wait for a thread that is gone.
                atexit.register(self.close)
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return future.result()

    def start(self, work: Coroutine[Any, Any, T], ended: Callable[[], object]) -> asyncio.Task[T]:
        """Begin and return the task; `ended` is called on the loop when it is over, however that came.

        Raises:
            ModelError: this is closed.
        """
        begun: list[asyncio.Task[T]] = []

        async def begin() -> None:
            begun.append(asyncio.create_task(work))
            begun[0].add_done_callback(lambda _: ended())

        try:
            self.run(begin())
        except BaseException:  # closed, or an interrupt: nobody would wait for the task
            if begun:
                self.cancel(begun[0])
            else:
                work.close()
            raise
        return begun[0]

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel a task and wait until it has cleaned up."""
        if task.done() or self._loop is None:
            return
        if threading.current_thread() is self._thread:  # a finaliser may run anywhere; here it cannot wait
            task.cancel()
        else:
            with suppress(ModelError):  # closed meanwhile, which cancels too
                self.run(cancelled([task]))

    def close(self) -> None:
        """Cancel what runs, wait for it, end the thread. Close what uses the loop before; closing twice is fine."""
        with self._lock:
            self._closed = True
            loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        atexit.unregister(self.close)
        asyncio.run_coroutine_threadsafe(_shut_down(self._endings), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join()
        loop.close()


async def cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks of the running loop and wait until they are over."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """As asyncio.to_thread, but nobody waits for the thread at the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def work() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = function(*arguments), None
        except Exception as error:
            outcome = None, error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, name="workbench-connect", daemon=True).start()
    return await future


async def _shut_down(endings: Iterable[Callable[[], Coroutine[Any, Any, object]]]) -> None:
    for ending in endings:
        await ending()
    await cancelled(task for task in asyncio.all_tasks() if task is not asyncio.current_task())
    await asyncio.get_running_loop().shutdown_asyncgens()
