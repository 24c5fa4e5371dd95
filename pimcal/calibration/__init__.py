"""Calibration: measure what the device does to the activations, and correct it on the host."""

from pimcal.calibration.run import calibrate as calibrate
