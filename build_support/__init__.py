"""What setup.py needs to know about the build machine. Part of the sdist, never of a wheel."""
