"""Tests of the teachers, which are real servers on this machine."""
