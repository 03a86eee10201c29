"""What every kernel family stands on: devices, dispatch, window geometry, recycled memory, random bits."""
