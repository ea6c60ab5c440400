"""Sweeps: many jobs out of one config, that differ in some keys, and of which the best is served.

`config` is what a user writes, `space` what children it makes, `search` which one comes next, `stopping`
which are not worth going on with, `sweeper` what a dispatcher does about it. None of them remembers anything:
all of it follows from the config and from what the store has recorded of the children.
"""
