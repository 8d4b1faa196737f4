"""Backbones that a function of the user's own makes: `package.module:factory`.

Importing a module runs its code. So such a text comes from the command line or from an argument of a function, never from a
file: what a file records is a name for people, see `registry.load_recorded`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import nn

from noisebook.backbones.base import Backbone, no_fingerprint
from noisebook.errors import BackboneError, NoisebookError, first_line, printable, said
from noisebook.runtime.factories import FORM, MOST

SHOWN = 8  # names of a module that a message lists


def refusal(name: str) -> str:
    """What is said in place of importing a factory that only a file names."""
    shown = printable(name, MOST)
    return (
        f"the data set was made with the factory {shown}, and a file cannot choose what is imported: give --backbone "
        f"{shown} if you trust it (in Python: backbone=)"
    )


def made_by(name: str) -> Backbone:
    """What the factory `name`, MODULE:FACTORY, gives when it is called without arguments: its `factory` is that name, and a
    backbone without a name is called so. The module is one that Python finds, or in the current folder, where it and what
    it imports are looked for last.

    Raises BackboneError where the module is not found or cannot be imported, has no such attribute, or that is no function
    that works without arguments and gives a Backbone with a fingerprint.
    """
    match = FORM.fullmatch(name)
    if match is None:
        raise BackboneError(f"{printable(repr(name), 200)} is no factory: write MODULE:FACTORY")
    with _current_folder():
        factory = _attribute(_module(match[1]), match[1], match[2])
        backbone = _called(factory, name)
    if not isinstance(backbone, Backbone):
        raise BackboneError(
            f"the factory {name} gave a {type(backbone).__name__}, not a noisebook.backbones.Backbone: {_how(backbone)}"
        )
    if not backbone.fingerprint:
        raise BackboneError(f"the factory {name} gave a backbone without a fingerprint: {no_fingerprint()}")
    backbone.factory = name
    if backbone.name == Backbone.name:
        backbone.name = name
    return backbone


@contextmanager
def _current_folder() -> Iterator[None]:
    """The current folder as the last place in which modules are looked for: no file there hides an installed module."""
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    known = not here or here in sys.path or "" in sys.path
    if not known:
        sys.path.append(here)
    try:
        yield
    finally:
        if not known:
            with suppress(ValueError):
                sys.path.remove(here)


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{name}.".startswith(f"{error.name}."):
            hint = f"; without .py: {name[:-3]}" if name.endswith(".py") else ""
            raise BackboneError(
                f"no module {name!r} for the backbone's factory: it is looked for among the installed modules, in "
                f"PYTHONPATH and in the current folder{hint}"
            ) from error
        raise BackboneError(
            f"the module {name!r} of the backbone's factory cannot be imported: {said(error)}: `python -c 'import {name}'` "
            "shows where"
        ) from error


def _attribute(module: Any, module_name: str, path: str) -> Any:
    value = module
    for name in path.split("."):
        try:
            value = getattr(value, name)
        except AttributeError as error:
            own = [
                key
                for key, other in vars(module).items()
                if callable(other) and getattr(other, "__module__", None) == module.__name__ and not key.startswith("_")
            ]
            there = f"it defines {', '.join(own[:SHOWN])}{', ...' if len(own) > SHOWN else ''}" if own else "it defines none"
            raise BackboneError(f"the module {module_name!r} has no factory {path!r}: {there}") from error
    return value


def _called(factory: Any, name: str) -> Any:
    if isinstance(factory, nn.Module) or not callable(factory):
        raise BackboneError(
            f"{name} is a {type(factory).__name__}, not a factory: name a function without arguments that gives the backbone"
        )
    try:
        signature(factory).bind()
    except ValueError:  # of a function in C, which says nothing
        pass
    except TypeError as error:
        raise BackboneError(
            f"the factory {name} is called without arguments: {first_line(error)}: write a function that gives them"
        ) from error
    try:
        return factory()
    except torch.OutOfMemoryError:
        raise
    except NoisebookError as error:
        raise BackboneError(f"the factory {name} raised: {first_line(error)}") from error
    except (Exception, SystemExit) as error:
        module, _, function = name.partition(":")
        raise BackboneError(
            f"the factory {name} raised {said(error)}: `python -c 'import {module}; {module}.{function}()'` shows where"
        ) from error


def _how(value: Any) -> str:
    """How what a factory gave becomes a backbone."""
    if value is None:
        return "does it return it?"
    if isinstance(value, nn.Module):
        return (
            "put an adapter around the network, such as noisebook.backbones.families.flow.Flow(net), see docs/backbones.md"
        )
    return "derive a class from it with denoise(y, sigma), see docs/backbones.md"
