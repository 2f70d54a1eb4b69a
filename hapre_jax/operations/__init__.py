"""Pre-processing operations: what an action is, what it does, what lies next to it.

`Operation` is what the framework asks for. `KeyArea`, `Mask` and `Zoom` act on one box,
read off a map; `Rotation`, `Gamma`, `Contrast`, `Window` and `Sharpening` on `Numbers`;
`Hybrid` combines several.
"""

from hapre_jax.operations.hybrid import Hybrid
from hapre_jax.operations.intensity import Contrast, Gamma, Window
from hapre_jax.operations.key_area import KeyArea
from hapre_jax.operations.mask import Mask
from hapre_jax.operations.numbers import Numbers
from hapre_jax.operations.operation import Operation
from hapre_jax.operations.rotation import Rotation
from hapre_jax.operations.sharpening import Sharpening
from hapre_jax.operations.zoom import Zoom

__all__ = [
    "Contrast",
    "Gamma",
    "Hybrid",
    "KeyArea",
    "Mask",
    "Numbers",
    "Operation",
    "Rotation",
    "Sharpening",
    "Window",
    "Zoom",
]
