"""pimsim, a virtual board: an array, the chip and board around it, faults, and ports to serve it at."""
