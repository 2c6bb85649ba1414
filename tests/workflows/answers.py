"""Right answers of images x draws, as hypothesis draws them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Matrix = npt.NDArray[np.bool_]


def matrices(max_images: int = 6, max_draws: int = 40) -> st.SearchStrategy[Matrix]:
    shape = st.tuples(st.integers(1, max_images), st.integers(1, max_draws))
    return shape.flatmap(lambda s: hnp.arrays(np.bool_, s, elements=st.booleans()))
