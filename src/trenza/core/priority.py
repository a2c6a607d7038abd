"""Classes of traffic: who goes first when keys are scarce (design decision 12). Pure names, no bookkeeping.

A class is a small number in the policy book. Where there is plenty it changes nothing; where there is not, what is
left is kept for the higher classes, and links are filled for them first.
"""

from __future__ import annotations

from enum import IntEnum, unique


@unique
class Priority(IntEnum):
    """The classes, least urgent first. The numbers are the book's and never change their meaning."""

    BEST_EFFORT = 0
    BULK = 1
    LOW = 2
    NORMAL = 3
    RAISED = 4
    HIGH = 5
    CRITICAL = 6
    EMERGENCY = 7

    def __str__(self) -> str:
        return self.name.lower().replace("_", "-")


DEFAULT = Priority.NORMAL
"""Of a policy that names no class."""
