"""What predicts a mask: scores for `trimtab.masks.selection`, one module for each family."""
