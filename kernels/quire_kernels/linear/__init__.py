"""Linear projections: the matrix-vector product of a batch of one."""
