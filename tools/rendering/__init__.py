"""One function per table in README and docs/, each from one committed result."""
