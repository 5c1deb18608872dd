"""The mask: which elements of which tensors, one bit each; made, kept in a file, and checked."""
