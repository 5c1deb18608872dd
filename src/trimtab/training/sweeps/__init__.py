"""`trimtab sweep`: the runs of a grid, each in a process of its own, and one table of them all."""
