"""What ties everything: the only place that knows sources, formats, mergers and comparisons at once. The command line opens what it needs
from here, one module for each thing that it does; every function opens what it needs and closes it again, errors are core.errors with
their cures.
"""
