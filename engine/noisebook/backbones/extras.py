"""Libraries that only some backbones need: each is imported where it is used, and its absence says what to install."""

from collections.abc import Iterator
from contextlib import contextmanager

from noisebook.errors import BackboneError


@contextmanager
def needs(library: str, extra: str) -> Iterator[None]:
    """Around the import of `library`: a BackboneError in place of ImportError says which extra of noisebook brings it."""
    try:
        yield
    except ImportError as error:
        raise BackboneError(f"this backbone needs {library}: pip install 'noisebook[{extra}]'") from error
