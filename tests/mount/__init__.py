"""Tests: mount."""
