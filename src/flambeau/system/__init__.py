"""The machine and the operating system: processes, files, cores and memory."""
