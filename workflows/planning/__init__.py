"""From cells to stages, units and what they cost.

Which work there is, in which order it is handed out, and how long it will take. No Ray.
"""
