"""The demo: a corpus of the Python API, encoded, served, searched and scored."""
