"""Ask models questions that they were not trained on, and measure what they forgot.

`engine.evaluate` is the whole of it. Nothing here imports torch before it is called.
"""

from trimtab.training.evaluation.ends import end_token

__all__ = ["end_token"]
