"""Fixtures that the tests of backbones share."""

from families_kit import noise

__all__ = ["noise"]
