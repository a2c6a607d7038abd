"""Recipes: which origins a key must contain and how they are braided. One closed table.

A recipe is a label that both ends know by a 4-bit code, never a set of options: what is not in the table cannot be
asked for, and a key that lacks an origin is another recipe, not the same one with a gap. A row's meaning never
changes; a different meaning takes a free code or a new SUITE_VERSION.
Sources: ETSI TS 103 744 V1.2.1 (CatKDF, CasKDF), NIST SP 800-56C r2 (two-step), ITU-T X.1714 (XOR of equal lengths).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trenza.base.errors import InvalidRequestError
from trenza.base.units import Bits, bits_of_bytes
from trenza.core.strand import STRAND_BYTES, Origin

SUITE_VERSION = 1
"""Version of this table; part of every suite ID, so keys of two tables never coincide."""

SIZE_MIN = Bits(64)
"""KMAC gives no shorter output in the library used, and no application has a use for one."""

STRETCHED_SIZE_MAX = Bits(65_536)
"""Below what every KDF of the table can give (HKDF-SHA384: 255 blocks of 48 bytes, less a chain secret)."""

_STRAND_BITS = bits_of_bytes(STRAND_BYTES)


class Combiner(Enum):
    """How strands become one key; what each does is in `core/combine.py`."""

    CATKDF_HKDF_SHA384 = "catkdf-hkdf-sha384"
    CATKDF_KMAC256 = "catkdf-kmac256"
    CASKDF_HKDF_SHA384 = "caskdf-hkdf-sha384"
    SP800_56C_TWO_STEP = "sp800-56c-two-step-hmac-sha384"
    ITS_XOR = "its-xor"
    QKD_BITS = "qkd-bits"
    RANDOM = "random"


_BIT_FOR_BIT = frozenset({Combiner.ITS_XOR, Combiner.QKD_BITS, Combiner.RANDOM})
"""Combiners whose every output bit has a strand bit of its own; the others stretch one slot."""


@dataclass(frozen=True, slots=True)
class Strength:
    """What may be said of a key's secrecy, given that its strands are what their origins claim."""

    information_theoretic: bool
    """No computing power helps: each of the key's bits is hidden by a QKD bit of its own."""

    bits: int
    """Otherwise: finding the key takes a search among 2**bits, the strands being unknown."""

    def __str__(self) -> str:
        return "information-theoretic" if self.information_theoretic else f"{self.bits}-bit"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One row of the table."""

    code: int
    """0..15, as key IDs carry it."""

    name: str
    origins: frozenset[Origin]
    """Exactly these, each once per slot: more is refused as well as less."""

    combiner: Combiner

    @property
    def needs_qkd(self) -> bool:
        return Origin.QKD in self.origins

    @property
    def suite_id(self) -> bytes:
        """Return the eight bytes that name table version and recipe in salt and info."""
        return b"TRENZA" + bytes((SUITE_VERSION, self.code))

    def slots_for(self, size: Bits) -> int:
        """Return how many slots a key of `size` consumes.

        One for a recipe that stretches; one per 256 bits, the last one cut, where each output bit has its own.

        Raises:
            InvalidRequestError: no key of that size can be made with this recipe.
        """
        if size < SIZE_MIN or size % 8:
            raise InvalidRequestError(f"a key has a multiple of 8 and at least {SIZE_MIN} bits")
        if self.combiner in _BIT_FOR_BIT:
            return -(-size // _STRAND_BITS)
        if size > STRETCHED_SIZE_MAX:
            raise InvalidRequestError(f"recipe {self.name} makes keys of at most {STRETCHED_SIZE_MAX} bits")
        return 1

    def strength(self, size: Bits) -> Strength:
        """Return what may be said of a key of `size`.

        "Information-theoretic" only where every output bit has its own QKD bit (`its`, `qkd-only`), and only as far
        as the QKD bits are: provenance says who else saw them and what ε the source states. Everything else is
        computational, min(size, 256) bits: a longer key drawn from 256-bit strands is no stronger than a strand. So
        is a `local` or `wrapped` key, however many bits it draws, because the generator is.
        """
        if self.combiner in {Combiner.ITS_XOR, Combiner.QKD_BITS}:
            return Strength(information_theoretic=True, bits=size)
        return Strength(information_theoretic=False, bits=min(size, _STRAND_BITS))


_HYBRID = frozenset({Origin.CLASSICAL, Origin.PQC, Origin.QKD})
_EXCHANGE = frozenset({Origin.CLASSICAL, Origin.PQC})

HYBRID_CATKDF = Recipe(0, "hybrid-catkdf", _HYBRID, Combiner.CATKDF_HKDF_SHA384)
"""The default."""
EXCHANGE_CATKDF = Recipe(1, "exchange-catkdf", _EXCHANGE, Combiner.CATKDF_HKDF_SHA384)
"""`exchange-*`: what the joint exchange of the two end nodes gives alone, while there is no QKD."""
HYBRID_SP800_56C = Recipe(2, "hybrid-sp800-56c", _HYBRID, Combiner.SP800_56C_TWO_STEP)
EXCHANGE_SP800_56C = Recipe(3, "exchange-sp800-56c", _EXCHANGE, Combiner.SP800_56C_TWO_STEP)
HYBRID_CASKDF = Recipe(4, "hybrid-caskdf", _HYBRID, Combiner.CASKDF_HKDF_SHA384)
EXCHANGE_CASKDF = Recipe(5, "exchange-caskdf", _EXCHANGE, Combiner.CASKDF_HKDF_SHA384)
HYBRID_CATKDF_KMAC = Recipe(6, "hybrid-catkdf-kmac", _HYBRID, Combiner.CATKDF_KMAC256)
EXCHANGE_CATKDF_KMAC = Recipe(7, "exchange-catkdf-kmac", _EXCHANGE, Combiner.CATKDF_KMAC256)
ITS = Recipe(8, "its", _HYBRID, Combiner.ITS_XOR)
"""For one-time-pad users: n QKD bits per n key bits, masked by a KDF of the other origins."""
QKD_ONLY = Recipe(9, "qkd-only", frozenset({Origin.QKD}), Combiner.QKD_BITS)
"""The key is the QKD bits, known to whoever saw them on the way: only for a path that is trusted as a whole."""
PQC_QKD_CATKDF = Recipe(10, "pqc-qkd-catkdf", frozenset({Origin.PQC, Origin.QKD}), Combiner.CATKDF_HKDF_SHA384)
LOCAL = Recipe(11, "local", frozenset({Origin.LOCAL}), Combiner.RANDOM)
"""Two SAEs on one node, which share no QKD or PQC strand."""
WRAPPED = Recipe(12, "wrapped", frozenset({Origin.LOCAL}), Combiner.RANDOM)
"""Several targets: a random key, carried to each of them under a key of another recipe; as good as the weakest."""

RECIPES = (
    HYBRID_CATKDF,
    EXCHANGE_CATKDF,
    HYBRID_SP800_56C,
    EXCHANGE_SP800_56C,
    HYBRID_CASKDF,
    EXCHANGE_CASKDF,
    HYBRID_CATKDF_KMAC,
    EXCHANGE_CATKDF_KMAC,
    ITS,
    QKD_ONLY,
    PQC_QKD_CATKDF,
    LOCAL,
    WRAPPED,
)
"""The whole table, in order of code."""

_BY_CODE = {recipe.code: recipe for recipe in RECIPES}
_BY_NAME = {recipe.name: recipe for recipe in RECIPES}
_RUNGS = tuple(recipe.name for recipe in RECIPES if recipe is not WRAPPED)
"""The names that a policy's ladder may hold."""


def recipe_of_code(code: int) -> Recipe:
    """Return the recipe that key IDs call `code`.

    Raises:
        InvalidRequestError: the table has no such row.
    """
    try:
        return _BY_CODE[code]
    except KeyError:
        raise InvalidRequestError(f"no recipe has the code {code}") from None


def recipe_named(name: str) -> Recipe:
    """Return the recipe that policies call `name`.

    Raises:
        InvalidRequestError: the table has no such row.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise InvalidRequestError(f"no recipe is called {name!r}; there are {', '.join(_RUNGS)}") from None
