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
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

# How a process learns that another one, or what that owned, is gone. Why so many: Ray's memory monitor kills a worker with an
# error of its own, and what a dead learner owned (weights) or a lost node held (episodes) is missed by whoever asks for it.
DEATHS = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError, ObjectLostError)
DEATH_NAMES = frozenset(name for death in DEATHS for name in (death.__name__, *(c.__name__ for c in death.__subclasses__())))


class RemoteError(RuntimeError):
    """A learner or a runner failed. The first line names it and the original error; the remote traceback follows.

    error_type: class name of the original error, None if the actor died without one.
    """

    def __init__(self, message: str, error_type: str | None = None) -> None:
        super().__init__(message)
        self.error_type = error_type


class ActorLostError(RemoteError):
    """A learner or a runner is gone, or does not answer, without an error of its own: killed, out of memory, with its node, or
    hanging. The run can be built again from its newest checkpoint.
    """


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


def unwrap(results: Iterable[Any], who: str, expected: int, waited_s: float | None = None) -> list[Any]:
    """The values, if all `expected` actors returned one.

    Args:
        waited_s: how long they were waited for, where that was no longer.

    Raises:
        RemoteError: an actor failed.
        ActorLostError: one died and returned nothing, or misses what a dead one had.
    """
    values = list(results)
    failures = [value for value in values if isinstance(value, Failure | Exception)]
    # Why: when one rank fails, the others fail in the collective call that it left; the cause is the one that is not about it
    failures.sort(key=lambda failure: (_is_collateral(failure), is_death(failure)))
    if failures:
        raise _error(who, failures[0])
    if len(values) != expected:
        lost = f"{expected - len(values)} of {expected} {who}s"
        if waited_s is not None:
            raise ActorLostError(f"{lost} did not answer within call_timeout_s = {waited_s:g} s: stopped, hanging or slow")
        raise ActorLostError(f"{lost} died (killed, or out of memory; see Ray's logs of the node)")
    return values


def is_death(failure: Failure | BaseException) -> bool:
    """Whether this says that another process is gone, rather than that something went wrong in one."""
    if isinstance(failure, Failure):
        return failure.error_type in DEATH_NAMES
    return isinstance(failure, DEATHS) and not getattr(failure, "actor_init_failed", False)


def as_lost(error: BaseException, doing: str) -> ActorLostError | None:
    """What RLlib's own errors mean where it, not we, waited for an actor; None where no actor was lost."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ActorLostError):
            return cause
        if is_death(cause):
            return ActorLostError(f"an actor died while {doing}: {_first_line(cause)}")
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None


def _is_collateral(failure: Failure | Exception) -> bool:
    text = failure.error if isinstance(failure, Failure) else str(failure)
    return any(sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL"))


def _error(who: str, failure: Failure | Exception) -> RemoteError:
    kind = ActorLostError if is_death(failure) or _is_collateral(failure) else RemoteError
    if isinstance(failure, Failure):
        return kind(f"{who} failed: {failure.error}\n\nOn the {who}:\n{failure.trace}", failure.error_type)
    if kind is ActorLostError:
        error = kind(f"{who} died: {_first_line(failure)}", type(failure).__name__)
    else:
        error = kind(f"{who} failed: {type(failure).__name__}: {failure}", type(failure).__name__)
    error.__cause__ = failure
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
