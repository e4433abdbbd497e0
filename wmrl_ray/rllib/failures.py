"""Errors of remote actors, carried home as values and raised on the driver with their cause.

Why: RLlib turns an exception in a runner into an exit of the actor after 60 s, an empty list, or an ActorDiedError without the
cause, depending on the version and on its fault-tolerance settings.
"""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
import torch.distributed
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, WorkerCrashedError

# How a process learns that another one, or what that owned, is gone. Why so many: Ray's memory monitor kills a worker with an
# error of its own, and what a dead learner owned (weights) or a lost node held (episodes) is missed by whoever asks for it.
DEATHS = (RayActorError, OutOfMemoryError, WorkerCrashedError, NodeDiedError, ObjectLostError)
STARTING_S = 120.0  # that a process may take to start, beside what a call may
REASON_S = 5.0  # that others are waited for after a failure: one of them may have the reason

# error: something went wrong in a process. death: another process is gone. collateral: another rank left a collective call.
Kind = Literal["error", "death", "collateral"]


class CollectiveError(RuntimeError):
    """A collective call of the ranks broke off: one of them left it. Why a type: gloo has none of its own."""


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """Around a collective call: its errors get a type."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # this rank's own
    except RuntimeError as error:
        raise CollectiveError(str(error)) from error


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
    kind: Kind = "error"

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
        return Failure(type(error).__name__, str(error), traceback.format_exc(), kind_of(error))


def gather(references: Sequence[Any], who: str, limit_s: float) -> list[Any]:
    """The values of all, which work together: where one is gone or has failed, the others need not be waited for.

    Raises: as `unwrap`, at once where Ray knows that an actor died, `REASON_S` after another failure, or after `limit_s`.
    """
    found, waiting, deadline = {}, list(references), time.monotonic() + limit_s
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        try:
            found[ready[0]] = value = ray.get(ready[0])
        except Exception as error:
            found[ready[0]] = value = error
            if is_death(error):
                break
        if isinstance(value, Failure | Exception):
            deadline = min(deadline, time.monotonic() + REASON_S)
    return unwrap([found[each] for each in references if each in found], who, len(references), limit_s)


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
    failures.sort(key=lambda failure: ("error", "death", "collateral").index(kind_of(failure)))
    if failures:
        raise remote_error(who, failures[0])
    if len(values) != expected:
        lost = f"{expected - len(values)} of {expected} {who}s"
        if waited_s is not None:
            raise ActorLostError(f"{lost} did not answer within call_timeout_s = {waited_s:g} s: stopped, hanging or slow")
        raise ActorLostError(f"{lost} died (killed, or out of memory; see Ray's logs of the node)")
    return values


def kind_of(failure: Failure | BaseException) -> Kind:
    """By the type of the exception, never by its words."""
    if isinstance(failure, Failure):
        return failure.kind
    if isinstance(failure, CollectiveError | torch.distributed.DistError):
        return "collateral"
    return "death" if isinstance(failure, DEATHS) and not getattr(failure, "actor_init_failed", False) else "error"


def is_death(failure: Failure | BaseException) -> bool:
    """Whether this says that another process is gone, rather than that something went wrong in one."""
    return kind_of(failure) == "death"


def as_lost(error: BaseException, doing: str) -> ActorLostError | None:
    """What RLlib's own errors mean where it, not we, waited for an actor; None where no actor was lost."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ActorLostError):
            return cause
        if is_death(cause):
            return ActorLostError(f"an actor died while {doing}: {_first_line(cause)}")
        # Why the context too: a learner that dies as the group starts makes RLlib fail in its own handler, with a TypeError
        is_ours = isinstance(cause, RemoteError) or cause.__suppress_context__
        cause = getattr(cause, "cause", None) or cause.__cause__ or (None if is_ours else cause.__context__)
    return None


def remote_error(who: str, failure: Failure | Exception) -> RemoteError:
    """An ActorLostError where an actor is gone, or misses what one that is gone had."""
    kind = RemoteError if kind_of(failure) == "error" else ActorLostError
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
