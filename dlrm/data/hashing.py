"""Hashes that are the same in every process, on every machine, in every run."""

import hashlib

import numpy as np
import numpy.typing as npt

# The increment of SplitMix64: 2^64 / golden ratio, odd.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Well-mixed 64-bit hashes of the values.

    Source: SplitMix64's finaliser with increment (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
    generators", OOPSLA, figure 17; constants of Stafford's variant 13).
    """
    mixed = values + GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_bytes(value: bytes) -> int:
    """A 64-bit hash of a byte string; Python's own `hash` differs between processes.

    Source: BLAKE2b (RFC 7693) with an 8-byte digest.
    """
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little")
