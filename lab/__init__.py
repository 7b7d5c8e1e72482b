"""Stepladder's lab: hosts that are containers on one machine, reached over SSH like any VM."""
