"""Access to the loaded libcaffe: layer parameters, blobs, dynamic symbols, and when a net is destroyed."""
