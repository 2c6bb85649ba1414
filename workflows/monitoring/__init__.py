"""What a person or a machine sees of a run while it goes on.

Progress, events, the record of the run, the accounts of workers, the versions that computed. No row depends on it.
"""
