"""Optimizers that train the elements a mask selects, with memory that follows the mask."""
