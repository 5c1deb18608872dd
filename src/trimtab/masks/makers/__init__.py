"""What predicts a mask: scores for `trimtab.masks.selection.select`, one module for each family."""
