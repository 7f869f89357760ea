"""Tests on real models and data, where these are at hand."""
