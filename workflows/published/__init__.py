"""Published figures as data, beside those that a sweep measured.

Every published value has its source and its certainty; none is ever used as if it were measured.
"""
