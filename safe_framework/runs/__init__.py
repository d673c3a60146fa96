"""Whole runs of a recipe, what they leave behind, and their report."""
