"""CARVE, and the image regions that it keeps."""
