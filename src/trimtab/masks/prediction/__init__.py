"""How well one mask predicts another."""

from trimtab.masks.prediction.engine import score_prediction

__all__ = ["score_prediction"]
