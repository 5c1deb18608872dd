"""Open a folder, a file or a hub id as lazy tensors; know what each tensor is by its name."""
