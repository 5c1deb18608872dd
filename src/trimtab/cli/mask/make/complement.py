"""`trimtab mask make complement`: the same as `trimtab mask complement`."""

from trimtab.cli.mask.complement import command

__all__ = ["command"]
