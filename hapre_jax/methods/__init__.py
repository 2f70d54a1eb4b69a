"""Methods: each fills in `framework.Method` from a config."""

from hapre_jax.methods import hapre, plain

METHODS = {"hapre": hapre.make, "plain": plain.make}
