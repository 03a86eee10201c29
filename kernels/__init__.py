"""Arrays in, arrays out: the numerical kernels, one folder per operator family.

Each family has the same parts: `reference.py` (the definition, NumPy or CuPy, any float dtype), `cpu.py` (the fast CPU
version), `cuda.py` with its `.cu` files (the fast CUDA version). The family's `__init__.py` holds the names that
dispatch between them by the device of the arguments. `nn` offers the families to programs without a tape, as plain
functions of arrays in either layout. Nothing here knows of tapes, modules or files, and nothing prints.
"""
