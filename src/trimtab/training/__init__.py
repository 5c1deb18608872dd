"""Train a model so that its update can be measured; the only place that imports TRL.

Needs the train extra. Nothing here imports torch, transformers or TRL before it is called.
"""
