"""What predicts a mask: scores from which `trimtab.select` selects, one module for each family."""
