"""The probe: has the device drifted since its answers to the golden vectors were accepted?

Each tile is asked its golden vectors a few times, each time under another draw of the temporal noise. Three numbers
are compared with those of the accepted answers: gain, offset, and the power of the rest (see `statistics.Parts`).
Student's t for every tile finds what happens to one of them, and the scores of all tiles together what happens to the
whole device. Half of the false alarms that are allowed go to each, divided by Bonferroni. A change has to be sure and
large enough: what costs no accuracy is no drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from pimcal.deployment import Deployment
from pimcal.recalibration.golden import Answer, Spot, ask, golden_inputs, products
from pimcal.recalibration.statistics import KINDS, combined, normal_scores, parts_of, spread, threshold
from pimcal.stored import KNOWN_KEYS_ONLY

TileState = Literal["good", "drifted", "dead", "unknown"]

Limit = Annotated[float, Field(strict=True, gt=0, le=1e6)]  # a share of the answers

REFERENCE_DRAWS = 16  # whose mean the answers are compared with
SPREAD_DRAWS = 32  # which tell how much they fluctuate
ACCEPTED_DRAWS = REFERENCE_DRAWS + SPREAD_DRAWS

_NUMBERS = ("gain", "offset", "power")  # what is tested; noise and shape share the last
_ONE_TILE = 2.0
_DEAD_BELOW = 0.2  # of the accepted answers' share in a tile's answers: less is no drift any more


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """`draws`: times that each tile is asked. `false_alarms`: their probability in a check of all tiles.

    A change of all tiles counts from these shares of the answers' root mean square on: `gain`; `offset`, what was
    added; `noise`, what came to the fluctuation from batch to batch; `shape`, what differs from column to column and
    lasts. That of one tile, which costs less accuracy, counts from twice as much on.
    """

    __pydantic_config__: ClassVar = KNOWN_KEYS_ONLY

    draws: Annotated[int, Field(strict=True, ge=1, le=10_000)] = 4
    false_alarms: Annotated[float, Field(strict=True, gt=0, lt=1)] = 0.0005
    gain: Limit = 0.02
    offset: Limit = 0.02
    noise: Limit = 0.08
    shape: Limit = 0.1

    @property
    def limits(self) -> Tensor:
        return torch.tensor([getattr(self, kind) for kind in KINDS], dtype=torch.float64)

    def tolerating(self, look: Probe, kinds: Sequence[str], base: ProbeSettings) -> ProbeSettings:
        """These settings with limits a tenth above what `look` found of such kinds, at most twice those of `base`."""
        raised = {kind: min(1.1 * look.size_of(kind), 2 * getattr(base, kind)) for kind in kinds}
        return replace(self, **{kind: max(limit, getattr(self, kind)) for kind, limit in raised.items()})


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a tile: its three numbers' change and standard error [3], and the change's sizes by kind [4]."""

    numbers: Tensor
    error: Tensor
    sizes: Tensor


@dataclass(frozen=True, slots=True)
class AcceptedTile:
    """One tile's accepted answers, and how its three numbers spread around them.

    `reference` [vectors, cols] is the mean of the first draws; `mean` and `std` [3] are those of the numbers of the
    others, `power` and `lasting_power` those of their rests. `answers` [vectors, cols] is the mean of all.
    """

    inputs: Tensor
    reference: Tensor
    mean: Tensor
    std: Tensor
    power: float
    lasting_power: float
    answers: Tensor

    @classmethod
    def of(cls, inputs: Tensor, answers: Tensor) -> Self | None:
        """From `ACCEPTED_DRAWS` draws; None where they are zeros or no numbers."""
        reference = answers[:REFERENCE_DRAWS].mean(0)
        if not (bool(answers.isfinite().all()) and bool(reference.any())):
            return None
        parts = parts_of(answers[REFERENCE_DRAWS:], reference, inputs.double().sum(1))
        mean, std = parts.numbers.mean(0), spread(parts.numbers)
        return cls(inputs, reference, mean, std, float(parts.power.mean()), parts.lasting_power, answers.mean(0))

    def change(self, answers: Tensor) -> Change:
        """What `answers` [draws, vectors, cols] have changed.

        A change of shape moves gain and offset by chance, too, the more the fewer columns there are: hence `error`.
        """
        parts = parts_of(answers, self.reference, self.inputs.double().sum(1))
        numbers = parts.numbers.mean(0) - self.mean
        shape = max(0.0, parts.lasting_power - self.lasting_power)
        noise = max(0.0, float(parts.power.mean()) - self.power - shape)
        by_chance = numbers.new_tensor([shape / answers.shape[2]] * 2 + [0.0])
        error = (self.std.square() * (1 / len(answers) + 1 / SPREAD_DRAWS) + by_chance).sqrt()
        return Change(numbers, error, torch.cat([numbers[:2], numbers.new_tensor([noise, shape]).sqrt()]))


