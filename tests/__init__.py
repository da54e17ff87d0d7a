"""Tests of optfs, by level."""
