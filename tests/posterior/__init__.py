"""One suite that every posterior structure passes."""
