"""What the layers reach in the process of the libcaffe that is loaded: blocks, blobs, symbols, dead nets."""
