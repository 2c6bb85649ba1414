"""From cells to stages, units and their cost.

The work, the order in which it is handed out, and how long it will take. No Ray.
"""
