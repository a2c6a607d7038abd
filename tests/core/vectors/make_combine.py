"""Print combine.json: one key per recipe and size, computed without Trenza.

An oracle, written apart from the package: HKDF after RFC 5869 and the combiners of ETSI TS 103 744 V1.2.1 in a few
lines of the standard library, KMAC256 from pycryptodome. Run it and compare, or redirect it into combine.json.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys

from Crypto.Hash import KMAC256

SIZES = (64, 128, 256, 384, 1000, 2048)  # bits; 1000 ends inside a strand
NAMES = ("madrid.node", "toledo.node", "sae/niño", "sae/beta")  # one name is longer in bytes than in characters

RECIPES = (
    (0, "hybrid-catkdf", "QCP"),
    (1, "exchange-catkdf", "CP"),
    (2, "hybrid-sp800-56c", "PCQ"),
    (3, "exchange-sp800-56c", "PC"),
    (4, "hybrid-caskdf", "QCP"),
    (5, "exchange-caskdf", "CP"),
    (6, "hybrid-catkdf-kmac", "QCP"),
    (7, "exchange-catkdf-kmac", "CP"),
    (8, "its", "QCP"),
    (9, "qkd-only", "Q"),
    (10, "pqc-qkd-catkdf", "QP"),
    (11, "local", "L"),
    (12, "wrapped", "L"),
)
ORIGINS = {"Q": "qkd", "P": "pqc", "C": "classical", "L": "local"}
ONE_STRAND_PER_256_BITS = (8, 9, 11, 12)


def made_up(what: str, length: int) -> bytes:
    """Return bytes that look random and depend on a name only."""
    return hashlib.shake_256(f"trenza test vector: {what}".encode()).digest(length)


def value(octets: bytes) -> bytes:
    return len(octets).to_bytes(4, "big") + octets


def hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    extracted = hmac.new(salt, secret, hashlib.sha384).digest()
    block, output, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(extracted, block + info + bytes([counter]), hashlib.sha384).digest()
        output, counter = output + block, counter + 1
    return output[:length]


def kmac(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    return KMAC256.new(key=salt, data=b"\0\0\0\1" + secret + info, mac_len=length, custom=b"KDF").digest()


def braid(code: int, slots: list[dict[str, bytes]], info: bytes, ma: bytes, mb: bytes, length: int) -> bytes:
    label = b"TRENZA\x01" + bytes([code]) + bytes(40)
    order = {row[0]: row[2] for row in RECIPES}[code]
    joined = b"".join(slots[0][letter] for letter in order)
    spelled = value(info) + value(ma) + value(mb)
    if code in {0, 1, 10}:
        return hkdf(label, joined, hashlib.sha384(spelled).digest(), length)
    if code in {2, 3}:
        return hkdf(label, joined, spelled, length)
    if code in {4, 5}:
        chain, key = slots[0].get("Q", b""), b""
        for letter in "CP":
            mixed = hashlib.sha384(value(slots[0][letter]) + value(ma) + value(mb)).digest()
            both = hkdf(label, hmac.new(chain, mixed, hashlib.sha384).digest(), info, 48 + length)
            chain, key = both[:48], both[48:]
        return key
    if code in {6, 7}:
        return kmac(label, joined, spelled, length)
    if code == 8:
        pad = b"".join(slot["Q"] for slot in slots)[:length]
        mask = b""
        for index, slot in enumerate(slots):
            numbered = value(info + index.to_bytes(4, "big")) + value(ma) + value(mb)
            mask += hkdf(label, slot["C"] + slot["P"], hashlib.sha384(numbered).digest(), 32)
        return bytes(a ^ b for a, b in zip(pad, mask[:length], strict=True))
    return b"".join(slot[order] for slot in slots)[:length]


def vector(code: int, name: str, letters: str, size: int) -> dict[str, object]:
    count = -(-size // 256) if code in ONE_STRAND_PER_256_BITS else 1
    slots = [{letter: made_up(f"{ORIGINS[letter]} {index}", 32) for letter in letters} for index in range(count)]
    ma, mb = made_up("initiator's message", 48), made_up("responder's message", 48)
    key_id, policy, provenance = made_up("key ID", 16), made_up("policy", 48), made_up("provenance", 48)
    info = b"\x01" + value(b"TRENZA\x01" + bytes([code])) + b"".join(value(text.encode()) for text in NAMES)
    info += value(key_id) + value(policy) + value(provenance) + value(size.to_bytes(4, "big"))
    return {
        "recipe": name,
        "code": code,
        "size_bits": size,
        "slots": [{ORIGINS[letter]: octets.hex() for letter, octets in slot.items()} for slot in slots],
        "ma": ma.hex(),
        "mb": mb.hex(),
        "names": list(NAMES),
        "key_id": key_id.hex(),
        "policy_digest": policy.hex(),
        "provenance_digest": provenance.hex(),
        "info": info.hex(),
        "key": braid(code, slots, info, ma, mb, size // 8).hex(),
    }


def document() -> str:
    vectors = [vector(*row, size) for row in RECIPES for size in SIZES]
    return json.dumps({"made_by": "make_combine.py", "vectors": vectors}, indent=1) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
