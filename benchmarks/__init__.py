"""Measurements: of the parts (`micro`), and of the whole on paper (`simulate`)."""
