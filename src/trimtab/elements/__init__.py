"""Pure functions on arrays of elements: dtypes and bits, what "changed" means, counts.

Nothing here opens a file, prints, or keeps state.
"""
