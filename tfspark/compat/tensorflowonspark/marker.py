"""Markers in a queue of rows; tfspark does not send them, because the partitions of a feed arrive whole."""

from __future__ import annotations


class Marker:
    """Base class of the markers."""


class EndPartition(Marker):
    """The end of a partition."""
