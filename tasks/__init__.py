"""The work of one worker on one unit: specs, data sets, attacks, and the functions spec -> Arrow table."""

# This package is part of puregrid.
