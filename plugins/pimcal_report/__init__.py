"""Plots of sweeps and divergences, as a plugin that listens for finished sweeps."""
