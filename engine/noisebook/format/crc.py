"""The checksum of a `.nbk` file."""

from functools import cache

from noisebook.runtime.native import native


@cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), as in RFC 3720: reflected polynomial 0x82F63B78, initial and final complement."""
    if (c := native()) is not None:
        return c.nbk_crc32c(data)
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
