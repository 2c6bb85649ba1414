"""Numbers with their uncertainty.

Proportions of images, paired differences of two runs or cells with their tests, corrections for many tests, the drop
that a test can find, several attacks as one attacker. Arrays in, numbers out: no rows, no files.
"""
