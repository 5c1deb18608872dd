"""`trimtab train RUN.toml`: a training run from a file, whole model or mask only.

`settings` reads and checks the file, `prepare` everything that it names, `execute` trains.
"""
