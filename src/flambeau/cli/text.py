"""Text that may hold what a file's author wrote, made fit for a terminal."""


def printable(text: str) -> str:
    """The text with a question mark for whatever would steer a terminal. Names of tensors come from the file."""
    return "".join(char if char.isprintable() else "?" for char in text)
