"""What one worker does with one unit of work: specs, data sets, attacks, and the functions spec -> Arrow table."""

# This package is part of puregrid.
