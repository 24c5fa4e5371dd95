"""Payloads of requests and answers.

Everything has `encode()` and a class method `decode(payload, ...)`. What a payload does not say itself (a tile's
shape, formats) is passed to `decode`. Decoding raises PayloadError with the status that a board answers.
"""

from pimcal.patches import Loop
from pimcal_serial.messages.hello import BoardInfo, Capability, HostInfo
from pimcal_serial.messages.link import U32, Boot, Log, LogLevel
from pimcal_serial.messages.products import Mvm, MvmGather, MvmResult, WriteBuffer
from pimcal_serial.messages.readings import Readings, SelfTest, Stats
from pimcal_serial.messages.weights import UNIT_GAIN, Program, ProgramResult, Readback, ReadbackResult, Trims

__all__ = [
    "U32",
    "UNIT_GAIN",
    "BoardInfo",
    "Boot",
    "Capability",
    "HostInfo",
    "Log",
    "LogLevel",
    "Loop",
    "Mvm",
    "MvmGather",
    "MvmResult",
    "Program",
    "ProgramResult",
    "Readback",
    "ReadbackResult",
    "Readings",
    "SelfTest",
    "Stats",
    "Trims",
    "WriteBuffer",
]
