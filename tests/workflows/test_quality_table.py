"""Means of image quality, with equal images counted and not averaged."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from defense.errors import InvalidInput
from workflows.results.quality import quality_frame


def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "defence": ["own"] * 3 + ["none"] * 2,
            "pair": ["clean, purified"] * 5,
            "psnr": [20.0, math.inf, 30.0, math.inf, math.inf],
            "ssim": [0.5, 1.0, 0.6, 1.0, 1.0],
            "lpips": [0.1, 0.0, 0.2, math.nan, math.nan],
        }
    )


def test_means_deviations_and_equal_images() -> None:
    table = quality_frame(rows(), ["defence", "pair"])
    own, none = table.to_dict("records")
    assert (own["defence"], own["pair"], own["images"], own["identical"]) == ("own", "clean, purified", 3, 1)
    assert (own["psnr"], own["psnr_std"]) == pytest.approx((25.0, math.sqrt(50)))
    assert (own["ssim"], own["ssim_std"]) == pytest.approx((0.7, np.std([0.5, 1, 0.6], ddof=1)))
    assert (own["lpips"], own["lpips_std"]) == pytest.approx((0.1, 0.1))
    # A purifier that changes nothing.
    assert (none["images"], none["identical"], none["psnr"], none["ssim"]) == (2, 2, math.inf, 1.0)
    assert math.isnan(none["psnr_std"]) and math.isnan(none["lpips"])


def test_a_measure_of_some_images_only_and_missing_columns_are_refused() -> None:
    with pytest.raises(InvalidInput, match="lpips is there for some images of"):
        quality_frame(rows(), ["pair"])
    with pytest.raises(InvalidInput, match="ssim"):
        quality_frame(rows().drop(columns="ssim"), ["defence"])
    with pytest.raises(InvalidInput, match="needs groups"):
        quality_frame(rows(), [])
