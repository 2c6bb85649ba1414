"""Single images of a cell: which are worth a look, what the defence was given, and what each draw made of it.

What the store holds is read: originals, adversarial and corrupted images, answers. What it does not hold, the
purified image of every draw and the states on the way, is computed again from the keys of the randomness.
"""

from workflows.images.choose import Chosen, Judged, choose, judged
from workflows.images.pictures import Pixels, amplified, png, smaller
from workflows.images.single import Single, Stored, find_cell, single, stored

__all__ = [
    "Chosen",
    "Judged",
    "Pixels",
    "Single",
    "Stored",
    "amplified",
    "choose",
    "find_cell",
    "judged",
    "png",
    "single",
    "smaller",
    "stored",
]
