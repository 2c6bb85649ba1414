"""Numbers with their uncertainty.

Proportions of images, paired comparisons of two runs or cells, several attacks as one attacker. Arrays in, numbers
out: no rows, no files.
"""