@dataclass(frozen=True, slots=True, eq=False)
class Accepted:
    """What the tiles answered when the present corrections were found to be right; `unusable` ones and why.

    Equal is what is the same object.
    """

    tiles: dict[Spot, AcceptedTile]
    unusable: dict[Spot, str]

    @classmethod
    def of(cls, inputs: Mapping[Spot, Tensor], answers: Mapping[Spot, Answer]) -> Self:
        tiles, unusable = {}, {}
        for spot, answer in answers.items():
            found = None if isinstance(answer, str) else AcceptedTile.of(inputs[spot], answer)
            if found is None:
                unusable[spot] = answer if isinstance(answer, str) else "answered zeros, NaN or infinity"
            else:
                tiles[spot] = found
        return cls(tiles, unusable)

    def renewed(self, answers: Mapping[Spot, Answer]) -> Self:
        """The same with tiles that answered `ACCEPTED_DRAWS` times anew; one that does not answer keeps its own."""
        newer = type(self).of({spot: self.tiles[spot].inputs for spot in answers}, answers)
        return type(self)({**self.tiles, **newer.tiles}, self.unusable)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for `from_state`."""
        tiles = [[list(spot), {key: getattr(tile, key) for key in _PARTS}] for spot, tile in self.tiles.items()]
        return {"tiles": tiles, "unusable": [[list(spot), why] for spot, why in self.unusable.items()]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError, ValueError for what `state_dict` did not give."""
        tiles = {_spot(spot): _tile(parts) for spot, parts in state["tiles"]}
        return cls(tiles, {_spot(spot): str(why) for spot, why in state["unusable"]})


_PARTS = ("inputs", "reference", "mean", "std", "power", "lasting_power", "answers")


def _spot(numbers: Sequence[Any]) -> Spot:
    load, tile = numbers
    if type(load) is not int or type(tile) is not int or min(load, tile) < 0:
        raise ValueError(f"{numbers!r} is no tile of a load")
    return load, tile


def _tile(parts: Mapping[str, Any]) -> AcceptedTile:
    tile = AcceptedTile(**parts)
    tensors = (tile.inputs, tile.reference, tile.answers, tile.mean, tile.std)
    if not all(isinstance(each, Tensor) and each.is_floating_point() and each.isfinite().all() for each in tensors):
        raise ValueError("a tile's answers are no numbers")
    if not all(isinstance(each, float) and math.isfinite(each) for each in (tile.power, tile.lasting_power)):
        raise ValueError("the power of a tile's answers is no number")
    vectors = {each.shape[:1] for each in tensors[:3]}
    if {each.ndim for each in tensors[:3]} != {2} or len(vectors) > 1 or tile.reference.shape != tile.answers.shape:
        raise ValueError("a tile's answers do not fit its inputs")
    if tile.mean.shape != (len(_NUMBERS),) or tile.std.shape != tile.mean.shape:
        raise ValueError("the numbers of a tile's answers are too many or too few")
    return tile


@dataclass(frozen=True, slots=True)
class TileFinding:
    """What a probe found at a tile. `effects`: shares of the answers; `scores`: how sure, in standard deviations.

    `kinds`: which of them are drift. `reason`: why there is nothing to tell of a tile.
    """

    state: TileState
    effects: dict[str, float]
    scores: dict[str, float]
    kinds: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """A look at the device.

    `effects` and `scores` are those of all good tiles together: where a kind of drift is in `everywhere` the whole
    device has it. `statistic`: the largest change relative to what counts as drift, by its size or its score, whichever
    is less: drift from 1 on. `mvms`: what the probe took.
    """

    tiles: dict[Spot, TileFinding]
    effects: dict[str, float]
    scores: dict[str, float]
    everywhere: tuple[str, ...]
    statistic: float
    mvms: int

    def of_state(self, *states: TileState) -> tuple[Spot, ...]:
        return tuple(spot for spot, tile in self.tiles.items() if tile.state in states)

    @property
    def drifted(self) -> bool:
        return bool(self.everywhere or self.of_state("drifted"))

    @property
    def error(self) -> float:
        """The size of the largest drift, a share of the answers; 0 where there is none. Dead tiles are none."""
        return max(self.size_of(kind) for kind in KINDS)

    def size_of(self, kind: str) -> float:
        """The size of such a drift, as the limit for all tiles would measure it; 0 where there is none."""
        found = [tile.effects[kind] / _ONE_TILE for tile in self.tiles.values() if kind in tile.kinds]
        if kind in self.everywhere:
            found.append(self.effects[kind])
        return max((abs(size) for size in found), default=0.0)

    @property
    def reason(self) -> str:
        """What was found, in words."""
        parts = [f"{kind} of all tiles changed by {self.effects[kind]:+.1%}" for kind in self.everywhere]
        named = self.of_state("drifted")
        if named:
            parts.append(f"tiles {', '.join(str(tile) for _, tile in named[:8])}{' ...' * (len(named) > 8)} drifted")
        dead = self.of_state("dead")
        if dead:
            parts.append(f"tiles {', '.join(str(tile) for _, tile in dead)} are dead")
        return "; ".join(parts) or f"no drift: what changed is {self.statistic:.0%} of what counts as drift"


