"""What setup.py needs to know about the machine it builds on. Part of the sdist, never of a wheel."""
