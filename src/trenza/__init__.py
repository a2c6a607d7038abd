"""Trenza: an open hybrid key management system for quantum communication networks.

*Trenza* is Spanish for braid. Strands of secret bits of different origins (QKD, post-quantum, classical)
become one key. The house plan is docs/architecture.md; imports only point down.
"""

__version__ = "0.1.0"
