"""Methods of a synchronous object, made coroutine functions: every asynchronous class of the package has them."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Any, Concatenate, ParamSpec, TypeVar

from consensus_orm.repository.routed_reads import STREAMED

__all__ = ["Asynchronous", "asynchronous", "streamed"]

T = TypeVar("T")
P = ParamSpec("P")


class Asynchronous:
    """Stands for a synchronous object.

    Args:
        original: Gives that object; called on the thread of its methods.
        call: Runs a function on that thread.
    """

    def __init__(self, original: Callable[[], Any], call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._original = original
        self._call = call

    def _apply(self, method: Callable[..., T], given: inspect.BoundArguments) -> T:
        return method(self._original(), *given.args[1:], **given.kwargs)


_Method = Callable[Concatenate[Any, P], T]
_AsyncMethod = Callable[Concatenate[Asynchronous, P], Coroutine[Any, Any, T]]


def asynchronous(method: _Method[P, T]) -> _AsyncMethod[P, T]:
    """Make a coroutine method of a synchronous one; its callbacks are called on the event loop."""
    signature = inspect.signature(method)
    reports = [name for name in ("progress", "tell") if name in signature.parameters]
    if reports:
        return _reporting(method, signature, reports)

    @functools.wraps(method)
    async def call(self: Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The method, awaited."""
        answer: T = await self._call(lambda: method(self._original(), *args, **kwargs))
        return answer

    return call


def _reporting(method: _Method[P, T], signature: inspect.Signature, reports: list[str]) -> _AsyncMethod[P, T]:
    """Make a coroutine method of one that reports progress; after a cancellation it ends at its next report."""

    @functools.wraps(method)
    async def call(self: Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> T:
        given, watch = signature.bind(None, *args, **kwargs), _Watch()
        for name in reports:
            given.arguments[name] = partial(watch.report, given.arguments.get(name))
        answer: T = await self._call(partial(self._apply, method, given), cancelled=watch.stop)
        return answer

    return call


class _Watch:
    """Connects a long call on a thread with the coroutine that waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def report(self, callback: Callable[..., object] | None, *what: Any) -> None:
        """Call a callback on the event loop, and raise its error here."""
        if callback is not None and not self._stopped:
            done: Future[None] = Future()
            self._loop.call_soon_threadsafe(_do, done, callback, what)
            done.result()
        if self._stopped:
            raise asyncio.CancelledError


def _do(done: Future[None], callback: Callable[..., object], what: tuple[Any, ...]) -> None:
    try:
        callback(*what)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def streamed(method: _Method[P, Iterator[T]]) -> Callable[Concatenate[Asynchronous, P], AsyncIterator[T]]:
    """Make an asynchronous iterator of a method that gives an iterator; its thread is asked for some at a time."""

    @functools.wraps(method)
    async def iterate(self: Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        """What the method gives, asked for some at a time."""
        found: Iterator[T] = await self._call(lambda: method(self._original(), *args, **kwargs))
        while some := await self._call(lambda: [*islice(found, STREAMED)]):
            for each in some:
                yield each

    return iterate
