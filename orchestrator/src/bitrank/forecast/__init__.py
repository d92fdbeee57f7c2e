"""Memory, time and size of a run, before it is started."""
