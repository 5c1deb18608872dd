"""Ask models questions that they were not trained on, and measure what they forgot.

`engine.evaluate` is the whole of it. Nothing here imports torch before it is called.
"""
