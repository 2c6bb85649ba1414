"""Figures of one kind of threat each, and what all figures are made with."""
