"""The sections of a profile that every backend shares."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationInfo,
    field_validator,
)

from pimcal.profile.cron import check_cron, shortest_gap
from pimcal.profile.duration import Duration, PositiveDuration, format_duration
from pimcal.profile.local_time import QuietHours, TimeZone
from pimcal.profile.ranges import Cells, Images, ReferenceColumns, Repeats, Share

ConverterBits = Annotated[int, Field(ge=2, le=16)]
OncePerSecond = Annotated[int, Field(gt=0, le=3600)]  # more within an hour no calibration takes so little time for
TriggerLimit = Annotated[dict[str, FiniteFloat], Field(min_length=1, max_length=1)]


class Section(BaseModel):
    """Unknown keys are refused, types are not guessed, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Tiles(Section):
    """How many tiles the device has, and their size in cells."""

    count: Cells | None = Field(None, description="tiles on the device; left out: unbounded")
    rows: Cells | None = Field(None, description="inputs of one tile; left out: unbounded")
    cols: Cells | None = Field(None, description="outputs of one tile; left out: unbounded")


class Io(Section):
    """Widths of the converters between host and array, in bits."""

    input_bits: ConverterBits | None = Field(None, description="DAC; left out: floating point")
    output_bits: ConverterBits | None = Field(None, description="ADC; left out: floating point")


class References(Section):
    """Columns of every tile that are reserved to measure what the array does to the others."""

    offset: ReferenceColumns = Field(0, description="columns programmed with zeros, which show what the array adds")
    gain: ReferenceColumns = Field(
        0, description="columns of a known constant, which show what the array multiplies by"
    )


class Calibration(Section):
    """How a calibration is made, unless a command or a call says otherwise."""

    method: Literal["paired", "affine", "pooled", "ema"] = "paired"
    images: Images = Field(64, description="calibration images")
    batch_size: Images | None = Field(
        None, description="images in a batch, each of which sees a noise draw of its own; left out: 64 for ema, else 16"
    )
    momentum: Share = Field(0.999, description="ema only: share of the running value kept at each batch")


class Gate(Section):
    """What a candidate calibration must show on held-out images before it is activated."""

    max_drop: Share = Field(0.0, description="allowed drop against what is active, as a fraction")
    repeats: Repeats = Field(1, description="times each side is measured; the noise is redrawn each time")
    images: Images | None = Field(None, description="held-out images used; left out: all")


class Recalibration(Section):
    """When a running device is looked at again, and what holds that back.

    A scheduled look (`every`, `cron`) is a probe where a trigger of `when` needs one, else a recalibration. Triggers
    that need no device time are watched all the time. What `pimcal/recalibration/decide.py` makes of it is in its
    docstrings.
    """

    every: PositiveDuration | None = Field(None, description="fixed interval")
    cron: Annotated[str, AfterValidator(check_cron)] | None = Field(None, description="five-field cron")
    when: tuple[TriggerLimit, ...] = Field((), description="drift triggers, one name and its limit each")
    jitter: Duration | None = Field(None, description="largest random delay of a scheduled look")
    cooldown: Duration | None = Field(None, description="least time between two recalibrations")
    max_per_hour: OncePerSecond | None = Field(None, description="most recalibrations within any hour")
    max_age: PositiveDuration | None = Field(None, description="oldest calibration to keep using")
    quiet_hours: QuietHours = Field((), description="times of day at which no probe or recalibration begins")
    timezone: TimeZone = Field("UTC", description="IANA time zone of cron and quiet hours")

    @field_validator("jitter")
    @classmethod
    def _stay_in_the_interval(cls, jitter: timedelta | None, info: ValidationInfo) -> timedelta | None:
        every, cron = info.data.get("every"), info.data.get("cron")
        for name, gap in (("every", every), ("the shortest time of cron", shortest_gap(cron) if cron else None)):
            if jitter and gap and jitter >= gap:
                told = format_duration(gap)
                raise ValueError(f"must be shorter than {name} ({told}), or looks would run into the next")
        return jitter

    @field_validator("max_age")
    @classmethod
    def _outlast_the_cooldown(cls, max_age: timedelta | None, info: ValidationInfo) -> timedelta | None:
        cooldown = info.data.get("cooldown")
        if max_age and cooldown and max_age < cooldown:
            raise ValueError(f"must not be shorter than cooldown ({format_duration(cooldown)}), which would break it")
        return max_age
