"""MLflow: the results of a sweep as runs.

Derived from rows by the driver alone; never their source.
"""
