"""The base of all kernel families: devices, dispatch, window geometry, recycled memory, random bits."""
