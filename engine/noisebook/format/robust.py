"""A header that is sent twice, so that what is left of a damaged file can be decoded: flag 8 of a file.

    head      16 bytes, 20 with a derived specification, 21 with its scaling, as in any file, with flag 8
    4         CRC-32C of the head
    payload
    head, 4   the same again
    4         CRC-32C of everything before

A specification that is embedded is not sent twice: such a file cannot have the flag. A reader makes the plain file of it
first, and reads that; one that does not know the flag refuses it by its flags.
"""

import struct

from noisebook.errors import FormatError
from noisebook.format.crc import crc32c
from noisebook.format.refusals import refuse

FLAG_ROBUST = 8
CHECKSUM = struct.Struct("<I")
SIZES = {0: 16, 2: 20, 6: 21}  # flags but this one -> bytes of the head


def sealed(head: bytes) -> bytes:
    """A head and its own checksum."""
    return head + CHECKSUM.pack(crc32c(head))


def wrapped(plain: bytes, size: int) -> bytes:
    """The bytes of a plain file with a head of `size` bytes -> the same with the head sent twice. Raises FormatError where
    its specification is embedded."""
    if SIZES.get(plain[2] & 15) != size:
        raise FormatError(
            "a robust file has its header twice, and no embedded specification: use a preset or a rate, or --no-embed-spec"
        )
    head = sealed(plain[:2] + bytes([plain[2] | FLAG_ROBUST]) + plain[3:size])
    return sealed(head + plain[size:-4] + head)


def unwrapped(data: bytes, magic: bytes) -> tuple[bytes, bool]:
    """(the plain file, whether the header was sent twice). Data without the flag are given back unchanged.

    Raises FormatError for a wrong checksum, and where the copies are not the same.
    """
    if len(data) < 16 or data[:2] != magic or data[2] >> 4 != 1 or not data[2] & FLAG_ROBUST:
        return data, False
    if data[-4:] != CHECKSUM.pack(crc32c(data[:-4])):
        refuse("checksum")
    size = SIZES.get(data[2] & 7)
    if size is None:
        refuse("version", version=1, flags=data[2] & 15)
    if len(data) < 2 * (size + 4) + 4 or not sealed(data[:size]) == data[: size + 4] == data[-size - 8 : -4]:
        raise FormatError("the two copies of the header differ: the file is damaged")
    return sealed(data[:2] + bytes([data[2] ^ FLAG_ROBUST]) + data[3:size] + data[size + 4 : -size - 8]), True
