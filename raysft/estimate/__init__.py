"""Memory, floating-point operations, traffic and time of a run, as arithmetic: no torch, no Ray."""
