"""TwinBERT in production: twin encoders, an embedding store and a scorer. Importing this imports nothing heavy."""

__version__ = "0.1.0"
