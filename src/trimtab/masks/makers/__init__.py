"""Predictors of masks: scores for `trimtab.select`, one module for each family."""
