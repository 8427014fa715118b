"""Devices, precision, random states and processes: what a run happens on."""
