"""What maintainers run by hand, from the root of the repository: ``python -m scripts.architecture``."""
