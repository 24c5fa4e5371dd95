"""Recalibration: look at the device, find drift, undo it by the smallest remedy that helps."""
