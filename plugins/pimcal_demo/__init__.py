"""The demonstration on handwritten digits, as a plugin that adds the command `pimcal demo`."""
