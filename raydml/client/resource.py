"""Methods that say what to do, as values -> methods that do it: at once for a Client, awaited for an AsyncClient.

A resource is written once. `Resource[Sender]` answers with results and iterators, `Resource[AsyncSender]` with
awaitables and async iterators, for people and for type checkers alike.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import wraps
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

from raydml.client.senders import AsyncSender, Sender
from raydml.client.steps import Plan

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound=Sender | AsyncSender)


class Resource(Generic[S]):
    """Something of a server, reached through a sender."""

    sender: S

    def __init__(self, sender: S) -> None:
        self.sender = sender


class operation(Generic[P, T]):
    """A method that makes a plan with one result -> a method that gives this result."""

    def __init__(self, make: Callable[Concatenate[Any, P], Plan[T]]) -> None:
        self.make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, instance: Resource[Sender], owner: Any) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Resource[AsyncSender], owner: Any) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        """The method of an instance."""
        return self if instance is None else _bound(self.make, instance, instance.sender.run)


class iterating(Generic[P, T]):
    """A method that makes a plan with many items -> a method that gives an iterator over them."""

    def __init__(self, make: Callable[Concatenate[Any, P], Plan[T]]) -> None:
        self.make = make
        self.__doc__ = make.__doc__

    @overload
    def __get__(self, instance: None, owner: Any) -> Self: ...
    @overload
    def __get__(self, instance: Resource[Sender], owner: Any) -> Callable[P, Generator[T]]: ...
    @overload
    def __get__(self, instance: Resource[AsyncSender], owner: Any) -> Callable[P, AsyncGenerator[T]]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        """The method of an instance."""
        return self if instance is None else _bound(self.make, instance, instance.sender.iterate)


def _bound(make: Callable[..., Plan[Any]], instance: Any, take: Callable[[Plan[Any]], Any]) -> Callable[..., Any]:
    method = MethodType(make, instance)

    @wraps(method)
    def done(*arguments: Any, **named: Any) -> Any:
        return take(method(*arguments, **named))

    return done
