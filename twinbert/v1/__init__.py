"""Stubs generated from protos/twinbert/v1 by `make protos`; do not edit."""
