"""A specification of windows and lives that can be run: see README.md beside this file."""
