"""Imported by the process from which those of `processes` are forked."""

from contextlib import suppress

from tests.sync.processes import warm_up

with suppress(ImportError):
    import s3fs  # noqa: F401

warm_up()
