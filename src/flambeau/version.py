"""The version, in a module without imports: packaging reads it from here."""

VERSION = "0.1.0"
