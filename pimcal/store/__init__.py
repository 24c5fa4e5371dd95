"""Generations of calibration records in one directory: which is active, what came before, and how to go back."""

from pimcal.store.active import key_of, load_active
from pimcal.store.generations import Generation, Key
from pimcal.store.store import Store

__all__ = ["Generation", "Key", "Store", "key_of", "load_active"]
