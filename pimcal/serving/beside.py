"""Serving beside a daemon's worker, for as long as that runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from pimcal.daemon.client import ask
from pimcal.daemon.overview import Overview
from pimcal.daemon.subject import Subject
from pimcal.serving.app import Daemon
from pimcal.serving.binding import Binding, listen
from pimcal.serving.inference import Example, Inference
from pimcal.serving.server import serving
from pimcal.store import Store

logger = logging.getLogger(__name__)

WAIT_S = 2.0  # for a store that is being written


@contextmanager
def beside(
    overview: Overview, subject: Subject, store: Path, socket: Path, now: Callable[[], float], binding: Binding
) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Serve for the length of a block. What it gives is called with what stops the worker, which is called when the
    requests that are in work are answered.

    `socket`: the daemon's own; `now()`: Unix time by its clock. Raises as `listen`.
    """
    listener = listen(binding)
    bound = replace(binding, port=listener.getsockname()[1])
    example = Example.of(subject.images(subject.profile).held_out[0])
    daemon = Daemon(
        owner=overview,
        inference=Inference(overview.worker.submit, example),
        ask=partial(ask, socket),
        open_store=partial(Store.open, store, read_only=True, wait_s=WAIT_S),
        now=now,
    )
    with serving(daemon, bound, listener) as server:
        logger.info("serving at %s", bound.url)
        yield server.drain
