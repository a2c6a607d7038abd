"""Names of the things a network is made of.

A name is a plain string with a type of its own, so that a node is never handed where an SAE is meant.
The syntax is that of ETSI GS QKD 020 (1 to 64 characters that RFC 3986 allows), so that every SAE can be
reached from another domain.
"""

from __future__ import annotations

import re
from typing import NewType

NodeId = NewType("NodeId", str)
"""One site's KMS (a KME in ETSI words)."""

SaeId = NewType("SaeId", str)
"""An application that asks for keys."""

LinkId = NewType("LinkId", str)
"""Two adjacent nodes joined by a pair of QKD devices."""

TenantId = NewType("TenantId", str)
"""Whose roles, pools, quotas and metrics these are."""

_NAME = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]{1,64}")


def is_name(text: str) -> bool:
    """Tell whether `text` may name a node, an SAE or a link (GS QKD 020: 1..64 characters of RFC 3986)."""
    return _NAME.fullmatch(text) is not None
