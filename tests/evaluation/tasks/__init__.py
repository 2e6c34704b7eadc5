"""Tests of what a model is measured on."""
