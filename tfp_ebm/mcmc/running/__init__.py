"""Running chains: the one loop over a kernel, its compilation, and how a run is cut into calls."""
