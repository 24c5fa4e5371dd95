"""One request's way over the device: an array becomes the network's input, its output an array."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pimcal.batches import split_batch
from pimcal.calling import call_with, device_of
from pimcal.deployment import Deployment
from pimcal.errors import DataError, DeviceBusyError, DeviceUnavailableError, UsageError

logger = logging.getLogger(__name__)

MOST = 32  # requests in work at a time; for their bodies see `Room`
PATIENCE_S = 60.0  # for the device, which a calibration may have for itself
Submit = Callable[[Callable[[Deployment], Tensor]], Future[Tensor]]


@dataclass(frozen=True, slots=True)
class Example:
    """What the network is known to take: images of `shape` (without the batch) and `dtype`."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, batch: Any) -> Example | None:
        """As a batch has it; None where the network takes more than one tensor."""
        args, named, _ = split_batch(batch)
        if named or len(args) != 1 or not isinstance(args[0], Tensor):
            return None
        return cls(tuple(args[0].shape[1:]), args[0].dtype)

    def __str__(self) -> str:
        sizes = ", ".join(["N", *map(str, self.shape)])
        return f"; it was calibrated with [{sizes}], {str(self.dtype).removeprefix('torch.')}"


class Inference:
    """Used in one event loop. `mvms`: matrix-vector products of requests; the device's thread counts them."""

    def __init__(self, submit: Submit, example: Example | None, patience_s: float = PATIENCE_S) -> None:
        """`submit` as `Worker.submit`."""
        self._submit, self._example, self._patience_s = submit, example, patience_s
        self._running = 0
        self._turn = asyncio.Lock()  # one at a time, or the daemon itself would never have the device
        self._idle = asyncio.Event()
        self._idle.set()
        self.closed = False  # for `drain`
        self.mvms = 0

    def enter(self) -> None:
        """A request comes. Raises DeviceBusyError where there are too many, DeviceUnavailableError after `drain`."""
        if self.closed:
            raise DeviceUnavailableError("the daemon is stopping")
        if self._running >= MOST:
            raise DeviceBusyError(f"{MOST} requests are being served already; try again later")
        self._running += 1
        self._idle.clear()

    def leave(self) -> None:
        """It is answered."""
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def drain(self, limit_s: float) -> None:
        """Take no more, and wait for those that are in work, at most so long."""
        self.closed = True
        try:
            async with asyncio.timeout(limit_s):
                await self._idle.wait()
        except TimeoutError:
            logger.warning("%d requests could not be answered in time", self._running)

    async def answer(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The network's output for a batch `array` [N, ...].

        Raises DataError where it is none for this network, DeviceBusyError, DeviceUnavailableError where the device is
        not to be had.
        """
        inputs = self._inputs(array)
        try:
            async with asyncio.timeout(self._patience_s), self._turn:
                return _array(await asyncio.wrap_future(self._submit(lambda net: self._forward(net, inputs))))
        except TimeoutError as error:
            raise DeviceUnavailableError("the device is not free; it may be calibrating") from error
        except UsageError as error:  # of the model, whose message tells where its source is
            logger.debug("a request failed: %s", error)
            raise self._unfit(array) from error

    def _inputs(self, array: np.ndarray[Any, Any]) -> Tensor:
        dtype = self._example.dtype if self._example else torch.float32
        if not array.ndim or (array.dtype.kind == "f") != dtype.is_floating_point:
            raise self._unfit(array)
        given = _tensor(array)
        inputs = given.to(dtype)
        if not dtype.is_floating_point and not torch.equal(inputs.to(given.dtype), given):
            raise DataError(f"the array has values that {str(dtype)[6:]} cannot hold")
        if not inputs.isfinite().all():
            raise DataError(f"the array has values that are infinite or no numbers as {str(dtype)[6:]}")
        return inputs

    def _unfit(self, array: np.ndarray[Any, Any]) -> DataError:
        return DataError(
            f"the network does not take an array of shape {list(array.shape)} and type {array.dtype}"
            f"{self._example or ''}"
        )

    def _forward(self, net: Deployment, inputs: Tensor) -> Tensor:
        before = net.device.cost.mvms
        try:
            outputs = call_with(net, inputs, device_of(net))
        finally:
            self.mvms += net.device.cost.mvms - before
        if not isinstance(outputs, Tensor):
            raise DataError("the network's output is not one tensor, so it cannot be sent as an array")
        return outputs.detach().cpu()


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    """torch has not all of numpy's types, and these hold what they do."""
    if array.dtype == np.float32:
        return torch.from_numpy(array)
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise DataError("the array has values that int64 cannot hold")
    return torch.from_numpy(array.astype(np.float64 if array.dtype.kind == "f" else np.int64))


def _array(outputs: Tensor) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = (outputs.float() if outputs.dtype == torch.bfloat16 else outputs).numpy()
    return found
