"""The lab: whole networks of the real code in one process, on a virtual clock, from one seed.

What is real: everything in kms, core and wire, and the store and keyring of production, kept in memory. What stands
in, each keeping its port's contract: the network (delays, loses, repeats, cuts), the machine (crashes, comes back, is
restored from an old copy), key agreement and signatures (seeded, so that a seed is a history). The lab proves nothing
about cryptography and is never used to make keys that matter.
"""
