"""What people and programs see of a run while it goes on.

Progress, events, the record of the run, the accounts of workers, the versions of the code. No row depends on it.
"""
