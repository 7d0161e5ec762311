"""Image files -> pixels: headers, the DALI decoder, and where the images of a pool live."""
