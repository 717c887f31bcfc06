"""File formats that fastbatch reads besides data sets."""
