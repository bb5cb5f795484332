"""The version, in a module without imports: the build reads it here."""

VERSION = "0.1.0"
