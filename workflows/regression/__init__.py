"""Old against new, image by image.

Snapshots of runs, baselines kept for later, differences between two runs, and the verdict whether anything got worse.
"""
