"""Papers: their claims, tested again with the controls they lacked.

Runs are cells of sweeps, and measures are figures of results. The claims of a paper and the runs
that test them are in `papers/<id>/` of the project.
"""
