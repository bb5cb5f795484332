"""What the user gave, to a bundle: told, found in the cache, or built by a process of its own."""
