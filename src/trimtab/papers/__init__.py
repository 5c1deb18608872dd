"""Papers: their claims, run again with the controls they lacked.

A layer of its own, above the rest: it trains by `trimtab train`, asks by `trimtab evaluate`, and
measures by names that the documentation lists. What a paper claims, and which runs test it, is in
`papers/<id>/` of the project.
"""
