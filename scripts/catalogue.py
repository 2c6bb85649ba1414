"""Write ``workflows/assets/catalogue.zlib``, by which ``puregrid list`` answers without importing torch.

Needed after an attack, denoiser format or purifier, or one of its fields, was added or changed; a test says so.

    python -m scripts.catalogue
"""

from __future__ import annotations

import zlib

from workflows.assets.catalogue import WRITTEN, written

if __name__ == "__main__":
    WRITTEN.write_bytes(zlib.compress(written().encode(), 9))
