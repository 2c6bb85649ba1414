"""MLflow: what the rows of a sweep say, for people who look at runs.

Derived from rows by the driver alone; never their source.
"""
