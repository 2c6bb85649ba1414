"""Write ``workflows/assets/catalogue.json``, by which ``puregrid list`` answers without importing torch.

Needed after an attack, denoiser format or purifier, or one of its fields, was added or changed; a test says so.

    python -m scripts.catalogue
"""

from __future__ import annotations

from workflows.assets.catalogue import WRITTEN, written

if __name__ == "__main__":
    WRITTEN.write_text(written(), encoding="utf-8")
