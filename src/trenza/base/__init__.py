"""The words everything else is written in: names, units, secrets, errors, and the ports of time and entropy.

Imports nothing of ours.
"""