def accept(net: Deployment) -> Accepted:
    """Ask every tile often enough to know its answers and their noise: what later probes compare with."""
    inputs = golden_inputs(net)
    return Accepted.of(inputs, ask(net, inputs, ACCEPTED_DRAWS))


def probe(net: Deployment, accepted: Accepted, settings: ProbeSettings | None = None) -> Probe:
    """Look for drift since `accepted`. Takes draws x vectors products a tile, see `products_of`.

    Raises DeviceUnavailableError, DeviceBusyError where the device is gone.
    """
    settings = settings or ProbeSettings()
    before = net.device.cost.mvms
    answers = ask(net, inputs_of(net, accepted), settings.draws)
    return compare(accepted, answers, settings, net.device.cost.mvms - before)


def inputs_of(net: Deployment, accepted: Accepted) -> dict[Spot, Tensor]:
    """The golden vectors of tiles that have accepted answers and hold the same of the network now."""
    resident = net.array.resident
    return {spot: tile.inputs for spot, tile in accepted.tiles.items() if resident.get(spot[1]) == spot[0]}


def products_of(net: Deployment, draws: int) -> int:
    """The matrix-vector products of a probe, before it is made."""
    return products(golden_inputs(net), draws)


def compare(accepted: Accepted, answers: Mapping[Spot, Answer], settings: ProbeSettings, mvms: int) -> Probe:
    """What `answers` tell about the tiles. A pure function."""
    found = {spot: _changed(tile, answers.get(spot)) for spot, tile in accepted.tiles.items()}
    changes = {spot: change for spot, change in found.items() if isinstance(change, Change)}
    tiles = {spot: change for spot, change in found.items() if isinstance(change, TileFinding)}
    if not changes:  # a tile that does not answer has lost all of its gain
        lost = any(finding.state == "dead" for finding in tiles.values())
        return Probe(tiles, {}, {}, (), lost / settings.gain, mvms)
    scores = torch.stack([normal_scores(c.numbers, c.error, SPREAD_DRAWS) for c in changes.values()])
    sizes = torch.stack([change.sizes for change in changes.values()])
    all_scores, all_sizes = combined(scores), torch.cat([sizes[:, :2].mean(0), sizes[:, 2:].square().mean(0).sqrt()])
    sure_of_one, sure_of_all = (threshold(settings.false_alarms / 2, tests) for tests in (len(changes), 1))
    ratios = _ratios(scores / sure_of_one, sizes / (_ONE_TILE * settings.limits))
    all_ratios = _ratios(all_scores / sure_of_all, all_sizes / settings.limits)
    for spot, ratio, size, score in zip(changes, ratios, sizes, scores, strict=True):
        drifted = _kinds(ratio)
        tiles[spot] = TileFinding("drifted" if drifted else "good", _named(size), _named(score), drifted)
    return Probe(
        {spot: tiles[spot] for spot in accepted.tiles},
        _named(all_sizes),
        _named(all_scores),
        _kinds(all_ratios),
        float(torch.maximum(ratios.amax(), all_ratios.amax())),
        mvms,
    )


def _changed(tile: AcceptedTile, answer: Answer | None) -> Change | TileFinding:
    """The change of a tile, or why there is none to tell."""
    if answer is None:
        return TileFinding("unknown", {}, {}, reason="holds something else now")
    if isinstance(answer, str):
        return TileFinding("dead", {}, {}, reason=answer)
    if not bool(answer.isfinite().all()):
        return TileFinding("dead", {}, {}, reason="answers NaN or infinity")
    change = tile.change(answer)
    if float(1 + tile.mean[0] + change.numbers[0]) < _DEAD_BELOW:
        return TileFinding("dead", {}, {}, reason="its answers have nothing to do with the accepted ones any more")
    return change


def _ratios(scores: Tensor, sizes: Tensor) -> Tensor:
    """How far each kind is on the way to drift: by score or by size, whichever is less. Power counts upwards only."""
    signed = torch.cat([scores[..., :2].abs(), scores[..., 2:], scores[..., 2:]], dim=-1)
    return torch.minimum(signed, sizes.abs())


def _kinds(ratios: Tensor) -> tuple[str, ...]:
    return tuple(kind for kind, ratio in zip(KINDS, ratios.tolist(), strict=True) if ratio >= 1)


def _named(values: Tensor) -> dict[str, float]:
    return dict(zip(KINDS if len(values) == len(KINDS) else _NUMBERS, values.tolist(), strict=True))
