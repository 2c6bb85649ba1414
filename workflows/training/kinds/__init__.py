"""What can be trained: classifiers, denoisers, energy models.

Each kind has a config, an objective and a line in the registry.
"""
