"""Why a file is refused, in words."""

from typing import NoReturn

from noisebook.errors import FormatError

# What is wrong with a file, in the order of the checks; csrc/nbk.cpp has the same names.
REFUSALS = {
    "few": "{size} bytes are too few for a .nbk file: it is truncated, or something else",
    "many": "more than {limit} bytes: not a .nbk file",
    "magic": "not a .nbk file (wrong magic bytes)",
    "checksum": "the checksum does not match: the file is truncated or damaged (decode --salvage decodes what is left)",
    "version": "format version {version} with flags {flags} is newer than this noisebook",
    "size": "the image size is zero: the file is damaged",
    "spec": "the embedded specification is cut off: the file is damaged",
    "derived": "the steps and tokens are cut off: the file is damaged",
    "zero": "the file says that it has no steps or no tokens: it is damaged",
    "payload": "the payload has {size} bytes where the codec has {whole}: damaged, or of another codec",
    "sets": "the payload has {size} bytes where the codec has at least {whole}: damaged, or of another codec",
    "coded": "the codec has {count} range-coded tokens, more than {size} bytes hold or a file may have: it is damaged",
    "padding": "padding bits are not zero: the file is damaged",
    "vocabulary": "a token is outside its vocabulary: the file is damaged, or of another codec",
}


def refuse(name: str, **values: int) -> NoReturn:
    """Raises FormatError with the reason of that name."""
    raise FormatError(REFUSALS[name].format(**values))
