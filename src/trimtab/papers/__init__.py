"""Papers: their claims, run again with the controls they lacked.

A layer of its own, above the rest: its runs are cells of a sweep, and what it measures of them are
results of the verbs, by names that the documentation lists. What a paper claims, and which runs
test it, is in `papers/<id>/` of the project.
"""
