"""Operations whose backward pass is written by hand, because the one that jax derives does more work or keeps more memory.

One operation a file. Each equals the plain form that its docstring names, and so does its gradient, to rounding
(tests/models/ops). Where a platform needs another formulation, `jax.lax.platform_dependent` chooses. What each gains: docs/speed.md.
precision.py has the types that they share.
"""
