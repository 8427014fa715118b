"""The machine under a run: devices, precision, random states, processes and files."""
