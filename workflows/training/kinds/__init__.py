"""What can be trained: classifiers, denoisers, energy models.

Each kind is a config, an objective and a line in the registry.
"""
