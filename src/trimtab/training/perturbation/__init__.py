"""Is the subnetwork more fragile than other weights? `probe.robustness` is the whole of it.

Nothing here imports torch before it is called.
"""
