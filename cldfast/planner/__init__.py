"""The planner: turns a process and a time grid into the affine stages of a `Plan`."""
