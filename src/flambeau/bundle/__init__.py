"""The bundle: the folder that a build writes and a service reads."""
