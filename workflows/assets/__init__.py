"""Data and weights that a user fetches or verifies, and what comes along: sweeps by name.

The only room that downloads, and only when asked; beside it the catalogue of what a sweep file can name.
"""
