"""Marks in a queue of rows; nothing sends them any more, since a feed's partitions arrive whole."""

from __future__ import annotations


class Marker:
    """Base of the marks."""


class EndPartition(Marker):
    """The end of a partition."""
