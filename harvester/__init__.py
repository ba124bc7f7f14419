"""The edge harvester: runs hyperparameter searches on supercomputers without a network."""

__version__ = "0.1.0"
