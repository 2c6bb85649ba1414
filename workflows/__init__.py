"""What the driver does: sweep files, plans, the Ray pool, the store, tables, MLflow, training, the CLI."""

# This package is part of puregrid.
