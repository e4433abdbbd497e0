"""Errors of remote actors, carried home as values and raised on the driver with their cause.

Why: RLlib turns an exception in a runner into an exit of the actor after 60 s, an empty list, or an ActorDiedError without the
cause, depending on the version and on its fault-tolerance settings.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch.distributed


class RemoteError(RuntimeError):
    """A learner or a runner failed. The first line names it and the original error; the remote traceback follows.

    error_type: class name of the original error, None if the actor died without one.
    """

    def __init__(self, message: str, error_type: str | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type


@dataclass(frozen=True)
class Failure:
    """An exception on its way to the driver."""

    error_type: str
    message: str
    trace: str

    @property
    def error(self) -> str:
        return f"{self.error_type}: {self.message}"


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, returning a Failure instead of raising."""
    return functools.partial(_call, function)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return function(*args, **kwargs)
    except Exception as error:
        if torch.distributed.is_initialized():
            # Why: the other ranks wait in an all-reduce; a closed connection ends their wait with an error
            torch.distributed.destroy_process_group()
        return Failure(type(error).__name__, str(error), traceback.format_exc())


def unwrap(results: Iterable[Any], who: str, expected: int) -> list[Any]:
    """The values, if all `expected` actors returned one.

    Raises:
        RemoteError: an actor failed, or died and returned nothing.
    """
    values = list(results)
    failures = [value for value in values if isinstance(value, Failure | Exception)]
    # Why: when one rank fails, the others fail in the collective call that it left; the cause is the one that is not about it
    failures.sort(key=_is_collateral)
    if failures:
        raise _error(who, failures[0])
    if len(values) != expected:
        lost = expected - len(values)
        raise RemoteError(f"{lost} of {expected} {who}s died (killed, or out of memory; see Ray's logs of the node)")
    return values


def _is_collateral(failure: Failure | Exception) -> bool:
    text = failure.error if isinstance(failure, Failure) else str(failure)
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL"))


def _error(who: str, failure: Failure | Exception) -> RemoteError:
    if isinstance(failure, Failure):
        return RemoteError(f"{who} failed: {failure.error}\n\nOn the {who}:\n{failure.trace}", failure.error_type)
    error = RemoteError(f"{who} failed: {type(failure).__name__}: {failure}", type(failure).__name__)
    error.__cause__ = failure
    return error
