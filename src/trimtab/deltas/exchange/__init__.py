"""Delta formats of others: slime's folders, Fireworks arc_v2, indices and values.

None of them is safe against every accident as trimtab's own is: they are for programs that read or
write nothing else. `import_delta` in `importing` turns each into a checkpoint.
"""
