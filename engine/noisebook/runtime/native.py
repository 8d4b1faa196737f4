"""The C++ extension: loaded here and nowhere else, and missed aloud."""

import functools
import types
import warnings


class NoExtensionWarning(RuntimeWarning):
    """noisebook runs without its C++ extension, which takes much longer on a CPU."""


@functools.cache
def native() -> types.ModuleType | None:
    """`noisebook._C`, or None where it was not built, cannot be loaded, or is older than the functions that we call."""
    try:
        from noisebook import _C
    except ImportError:
        return None
    return _C if hasattr(_C, "nbk_parse") else None


def warn_without_native() -> None:
    """Says on stderr that the extension is missing and what to do; `noisebook.codec` calls it when it is imported.

    Many scripts silence all warnings, and then nothing would tell why it is slow: no filter hides this one.
    """
    if native() is None:
        with warnings.catch_warnings():
            warnings.simplefilter("always", NoExtensionWarning)
            warnings.warn(
                "noisebook runs without its C++ extension, which was not built or is of another version: on a CPU it is "
                "many times slower. Install a C++ compiler and reinstall noisebook.",
                NoExtensionWarning,
                stacklevel=2,
            )
