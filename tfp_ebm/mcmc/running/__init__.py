"""The loop over the steps of a kernel, its compilation, and the division of a run into calls."""
