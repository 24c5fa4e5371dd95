"""Hardware profiles: YAML to a validated model, every mistake with file:line:column."""

from pimcal.profile.load import ProfileSummary, list_profiles, load_profile, source_text
from pimcal.profile.model import Profile
from pimcal.profile.overrides import parse_override
from pimcal.profile.problems import ProfileError
from pimcal.profile.schema import profile_schema
from pimcal.profile.sections import Calibration, Gate, Io, Recalibration, References, Tiles

__all__ = [
    "Calibration",
    "Gate",
    "Io",
    "Profile",
    "ProfileError",
    "ProfileSummary",
    "Recalibration",
    "References",
    "Tiles",
    "list_profiles",
    "load_profile",
    "parse_override",
    "profile_schema",
    "source_text",
]
