"""Data and weights that a user fetches or verifies, and bundled sweeps by name.

The only package that downloads, and only on demand. The catalogue lists what a sweep file can name.
"""
