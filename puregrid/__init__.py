"""The front door of puregrid: its public names."""
