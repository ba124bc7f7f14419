"""The payload runner: runs payloads inside a batch allocation and talks only through files.

Needs nothing but Python 3.9 and its standard library (watchdog and mpi4py are used when
present), travels as one zipapp, and never imports ``harvester``.
"""

__version__ = "0.1.0"
