"""Every random draw of a run as a function of (seed, step, rank, purpose), so that a resumed run repeats it exactly."""

import hashlib
import random

import numpy as np
import torch


def seed_for(seed: int, step: int, purpose: str) -> int:
    """Return a 63-bit seed for one purpose at one step. Distinct arguments give independent seeds (BLAKE2b)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def rank_seed(seed: int, rank: int) -> int:
    """Return the seed of one of a run's processes, which all differ; the first one has the run's seed."""
    return seed if rank == 0 else seed_for(seed, rank, "rank")


def torch_generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return a CPU generator for one purpose at one step.

    Draw on the CPU and move: then every device sees the same numbers.
    """
    return torch.Generator().manual_seed(seed_for(seed, step, purpose))


def numpy_generator(seed: int, step: int, purpose: str) -> np.random.Generator:
    """Return a numpy generator for one purpose at one step."""
    return np.random.default_rng(seed_for(seed, step, purpose))


def seed_globals(seed: int, step: int, purpose: str) -> None:
    """Seed the global generators of torch, numpy and random, for code that draws from them (dropout, for example)."""
    value = seed_for(seed, step, purpose)
    torch.manual_seed(value)
    np.random.seed(value % 2**32)
    random.seed(value)
