"""The largest sizes that kernels take; a test compares them with csrc/shared/limits.h."""

# Planes that one call reads, and as many that it writes.
MOST_PLANES = 32
# Columns of a table's matrix: the bits of a mask.
MOST_COLUMNS = 64
# Octaves of a table.
MOST_OCTAVES = 999
# Planes that one launch on a GPU writes; a stage of more is launched again.
LAUNCH_OUTPUTS = 4
# Planes of a gradient that may lie over planes that a GPU reads.
MOST_OVERWRITTEN = 2
# Of Triton alone: residual planes; a velocity score has one, a full score two.
TRITON_RESIDUALS = 2
